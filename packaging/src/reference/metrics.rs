//! Every family of `/metrics` and `/metrics/nodes`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use nexus_collector::reference;
use nexus_proto::metrics::SeriesType;
use nexus_runtime::fault::{Doing as _, Outcome};

use super::host;

/// One line of a table.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

type Families = BTreeMap<String, Family>;

const HEAD: &str = "# Metrics

Two pages of the collector's third port, for Prometheus: OpenMetrics 1.0.0, or the text format 0.0.4 for who asks for that. How nodes'
metrics are kept, and for how long, is in [How metrics are kept](../metrics.md).
";

const NODES: &str = "
## /metrics/nodes: the nodes

Each node's newest samples, under node_exporter's names, types and labels, so that its dashboards and rules work unchanged. Every series
has `instance`, `job=\"node\"` and the node's own labels besides those here: scrape with `honor_labels: true`. Samples older than three
intervals are left out; `node_up` and `node_last_report_timestamp_seconds` are there for every enrolled node. `?collect=cpu&collect=…`
shows some collectors alone, `?shard=N` the nodes of one shard.

A machine has those of these that its kernel has. Memory's are whatever stands in `/proc/meminfo`.
";

pub(super) fn page() -> Outcome<String> {
    let mut out = HEAD.to_owned();
    out.push_str("\n## /metrics: the collector itself\n\n");
    let own = reference::own_page().doing("write the collector's page")?;
    table(&mut out, &own_families(&own));
    out.push_str(NODES);
    let mut nodes: BTreeMap<&str, Families> = BTreeMap::new();
    for (name, family) in node_families()? {
        let collector = reference::collector_of(&name).unwrap_or_default();
        nodes.entry(collector).or_default().insert(name, family);
    }
    for (collector, families) in nodes {
        match collector {
            "" => out.push_str("\n### Of every node\n\n"),
            name => {
                let _always_fits = write!(out, "\n### collect={name}\n\n");
            }
        }
        table(&mut out, &families);
    }
    Ok(out)
}

fn table(out: &mut String, families: &Families) {
    out.push_str("| name | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n");
    for (name, family) in families {
        let labels: Vec<_> = family
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let _always_fits = writeln!(
            out,
            "| `{name}` | {} | {} | {} | {} |",
            family.kind,
            unit(name),
            labels.join(" "),
            family.help.trim_end_matches('.').replace('|', "\\|"),
        );
    }
}

/// Names say their unit.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    for unit in ["seconds", "bytes"] {
        if name.ends_with(unit) {
            return unit;
        }
    }
    ""
}

/// Out of the page itself.
fn own_families(page: &str) -> Families {
    let mut families = Families::new();
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(text)) => {
                text.clone_into(&mut families.entry(name.to_owned()).or_default().help);
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                kind.clone_into(&mut families.entry(name.to_owned()).or_default().kind);
            }
            (Some(series), ..) => {
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                // Of a histogram, whose series have other names, nothing but the bounds.
                if let Some(family) = families.get_mut(name) {
                    let labels = labels.trim_end_matches('}').split(',');
                    family.labels.extend(
                        labels
                            .filter_map(|label| label.split_once('='))
                            .map(|(label, _)| label.to_owned()),
                    );
                }
            }
            _ => {}
        }
    }
    families
}

/// Out of what an agent reads on a machine that has everything.
fn node_families() -> Outcome<Families> {
    let folder = tempfile::tempdir().doing("make a folder")?;
    let mut families = Families::new();
    for sample in host::sample(folder.path())?.samples {
        let family = families.entry(sample.key.name.clone()).or_default();
        family.kind = match sample.kind {
            SeriesType::Counter => "counter",
            SeriesType::Gauge => "gauge",
            SeriesType::Untyped => "untyped",
        }
        .to_owned();
        let labels = sample.key.labels.iter();
        family.labels.extend(labels.map(|(label, _)| label.clone()));
        family.help = reference::help(&sample.key.name);
    }
    for name in ["node_up", "node_last_report_timestamp_seconds"] {
        let family = families.entry(name.to_owned()).or_default();
        "gauge".clone_into(&mut family.kind);
        family.help = reference::help(name);
    }
    Ok(families)
}
