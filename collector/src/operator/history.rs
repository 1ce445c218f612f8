//! A metric of a node over time, for `ReadMetrics`.
//!
//! [`read`] is the one place that asks the store. What it gives is complete or refused: a chart with a part of its
//! series would look like one with all of them.

mod fold;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use nexus_proto::{
    ids::NodeId,
    limits,
    metrics::{SeriesKey, SeriesType},
    operator::v1::{
        LabelMatcher, MetricHead, MetricLabel, MetricPoint, MetricSeries, ReadMetricsRequest,
        ReadMetricsResponse, read_metrics_response::Kind,
    },
    time::Timestamp,
};
use nexus_store::{Ask, Line, NodeRow, Store, StoreError};
use tokio::sync::mpsc;
use tonic::Status;

use self::fold::{Series, Summary};
use super::{
    Operators,
    fleet::no_such_node,
    status::{hinted, of_store},
};

/// Names that are offered for one that is not there.
const SUGGESTIONS: usize = 3;
/// How much alike they are at least, from 0 to 1.
const ALIKE: f64 = 0.8;
/// Values of a label that are named.
const VALUES: usize = 12;
/// A reader that takes no message for this long has gone away.
const STALLED: Duration = Duration::from_secs(60);

/// What is asked for, checked.
#[derive(Debug, Clone)]
struct Asked {
    name: String,
    matchers: Vec<LabelMatcher>,
    from: Timestamp,
    to: Timestamp,
    step_ms: i64,
}

/// What comes of it.
enum Found {
    Series {
        kind: SeriesType,
        /// How far points are apart; 0: they are samples.
        step_ms: i64,
        series: Vec<Series>,
    },
    /// The metric has no points then, but has some.
    Elsewhere { first: Timestamp, last: Timestamp },
    /// None of the metric's series, which are these, is asked for.
    NoMatch(Vec<Arc<SeriesKey>>),
    /// There is no such metric, but there are these.
    Unknown(BTreeSet<String>),
    /// More than an answer holds.
    TooMany(usize),
    /// More than so many values must be read for it.
    TooMuch(usize),
}

impl Operators {
    /// The answer's messages, but for what [`send`] does.
    pub(crate) async fn read_metrics(
        &self,
        request: ReadMetricsRequest,
    ) -> Result<(MetricHead, Vec<MetricSeries>), Status> {
        let node = self.node_called(&request.node).await?;
        let what = format!("read metrics of {}", node.name);
        let asked = Asked::new(&what, request)?;
        let (id, wanted) = (node.id, asked.clone());
        let work = move |store: &Store| read(store, id, &wanted);
        let found = crate::reads::read(&self.tasks, &self.store, "metrics", work)
            .await
            .map_err(|error| of_store(&what, &error))?;
        let (kind, step_ms, series) = match found {
            Found::Series {
                kind,
                step_ms,
                series,
            } => (kind, step_ms, series),
            other => return Err(asked.refusal(&what, other)),
        };
        let head = MetricHead {
            node_id: node.id.to_wire(),
            node: node.name,
            r#type: kind.to_wire().into(),
            step_ms: u64::try_from(step_ms).unwrap_or(0),
            series: u64::try_from(series.len()).unwrap_or(u64::MAX),
        };
        Ok((head, series.iter().map(to_wire).collect()))
    }

    /// The node of this name or id.
    async fn node_called(&self, name: &str) -> Result<NodeRow, Status> {
        let found = self.nodes_named(vec![name.to_owned()], None).await?;
        found.into_iter().next().ok_or_else(|| no_such_node(name))
    }
}

impl Asked {
    fn new(what: &str, request: ReadMetricsRequest) -> Result<Self, Status> {
        let refused = |why: String| Err(Status::invalid_argument(format!("{what}: {why}")));
        if request.name.is_empty() {
            return refused("no metric is named".to_owned());
        }
        if request.matchers.len() > limits::METRIC_MATCHERS {
            return refused(format!(
                "{} labels are asked for, at most {} can be",
                request.matchers.len(),
                limits::METRIC_MATCHERS
            ));
        }
        let words = request.matchers.iter();
        let bytes: usize = words.map(|one| one.label.len() + one.value.len()).sum();
        if request.name.len() + bytes > limits::SERIES_BYTES {
            let most = limits::SERIES_BYTES;
            return refused(format!(
                "a series' name and labels have at most {most} bytes"
            ));
        }
        if request.from_ms > request.to_ms {
            return refused("the range ends before it begins".to_owned());
        }
        Ok(Self {
            name: request.name,
            matchers: request.matchers,
            from: Timestamp(request.from_ms),
            to: Timestamp(request.to_ms),
            step_ms: i64::try_from(request.step_ms).unwrap_or(i64::MAX),
        })
    }

