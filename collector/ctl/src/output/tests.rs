use super::*;

fn style(format: Format) -> Style {
    Style {
        format,
        headers: true,
        paint: Paint::PLAIN,
        terminal: false,
        now: Timestamp(1_700_000_000_000),
        null: "<none>",
        name_prefix: "node/".to_owned(),
        name_fields: vec![0],
    }
}

fn print(style: Style, rows: &[Vec<Cell>]) -> String {
    let fields = vec![
        Field::new("name", Shown::Always),
        Field::new("last_seen", Shown::Always),
        Field::titled("memory_bytes", "MEMORY", Shown::Wide),
        Field::new("labels", Shown::Never),
    ];
    let mut out = Vec::new();
    let mut printer = Printer::new(style, fields, &mut out).unwrap();
    for row in rows {
        printer.row(row).unwrap();
    }
    assert_eq!(printer.finish().unwrap(), rows.len() as u64);
    String::from_utf8(out).unwrap()
}

fn rows() -> Vec<Vec<Cell>> {
    let labels = BTreeMap::from([("role".to_owned(), "web".to_owned())]);
    vec![
        vec![
            Cell::text("web-1"),
            Cell::Time(Timestamp(1_699_999_990_000)),
            Cell::Integer(7),
            Cell::Labels(labels),
        ],
        vec![
            Cell::text("db,\n\"x\""),
            Cell::Null,
            Cell::Null,
            Cell::Labels(BTreeMap::new()),
        ],
    ]
}

#[test]
fn tables() {
    assert_eq!(
        print(style(Format::Table), &rows()),
        "NAME       LAST-SEEN\nweb-1      10s\ndb,\\n\"x\"   <none>\n"
    );
    assert_eq!(
        print(style(Format::Wide), &rows()),
        "NAME       LAST-SEEN   MEMORY\nweb-1      10s              7\ndb,\\n\"x\"   <none>      <none>\n"
    );
    assert_eq!(print(style(Format::Table), &[]), "");
    let bare = Style {
        headers: false,
        ..style(Format::Table)
    };
    assert_eq!(
        print(bare, &rows()),
        "web-1      10s\ndb,\\n\"x\"   <none>\n"
    );
}

#[test]
fn long_tables_stream_with_the_first_widths() {
    let row = |name: &str| {
        vec![
            Cell::text(name),
            Cell::Null,
            Cell::Null,
            Cell::Labels(BTreeMap::new()),
        ]
    };
    let rows: Vec<_> = (0..table::SAMPLE + 3)
        .map(|n| row(&format!("n{n}")))
        .collect();
    let text = print(style(Format::Table), &rows);
    assert_eq!(text.lines().count(), table::SAMPLE + 4);
    let columns: Vec<_> = text
        .lines()
        .skip(1)
        .map(|line| line.find('<').unwrap())
        .collect();
    assert!(columns.iter().all(|column| *column == columns[0]));
}

#[test]
fn json_and_lines() {
    let parsed: Value = serde_json::from_str(&print(style(Format::Json), &rows())).unwrap();
    assert_eq!(parsed[0]["last_seen"], "2023-11-14T22:13:10.000Z");
    assert_eq!(parsed[0]["labels"]["role"], "web");
    assert_eq!(parsed[1]["last_seen"], Value::Null);
    assert_eq!(print(style(Format::Json), &[]), "[]\n");
    assert_eq!(print(style(Format::Jsonl), &rows()).lines().count(), 2);
    let keys: Vec<_> = parsed[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["name", "last_seen", "memory_bytes", "labels"]);
}

#[test]
fn yaml_csv_and_names() {
    let yaml = print(style(Format::Yaml), &rows());
    let parsed: Vec<Value> = serde_yaml_ng::from_str(&yaml).unwrap();
    assert_eq!(parsed[1]["name"], "db,\n\"x\"");
    assert_eq!(
        print(style(Format::Csv), &rows()),
        "name,last_seen,memory_bytes,labels\nweb-1,2023-11-14T22:13:10.000Z,7,role=web\n\"db,\n\"\"x\"\"\",,,\n"
    );
    assert_eq!(print(style(Format::Name), &rows()[..1]), "node/web-1\n");
}

#[test]
fn equal_column_names_both_stay() {
    let fields = vec![
        Field::new("a", Shown::Always),
        Field::new("a", Shown::Always),
    ];
    let mut out = Vec::new();
    let mut printer = Printer::new(style(Format::Jsonl), fields, &mut out).unwrap();
    printer
        .row(&[Cell::Integer(1), Cell::Real(f64::INFINITY)])
        .unwrap();
    printer.finish().unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "{\"a\":1,\"a_2\":\"inf\"}\n"
    );
}

#[test]
fn a_terminal_sees_no_control_characters_in_any_format() {
    let evil = "a\u{1b}]52;c;eA==\u{7}\u{9b}2J\u{7f}\u{202e}z";
    let rows = vec![vec![
        Cell::text(evil),
        Cell::Null,
        Cell::text(evil),
        Cell::Labels(BTreeMap::from([(evil.to_owned(), evil.to_owned())])),
    ]];
    for format in [
        Format::Table,
        Format::Wide,
        Format::Json,
        Format::Jsonl,
        Format::Yaml,
        Format::Csv,
        Format::Name,
    ] {
        let shown = print(
            Style {
                terminal: true,
                ..style(format)
            },
            &rows,
        );
        let acting = shown
            .chars()
            .find(|c| crate::visible::acts(*c) && *c != '\n');
        assert_eq!(acting, None, "{format:?}: {shown:?}");
    }
    // Programs get every byte.
    let shown = print(style(Format::Csv), &rows);
    assert!(shown.contains(evil), "{shown:?}");
}
