//! The store of compacted metrics by itself: for the benchmark that measures it and the fuzz target that reads it.

use std::{path::Path, sync::Arc, time::Duration};

use nexus_proto::{
    ids::NodeId,
    metrics::{SeriesKey, SeriesType, Snapshot},
    time::Timestamp,
};

use crate::{
    StoreError,
    chunks::{
        self, Ask, Budget, Builder, Built, Keep, MetricsFile, NodeBatch, Resolution, Samples,
    },
    db,
};

/// Reports of one node.
pub type Reports = Vec<(Timestamp, Arc<Snapshot>)>;

/// A series with its times and values.
pub type Line = (Arc<SeriesKey>, SeriesType, Vec<(Timestamp, f64)>);

/// What a file holds of raw chunks, minutes and hours.
#[derive(Debug, Clone, Copy, Default)]
pub struct Size {
    /// Chunks.
    pub chunks: u64,
    /// Samples that they hold or were made of.
    pub samples: u64,
    /// Bytes of the chunks by themselves.
    pub bytes: u64,
}

/// A `metrics.db`.
pub struct MetricsDb {
    file: MetricsFile,
    builder: Builder,
}

impl MetricsDb {
    /// Opens or makes it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            file: MetricsFile::open(path, Keep::default())?,
            builder: Builder::new()?,
        })
    }

    /// Builds chunks of reports and says how many bytes they have.
    pub fn build(&mut self, reports: &Reports) -> Result<usize, StoreError> {
        let built = build(&mut self.builder, reports)?;
        Ok(built.iter().map(|built| built.body.len()).sum())
    }

    /// Builds and stores chunks of all these nodes, at this time, in one transaction.
    pub fn write(&mut self, nodes: &[(NodeId, Reports)], now: Timestamp) -> Result<(), StoreError> {
        let mut writing = self.file.begin(now)?;
        for (node, reports) in nodes {
            let chunks = build(&mut self.builder, reports)?;
            writing.add(&NodeBatch {
                node: *node,
                received: now,
                resume: &[],
                cursors: &[],
                chunks: &chunks,
            })?;
        }
        writing.commit(now.as_ms())
    }

    /// Does what is due, and says how many windows were rolled up.
    pub fn step(&mut self, now: Timestamp) -> Result<usize, StoreError> {
        let mut windows = 0;
        loop {
            let stepped = self.file.step(now, Budget::default())?;
            windows += stepped.windows;
            if !stepped.worked() {
                return Ok(windows);
            }
        }
    }

    /// What it holds: raw chunks, minutes, hours.
    pub fn sizes(&self) -> Result<[Size; 3], StoreError> {
        let totals = self.file.totals()?;
        Ok(totals.held.map(|held| Size {
            chunks: held.chunks,
            samples: held.samples,
            bytes: held.bytes,
        }))
    }

    /// Brings all of it into the file.
    pub fn close(self) {
        self.file.close();
    }
}

fn build(builder: &mut Builder, reports: &Reports) -> Result<Vec<Built>, StoreError> {
    for (time, snapshot) in reports {
        let samples = snapshot.samples.iter();
        let samples = samples.map(|sample| (&sample.key, sample.kind, sample.value));
        builder.push(*time, *time, snapshot.interval_ms, samples)?;
    }
    Ok(builder.finish()?)
}

/// Reads a metric of a node, and says how many points there were, and how far they are apart if they are no samples.
pub fn read(
    path: &Path,
    node: NodeId,
    name: &str,
    step: Option<Duration>,
) -> Result<(usize, Option<Duration>), StoreError> {
    let reader = db::open_reader(path)?;
    let ask = Ask {
        node,
        wanted: &|key| key.name == name,
        from: Timestamp(i64::MIN),
        to: Timestamp(i64::MAX),
        step,
        most: usize::MAX,
    };
    let answer = chunks::points(&reader, &ask, Samples::new())?;
    let apart = match answer.resolution {
        Resolution::Raw => None,
        Resolution::Minute => Some(Duration::from_secs(60)),
        Resolution::Hour => Some(Duration::from_secs(3600)),
    };
    Ok((
        answer.lines.iter().map(|line| line.points.len()).sum(),
        apart,
    ))
}

/// What chunks of these reports are read as.
pub fn build_and_read(reports: &Reports) -> Result<Vec<Line>, StoreError> {
    let built = build(&mut Builder::new()?, reports)?;
    let mut lines = Vec::new();
    for built in built {
        let read = chunks::read_raw(&built.body, &built.keys)?;
        let read = read.into_iter().map(|((key, kind), values)| {
            let values = values
                .into_iter()
                .map(|(time, value)| (Timestamp(time), value));
            (key, kind, values.collect())
        });
        lines.extend(read);
    }
    Ok(lines)
}

/// Whether bytes are a chunk of raw metrics of so many series.
pub fn raw_chunk(bytes: &[u8], series: usize) -> Result<(), StoreError> {
    Ok(chunks::check_raw(bytes, series)?)
}

/// The same, of minutes or hours of counters and gauges by turns.
pub fn rollup_chunk(bytes: &[u8], series: usize) -> Result<(), StoreError> {
    Ok(chunks::check_rollup(bytes, series)?)
}

/// Whether bytes are a stored list of series.
pub fn key_list(bytes: &[u8]) -> Result<(), StoreError> {
    Ok(chunks::check_keys(bytes)?)
}

/// Real chunks and lists, each with the number by which the fuzz target reads it: of 3 series, as they stand on
/// disk and as what is sealed in them.
#[must_use]
pub fn examples() -> Vec<(u8, Vec<u8>)> {
    chunks::examples().unwrap_or_default()
}

/// A body sealed as a raw chunk's, a rollup's, or a list's.
pub fn sealed(kind: char, body: &[u8]) -> Result<Vec<u8>, StoreError> {
    Ok(chunks::seal(kind, body)?)
}
