//! `/metrics/nodes`: every node's newest samples as one page, family by family.
//!
//! The page of a large fleet is larger than memory should hold, so it is made piece by piece while the
//! scraper reads. What is held is each node's newest values, once the names of their series where nodes have them in
//! common, and one piece of text; not the reports, which newer ones replace meanwhile. Reports
//! older than three of their intervals are left out, so that a dead node's values do not look alive;
//! `node_up` and `node_last_report_timestamp_seconds` name every enrolled node all the same.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use nexus_proto::{
    ids::NodeId,
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    time::Timestamp,
};

use super::{
    exposition::{self, Format},
    families,
    server::Asked,
};

/// A piece of the page is handed out once it has this many bytes.
const PIECE_BYTES: usize = 32 * 1024;
/// A report is fresh for this many of its intervals.
const FRESH_INTERVALS: u32 = 3;
/// Families the page adds to the nodes' own.
const UP: &str = "node_up";
const LAST_REPORT: &str = "node_last_report_timestamp_seconds";

/// One node as the page needs it.
#[derive(Debug, Clone)]
pub(crate) struct NodeReport {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) shard: u16,
    pub(crate) labels: BTreeMap<String, String>,
    /// The newest report: when it was made by the node's clock, when it came, and its samples.
    pub(crate) report: Option<Report>,
}

/// A node's newest report.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) made: Timestamp,
    pub(crate) received: Timestamp,
    pub(crate) snapshot: Arc<Snapshot>,
}

impl Report {
    /// By our own clock: the node's may be wrong.
    pub(crate) fn is_fresh(&self, now: Timestamp) -> bool {
        let interval = Duration::from_millis(u64::from(self.snapshot.interval_ms.max(1000)));
        now.since(self.received) <= interval * FRESH_INTERVALS
    }
}

/// The page, as an iterator of its pieces.
pub(crate) struct NodesPage {
    format: Format,
    nodes: Vec<Row>,
    families: std::collections::btree_map::IntoIter<String, SeriesType>,
    current: Option<Family>,
    ended: bool,
}

struct Row {
    /// `instance`, `job` and the node's labels, ready to be written.
    labels: Vec<(String, String)>,
    up: bool,
    last_report_seconds: f64,
    /// Of fresh samples.
    values: Option<Values>,
}

/// The values of a node, in the order of their series.
struct Values {
    shape: Arc<Shape>,
    values: Box<[f64]>,
}

/// The series of nodes that have the same ones.
struct Shape {
    /// In order of their names.
    keys: Vec<Arc<SeriesKey>>,
    /// Where each of them stands in a report.
    order: Vec<u32>,
}

/// The shapes there are, by where the keys of a report's samples are: most keys are shared by all nodes.
#[derive(Default)]
struct Shapes {
    known: HashMap<Vec<usize>, Arc<Shape>>,
}

impl Shapes {
    /// The values of a report; `first`: told of a report whose series no other had before.
    fn values(&mut self, snapshot: &Snapshot, first: impl FnOnce(&Snapshot)) -> Values {
        let places = snapshot
            .samples
            .iter()
            .map(|sample| Arc::as_ptr(&sample.key).addr())
            .collect();
        let shape = self.known.entry(places).or_insert_with(|| {
            first(snapshot);
            Arc::new(Shape::new(snapshot))
        });
        let at = shape.order.iter();
        let values = at.filter_map(|index| sample(snapshot, *index).map(|sample| sample.value));
        Values {
            shape: Arc::clone(shape),
            values: values.collect(),
        }
    }
}

impl Shape {
    fn new(snapshot: &Snapshot) -> Self {
        let mut order: Vec<u32> = (0..snapshot.samples.len())
            .filter_map(|index| u32::try_from(index).ok())
            .collect();
        order.sort_by(|a, b| {
            let name = |index: &u32| sample(snapshot, *index).map(|s| s.key.name.as_str());
            name(a).cmp(&name(b))
        });
        let keys = order
            .iter()
            .filter_map(|index| sample(snapshot, *index).map(|s| Arc::clone(&s.key)));
        Self {
            keys: keys.collect(),
            order,
        }
    }

    /// Where a family's series are.
    fn places(&self, family: &str) -> Range<usize> {
        let start = self.keys.partition_point(|key| key.name.as_str() < family);
        let end = self.keys.partition_point(|key| key.name.as_str() <= family);
        start..end
    }
}

struct Family {
    name: String,
    next: usize,
    /// Where its series are in the shape of the node before, which is mostly that of the next.
    last: Option<(Arc<Shape>, Range<usize>)>,
}

