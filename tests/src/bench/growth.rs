//! The same figures for ever larger fleets, so that what each more agent costs can be seen.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Load, Stage, figure, float, ingest};
use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    swarm::tally::quantile,
};

/// Jobs on all, and questions; what matters is how they grow.
const TIMES: usize = 5;

/// All figures of one size; the load is looked at for `span`.
pub async fn run(load: Load, span: Duration, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let mut stage = Stage::new(load, say).await?;
    let before = stage.usage();
    let connected = stage.connect().await?;
    let connecting = stage.usage().cpu.saturating_sub(before.cpu);
    stage.all_told(say).await?;
    sleep(ingest::WARM_UP * load.interval).await;
    let steady = ingest::measure(&stage, span).await;

    let all = format!("{0} targets: {0} succeeded", load.agents);
    let job = timed(async || {
        let run = ["run", "--yes", "--all", "--", "true"];
        let said = stage.fleet.ctl.run(&run).await?;
        if said.err.contains(&all) {
            Ok(())
        } else {
            Err(Fault::new(format!("not every run succeeded: {}", said.err)))
        }
    });
    let job = job.await?;
    let list = timed(async || {
        let listed = stage.fleet.ctl.ok(&["get", "nodes", "-o", "csv"]).await;
        listed.map(drop)
    });
    let list = list.await?;

    let begun = Instant::now();
    stage.fleet.collector.kill().await?;
    stage.swarm.tally().mark();
    stage.fleet.collector.start().await?;
    stage.all_report().await?;
    let back = begun.elapsed();
    stage.end().await?;
    say(&format!(
        "{} agents: {:.2} cores, {} MiB, all back {:.1} s after a kill",
        load.agents,
        steady.cpu().as_secs_f64() / steady.span.as_secs_f64(),
        steady.resident() >> 20,
        back.as_secs_f64()
    ));

    let mut params = load.params();
    params.insert("seconds".to_owned(), Value::from(span.as_secs_f64()));
    let seconds = steady.span.as_secs_f64();
    let rows = [
        ("connect_seconds", connected.as_secs_f64(), "seconds"),
        ("connect_cpu_seconds", connecting.as_secs_f64(), "seconds"),
        ("samples_per_second", steady.rate(), "samples/second"),
        ("cores", steady.cpu().as_secs_f64() / seconds, "cores"),
        ("rss", float(steady.resident()), "bytes"),
        ("ack_p99", steady.ack(99).as_secs_f64(), "seconds"),
        (
            "fanout_seconds",
            quantile(&job, 50).as_secs_f64(),
            "seconds",
        ),
        (
            "get_nodes_p50",
            quantile(&list, 50).as_secs_f64(),
            "seconds",
        ),
        ("seconds_after_kill", back.as_secs_f64(), "seconds"),
    ];
    let rows = rows.into_iter();
    Ok(rows
        .map(|(name, value, unit)| figure("growth", name, value, unit, &params))
        .collect())
}

/// How long each took, shortest first; a first one is not counted.
async fn timed(mut once: impl AsyncFnMut() -> Outcome) -> Outcome<Vec<Duration>> {
    once().await?;
    let mut took = Vec::new();
    for _ in 0..TIMES {
        let begun = Instant::now();
        once().await?;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}
