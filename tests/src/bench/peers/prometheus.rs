//! Debian's Prometheus scraping as many made-up hosts: what a sample costs it, in processor time, memory and bytes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::{process::Command, time::sleep};

use super::exposition::Exposition;
use crate::{
    bench::{Load, bytes_in, float},
    fault::{Fault, Outcome},
    figure::Figure,
    page, poll, port,
    process::Process,
    scrape, usage,
};

/// Until it serves.
const START: Duration = Duration::from_secs(60);
/// For a block of everything that it holds in memory.
const SNAPSHOT: Duration = Duration::from_secs(300);
/// What its scrapes tell about itself.
const APPENDED: &str = "prometheus_tsdb_head_samples_appended_total";

/// Has it scrape `targets` hosts of this load for `span`, once all were scraped.
pub async fn run(
    load: &Load,
    targets: usize,
    span: Duration,
    say: &dyn Fn(&str),
) -> Outcome<Vec<Figure>> {
    let dir = tempfile::tempdir().map_err(Fault::io("make a folder"))?;
    let exposition = Exposition::serve(load, targets).await?;
    let prometheus = Prometheus::start(dir.path(), load, targets, &exposition).await?;
    let all = u64::try_from(targets).unwrap_or(u64::MAX);
    poll::until("a scrape of each target", 3 * load.interval + START, || {
        std::future::ready((exposition.served() >= 2 * all).then_some(()))
    })
    .await?;

    say(&format!(
        "Prometheus scrapes {targets} targets; measuring for {} s",
        span.as_secs()
    ));
    let before = prometheus.look().await?;
    sleep(span).await;
    let after = prometheus.look().await?;
    let samples = after.appended - before.appended;
    if samples < 1.0 {
        return Err(prometheus
            .process
            .explain(Fault::new("nothing was scraped")));
    }
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    let wal = float(after.wal.saturating_sub(before.wal));
    let (chunks, index) = prometheus.block().await?;

    let mut params = load.params();
    params.remove("transport");
    params.remove("packages");
    params.insert("agents".to_owned(), targets.into());
    params.insert("seconds".to_owned(), span.as_secs_f64().into());
    let mut figures = Vec::new();
    let mut push = |bench, figure, value, unit, more: &[(&str, Value)]| {
        let mut params: Map<String, Value> = params.clone();
        let more = more.iter();
        params.extend(more.map(|(name, value)| ((*name).to_owned(), value.clone())));
        figures.push(Figure {
            bench,
            figure,
            subject: "prometheus",
            value,
            unit,
            params,
        });
    };
    let rate = samples / span.as_secs_f64();
    push("ingest", "samples_per_second", rate, "samples/second", &[]);
    let cost = cpu * 1000.0 / samples;
    push("ingest", "cpu_seconds_per_1k_samples", cost, "seconds", &[]);
    push("ingest", "rss", float(after.resident), "bytes", &[]);
    // A block of two hours has 720 samples of each series at 10 s, and its index weighs less.
    let each = json!((after.appended / float(all) / load.series().max(1.0)).round());
    for (part, bytes, of) in [
        ("wal", wal, samples),
        ("block chunks", float(chunks), after.appended),
        ("block index", float(index), after.appended),
    ] {
        let more = [("part", part.into()), ("samples_per_series", each.clone())];
        push(
            "ingest",
            "disk_bytes_per_sample",
            bytes / of,
            "bytes",
            &more,
        );
    }
    Ok(figures)
}

/// What it has used and done.
struct Look {
    cpu: Duration,
    resident: u64,
    appended: f64,
    wal: u64,
}

struct Prometheus {
    process: Process,
    address: String,
    data: PathBuf,
}

impl Prometheus {
    async fn start(
        dir: &Path,
        load: &Load,
        targets: usize,
        exposition: &Exposition,
    ) -> Outcome<Self> {
        let seconds = load.interval.as_secs().max(1);
        let at = exposition.address();
        let mut config = format!(
            "global:\n  scrape_interval: {seconds}s\n  scrape_timeout: {seconds}s\n\
             scrape_configs:\n- job_name: node\n  static_configs:\n"
        );
        for number in 0..targets {
            config += &format!(
                "  - targets: ['{at}']\n    labels: {{__metrics_path__: /{number}/metrics, instance: 'swarm-{number}'}}\n"
            );
        }
        let file = dir.join("prometheus.yml");
        fs::write(&file, config).map_err(Fault::io(file.display()))?;
        let data = dir.join("data");
        let address = format!("127.0.0.1:{}", port::free()?);
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={address}"))
            .args(["--web.enable-admin-api", "--log.level=warn"]);
        let process = Process::start(&mut command, &dir.join("prometheus.log"))?;
        let ready = || async { scrape::get(&address, "/-/ready").await.ok() };
        poll::until("Prometheus", START, ready)
            .await
            .map_err(|fault| process.explain(fault))?;
        Ok(Self {
            process,
            address,
            data,
        })
    }

    async fn look(&self) -> Outcome<Look> {
        let id = self.process.id().unwrap_or(0);
        let own = scrape::get(&self.address, "/metrics").await?;
        Ok(Look {
            cpu: usage::cpu_time(id),
            resident: usage::resident_bytes(id),
            appended: page::series(&own, APPENDED).map(|(_, value)| value).sum(),
            wal: bytes_in(&self.data.join("wal")),
        })
    }

    /// Writes all it holds in memory as a block, and gives the bytes of its chunks and of its index.
    async fn block(&self) -> Outcome<(u64, u64)> {
        let written = scrape::post(&self.address, "/api/v1/admin/tsdb/snapshot");
        tokio::time::timeout(SNAPSHOT, written)
            .await
            .map_err(|_| Fault::new("a snapshot of Prometheus does not end"))??;
        let (mut chunks, mut index) = (0, 0);
        for snapshot in folders(&self.data.join("snapshots")) {
            for block in folders(&snapshot) {
                chunks += bytes_in(&block.join("chunks"));
                index += fs::metadata(block.join("index")).map_or(0, |found| found.len());
            }
        }
        if chunks == 0 {
            return Err(Fault::new("the snapshot of Prometheus is empty"));
        }
        Ok((chunks, index))
    }
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}
