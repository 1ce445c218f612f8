//! What a sample takes on disk, and what it costs to put it there and get it back: compacted metrics by themselves, beside
//! Prometheus' blocks of the same samples.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufWriter, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use nexus_proto::{ids::NodeId, metrics::SeriesType, time::Timestamp};
use nexus_store::inside::chunks::{self, MetricsDb, Reports};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};
use tokio::process::Command;

use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    swarm::host::{Host, Shape},
};

/// Reports of a chunk as it is first written: ten minutes of them.
const CHUNK: Duration = Duration::from_secs(600);
/// The beginning of a window of two hours, and of a day.
const START: Timestamp = Timestamp(1_700_006_400_000);
/// A metric that every host has.
const NAME: &str = "node_cpu_seconds_total";
/// How often a chunk is built for its time alone.
const TIMES: usize = 5;

/// Of how much data.
#[derive(Debug, Clone, Copy)]
pub struct Params {
    /// Hosts.
    pub nodes: usize,
    /// Series of each.
    pub series: usize,
    /// How long they report.
    pub hours: u32,
    /// From one report to the next.
    pub interval: Duration,
    /// The same seed makes the same hosts.
    pub seed: u64,
    /// Whether Prometheus is measured too.
    pub peer: bool,
}

impl Params {
    fn map(&self) -> Map<String, Value> {
        let params = json!({
            "nodes": self.nodes,
            "series": self.series,
            "hours": self.hours,
            "interval_seconds": self.interval.as_secs_f64(),
            "chunk_seconds": CHUNK.as_secs(),
            "seed": self.seed,
        });
        params.as_object().cloned().unwrap_or_default()
    }
}

