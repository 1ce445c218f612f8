//! Functions that are not SQLite's own.

use nexus_store::Value;

use crate::{text, world};

#[tokio::test]
async fn functions_give_what_sqlite_gives() {
    let world = world().await;
    for (sql, expected) in [
        ("instr('äbc', 'c')", Value::Integer(3)),
        ("instr(x'0001ff', x'ff')", Value::Integer(3)),
        ("instr('abc', '')", Value::Integer(1)),
        ("instr('aabaabaac', 'aabaac')", Value::Integer(4)),
        ("instr('abc', 'd')", Value::Integer(0)),
        ("instr(NULL, 'd')", Value::Null),
        ("instr(12345, 34)", Value::Integer(3)),
        ("replace('aXbX', 'X', '--')", text("a--b--")),
        ("replace('aaa', 'aa', 'b')", text("ba")),
        ("replace('abc', '', 'x')", text("abc")),
        ("replace(1.5, '.', ',')", text("1,5")),
        ("trim('  a ')", text("a")),
        ("ltrim('xyxa', 'xy')", text("a")),
        ("rtrim('axyx', 'xy')", text("a")),
        ("trim('a', NULL)", Value::Null),
        ("'Web-1' LIKE 'web-_'", Value::Integer(1)),
        ("'a%b' LIKE 'a\\%b' ESCAPE '\\'", Value::Integer(1)),
        ("'axb' LIKE 'a\\%b' ESCAPE '\\'", Value::Integer(0)),
        ("'mississippi' LIKE '%iss%pi'", Value::Integer(1)),
        ("'mississippi' LIKE '%iss%pix'", Value::Integer(0)),
        ("'Ä' LIKE 'ä'", Value::Integer(0)),
        ("'' LIKE '%'", Value::Integer(1)),
        ("'abc' GLOB 'A*'", Value::Integer(0)),
        ("'abc' GLOB 'a?[a-d]'", Value::Integer(1)),
        ("'a]c' GLOB 'a[]x]c'", Value::Integer(1)),
        ("'abc' GLOB 'a[^b]c'", Value::Integer(0)),
        ("'a-c' GLOB 'a[b-]c'", Value::Integer(1)),
        ("'abc' GLOB 'a[bc'", Value::Integer(0)),
    ] {
        assert_eq!(
            world.all(&format!("SELECT {sql}")).await,
            [[expected]],
            "{sql}"
        );
    }
    let why = world.refusal("SELECT [a\nb] FROM nodes").await;
    assert_eq!(why, "no such column: a\\nb (line 1, column 8)");
}
