//! How long until a whole fleet reports: at first, and after the collector was killed.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Load, Stage, each, figure, float};
use crate::{fault::Outcome, figure::Figure};

/// What may still be under way settles.
const SETTLE: Duration = Duration::from_secs(5);

/// Runs it.
pub async fn run(load: Load, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let mut stage = Stage::new(load, say).await?;
    let before = stage.usage();
    let first = stage.connect().await?;
    let after = stage.usage();
    say(&format!("all report after {:.1} s", first.as_secs_f64()));
    sleep(SETTLE).await;
    let settled = stage.usage();

    let reports = stage
        .swarm
        .tally()
        .reports
        .load(std::sync::atomic::Ordering::Relaxed);
    stage.fleet.collector.kill().await?;
    stage.swarm.tally().mark();
    let begun = Instant::now();
    stage.fleet.collector.start().await?;
    let up = begun.elapsed();
    stage.all_report().await?;
    let again = begun.elapsed();
    say(&format!(
        "killed: up again after {:.1} s, all report after {:.1} s",
        up.as_secs_f64(),
        again.as_secs_f64()
    ));
    let mut params = load.params();
    params.insert("reports_before_kill".to_owned(), reports.into());
    let memory = settled.resident.saturating_sub(before.resident);
    let cpu = after.cpu.saturating_sub(before.cpu);
    let figures = vec![
        figure(
            "connect",
            "seconds",
            first.as_secs_f64(),
            "seconds",
            &params,
        ),
        figure(
            "connect",
            "rss_per_agent",
            float(memory) / each(&load),
            "bytes",
            &params,
        ),
        figure(
            "connect",
            "cpu_seconds_per_agent",
            cpu.as_secs_f64() / each(&load),
            "seconds",
            &params,
        ),
        figure(
            "connect",
            "seconds_after_kill",
            again.as_secs_f64(),
            "seconds",
            &params,
        ),
    ];
    stage.end().await?;
    Ok(figures)
}