/// Makes hosts up, writes what they report, and reads it.
pub async fn run(params: &Params, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let dir = tempfile::tempdir().map_err(Fault::io("make a folder"))?;
    let shape = Arc::new(Shape::of_this_host(params.series, 0).await);
    let mut data = Data::new(params, &shape);
    let path = dir.path().join("metrics.db");
    let mut figures = Vec::new();
    let text = dir.path().join("samples.txt");
    let mut peer = match params.peer {
        true => Peer::find(&text).await?,
        false => None,
    };
    if params.peer && peer.is_none() {
        say("without promtool (Debian: prometheus) Prometheus is left out");
    }

    let mut db = MetricsDb::open(&path).map_err(stored)?;
    let (mut build, mut write, mut built) = (Duration::ZERO, Duration::ZERO, 0_usize);
    let chunks = params.hours * 6;
    for _ in 0..chunks {
        let (nodes, now) = data.next_chunk();
        for (number, (_, reports)) in nodes.iter().enumerate() {
            if let Some(peer) = &mut peer {
                peer.take(number, reports)?;
            }
        }
        let begun = processor_time();
        for _ in 0..TIMES {
            for (_, reports) in &nodes {
                built = db.build(reports).map_err(stored)?;
            }
        }
        build += processor_time().saturating_sub(begun);
        let begun = processor_time();
        db.write(&nodes, now).map_err(stored)?;
        write += processor_time().saturating_sub(begun);
    }
    let samples = data.samples;
    say(&format!(
        "{samples} samples written, the last chunk has {built} bytes"
    ));
    let per_sample = |bytes: u64| float(bytes) / float(samples);
    let raw_file = file_bytes(db, &path)?;
    let mut db = MetricsDb::open(&path).map_err(stored)?;
    let [raw, ..] = db.sizes().map_err(stored)?;

    let begun = processor_time();
    let later = |hours: u64| data.now.after(Duration::from_secs(hours * 3600));
    let windows = db.step(later(4)).map_err(stored)?;
    let roll = processor_time().saturating_sub(begun);
    let [_, minutes, _] = db.sizes().map_err(stored)?;
    let rolled_file = file_bytes(db, &path)?;
    say(&format!("{windows} windows rolled up"));

    let mut add = |figure, subject, value, unit, more: Value| {
        let mut params = params.map();
        params.extend(more.as_object().cloned().unwrap_or_default());
        figures.push(Figure {
            bench: "compress",
            figure,
            subject,
            value,
            unit,
            params,
        });
    };
    let bytes = "bytes_per_sample";
    add(
        bytes,
        "nexus",
        per_sample(raw_file),
        "bytes",
        json!({"of": "the file"}),
    );
    add(
        bytes,
        "nexus-chunk",
        per_sample(raw.bytes),
        "bytes",
        json!({"of": "chunks alone"}),
    );
    let points = params.points(data.series);
    let rolled = "a minute's point of five or six numbers";
    add(
        bytes,
        "nexus-rollup-1m",
        float(minutes.bytes) / points,
        "bytes",
        json!({"of": rolled}),
    );
    add(
        bytes,
        "nexus-rollup-1m-file",
        float(rolled_file.saturating_sub(raw_file)) / points,
        "bytes",
        json!({"of": rolled}),
    );
    let thousands = float(samples) / 1000.0;
    let seconds = |time: Duration, times: u32| time.as_secs_f64() / f64::from(times) / thousands;
    let cpu = "cpu_seconds_per_1k_samples";
    let times = u32::try_from(TIMES).unwrap_or(1);
    add(
        cpu,
        "nexus",
        seconds(build, times),
        "seconds",
        json!({"doing": "build"}),
    );
    add(
        cpu,
        "nexus",
        seconds(write, 1),
        "seconds",
        json!({"doing": "build and store"}),
    );
    add(
        cpu,
        "nexus",
        seconds(roll, 1),
        "seconds",
        json!({"doing": "roll up into minutes"}),
    );
    for (doing, step) in [
        ("read", None),
        ("read minutes", Some(Duration::from_secs(60))),
    ] {
        let begun = processor_time();
        let mut points = 0;
        for (node, _) in &data.hosts {
            points += chunks::read(&path, *node, NAME, step).map_err(stored)?.0;
        }
        let took = processor_time().saturating_sub(begun).as_secs_f64();
        let value = took / (float(u64::try_from(points).unwrap_or(0)) / 1000.0);
        add(
            cpu,
            "nexus",
            value,
            "seconds",
            json!({"doing": doing, "of": NAME, "points": points}),
        );
    }
    if let Some(peer) = peer {
        let block = peer.blocks(&dir.path().join("blocks")).await?;
        add(
            bytes,
            "prometheus",
            per_sample(block),
            "bytes",
            json!({"of": "chunks and index of its blocks"}),
        );
    }
    Ok(figures)
}

impl Params {
    /// Points of minutes.
    fn points(&self, series: usize) -> f64 {
        let minutes = u64::from(self.hours) * 60;
        float(u64::try_from(self.nodes * series).unwrap_or(0)) * float(minutes)
    }
}

struct Data {
    hosts: Vec<(NodeId, Host)>,
    series: usize,
    interval: Duration,
    now: Timestamp,
    samples: u64,
}

impl Data {
    fn new(params: &Params, shape: &Arc<Shape>) -> Self {
        let seeds = (params.seed..).take(params.nodes.max(1));
        let hosts = seeds.map(|seed| (NodeId::random(), Host::new(shape, seed)));
        Self {
            hosts: hosts.collect(),
            series: shape.series(),
            interval: params.interval,
            now: START,
            samples: 0,
        }
    }

