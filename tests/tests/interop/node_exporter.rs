//! Debian's node_exporter beside an agent on the same host: the same series, the same values.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use nexus_tests::{
    fleet::{Fleet, SOON},
    poll, port,
    process::Process,
};

/// What an agent samples, as node_exporter's flags name it.
const COLLECTORS: [&str; 14] = [
    "cpu",
    "diskstats",
    "filefd",
    "filesystem",
    "loadavg",
    "meminfo",
    "netdev",
    "netstat",
    "pressure",
    "sockstat",
    "stat",
    "time",
    "uname",
    "vmstat",
];
/// Labels that a fleet's page adds.
const ADDED: [&str; 2] = ["instance", "job"];

pub(crate) struct NodeExporter {
    _process: Process,
    address: String,
}

impl NodeExporter {
    pub(crate) async fn start(dir: &Path) -> Self {
        let address = free_address();
        let mut command = tokio::process::Command::new("prometheus-node-exporter");
        command.arg(format!("--web.listen-address={address}"));
        command.arg("--collector.disable-defaults");
        command.args(COLLECTORS.map(|name| format!("--collector.{name}")));
        let process = Process::start(&mut command, &dir.join("node_exporter.log")).unwrap();
        let exporter = Self {
            _process: process,
            address,
        };
        poll::until("node_exporter", SOON, || {
            std::future::ready(curl(&exporter.address, "/metrics"))
        })
        .await
        .unwrap();
        exporter
    }

    pub(crate) fn page(&self) -> String {
        curl(&self.address, "/metrics").unwrap()
    }
}

/// A port nobody has now.
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", port::free().unwrap())
}

pub(crate) fn curl(address: &str, path: &str) -> Option<String> {
    let output = Command::new("curl")
        .args(["--silent", "--fail", "--globoff"])
        .arg(format!("http://{address}{path}"))
        .output()
        .unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

type Labels = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct Page {
    types: BTreeMap<String, String>,
    series: BTreeMap<(String, Labels), f64>,
}

impl Page {
    fn read(text: &str) -> Self {
        let mut page = Self::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                page.types.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') && !line.is_empty() {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = match series.split_once('{') {
                    Some((name, labels)) => (name, read_labels(labels)),
                    None => (series, Labels::new()),
                };
                page.series
                    .insert((name.to_owned(), labels), value.parse().unwrap());
            }
        }
        page
    }

    /// Of the host, not of the exporter's own process.
    fn of_the_host(mut self) -> Self {
        let own = |name: &str| !name.starts_with("node_") || name == "node_exporter_build_info";
        self.series.retain(|(name, _), _| !own(name));
        self.types.retain(|name, _| !own(name));
        self
    }
}

fn read_labels(text: &str) -> Labels {
    let mut labels = Labels::new();
    let mut rest = text;
    while let Some((name, value)) = rest.split_once("=\"") {
        let mut escaped = false;
        let end = value.find(|letter| {
            let closing = letter == '"' && !escaped;
            escaped = letter == '\\' && !escaped;
            closing
        });
        let (value, more) = value.split_at(end.unwrap());
        let name = name.trim_start_matches(',').to_owned();
        if !ADDED.contains(&name.as_str()) {
            labels.insert(name, value.to_owned());
        }
        rest = more.strip_prefix('"').unwrap();
    }
    labels
}

/// What node_exporter says of itself rather than of the host: how long its own reading took.
fn is_duration(name: &str) -> bool {
    name == "node_scrape_collector_duration_seconds"
}

/// Counters of the whole host only rise; a gauge may have moved while both looked.
fn is_steady(name: &str) -> bool {
    const STEADY: [&str; 14] = [
        "node_boot_time_seconds",
        "node_uname_info",
        "node_memory_MemTotal_bytes",
        "node_memory_SwapTotal_bytes",
        "node_memory_VmallocTotal_bytes",
        "node_filesystem_size_bytes",
        "node_filesystem_files",
        "node_filesystem_readonly",
        "node_filesystem_device_error",
        "node_filefd_maximum",
        "node_disk_info",
        "node_cpu_guest_seconds_total",
        "node_time_zone_offset_seconds",
        "node_scrape_collector_success",
    ];
    STEADY.contains(&name)
}

#[tokio::test]
async fn every_series_is_there_with_its_name_type_labels_and_value() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let exporter = NodeExporter::start(fleet.dir()).await;
    // The agent looks between the two of node_exporter: what rises must lie between them.
    let before = Page::read(&exporter.page()).of_the_host();
    let reported = || async {
        let page = Page::read(&fleet.page("/metrics/nodes").await.unwrap());
        page.series
            .iter()
            .find(|((name, _), _)| name == "node_time_seconds")
            .map(|(_, time)| *time)
    };
    let start = before.series[&("node_time_seconds".to_owned(), Labels::new())];
    poll::until("a later reading", SOON, || async {
        reported().await.filter(|time| *time > start)
    })
    .await
    .unwrap();
    // From here on the agent's newest reading stays.
    fleet.agents[0].stop().await.unwrap();
    let ours = Page::read(&fleet.page("/metrics/nodes").await.unwrap());
    let after = Page::read(&exporter.page()).of_the_host();

    let both: BTreeSet<_> = before
        .series
        .keys()
        .filter(|key| after.series.contains_key(*key))
        .collect();
    let missing: Vec<_> = both
        .iter()
        .filter(|key| !ours.series.contains_key(**key))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(both.len() > 150, "only {} series", both.len());
    for (name, kind) in &after.types {
        assert_eq!(ours.types.get(name), Some(kind), "the type of {name}");
    }
    // Ours has no series of a name of node_exporter's that node_exporter does not have.
    let theirs: BTreeSet<_> = before.series.keys().chain(after.series.keys()).collect();
    let extra: Vec<_> = ours
        .series
        .keys()
        .filter(|key| after.types.contains_key(&key.0) && !theirs.contains(key))
        .collect();
    assert!(extra.is_empty(), "{extra:?}");

    let mut wrong = Vec::new();
    for key in both {
        let (low, high) = (before.series[key], after.series[key]);
        let value = ours.series[key];
        let counter = after
            .types
            .get(&key.0)
            .is_some_and(|kind| kind == "counter");
        let fits = if is_duration(&key.0) {
            value >= 0.0
        } else if is_steady(&key.0) || low.is_nan() {
            value.to_bits() == low.to_bits() || (value - low).abs() < 1e-9 * low.abs().max(1.0)
        } else if counter || key.0 == "node_time_seconds" {
            // The kernel's idle time is known to step back a little.
            let slack = if key.0 == "node_cpu_seconds_total" {
                0.05
            } else {
                0.0
            };
            (low - slack..=high + slack).contains(&value)
        } else {
            // A gauge: near one of the two, or between them.
            let (least, most) = (low.min(high), low.max(high));
            let slack = most.abs().max(1.0) * 0.25 + 64.0;
            (least - slack..=most + slack).contains(&value)
        };
        if !fits {
            wrong.push(format!("{key:?}: {low} … {value} … {high}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