impl Family {
    fn places(&mut self, shape: &Arc<Shape>) -> Range<usize> {
        match &self.last {
            Some((last, places)) if Arc::ptr_eq(last, shape) => places.clone(),
            _ => {
                let places = shape.places(&self.name);
                self.last = Some((Arc::clone(shape), places.clone()));
                places
            }
        }
    }
}

impl NodesPage {
    /// A page of the nodes and collectors that were asked for; of all collectors where none was.
    pub(crate) fn new(
        nodes: Vec<NodeReport>,
        asked: &Asked,
        format: Format,
        now: Timestamp,
    ) -> Self {
        let Asked { shard, collectors } = asked;
        let mut names: HashMap<String, u32> = HashMap::new();
        for node in &nodes {
            *names.entry(node.name.clone()).or_default() += 1;
        }
        let mut families = BTreeMap::from([
            (UP.to_owned(), SeriesType::Gauge),
            (LAST_REPORT.to_owned(), SeriesType::Gauge),
        ]);
        let mut rows = Vec::new();
        let mut shapes = Shapes::default();
        // Names are counted over all shards: a node is called the same on every page it stands on.
        let asked = nodes
            .into_iter()
            .filter(|node| shard.is_none_or(|shard| shard == node.shard));
        for node in asked {
            let unique = names.get(&node.name) == Some(&1);
            let fresh = node.report.as_ref().filter(|report| report.is_fresh(now));
            let mut name_families = |snapshot: &Snapshot| {
                for sample in &snapshot.samples {
                    let name = &sample.key.name;
                    // The first to name a family decides its type.
                    if !families.contains_key(name) && families::is_wanted(name, collectors) {
                        families.insert(name.clone(), sample.kind);
                    }
                }
            };
            rows.push(Row {
                labels: page_labels(&node, unique),
                up: fresh.is_some(),
                last_report_seconds: node
                    .report
                    .as_ref()
                    .map_or(0.0, |report| seconds(report.made)),
                values: fresh.map(|report| shapes.values(&report.snapshot, &mut name_families)),
            });
        }
        Self {
            format,
            nodes: rows,
            families: families.into_iter(),
            current: None,
            ended: false,
        }
    }

    /// Writes a node's samples of a family.
    fn write_node(out: &mut String, family: &mut Family, row: &Row) {
        let own = || {
            row.labels
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
        };
        match family.name.as_str() {
            UP => exposition::write_sample(out, UP, own(), f64::from(u8::from(row.up))),
            LAST_REPORT => {
                exposition::write_sample(out, LAST_REPORT, own(), row.last_report_seconds);
            }
            _ => {
                for (key, value) in samples_of(row, family) {
                    let series = key.labels.iter();
                    let labels = series
                        .map(|(name, value)| (exported(name, key, row), value.as_str()))
                        .chain(own().map(|(name, value)| (Cow::Borrowed(name), value)));
                    exposition::write_sample(out, &family.name, labels, value);
                }
            }
        }
    }
}

impl Iterator for NodesPage {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut out = String::new();
        while out.len() < PIECE_BYTES {
            let Some(family) = &mut self.current else {
                let Some((name, kind)) = self.families.next() else {
                    if !self.ended {
                        self.ended = true;
                        out.push_str(self.format.end());
                    }
                    break;
                };
                self.format
                    .write_head(&mut out, &name, kind, &families::help(&name));
                self.current = Some(Family {
                    name,
                    next: 0,
                    last: None,
                });
                continue;
            };
            match self.nodes.get(family.next) {
                Some(row) => {
                    Self::write_node(&mut out, family, row);
                    family.next += 1;
                }
                None => self.current = None,
            }
        }
        (!out.is_empty()).then_some(out)
    }
}

fn samples_of<'a>(
    row: &'a Row,
    family: &mut Family,
) -> impl Iterator<Item = (&'a SeriesKey, f64)> + use<'a> {
    let found = row.values.as_ref().map(|Values { shape, values }| {
        let places = family.places(shape);
        let keys = shape.keys.get(places.clone()).unwrap_or_default();
        keys.iter().zip(values.get(places).unwrap_or_default())
    });
    let samples = found.into_iter().flatten();
    samples.map(|(key, value)| (key.as_ref(), *value))
}

fn sample(snapshot: &Snapshot, index: u32) -> Option<&Sample> {
    snapshot.samples.get(usize::try_from(index).ok()?)
}

/// A series' label beside the node's: which node it is says its certificate, so that a label of the agent's own
/// making never takes the place of one of the node's, but gets the name Prometheus gives it then.
fn exported<'a>(name: &'a str, key: &SeriesKey, row: &Row) -> Cow<'a, str> {
    let of_node = |name: &str| row.labels.iter().any(|(own, _)| own == name);
    if !of_node(name) && !name.starts_with("__") {
        return Cow::Borrowed(name);
    }
    let mut other = format!("exported_{name}");
    while of_node(&other) || key.label(&other).is_some() {
        other.insert_str(0, "exported_");
    }
    Cow::Owned(other)
}