    /// What all hosts report in one chunk's time, and when it is over.
    fn next_chunk(&mut self) -> (Vec<(NodeId, Reports)>, Timestamp) {
        let (from, until) = (self.now, self.now.after(CHUNK));
        let mut nodes = Vec::new();
        for (number, (node, host)) in (0_u64..).zip(&mut self.hosts) {
            // Nobody reports at the same millisecond, nor at quite the same one every time.
            let mut at = from.after(Duration::from_millis(number * 413 % 5000));
            let mut reports = Reports::new();
            while at < until {
                let jitter = Duration::from_millis(u64::from(at.as_ms().unsigned_abs() % 7 == 0));
                let snapshot = host.report(at.after(jitter), self.interval);
                self.samples += u64::try_from(snapshot.samples.len()).unwrap_or(0);
                reports.push((at.after(jitter), Arc::new(snapshot)));
                at = at.after(self.interval);
            }
            nodes.push((*node, reports));
        }
        self.now = until;
        (nodes, until)
    }
}

/// Bytes of the file once all is in it.
fn file_bytes(db: MetricsDb, path: &Path) -> Outcome<u64> {
    db.close();
    let found = fs::metadata(path).map_err(Fault::io("look at the file"))?;
    Ok(found.len())
}

/// promtool, and what it will read.
struct Peer {
    text: BufWriter<fs::File>,
    path: std::path::PathBuf,
    /// By series, since the text format wants a metric's samples together.
    lines: BTreeMap<String, (SeriesType, String)>,
}

impl Peer {
    async fn find(path: &Path) -> Outcome<Option<Self>> {
        let found = Command::new("promtool").arg("--version").output().await;
        if !found.is_ok_and(|output| output.status.success()) {
            return Ok(None);
        }
        let text = fs::File::create(path).map_err(Fault::io("make a file"))?;
        Ok(Some(Self {
            text: BufWriter::new(text),
            path: path.to_owned(),
            lines: BTreeMap::new(),
        }))
    }

    fn take(&mut self, node: usize, reports: &Reports) -> Outcome {
        for (time, snapshot) in reports {
            for sample in &snapshot.samples {
                let labels = sample.key.labels.iter().map(|(l, v)| format!("{l}={v:?}"));
                let labels: Vec<String> = labels.chain([format!("instance=\"{node}\"")]).collect();
                let (_, lines) = self
                    .lines
                    .entry(sample.key.name.clone())
                    .or_insert_with(|| (sample.kind, String::new()));
                writeln!(
                    lines,
                    "{}{{{}}} {} {}",
                    sample.key.name,
                    labels.join(","),
                    sample.value,
                    seconds_of(*time)
                )
                .map_err(|error| Fault::new(format!("write a line: {error}")))?;
            }
        }
        Ok(())
    }

    /// Has blocks made, and says how many bytes their chunks and indexes have.
    async fn blocks(mut self, dir: &Path) -> Outcome<u64> {
        for (name, (_, lines)) in &self.lines {
            // Untyped: what OpenMetrics wants of counters' names, node_exporter's do not always fulfil.
            write!(self.text, "# TYPE {name} unknown\n{lines}").map_err(Fault::io("write"))?;
        }
        writeln!(self.text, "# EOF").map_err(Fault::io("write"))?;
        self.text.flush().map_err(Fault::io("write"))?;
        let output = Command::new("promtool")
            .args(["tsdb", "create-blocks-from", "openmetrics"])
            .args([&self.path, dir])
            .output()
            .await
            .map_err(Fault::io("start promtool"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Fault::new(format!("promtool: {said}")));
        }
        let mut bytes = 0;
        for block in fs::read_dir(dir).map_err(Fault::io("read"))? {
            let block = block.map_err(Fault::io("read"))?.path();
            bytes += fs::metadata(block.join("index")).map_or(0, |found| found.len());
            let chunks = fs::read_dir(block.join("chunks")).map_err(Fault::io("read"))?;
            for chunk in chunks.flatten() {
                bytes += chunk.metadata().map_or(0, |found| found.len());
            }
        }
        Ok(bytes)
    }
}

fn seconds_of(time: Timestamp) -> String {
    let ms = time.as_ms();
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// Of this thread.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

fn stored(error: nexus_store::StoreError) -> Fault {
    Fault::new(format!("metrics.db: {error}"))
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}
