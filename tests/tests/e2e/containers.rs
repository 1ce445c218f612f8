//! What `packaging/container` and `packaging/kubernetes` say of the programs: commands, settings, ports and pages are held
//! against the programs themselves.

use std::{collections::BTreeMap, fs};

use nexus_tests::{collector::Collector, handbook, process, programs::Programs, scrape};
use serde::Deserialize as _;
use serde_yaml_ng::Value;

/// A program as one of these files starts it.
#[derive(Debug)]
struct Start {
    what: String,
    program: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
}

fn read(path: &str) -> String {
    fs::read_to_string(handbook::root().join("packaging").join(path)).unwrap()
}

fn documents(path: &str) -> Vec<Value> {
    let text = read(path);
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents
        .map(|one| Value::deserialize(one).unwrap())
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_sequence().unwrap().iter().map(text).collect()
}

fn of_compose() -> Vec<Start> {
    let compose = documents("container/compose.yaml").remove(0);
    let services = compose["services"].as_mapping().unwrap().iter();
    let start = |(name, service): (&Value, &Value)| Start {
        what: format!("compose.yaml: {}", text(name)),
        program: text(&service["image"]),
        args: texts(&service["command"]),
        env: service["environment"]
            .as_mapping()
            .map_or_else(BTreeMap::new, |env| {
                env.iter()
                    .map(|(name, value)| (text(name), text(value)))
                    .collect()
            }),
    };
    services.map(start).collect()
}

fn of_kubernetes() -> Vec<Start> {
    let mut starts = Vec::new();
    for path in ["kubernetes/collector.yaml", "kubernetes/agent.yaml"] {
        for document in documents(path) {
            let pod = &document["spec"]["template"]["spec"];
            for kind in ["initContainers", "containers"] {
                for container in pod[kind].as_sequence().into_iter().flatten() {
                    let env = container["env"].as_sequence().unwrap().iter();
                    starts.push(Start {
                        what: format!("{path}: {}", text(&container["name"])),
                        program: text(&container["image"]),
                        args: texts(&container["args"]),
                        env: env
                            .map(|one| {
                                let value = one["value"].as_str().unwrap_or("a-node");
                                (text(&one["name"]), value.to_owned())
                            })
                            .collect(),
                    });
                }
            }
        }
    }
    starts
}

#[tokio::test]
async fn programs_take_what_containers_say_to_them() {
    let starts: Vec<_> = of_compose().into_iter().chain(of_kubernetes()).collect();
    assert_eq!(starts.len(), 8, "{starts:?}");
    for start in starts {
        let (command, keys, prefix) = match start.program.as_str() {
            "nexus-agent" => (
                nexus_agent::cli::command(),
                nexus_agent::config::KEYS,
                nexus_agent::config::ENV_PREFIX,
            ),
            "nexus-collector" => (
                nexus_collector::command(),
                nexus_collector::config::KEYS,
                nexus_collector::config::ENV_PREFIX,
            ),
            other => panic!("{}: {other}", start.what),
        };
        let words = [&start.program].into_iter().chain(&start.args);
        if let Err(error) = command.try_get_matches_from(words) {
            panic!("{}: {error}", start.what);
        }
        for name in start.env.keys() {
            let of_key = |key: &nexus_runtime::settings::Key| {
                format!("{prefix}_{}", key.name.replace('.', "_").to_uppercase()) == *name
            };
            assert!(keys.iter().any(of_key), "{}: {name}", start.what);
        }
        let programs = Programs::built().await.unwrap();
        let mut check = programs.command(&start.program);
        let output = process::run(check.envs(&start.env).arg("check-config"), b"").await;
        let output = output.unwrap();
        assert!(output.status.success(), "{}: {output:?}", start.what);
    }
}

