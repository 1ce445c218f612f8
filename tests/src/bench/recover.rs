//! A collector that is killed under load: how long until it is ready, until all agents report again, and what it
//! takes to make the projections anew from the log alone.

use std::{fs, path::Path, sync::atomic::Ordering, time::Duration};

use serde_json::{Map, Value};
use tokio::time::{Instant, sleep, timeout};

use super::{Load, Stage, figure, float};
use crate::{
    collector::Collector,
    fault::{Fault, Outcome},
    figure::Figure,
    scrape,
};

/// Longer than this is a failure.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between looks at whether it is ready.
const LOOK: Duration = Duration::from_millis(10);

/// Kills it once the load has lasted for `span`.
pub async fn run(load: Load, span: Duration, say: &dyn Fn(&str)) -> Outcome<Vec<Figure>> {
    let mut stage = Stage::new(load, say).await?;
    let connected = stage.connect().await?;
    say(&format!(
        "all report after {:.1} s; killing after {} s",
        connected.as_secs_f64(),
        span.as_secs()
    ));
    sleep(span).await;
    let mut params = load.params();
    params.insert("seconds_of_load".to_owned(), span.as_secs_f64().into());
    params.insert(
        "log_bytes".to_owned(),
        log_bytes(stage.fleet.collector.dir()).into(),
    );

    let begun = Instant::now();
    stage.fleet.collector.kill().await?;
    stage.swarm.tally().mark();
    stage.fleet.collector.start().await?;
    ready(&stage.fleet.collector).await?;
    let up = begun.elapsed();
    stage.all_report().await?;
    let all = begun.elapsed();
    say(&format!(
        "ready after {:.2} s, all report after {:.1} s",
        up.as_secs_f64(),
        all.as_secs_f64()
    ));
    let lost = lost(&stage).await?;
    let Stage {
        mut fleet,
        swarm,
        _dir,
        ..
    } = stage;
    swarm.stop().await?;

    let mut figures = vec![
        seconds("seconds", up, &params),
        seconds("seconds_until_all_report", all, &params),
        figure("recover", "lost", float(lost), "records", &params),
    ];

    fleet.collector.stop().await?;
    let bytes = log_bytes(fleet.collector.dir());
    forget_projections(fleet.collector.dir())?;
    let begun = Instant::now();
    fleet.collector.start().await?;
    ready(&fleet.collector).await?;
    let rebuilt = begun.elapsed();
    say(&format!(
        "projections from {} MiB of log after {:.2} s",
        bytes >> 20,
        rebuilt.as_secs_f64()
    ));
    params.insert("log_bytes".to_owned(), bytes.into());
    figures.push(seconds("rebuild_seconds", rebuilt, &params));
    Ok(figures)
}

fn seconds(name: &'static str, span: Duration, params: &Map<String, Value>) -> Figure {
    figure("recover", name, span.as_secs_f64(), "seconds", params)
}

/// Waits until `/readyz` says so.
async fn ready(collector: &Collector) -> Outcome {
    let address = &collector.endpoints().metrics;
    let wait = async {
        while scrape::get(address, "/readyz").await.is_err() {
            sleep(LOOK).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .map_err(|_| Fault::new(format!("not ready after {PATIENCE:?}")))
}

/// Records of metrics that agents know to be acknowledged, and the collector does not have.
async fn lost(stage: &Stage) -> Outcome<u64> {
    let acked = stage.swarm.tally().acked.load(Ordering::Relaxed);
    let sum = "SELECT coalesce(sum(records), 0) AS records FROM lanes WHERE lane = 'metrics'";
    let rows = stage.fleet.query(sum).await?;
    let there = rows.first().and_then(|row| row.get("records")?.as_u64());
    let there = there.ok_or_else(|| Fault::new(format!("no count of records: {rows:?}")))?;
    Ok(acked.saturating_sub(there))
}

/// Bytes of all shards' logs.
fn log_bytes(dir: &Path) -> u64 {
    let files = shards(dir)
        .into_iter()
        .flat_map(|shard| ["log.db", "log.db-wal"].map(|file| fs::metadata(shard.join(file))));
    files.flatten().map(|found| found.len()).sum()
}

fn forget_projections(dir: &Path) -> Outcome {
    for shard in shards(dir) {
        for file in ["state.db", "state.db-wal", "state.db-shm"] {
            match fs::remove_file(shard.join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Fault::new(format!("remove {file}: {error}")));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn shards(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir.join("shards")).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}
