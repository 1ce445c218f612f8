//! What the pages show of each program at work, and of each configuration file. The tests have the programs' own command
//! lines and tables of keys take all of it.

use super::section::Example;

/// Of a program's page: what it does, and the words after the program's name.
type Commands = &'static [(&'static str, &'static [&'static str])];

const AGENT: Commands = &[
    (
        "Make this machine a node, with a token that `nexusctl token create` printed:",
        &["enroll", "@/root/token"],
    ),
    (
        "The same with the token in /etc/nexus/enrol.token, or of the service manager:",
        &["enroll"],
    ),
    ("Say what became of the session:", &["status"]),
    ("Find out what is wrong:", &["doctor"]),
    (
        "Find the mistakes of a configuration before it is rolled out:",
        &["--config", "agent.toml", "check-config"],
    ),
    (
        "Run an agent of one's own, without root:",
        &["--state-dir", "agent", "--set", "log.filter=debug", "run"],
    ),
];

const COLLECTOR: Commands = &[
    (
        "Make a collector, and print the code with which its first operator logs in:",
        &["init"],
    ),
    ("Run it in the foreground:", &["serve"]),
    (
        "Print a code for another operator:",
        &["login-code", "--name", "bob"],
    ),
    (
        "See every setting with its default and meaning:",
        &["config", "--defaults"],
    ),
];

const CTL: Commands = &[
    (
        "Try it all on this machine, with two agents:",
        &["demo", "--agents", "2"],
    ),
    (
        "Log in with a code that `nexus-collector init` printed:",
        &["login", "@code"],
    ),
    (
        "Make a token with which ten machines may join within an hour:",
        &["token", "create", "--uses", "10", "--ttl", "1h"],
    ),
    (
        "List the nodes that are not there:",
        &["get", "nodes", "--field-selector", "state=disconnected"],
    ),
    (
        "Run a command on all web servers:",
        &[
            "run",
            "-l",
            "role=web",
            "--",
            "systemctl",
            "restart",
            "nginx",
        ],
    ),
    (
        "Run a script on two nodes, and get one JSON document of what came of it:",
        &[
            "run",
            "--nodes",
            "web-1,web-2",
            "--script",
            "check.sh",
            "-o",
            "json",
        ],
    ),
    (
        "Ask the fleet in SQL:",
        &[
            "query",
            "SELECT name, kernel FROM nodes WHERE os LIKE 'Debian%'",
        ],
    ),
    (
        "Draw how busy a node was during the last six hours:",
        &["metrics", "node/web-1", "node_load1", "--range", "6h"],
    ),
];

/// Of the program's page.
pub(super) fn of_program(name: &str) -> Vec<Example> {
    let commands = match name {
        "nexus-agent" => AGENT,
        "nexus-collector" => COLLECTOR,
        _ => CTL,
    };
    let example = |(about, words): &(&'static str, &[&str])| {
        let words = std::iter::once(&name).chain(words.iter());
        let line: Vec<_> = words.map(|word| quoted(word)).collect();
        Example {
            about,
            lines: vec![line.join(" ")],
        }
    };
    commands.iter().map(example).collect()
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,@:".contains(c);
    if word.chars().all(plain) {
        return word.to_owned();
    }
    let quote = if word.contains('\'') { '"' } else { '\'' };
    format!("{quote}{word}{quote}")
}

const AGENT_TOML: &str = "\
addresses = [\"collector.example.org:7460\"]
interval = \"30s\"

[spool]
metrics_bytes = \"256MiB\"

[log]
format = \"json\"
";

const COLLECTOR_TOML: &str = "\
trust_domain = \"fleet.example.org\"
shards = 4

[advertise]
agents = [\"collector.example.org:7460\"]
operators = [\"collector.example.org:7461\"]

[query]
timeout = \"1m\"
";

/// Of the page of a program's configuration.
pub(super) fn of_settings(name: &str) -> Vec<Example> {
    let (about, text) = match name {
        "nexus-agent" => (
            "An agent that knows its collector by another name than its token did, reads its metrics less often, and \
             keeps more of them while there is no collector:",
            AGENT_TOML,
        ),
        _ => (
            "A collector with four shards that its agents and operators reach by a name, with more time for queries:",
            COLLECTOR_TOML,
        ),
    };
    let lines = text.lines().map(str::to_owned).collect();
    vec![Example { about, lines }]
}

#[cfg(test)]
mod tests {
    use nexus_runtime::settings::{Sources, Strictness, load};

    use super::*;

    #[test]
    fn every_command_is_one() {
        for program in crate::programs() {
            let commands = match program.name {
                "nexus-agent" => AGENT,
                "nexus-collector" => COLLECTOR,
                _ => CTL,
            };
            for (_, words) in commands {
                let words = std::iter::once(&program.name).chain(words.iter());
                let taken = program.command.clone().try_get_matches_from(words);
                assert!(taken.is_ok(), "{taken:?}");
            }
        }
    }

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("role=web"), "role=web");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("a 'b'"), "\"a 'b'\"");
    }

    #[test]
    fn every_configuration_is_one_and_says_something() {
        let dir = tempfile::tempdir().unwrap();
        for program in crate::programs() {
            let Some(settings) = &program.settings else {
                continue;
            };
            let file = dir.path().join(program.name);
            let [example]: [Example; 1] = of_settings(program.name).try_into().ok().unwrap();
            std::fs::write(&file, example.lines.join("\n")).unwrap();
            let sources = Sources {
                file: Some(file),
                ..Sources::default()
            };
            let loaded = load(settings.keys, &sources, Strictness::Refuse).unwrap();
            let defaults = load(settings.keys, &Sources::default(), Strictness::Refuse).unwrap();
            assert!(loaded.settings.differing(&defaults.settings).count() >= 3);
        }
    }
}
