use std::os::unix::fs::PermissionsExt as _;

use nexus_proto::{job::Context, time::Timestamp};

use super::*;
use crate::admit::tests::Scene;

fn policy(text: &str) -> LocalPolicy {
    parse(Path::new("policy.toml"), text).unwrap()
}

fn job(argv: &[&str]) -> Job {
    Scene::new(Timestamp(0)).job(Timestamp(0), argv)
}

fn script() -> Job {
    Job {
        action: Action::Script {
            content: bytes::Bytes::from_static(b"true\n"),
            args: Vec::new(),
            context: Context::default(),
        },
        ..job(&["true"])
    }
}

fn with_env(mut job: Job, name: &str) -> Job {
    if let Action::Command { context, .. } = &mut job.action {
        context.env.push((name.to_owned(), "x".to_owned()));
    }
    job
}

#[test]
fn what_no_rule_allows_is_denied() {
    let all = policy("[[allow]]\nwho = \"*\"\nrun = \"*\"\nas = \"*\"\n");
    assert_eq!(all.judge(&job(&["true"]), "root"), Ok(()));
    assert_eq!(all.judge(&script(), "nobody"), Ok(()));
    for nothing in ["", "deny = \"everything\"\n", "allow = []\n"] {
        policy(nothing).judge(&job(&["true"]), "root").unwrap_err();
    }
    let said = policy("deny = \"everything\"")
        .judge(&script(), "root")
        .unwrap_err();
    assert_eq!(said, "the local policy policy.toml denies everything");
}

#[test]
fn each_part_of_a_rule_counts() {
    let rules = policy(
        "[[allow]]\nwho = [\"ann\"]\nrun = [\"/usr/bin/id\"]\nas = [\"root\", \"web\"]\n
         [[allow]]\nwho = [\"bob\"]\nrun = [\"script\"]\nas = [\"web\"]\n",
    );
    let id = || job(&["/usr/bin/id", "-u"]);
    assert_eq!(rules.judge(&id(), "root"), Ok(()));
    assert_eq!(rules.judge(&id(), "web"), Ok(()));
    let said = rules.judge(&id(), "db").unwrap_err();
    assert_eq!(
        said,
        "the local policy policy.toml has no rule that lets ann run `/usr/bin/id` as db"
    );
    let of_bob = |job: Job| Job {
        operator: "bob".to_owned(),
        ..job
    };
    rules.judge(&of_bob(id()), "root").unwrap_err();
    assert_eq!(rules.judge(&of_bob(script()), "web"), Ok(()));
    rules.judge(&of_bob(script()), "root").unwrap_err();
    rules.judge(&script(), "web").unwrap_err();
    // Found by PATH, which the job or the machine may set, it could be any program.
    for other in ["id", "/usr/bin/../bin/id", "/usr/bin/id "] {
        rules.judge(&job(&[other]), "root").unwrap_err();
    }
    let said = rules.judge(&job(&["id"]), "root").unwrap_err();
    assert!(
        said.ends_with("; its rules name programs by their path"),
        "{said}"
    );
}

#[test]
fn a_named_program_runs_in_no_environment_that_makes_it_another() {
    let named = "[[allow]]\nwho = \"*\"\nrun = \"/bin/id\"\nas = \"*\"\n";
    let preload = || with_env(job(&["/bin/id"]), "LD_PRELOAD");
    policy(named).judge(&preload(), "root").unwrap_err();
    let with = |env: &str| policy(&format!("{named}env = {env}\n"));
    with("[\"LANG\"]").judge(&preload(), "root").unwrap_err();
    let lang = with_env(job(&["/bin/id"]), "LANG");
    assert_eq!(with("[\"LANG\"]").judge(&lang, "root"), Ok(()));
    assert_eq!(with("\"*\"").judge(&preload(), "root"), Ok(()));
    let any = policy("[[allow]]\nwho = \"*\"\nrun = \"command\"\nas = \"*\"\n");
    assert_eq!(any.judge(&preload(), "root"), Ok(()));
    any.judge(&script(), "root").unwrap_err();
}

#[test]
fn all_mistakes_are_told_with_line_and_key() {
    let text = "denny = 1\n[[allow]]\nwho = []\nrun = \"apt\"\n[[allow]]\nwho = \"*\"\nruns = 3\n";
    let faults = parse(Path::new("p.toml"), text).unwrap_err().to_string();
    for part in [
        "p.toml:1: denny: unknown key",
        "p.toml:3: allow.who: is a text or a list",
        "p.toml:4: allow.run: `apt` is neither",
        "p.toml:2: allow.as: is missing",
        "p.toml:7: allow.runs: unknown key",
        "p.toml:5: allow.run: is missing",
        "p.toml:5: allow.as: is missing",
    ] {
        assert!(faults.contains(part), "{part} in\n{faults}");
    }
    for bad in [
        "deny = \"something\"",
        "deny = true",
        "allow = 3",
        "allow = [3]",
        "[allow]\nwho = \"*\"\n",
        "deny = \"everything\"\n[[allow]]\nwho=\"*\"\nrun=\"*\"\nas=\"*\"\n",
        "deny = ",
    ] {
        parse(Path::new("p.toml"), bad).unwrap_err();
    }
}

#[test]
fn only_a_file_that_nobody_else_writes_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    let own = rustix::process::geteuid().as_raw();
    let load = |owner: u32| load(&path, owner).map_err(|error| error.to_string());
    assert!(load(own).unwrap_err().contains("there is no local policy"));
    fs::write(&path, "deny = \"everything\"\n").unwrap();
    load(own).unwrap();
    assert!(load(own + 1).unwrap_err().contains("not to root"));
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&path, 0o664);
    assert!(load(own).unwrap_err().contains("policy.toml has mode 0664"));
    mode(&path, 0o644);
    mode(dir.path(), 0o777);
    assert!(load(own).unwrap_err().contains("has mode 0777"));
    mode(dir.path(), 0o755);
    load(own).unwrap();
    fs::rename(&path, dir.path().join("other")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("other"), &path).unwrap();
    load(own).unwrap_err();
}

#[test]
fn the_policy_that_comes_with_the_package_lets_every_operator_run_anything() {
    let shipped = include_str!("../../../packaging/policy.toml");
    let policy = policy(shipped);
    assert_eq!(policy.judge(&job(&["true"]), "root"), Ok(()));
    assert_eq!(policy.judge(&script(), "www-data"), Ok(()));
}
