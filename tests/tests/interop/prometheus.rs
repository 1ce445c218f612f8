//! Debian's Prometheus and its promtool read what a collector shows.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use nexus_tests::{
    bench::{Load, peers},
    fleet::{Fleet, SOON},
    poll,
    process::Process,
};
use nexus_transport::Mode;
use serde_json::Value;

use super::node_exporter::{NodeExporter, curl, free_address};

/// What `promtool check metrics` finds wrong, a line each.
fn lint(page: &str) -> BTreeSet<String> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    let lines: BTreeSet<_> = said.lines().map(str::to_owned).collect();
    // 3: it could be read, and could be better.
    assert!(
        matches!(output.status.code(), Some(0 | 3)),
        "{}: {lines:?}",
        output.status
    );
    lines
}

#[tokio::test]
async fn promtool_finds_nothing_that_node_exporter_does_not_do() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let exporter = NodeExporter::start(fleet.dir()).await;
    let own = lint(&fleet.page("/metrics").await.unwrap());
    assert!(own.is_empty(), "{own:?}");
    poll::until("metrics of the node", SOON, || async {
        let page = fleet.page("/metrics/nodes").await.unwrap();
        page.contains("node_load1{").then_some(())
    })
    .await
    .unwrap();
    let ours = lint(&fleet.page("/metrics/nodes").await.unwrap());
    let theirs = lint(&exporter.page());
    let new: Vec<_> = ours.difference(&theirs).collect();
    assert!(new.is_empty(), "{new:?}");
}

#[tokio::test]
async fn prometheus_scrapes_both_pages() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let metrics = &fleet.collector.endpoints().metrics;
    let config = fleet.dir().join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\n\
         scrape_configs:\n\
         - job_name: fleet\n  \
           honor_labels: true\n  \
           metrics_path: /metrics/nodes\n  \
           static_configs: [{{ targets: ['{metrics}'] }}]\n\
         - job_name: collector\n  \
           static_configs: [{{ targets: ['{metrics}'] }}]\n"
    );
    fs::write(&config, text).unwrap();
    let address = free_address();
    let mut command = tokio::process::Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!(
        "--storage.tsdb.path={}",
        fleet.dir().join("tsdb").display()
    ));
    command.arg(format!("--web.listen-address={address}"));
    let prometheus = Process::start(&mut command, &fleet.dir().join("prometheus.log")).unwrap();
    let ask = |query: &str| {
        let text = curl(&address, &format!("/api/v1/query?query={query}"))?;
        let answer: Value = serde_json::from_str(&text).unwrap();
        Some(answer["data"]["result"].as_array()?.clone())
    };
    let up = poll::until("both targets", SOON, || {
        let up = ask("up").filter(|up| up.iter().filter(|one| one["value"][1] == "1").count() == 2);
        std::future::ready(up)
    });
    up.await.map_err(|fault| prometheus.explain(fault)).unwrap();
    let load = poll::until("the node's load", SOON, || {
        std::future::ready(ask("node_load1").filter(|rows| !rows.is_empty()))
    });
    let load = load
        .await
        .map_err(|fault| prometheus.explain(fault))
        .unwrap();
    assert_eq!(load.len(), 1, "{load:?}");
    assert_eq!(load[0]["metric"]["instance"], "alpha", "{load:?}");
    assert_eq!(load[0]["metric"]["job"], "node", "{load:?}");
    let processors = ask("count(count%20by%20(cpu)(node_cpu_seconds_total))").unwrap();
    let expected = std::thread::available_parallelism().unwrap().to_string();
    assert_eq!(
        processors[0]["value"][1],
        expected.as_str(),
        "{processors:?}"
    );
    let sessions = ask("sum(nexus_sessions)").unwrap();
    assert_eq!(sessions[0]["value"][1], "1", "{sessions:?}");
    // No sample was turned away, and each target's page is in the newer format.
    let targets = curl(&address, "/api/v1/targets").unwrap();
    let targets: Value = serde_json::from_str(&targets).unwrap();
    for target in targets["data"]["activeTargets"].as_array().unwrap() {
        assert_eq!(target["lastError"], "", "{target}");
    }
    let accept = "Accept: application/openmetrics-text; version=1.0.0";
    for path in ["/metrics", "/metrics/nodes"] {
        let output = Command::new("curl")
            .args(["--silent", "--include", "--header", accept])
            .arg(format!("http://{metrics}{path}"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.to_lowercase()
                .contains("content-type: application/openmetrics-text"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{path}");
    }
}

#[tokio::test]
async fn what_a_sample_costs_prometheus_is_measured() {
    let load = Load {
        agents: 5,
        series: 40,
        packages: 0,
        interval: Duration::from_secs(1),
        transport: Mode::Quic,
        seed: 1,
    };
    let span = Duration::from_secs(3);
    let figures = peers::prometheus::run(&load, 5, span, &|_| {})
        .await
        .unwrap();
    let of = |name: &'static str| figures.iter().filter(move |figure| figure.figure == name);
    let rate = of("samples_per_second").next().unwrap().value;
    // 40 a target and second, and five that it makes itself.
    assert!((100.0..300.0).contains(&rate), "{figures:?}");
    assert!(of("rss").next().unwrap().value > 1e6, "{figures:?}");
    let parts: Vec<_> = of("disk_bytes_per_sample").collect();
    assert_eq!(parts.len(), 3, "{figures:?}");
    for part in parts {
        assert!(part.value > 0.0 && part.subject == "prometheus", "{part:?}");
    }
}