    fn matches(&self, key: &SeriesKey) -> bool {
        self.matchers.iter().all(|matcher| {
            let held = key.label(&matcher.label).unwrap_or_default();
            (held == matcher.value) != matcher.unequal
        })
    }

    /// Why there is nothing to show, and what there is instead.
    fn refusal(&self, what: &str, found: Found) -> Status {
        let name = &self.name;
        match found {
            Found::Series { .. } => Status::internal(format!("{what}: an answer is none")),
            Found::Elsewhere { first, last } => hinted(
                Status::not_found(format!(
                    "{what}: {name} has no points from {} to {}",
                    self.from, self.to
                )),
                &format!("it has points from {first} to {last}"),
            ),
            Found::NoMatch(keys) => hinted(
                Status::not_found(format!("{what}: no series of {name} has these labels")),
                &self.labels_there_are(&keys),
            ),
            Found::Unknown(names) => {
                let status = Status::not_found(format!("{what}: it has no metric `{name}`"));
                let near = closest(name, &names);
                let hint = if near.is_empty() {
                    "`nexusctl query \"SELECT DISTINCT node, name FROM metrics\"` lists them"
                        .to_owned()
                } else {
                    format!("it has {}", near.join(", "))
                };
                hinted(status, &hint)
            }
            Found::TooMany(points) => too_many(format!(
                "{what}: {name} has {points} points then, an answer holds {}",
                limits::METRIC_POINTS
            )),
            Found::TooMuch(values) => too_many(format!(
                "{what}: {name} has more than {values} values then, as many are read for an answer"
            )),
        }
    }

    /// Values of the first label that keeps every series out; else the names of all labels.
    fn labels_there_are(&self, keys: &[Arc<SeriesKey>]) -> String {
        let strict = self.matchers.iter().find(|matcher| {
            let one = Self {
                matchers: vec![(*matcher).clone()],
                ..self.clone()
            };
            !keys.iter().any(|key| one.matches(key))
        });
        let values: BTreeSet<&str> = strict.map_or_else(BTreeSet::new, |matcher| {
            let label = matcher.label.as_str();
            keys.iter().filter_map(|key| key.label(label)).collect()
        });
        if let (Some(matcher), false) = (strict, values.is_empty()) {
            let shown: Vec<&str> = values.iter().take(VALUES).copied().collect();
            let more = if values.len() > VALUES { " …" } else { "" };
            return format!("{} is one of {}{more}", matcher.label, shown.join(", "));
        }
        let names: BTreeSet<&str> = keys
            .iter()
            .flat_map(|key| key.labels.iter().map(|(name, _)| name.as_str()))
            .collect();
        if names.is_empty() {
            return "its one series has no labels".to_owned();
        }
        let names: Vec<&str> = names.into_iter().collect();
        format!("its labels are {}", names.join(", "))
    }
}

fn too_many(why: String) -> Status {
    hinted(
        Status::resource_exhausted(why),
        "ask for a longer step, a shorter range, or fewer series by their labels",
    )
}

/// What the store holds of it.
fn read(store: &Store, node: NodeId, asked: &Asked) -> Result<Found, StoreError> {
    let ask = Ask {
        node,
        wanted: &|key| key.name == asked.name && asked.matches(key),
        from: asked.from,
        to: asked.to,
        step: u64::try_from(asked.step_ms).ok().map(Duration::from_millis),
        most: limits::METRIC_VALUES,
    };
    let answer = match store.points(&ask) {
        Err(StoreError::TooMany(values)) => return Ok(Found::TooMuch(values)),
        answer => answer?,
    };
    if answer.lines.is_empty() {
        return missing(store, &ask, asked);
    }
    let apart_ms = answer.resolution.apart_ms();
    // Points of what is coarser than the step, or of no part of it, cannot be folded into it.
    let step_ms = match (asked.step_ms, apart_ms) {
        (step, 0) => step,
        (step, apart) => (step.max(1) - 1)
            .div_euclid(apart)
            .saturating_add(1)
            .saturating_mul(apart),
    };
    let (kind, lines) = one_line_a_series(answer.lines);
    let series = fold::fold(lines, kind, step_ms, apart_ms);
    let count = series.iter().map(|series| series.points.len()).sum();
    if count > limits::METRIC_POINTS {
        return Ok(Found::TooMany(count));
    }
    Ok(Found::Series {
        kind,
        step_ms,
        series,
    })
}