#[test]
fn images_hold_the_programs_that_they_start() {
    let text = read("container/Containerfile");
    let mut images = Vec::new();
    for image in text.split("\nFROM ").skip(2) {
        let line = |word: &str| {
            let found = image.lines().find_map(|line| line.strip_prefix(word));
            found.unwrap_or_else(|| panic!("no {word} in {image}"))
        };
        let name = line("${BASE} AS ");
        let copied: Vec<_> = line("COPY --from=build /programs/").split(' ').collect();
        assert_eq!(format!("/usr/bin/{}", copied[0]), copied[1]);
        assert_eq!(line("ENTRYPOINT "), format!("[\"{}\"]", copied[1]));
        assert_eq!(line("USER "), "65532:65532");
        if let Some(command) = image.lines().find_map(|line| line.strip_prefix("CMD ")) {
            let word = command.trim_matches(['[', ']', '"']);
            let program = match copied[0] {
                "nexus-agent" => nexus_agent::cli::command(),
                "nexus-collector" => nexus_collector::command(),
                other => panic!("{other}"),
            };
            assert!(program.find_subcommand(word).is_some(), "{word}");
        }
        // Volumes are where the programs keep their state, unless told otherwise.
        let keys = match copied[0] {
            "nexus-agent" => nexus_agent::config::KEYS,
            "nexus-collector" => nexus_collector::config::KEYS,
            _ => &[],
        };
        if let Some(key) = keys.iter().find(|key| key.name == "state_dir") {
            assert_eq!(line("VOLUME "), key.default);
        }
        images.push(name.to_owned());
    }
    assert_eq!(images, ["collector", "agent", "nexusctl"]);
}

#[tokio::test]
async fn probes_ask_for_what_a_collector_answers() {
    let manifest = documents("kubernetes/collector.yaml").remove(0);
    let container = &manifest["spec"]["template"]["spec"]["containers"][0];
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::create(dir.path(), &[]).await.unwrap();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(text(&get["port"]), "metrics");
        let path = text(&get["path"]);
        let page = scrape::get(&collector.endpoints().metrics, &path)
            .await
            .unwrap();
        assert_eq!(page.trim(), "ok", "{path}");
    }
}

/// Ports that Services, containers and compose name are those that a collector has by itself.
#[test]
fn ports_are_those_of_the_collector() {
    let own = |key: &str| {
        let keys = nexus_collector::config::KEYS;
        let found = keys.iter().find(|one| one.name == key).unwrap();
        found
            .default
            .rsplit(':')
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let ports = BTreeMap::from([
        ("agents-quic", (own("agents.listen"), "UDP")),
        ("agents-tcp", (own("agents.listen"), "TCP")),
        ("operators", (own("operators.listen"), "TCP")),
        ("metrics", (own("metrics.listen"), "TCP")),
    ]);
    let mut seen = 0;
    for document in documents("kubernetes/collector.yaml") {
        let spec = &document["spec"];
        let lists = [
            (&spec["ports"], "port"),
            (
                &spec["template"]["spec"]["containers"][0]["ports"],
                "containerPort",
            ),
        ];
        for (list, number) in lists {
            for port in list.as_sequence().into_iter().flatten() {
                let name = text(&port["name"]);
                let expected = ports[name.as_str()];
                assert_eq!(port[number].as_u64(), Some(expected.0), "{name}");
                assert_eq!(port["protocol"].as_str(), Some(expected.1), "{name}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 8);
    let compose = documents("container/compose.yaml").remove(0);
    for published in texts(&compose["services"]["collector"]["ports"]) {
        let (addresses, protocol) = published.split_once('/').unwrap();
        let inside: u64 = addresses.rsplit(':').next().unwrap().parse().unwrap();
        let known = ports
            .values()
            .any(|(port, kind)| *port == inside && kind.to_lowercase() == protocol);
        assert!(known, "{published}");
    }
}

/// The kustomization names what is there, and each image that is used.
#[test]
fn the_base_is_whole() {
    let base = documents("kubernetes/kustomization.yaml").remove(0);
    let mut resources = texts(&base["resources"]);
    resources.push("kustomization.yaml".to_owned());
    let folder = handbook::root().join("packaging/kubernetes");
    let there = fs::read_dir(folder).unwrap();
    let mut there: Vec<_> = there
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    there.sort();
    resources.sort();
    assert_eq!(resources, there);
    let images: Vec<_> = base["images"]
        .as_sequence()
        .unwrap()
        .iter()
        .map(|one| text(&one["name"]))
        .collect();
    for start in of_kubernetes() {
        assert!(images.contains(&start.program), "{}", start.what);
    }
}
