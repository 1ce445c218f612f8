//! What a steady stream of metrics costs the collector: processor time, memory, bytes on disk, and how long an
//! agent waits for its ack.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::sleep;

use super::{Load, Stage, figure, float};
use crate::{fault::Outcome, figure::Figure, swarm::tally::quantile};

/// What connecting left behind is not measured.
const WARM_UP: Duration = Duration::from_secs(20);

/// Runs it for `span`.
pub async fn run(load: Load, span: Duration, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let mut stage = Stage::new(load, say).await?;
    let connected = stage.connect().await?;
    say(&format!(
        "all report after {:.1} s",
        connected.as_secs_f64()
    ));
    sleep(WARM_UP).await;

    let tally = stage.swarm.tally().clone();
    drop(tally.take_waits());
    let (before, acked) = (stage.usage(), tally.acked.load(Ordering::Relaxed));
    say(&format!("measuring for {} s", span.as_secs()));
    sleep(span).await;
    let after = stage.usage();
    let acked = tally.acked.load(Ordering::Relaxed).saturating_sub(acked);
    let waits = tally.take_waits();

    let series = u64::try_from(load.series).unwrap_or(0);
    let samples = float(acked * series).max(1.0);
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    let disk = float(after.disk.saturating_sub(before.disk));
    let mut params = load.params();
    params.insert("seconds".to_owned(), span.as_secs_f64().into());
    params.insert("rss_before".to_owned(), before.resident.into());
    params.insert(
        "failed".to_owned(),
        tally.failed.load(Ordering::Relaxed).into(),
    );
    let figures = vec![
        figure(
            "ingest",
            "samples_per_second",
            samples / span.as_secs_f64(),
            "samples/second",
            &params,
        ),
        figure(
            "ingest",
            "cpu_seconds_per_1k_samples",
            cpu * 1000.0 / samples,
            "seconds",
            &params,
        ),
        figure(
            "ingest",
            "ack_p50",
            quantile(&waits, 50).as_secs_f64(),
            "seconds",
            &params,
        ),
        figure(
            "ingest",
            "ack_p99",
            quantile(&waits, 99).as_secs_f64(),
            "seconds",
            &params,
        ),
        figure("ingest", "rss", float(after.resident), "bytes", &params),
        figure(
            "compress",
            "bytes_per_sample",
            disk / samples,
            "bytes",
            &params,
        ),
    ];
    stage.end().await?;
    Ok(figures)
}
