//! The host's metrics, under node_exporter's names, types, labels and units.
//!
//! One [`Sampler::sample`] reads what the kernel says in `/proc` and `/sys` and gives one [`Snapshot`] of
//! absolute values: every series that node_exporter 1.5 (Debian 12) shows for the collectors in
//! [`COLLECTORS`], computed with the same arithmetic. Collectors fail alone: one that cannot read its
//! source shows in `node_scrape_collector_success` and in the log when that changes, and costs the
//! others nothing. `statfs`, which hangs on a dead mount, is called on other threads with a deadline.
//!
//! Sampling is meant to cost next to nothing: series keys are shared from snapshot to snapshot, and
//! files are read into one buffer and parsed in place.

mod cpu;
mod disk;
mod filesystem;
mod kernel;
mod memory;
mod network;
mod probe;
mod sink;
mod source;
mod time;
mod zone;

use std::{io, path::PathBuf, time::Duration};

use nexus_proto::{
    metrics::{KeyPool, Snapshot},
    time::Timestamp,
};
use rustix::time::{ClockId, clock_gettime};

use self::{sink::Sink, source::Sources};

/// Where to look, and how often that will be.
#[derive(Debug, Clone)]
pub struct SampleConfig {
    /// Time between samplings, as snapshots say it.
    pub interval: Duration,
    /// `/proc`.
    pub procfs: PathBuf,
    /// `/sys`.
    pub sysfs: PathBuf,
    /// udev's database, for what disks say of themselves: `/run/udev/data`.
    pub udev: PathBuf,
    /// The time zone in TZif format: `/etc/localtime`.
    pub localtime: PathBuf,
    /// How long a mount may take to say its size before it counts as stuck.
    pub mount_timeout: Duration,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            procfs: "/proc".into(),
            sysfs: "/sys".into(),
            udev: "/run/udev/data".into(),
            localtime: "/etc/localtime".into(),
            mount_timeout: Duration::from_millis(200),
        }
    }
}

/// Why a collector has nothing, or not everything, to say.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// A file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file does not say what it should.
    #[error("{path} has no {what}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// More series, or longer ones, than a snapshot may have.
    #[error("{0} series were left out: too many or too long, or named as no series can be")]
    Refused(usize),
}

type Collect = fn(&mut Sources, &mut Sink) -> Result<(), SampleError>;

/// node_exporter's collectors that are ours too. `stat` uses what `cpu` has read.
const COLLECTORS: [(&str, Collect); 14] = [
    ("cpu", cpu::collect),
    ("stat", kernel::stat),
    ("meminfo", memory::meminfo),
    ("vmstat", memory::vmstat),
    ("pressure", memory::pressure),
    ("loadavg", kernel::loadavg),
    ("filefd", kernel::filefd),
    ("uname", kernel::uname),
    ("time", time::collect),
    ("filesystem", filesystem::collect),
    ("diskstats", disk::collect),
    ("netdev", network::netdev),
    ("netstat", network::netstat),
    ("sockstat", network::sockstat),
];

/// Samples one host, again and again.
#[derive(Debug)]
pub struct Sampler {
    interval_ms: u32,
    sources: Sources,
    sink: Sink,
    outcomes: [Outcome; COLLECTORS.len()],
}

#[derive(Debug, Default, Clone)]
struct Outcome {
    /// What was logged last.
    error: Option<String>,
    took: Duration,
}

fn milliseconds(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

impl Sampler {
    /// A sampler of the host that these paths show.
    #[must_use]
    pub fn new(config: SampleConfig) -> Self {
        Self {
            interval_ms: milliseconds(config.interval),
            sources: Sources::new(config),
            sink: Sink::new(COLLECTORS.len() + 1),
            outcomes: Default::default(),
        }
    }

    /// Snapshots say from now on that they are so far apart.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval_ms = milliseconds(interval);
    }

    /// The same, with its series' keys from a pool that others use too.
    #[must_use]
    pub fn with_keys(mut self, keys: KeyPool) -> Self {
        self.sink.keys = keys;
        self
    }

    /// What the host says now. Takes a fraction of a millisecond, and [`SampleConfig::mount_timeout`]
    /// more in the moment a mount stops answering.
    pub fn sample(&mut self, now: Timestamp) -> Snapshot {
        self.sources.now = now;
        for (group, ((name, collect), outcome)) in
            COLLECTORS.iter().zip(&mut self.outcomes).enumerate()
        {
            let begin = monotonic();
            self.sink.begin(group);
            let result = collect(&mut self.sources, &mut self.sink);
            let result = result.and(self.sink.end());
            outcome.took = monotonic().saturating_sub(begin);
            outcome.note(name, result.err());
        }
        self.sink.begin(COLLECTORS.len());
        for ((name, _), outcome) in COLLECTORS.iter().zip(&self.outcomes) {
            let labels = [("collector", *name)];
            let success = if outcome.error.is_none() { 1.0 } else { 0.0 };
            self.sink
                .gauge(&["node_scrape_collector_success"], &labels, success);
            #[expect(clippy::cast_precision_loss, reason = "no collector takes 285 years")]
            let seconds = outcome.took.as_micros() as f64 / 1e6;
            self.sink.gauge(
                &["node_scrape_collector_duration_seconds"],
                &labels,
                seconds,
            );
        }
        // Of these two series a collector, all fixed, none can be refused but for want of room,
        // which the collector that took it has reported.
        self.sink.end().ok();
        Snapshot {
            interval_ms: self.interval_ms,
            samples: self.sink.take(),
        }
    }
}

impl Outcome {
    fn note(&mut self, collector: &str, error: Option<SampleError>) {
        let error = error.map(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        });
        if self.error != error {
            match &error {
                Some(error) => {
                    tracing::warn!(collector, error, "metrics are missing");
                }
                None => tracing::info!(collector, "metrics are complete again"),
            }
            self.error = error;
        }
    }
}

/// For `node_scrape_collector_duration_seconds` alone; nothing is decided by it.
fn monotonic() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
