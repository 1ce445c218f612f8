//! What a steady stream of metrics costs the collector: processor time, memory, bytes on disk, and how long an
//! agent waits for its ack.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Load, Stage, Usage, figure, float};
use crate::{fault::Outcome, figure::Figure, swarm::tally::Waits};

/// Readings of each agent until what connecting left behind is over, which is not measured.
pub(super) const WARM_UP: u32 = 2;

/// Runs it for `span`.
pub async fn run(load: Load, span: Duration, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let mut stage = Stage::new(load, say).await?;
    let connected = stage.connect().await?;
    say(&format!(
        "all report after {:.1} s",
        connected.as_secs_f64()
    ));
    stage.all_told(say).await?;
    sleep(WARM_UP * load.interval).await;

    say(&format!("measuring for {} s", span.as_secs()));
    let measured = measure(&stage, span).await;
    let mut params = load.params();
    params.insert("seconds".to_owned(), span.as_secs_f64().into());
    params.insert("rss_before".to_owned(), measured.before.resident.into());
    params.insert("failed".to_owned(), measured.failed.into());
    let of = |name, value, unit| figure("ingest", name, value, unit, &params);
    let grown = float(measured.after.resident) / float(measured.before.resident).max(1.0);
    let figures = vec![
        of("samples_per_second", measured.rate(), "samples/second"),
        of(
            "cpu_seconds_per_1k_samples",
            measured.cpu().as_secs_f64() * 1000.0 / measured.samples,
            "seconds",
        ),
        of("ack_p50", measured.ack(50).as_secs_f64(), "seconds"),
        of("ack_p99", measured.ack(99).as_secs_f64(), "seconds"),
        of("rss", float(measured.after.resident), "bytes"),
        of("rss_growth", grown - 1.0, "ratio"),
        of(
            "disk_bytes_per_sample",
            float(measured.disk()) / measured.samples,
            "bytes",
        ),
    ];
    stage.end().await?;
    Ok(figures)
}

/// What happened in a while of steady load.
#[derive(Debug)]
pub(super) struct Measured {
    /// How long it lasted.
    pub(super) span: Duration,
    /// Samples that were acknowledged; at least one.
    pub(super) samples: f64,
    /// Reports that agents could not store, since the beginning.
    pub(super) failed: u64,
    before: Usage,
    after: Usage,
    waits: Waits,
}

impl Measured {
    pub(super) fn rate(&self) -> f64 {
        self.samples / self.span.as_secs_f64()
    }

    pub(super) fn cpu(&self) -> Duration {
        self.after.cpu.saturating_sub(self.before.cpu)
    }

    pub(super) fn resident(&self) -> u64 {
        self.after.resident
    }

    pub(super) fn disk(&self) -> u64 {
        self.after.disk.saturating_sub(self.before.disk)
    }

    /// How long an ack took.
    pub(super) fn ack(&self, percent: u64) -> Duration {
        self.waits.quantile(percent)
    }
}

/// Looks on for so long.
pub(super) async fn measure(stage: &Stage, span: Duration) -> Measured {
    let tally = stage.swarm.tally();
    drop(tally.take_waits());
    let acked = tally.acked.load(Ordering::Relaxed);
    let (begun, before) = (Instant::now(), stage.usage());
    sleep(span).await;
    let acked = tally.acked.load(Ordering::Relaxed).saturating_sub(acked);
    let after = stage.usage();
    Measured {
        span: begun.elapsed(),
        samples: (float(acked) * stage.load.series()).max(1.0),
        failed: tally.failed.load(Ordering::Relaxed),
        before,
        after,
        waits: tally.take_waits(),
    }
}