/// What there is where nothing was found.
fn missing(store: &Store, ask: &Ask<'_>, asked: &Asked) -> Result<Found, StoreError> {
    let named = store.known_series(&Ask {
        wanted: &|key| key.name == asked.name,
        ..*ask
    })?;
    let matching = named.iter().filter(|(key, _)| asked.matches(key));
    let spans = matching.map(|(_, span)| *span);
    let span = spans.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    Ok(match span {
        Some((first, last)) => Found::Elsewhere { first, last },
        None if !named.is_empty() => Found::NoMatch(named.into_keys().collect()),
        None => {
            let newest = store.newest(ask.node);
            let samples = newest.iter().flat_map(|newest| &newest.snapshot.samples);
            Found::Unknown(samples.map(|sample| sample.key.name.clone()).collect())
        }
    })
}

/// A series that changed its type is several to the store, and one to whoever looks at it. The type is the newest.
fn one_line_a_series(lines: Vec<Line>) -> (SeriesType, Vec<Line>) {
    let newest = lines
        .iter()
        .max_by_key(|line| line.points.last().map(|point| point.time));
    let kind = newest.map_or(SeriesType::Untyped, |line| line.key.1);
    let mut merged: Vec<Line> = Vec::with_capacity(lines.len());
    // They are sorted by their names and labels.
    for line in lines {
        match merged.last_mut() {
            Some(same) if same.key.0 == line.key.0 => {
                same.points.extend(line.points);
                same.points.sort_by_key(|point| point.time);
            }
            _ => merged.push(line),
        }
    }
    (kind, merged)
}

/// The names most like it.
fn closest<'a>(name: &str, names: &'a BTreeSet<String>) -> Vec<&'a str> {
    let mut near: Vec<(f64, &str)> = names
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), known.as_str()))
        .filter(|(alike, _)| *alike >= ALIKE)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.truncate(SUGGESTIONS);
    near.into_iter().map(|(_, known)| known).collect()
}

/// Sends an answer, in messages of bounded size, to a reader who takes them.
pub(crate) async fn send(
    head: MetricHead,
    series: Vec<MetricSeries>,
    out: mpsc::Sender<Result<ReadMetricsResponse, Status>>,
) {
    let pieces = series.into_iter().flat_map(pieces).map(Kind::Series);
    for kind in std::iter::once(Kind::Head(head)).chain(pieces) {
        let message = ReadMetricsResponse { kind: Some(kind) };
        match tokio::time::timeout(STALLED, out.send(Ok(message))).await {
            Ok(Ok(())) => {}
            // Nobody reads, or not any more.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// A series as it fits into messages.
fn pieces(series: MetricSeries) -> impl Iterator<Item = MetricSeries> {
    let MetricSeries { labels, mut points } = series;
    let mut first = true;
    std::iter::from_fn(move || {
        if points.is_empty() && !first {
            return None;
        }
        first = false;
        let rest = points.split_off(points.len().min(limits::METRIC_POINTS_A_MESSAGE));
        Some(MetricSeries {
            labels: labels.clone(),
            points: std::mem::replace(&mut points, rest),
        })
    })
}

fn to_wire(series: &Series) -> MetricSeries {
    let labels = series.key.labels.iter().map(|(name, value)| MetricLabel {
        name: name.clone(),
        value: value.clone(),
    });
    MetricSeries {
        labels: labels.collect(),
        points: series.points.iter().map(point_to_wire).collect(),
    }
}

fn point_to_wire(point: &Summary) -> MetricPoint {
    let several = |value: f64| (point.count > 1).then_some(value);
    MetricPoint {
        time_ms: point.time.as_ms(),
        last: point.last,
        count: point.count,
        min: several(point.min),
        max: several(point.max),
        sum: several(point.sum),
        increase: point.increase,
        increase_ms: point.increase_ms,
    }
}

#[cfg(test)]
mod tests;