/// `job`, `instance`, then the node's labels under names Prometheus allows.
fn page_labels(node: &NodeReport, unique: bool) -> Vec<(String, String)> {
    // Two nodes of one name must not become one series.
    let instance = if unique {
        node.name.clone()
    } else {
        node.id.to_string()
    };
    let mut labels = vec![
        ("instance".to_owned(), instance),
        ("job".to_owned(), "node".to_owned()),
    ];
    let mut taken: BTreeSet<String> = labels.iter().map(|(key, _)| key.clone()).collect();
    for (key, value) in &node.labels {
        let mut name = label_name(key).into_owned();
        if taken.contains(&name) {
            name.insert_str(0, "label_");
        }
        if taken.insert(name.clone()) {
            labels.push((name, value.clone()));
        }
    }
    labels
}

fn label_name(key: &str) -> Cow<'_, str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts_well = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts_well && !key.starts_with("__") && key.chars().all(allowed) {
        return Cow::Borrowed(key);
    }
    let name: String = key
        .chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .collect();
    Cow::Owned(if starts_well && !key.starts_with("__") {
        name
    } else {
        format!("label_{name}")
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of our era fit into 53 bits"
)]
fn seconds(time: Timestamp) -> f64 {
    time.as_ms() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn sample(name: &str, labels: &[(&str, &str)], kind: SeriesType, value: f64) -> Sample {
        Sample {
            key: Arc::new(SeriesKey::new(name, labels)),
            kind,
            value,
        }
    }

    fn node(name: &str, age: Duration) -> NodeReport {
        NodeReport {
            id: NodeId::random(),
            name: name.to_owned(),
            shard: 0,
            labels: BTreeMap::from([("role".to_owned(), "web".to_owned())]),
            report: Some(Report {
                made: NOW.before(age),
                received: NOW.before(age),
                snapshot: Arc::new(Snapshot {
                    interval_ms: 10_000,
                    samples: vec![
                        sample("node_load1", &[], SeriesType::Gauge, 0.5),
                        sample(
                            "node_cpu_seconds_total",
                            &[("cpu", "0"), ("mode", "idle")],
                            SeriesType::Counter,
                            12.25,
                        ),
                        sample(
                            "node_cpu_seconds_total",
                            &[("cpu", "1"), ("mode", "idle")],
                            SeriesType::Counter,
                            13.0,
                        ),
                    ],
                }),
            }),
        }
    }

    fn page(nodes: Vec<NodeReport>, collectors: &[String]) -> String {
        let asked = Asked {
            shard: None,
            collectors: collectors.to_vec(),
        };
        NodesPage::new(nodes, &asked, Format::OpenMetrics, NOW).collect()
    }

    #[test]
    fn groups_families_over_nodes() {
        let page = page(
            vec![node("a", Duration::ZERO), node("b", Duration::ZERO)],
            &[],
        );
        let expected = "\
# HELP node_cpu_seconds Seconds the CPUs spent in each mode.
# TYPE node_cpu_seconds counter
node_cpu_seconds_total{cpu=\"0\",mode=\"idle\",instance=\"a\",job=\"node\",role=\"web\"} 12.25
node_cpu_seconds_total{cpu=\"1\",mode=\"idle\",instance=\"a\",job=\"node\",role=\"web\"} 13
node_cpu_seconds_total{cpu=\"0\",mode=\"idle\",instance=\"b\",job=\"node\",role=\"web\"} 12.25
node_cpu_seconds_total{cpu=\"1\",mode=\"idle\",instance=\"b\",job=\"node\",role=\"web\"} 13
# HELP node_last_report_timestamp_seconds";
        assert!(page.starts_with(expected), "{page}");
        assert!(page.contains("node_up{instance=\"b\",job=\"node\",role=\"web\"} 1\n"));
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn values_stay_with_their_series_however_a_report_orders_them() {
        let first = node("a", Duration::ZERO);
        // The very keys of the other, in another order, with other values.
        let mut snapshot = (*first.report.as_ref().unwrap().snapshot).clone();
        snapshot.samples.reverse();
        for sample in &mut snapshot.samples {
            sample.value += 100.0;
        }
        let mut turned = node("b", Duration::ZERO);
        if let Some(report) = &mut turned.report {
            report.snapshot = Arc::new(snapshot);
        }
        let page = page(vec![first, turned], &[]);
        for line in [
            "node_load1{instance=\"a\",job=\"node\",role=\"web\"} 0.5\n",
            "node_load1{instance=\"b\",job=\"node\",role=\"web\"} 100.5\n",
            "{cpu=\"1\",mode=\"idle\",instance=\"b\",job=\"node\",role=\"web\"} 113\n",
        ] {
            assert!(page.contains(line), "{line}: {page}");
        }
    }

    #[test]
    fn what_a_page_holds_of_a_report_is_its_values() {
        let nodes = vec![node("a", Duration::ZERO)];
        let report = Arc::clone(&nodes[0].report.as_ref().unwrap().snapshot);
        let page = NodesPage::new(nodes, &Asked::default(), Format::OpenMetrics, NOW);
        assert_eq!(Arc::strong_count(&report), 1, "the page keeps the report");
        assert!(page.collect::<String>().contains("node_load1{"));
    }

    #[test]
    fn a_stale_node_is_down_and_has_no_samples() {
        let page = page(vec![node("a", Duration::from_secs(31))], &[]);
        assert!(
            page.contains("node_up{instance=\"a\",job=\"node\",role=\"web\"} 0\n"),
            "{page}"
        );
        assert!(page.contains("node_last_report_timestamp_seconds{instance=\"a\",job=\"node\",role=\"web\"} 1699999969\n"), "{page}");
        assert!(!page.contains("node_load1"));
    }

    #[test]
    fn nodes_of_one_name_stay_apart_on_their_shards_pages() {
        let other = NodeReport {
            shard: 1,
            ..node("a", Duration::ZERO)
        };
        let nodes = vec![node("a", Duration::ZERO), other];
        for asked in &nodes {
            let page: String = NodesPage::new(
                nodes.clone(),
                &Asked {
                    shard: Some(asked.shard),
                    ..Asked::default()
                },
                Format::OpenMetrics,
                NOW,
            )
            .collect();
            for node in &nodes {
                let line = format!("node_load1{{instance=\"{}\"", node.id);
                assert_eq!(page.contains(&line), node.id == asked.id, "{page}");
            }
            assert!(!page.contains("instance=\"a\""), "{page}");
        }
    }

    #[test]
    fn nodes_of_one_name_stay_apart() {
        let nodes = vec![node("a", Duration::ZERO), node("a", Duration::ZERO)];
        let ids: Vec<_> = nodes.iter().map(|node| node.id.to_string()).collect();
        let page = page(nodes, &["loadavg".to_owned()]);
        for id in ids {
            assert!(
                page.contains(&format!("node_load1{{instance=\"{id}\"")),
                "{page}"
            );
        }
        assert!(!page.contains("node_cpu"));
    }

    #[test]
    fn labels_get_names_prometheus_allows() {
        assert_eq!(label_name("role"), "role");
        assert_eq!(
            label_name("app.kubernetes.io/name"),
            "app_kubernetes_io_name"
        );
        assert_eq!(label_name("9lives"), "label_9lives");
        assert_eq!(label_name("__name__"), "label___name__");
        let mut conflicting = node("a", Duration::ZERO);
        conflicting.labels.insert("job".to_owned(), "x".to_owned());
        let labels = page_labels(&conflicting, true);
        assert!(labels.contains(&("label_job".to_owned(), "x".to_owned())));
    }

    #[test]
    fn a_nodes_own_words_do_not_make_it_another_node() {
        let mut forger = node("web-1", Duration::ZERO);
        forger.report = forger.report.map(|report| Report {
            snapshot: Arc::new(Snapshot {
                interval_ms: 10_000,
                samples: vec![sample(
                    "node_load1",
                    &[
                        ("__name__", "node_up"),
                        ("exported_job", "y"),
                        ("instance", "db-1"),
                        ("job", "other"),
                        ("role", "db"),
                        ("zone", "a"),
                    ],
                    SeriesType::Gauge,
                    9.0,
                )],
            }),
            ..report
        });
        let page = page(vec![forger], &[]);
        let expected = "node_load1{exported___name__=\"node_up\",exported_job=\"y\",exported_instance=\"db-1\",\
            exported_exported_job=\"other\",exported_role=\"db\",zone=\"a\",instance=\"web-1\",job=\"node\",\
            role=\"web\"} 9\n";
        assert!(page.contains(expected), "{page}");
    }
}
