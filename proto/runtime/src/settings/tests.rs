use std::fs;

use tempfile::TempDir;

use super::*;

const KEYS: &[Key] = &[
    key(
        "name",
        Kind::Text,
        "",
        "",
        "what the node asks to be called",
    ),
    key(
        "state_dir",
        Kind::Path,
        "/var/lib/nexus/agent",
        "",
        "where state is kept",
    ),
    key(
        "interval",
        Kind::Duration,
        "10s",
        "",
        "between two samplings",
    ),
    key("addresses", Kind::List, "", "host:port", "collectors"),
    key("labels", Kind::Table, "", "", "the node's labels"),
    key(
        "log.format",
        Kind::Choice(&["text", "json"]),
        "text",
        "",
        "how the log is written",
    ),
    key(
        "spool.metrics_bytes",
        Kind::Bytes,
        "64MiB",
        "bytes",
        "bound of the metrics lane",
    ),
    key(
        "exec.enabled",
        Kind::Boolean,
        "true",
        "",
        "whether jobs run",
    ),
    key(
        "exec.parallel",
        Kind::Integer { min: 1, max: 64 },
        "4",
        "jobs",
        "how many run at once",
    ),
];

const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    unit: &'static str,
    about: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        unit,
        about,
    }
}

struct Folder(TempDir);

impl Folder {
    fn new(file: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("agent.toml"), file).unwrap();
        Self(folder)
    }

    fn drop_in(self, name: &str, text: &str) -> Self {
        let dir = self.0.path().join("agent.toml.d");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), text).unwrap();
        self
    }

    fn sources(&self) -> Sources {
        let mut sources = Sources::new("NEXUS_AGENT", &self.0.path().join("agent.toml"), true);
        sources.env.clear();
        sources
    }

    fn faults(&self) -> Vec<String> {
        let Faults(faults) = load(KEYS, &self.sources(), Strictness::Refuse).unwrap_err();
        let folder = format!("{}/", self.0.path().display());
        faults
            .iter()
            .map(|fault| fault.to_string().replace(&folder, ""))
            .collect()
    }
}

fn refuse(sources: &Sources) -> Settings {
    load(KEYS, sources, Strictness::Refuse).unwrap().settings
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

#[test]
fn a_mistake_is_one_line_whatever_it_quotes() {
    let file = "interval = '''5\nx'''\n\"a\\nb\" = 1\n";
    assert_eq!(
        Folder::new(file).faults(),
        [
            "agent.toml:1: interval: `5\\nx` is no duration such as 10s or 1h30m",
            "agent.toml:3: a\\nb: unknown key",
        ]
    );
}

#[test]
fn defaults_hold_without_sources() {
    let settings = refuse(&Sources::default());
    assert_eq!(settings.text("name"), "");
    assert_eq!(
        settings.path("state_dir"),
        Path::new("/var/lib/nexus/agent")
    );
    assert_eq!(settings.duration("interval"), Duration::from_secs(10));
    assert!(settings.list("addresses").is_empty() && settings.table("labels").is_empty());
    assert_eq!(settings.bytes("spool.metrics_bytes"), 64 << 20);
    assert!(settings.boolean("exec.enabled"));
    assert_eq!(settings.count("exec.parallel"), 4);
    assert_eq!(settings.origin("name"), &Origin::Default);
}

#[test]
fn each_layer_overrides_the_one_below() {
    let folder =
        Folder::new("name = \"file\"\n[log]\nformat = \"json\"\n[labels]\na = \"1\"\nb = \"1\"\n")
            .drop_in("20-b.toml", "name = \"late\"\nlabels.b = \"2\"\n")
            .drop_in("10-a.toml", "name = \"early\"\nexec.parallel = 8\n")
            .drop_in("ignored.txt", "nonsense");
    let mut sources = folder.sources();
    let settings = refuse(&sources);
    assert_eq!(settings.text("name"), "late");
    assert_eq!(settings.text("log.format"), "json");
    assert_eq!(settings.integer("exec.parallel"), 8);
    let labels: Vec<_> = settings
        .table("labels")
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(labels, ["a=1", "b=2"]);

    sources.env = pairs(&[
        ("NEXUS_AGENT_NAME", "variable"),
        ("NEXUS_AGENT_LOG_FORMAT", "text"),
        ("NEXUS_AGENT_LABELS", "c = 3, d=4=5"),
        ("OTHER_NAME", "nobody's"),
    ]);
    let settings = refuse(&sources);
    assert_eq!(settings.text("name"), "variable");
    assert_eq!(settings.text("log.format"), "text");
    assert_eq!(settings.table("labels")["d"], "4=5");
    assert_eq!(settings.table("labels").len(), 2);

    sources.flags = pairs(&[
        ("name", "flag"),
        ("addresses", "a:1, b:2"),
        ("name", "last"),
    ]);
    let settings = refuse(&sources);
    assert_eq!(settings.text("name"), "last");
    assert_eq!(settings.list("addresses"), ["a:1", "b:2"]);
    assert_eq!(settings.origin("name"), &Origin::Flag);
    assert_eq!(
        settings.origin("log.format").to_string(),
        "$NEXUS_AGENT_LOG_FORMAT"
    );
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_places() {
    let folder = Folder::new(
        "name = 3\n\n[log]\nfromat = \"json\"\n[spool]\nmetrics_bytes = \"many\"\n[exec]\nparallel = 65\nenabled = \"yes\"\n",
    )
    .drop_in("a.toml", "interval = 10\nlog = 1\n[tls]\nmin = \"1.3\"\n[labels]\nx = 1\n");
    assert_eq!(
        folder.faults(),
        [
            "agent.toml:1: name: a whole number instead of a text in quotes",
            "agent.toml:4: log.fromat: unknown key; did you mean `log.format`?",
            "agent.toml:6: spool.metrics_bytes: `many` is no size such as 64MiB",
            "agent.toml:8: exec.parallel: 65 is not within 1 to 64",
            "agent.toml:9: exec.enabled: a text instead of true or false",
            "agent.toml.d/a.toml:1: interval: a whole number instead of a duration such as \"10s\"",
            "agent.toml.d/a.toml:2: log: is a section, not a key",
            "agent.toml.d/a.toml:4: tls.min: unknown key",
            "agent.toml.d/a.toml:6: labels.x: only text in quotes can stand here",
        ]
    );
}

#[test]
fn broken_grammar_is_a_fault_with_its_line_and_the_rest_is_still_checked() {
    let folder = Folder::new("name = \"a\"\ninterval = = 3\n[log]\nfromat = \"x\"\n");
    let faults = folder.faults();
    assert!(faults[0].starts_with("agent.toml:2: "), "{faults:?}");
    assert!(
        faults
            .iter()
            .any(|fault| fault.starts_with("agent.toml:4: log.fromat")),
        "{faults:?}"
    );
}

#[test]
fn broken_grammar_is_not_told_again_as_a_key_without_a_name() {
    let faults = Folder::new("[[[\n").faults();
    assert!(!faults.is_empty());
    for fault in &faults {
        assert!(!fault.contains("unknown key"), "{faults:?}");
    }
    let faults = Folder::new("\"\" = 1\n").faults();
    assert!(faults[0].contains("unknown key"), "{faults:?}");
}

#[test]
fn a_named_file_must_exist_and_the_usual_one_need_not() {
    let folder = Folder::new("");
    let mut sources = folder.sources();
    sources.file = Some(folder.0.path().join("absent.toml"));
    let faults = load(KEYS, &sources, Strictness::Refuse).unwrap_err();
    assert!(
        faults
            .to_string()
            .contains("absent.toml: cannot be read: No such file"),
        "{faults}"
    );
    sources.file_required = false;
    refuse(&sources);
}

#[test]
fn warnings_fall_back_to_the_layer_below() {
    let folder =
        Folder::new("interval = \"1m\"\nnew_key = 1\n").drop_in("a.toml", "interval = 5\n");
    let mut sources = folder.sources();
    sources.env = pairs(&[
        ("NEXUS_AGENT_INTERVAL", "soon"),
        ("NEXUS_AGENT_PORT", "tcp://10.0.0.1"),
    ]);
    let loaded = load(KEYS, &sources, Strictness::Warn).unwrap();
    assert_eq!(
        loaded.settings.duration("interval"),
        Duration::from_secs(60)
    );
    let whys: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(whys.len(), 4, "{whys:?}");
    assert_eq!(
        whys[2],
        "$NEXUS_AGENT_INTERVAL: interval: `soon` is no duration such as 10s or 1h30m"
    );
    assert_eq!(whys[3], "$NEXUS_AGENT_PORT: stands for no key");

    // A flag is typed by whoever starts the program now: its mistakes are never passed over.
    sources.flags = pairs(&[("exec.parallel", "0")]);
    assert!(load(KEYS, &sources, Strictness::Warn).is_err());
}

#[test]
fn strangers_in_the_environment_are_no_reason_to_refuse() {
    let sources = Sources {
        env_prefix: "NEXUS_AGENT".to_owned(),
        env: pairs(&[
            ("NEXUS_AGENT_SERVICE_HOST", "10.0.0.1"),
            ("NEXUS_AGENT_CONFIG", "x"),
        ]),
        env_ignored: vec!["NEXUS_AGENT_CONFIG".to_owned()],
        ..Sources::default()
    };
    let loaded = load(KEYS, &sources, Strictness::Refuse).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
}

#[test]
fn sizes_and_durations() {
    for (text, size) in [
        ("0", 0),
        ("1", 1),
        ("10 KiB", 10 << 10),
        ("2M", 2 << 20),
        ("1gib", 1 << 30),
    ] {
        assert_eq!(Kind::Bytes.parse(text), Ok(Value::Bytes(size)), "{text}");
    }
    for text in [
        "",
        "-1",
        "1X",
        "MiB",
        "1.5M",
        "99999999999999999999",
        "99999999TiB",
    ] {
        assert!(Kind::Bytes.parse(text).is_err(), "{text}");
    }
    assert_eq!(
        Kind::Duration.parse("0"),
        Ok(Value::Duration(Duration::ZERO))
    );
    assert!(Kind::Duration.parse("10").is_err());
}

#[test]
fn printed_defaults_load_as_the_defaults() {
    let text = print_defaults(KEYS);
    assert!(
        text.starts_with("# what the node asks to be called\nname = \"\"\n"),
        "{text}"
    );
    assert!(
        text.contains("[exec]\n# whether jobs run\nenabled = true\n"),
        "{text}"
    );
    assert!(
        text.contains("# how many run at once (1 to 64) [jobs]\nparallel = 4\n"),
        "{text}"
    );
    assert!(
        text.contains("# how the log is written (text | json)\nformat = \"text\""),
        "{text}"
    );
    assert!(text.contains("metrics_bytes = \"64MiB\""), "{text}");
    let folder = Folder::new(&text);
    let (loaded, defaults) = (refuse(&folder.sources()), refuse(&Sources::default()));
    assert_eq!(loaded.to_string(), defaults.to_string());
    assert!(matches!(loaded.origin("exec.parallel"), Origin::File(_, line) if *line > 1));
}

#[test]
fn values_show_as_toml() {
    let settings = refuse(&Sources {
        flags: pairs(&[
            ("name", "a\"\\\n"),
            ("labels", "x/y=1"),
            ("interval", "90m"),
        ]),
        ..Sources::default()
    });
    let folder = Folder::new(&settings.to_string());
    assert_eq!(refuse(&folder.sources()).to_string(), settings.to_string());
    assert!(settings.to_string().contains("interval = \"1h30m\""));
}
