//! Benchmarks of a collector under a swarm of agents. Each runs the programs as they were built, gives figures
//! in base units, and says in words what it does. Wall time is noisy on shared machines: processor seconds and
//! ratios come first.

pub mod all;
pub mod compress;
pub mod connect;
pub mod fanout;
pub mod footprint;
pub mod growth;
pub mod ingest;
pub mod machine;
pub mod peers;
pub mod query;
pub mod recover;
pub mod shell;

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use nexus_agent::identity;
use nexus_transport::Mode;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    fleet::Fleet,
    swarm::{Params, Swarm, answers::Answers},
    usage,
};

/// What takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between looks at a swarm.
const LOOK: Duration = Duration::from_millis(20);
/// Between looks at the inventory of all.
const TOLD_LOOK: Duration = Duration::from_secs(1);

/// How many agents, and of which kind.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// How many.
    pub agents: usize,
    /// Series of each.
    pub series: usize,
    /// Packages of each.
    pub packages: usize,
    /// From one reading to the next.
    pub interval: Duration,
    /// What carries sessions.
    pub transport: Mode,
    /// The same seed makes the same hosts.
    pub seed: u64,
}

impl Load {
    /// For the figures.
    #[must_use]
    pub fn params(&self) -> Map<String, Value> {
        let params = json!({
            "agents": self.agents,
            "series": self.series,
            "packages": self.packages,
            "interval_seconds": self.interval.as_secs_f64(),
            "transport": format!("{:?}", self.transport).to_lowercase(),
            "seed": self.seed,
        });
        params.as_object().cloned().unwrap_or_default()
    }

    /// Series of each as a factor.
    fn series(&self) -> f64 {
        float(u64::try_from(self.series).unwrap_or(u64::MAX))
    }
}

/// A collector, and agents that have joined it and do nothing yet.
pub struct Stage {
    /// The collector with its operator.
    pub fleet: Fleet,
    /// The agents.
    pub swarm: Swarm,
    load: Load,
    _dir: TempDir,
}

impl Stage {
    /// Starts a collector and has the agents join.
    pub async fn new(load: Load, say: &dyn Fn(&str)) -> Outcome<Self> {
        let fleet = Fleet::new(&[]).await?;
        let uses = load.agents.to_string();
        let token = fleet.token(&["--uses", &uses]).await?;
        let token = identity::read_token(&token)
            .map_err(|error| Fault::new(format!("read the token: {error}")))?;
        // Their fsyncs are not what is measured.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.map_err(Fault::io("make a folder"))?;
        let swarm = Swarm::new(Params {
            agents: load.agents,
            processes: None,
            token,
            dir: dir.path().to_owned(),
            name: "swarm".to_owned(),
            transport: load.transport,
            interval: load.interval,
            series: load.series,
            packages: load.packages,
            answers: Answers {
                delay: Duration::ZERO,
                output: 0,
            },
            ramp: Duration::ZERO,
            seed: load.seed,
        })
        .await?;
        let begun = Instant::now();
        swarm.enrol().await?;
        say(&format!(
            "{} agents joined in {:.1} s",
            load.agents,
            begun.elapsed().as_secs_f64()
        ));
        Ok(Self {
            fleet,
            swarm,
            load,
            _dir: dir,
        })
    }

    /// Starts all agents at once, and waits until metrics of each were acknowledged.
    pub async fn connect(&mut self) -> Outcome<Duration> {
        let begun = Instant::now();
        self.swarm.start().await?;
        self.all_report().await?;
        Ok(begun.elapsed())
    }

    /// Waits until metrics of each agent were acknowledged since [`Swarm`]'s last mark.
    pub async fn all_report(&self) -> Outcome {
        let tally = self.swarm.tally();
        let begun = Instant::now();
        while tally.reporting() < self.load.agents {
            self.swarm.check()?;
            if begun.elapsed() > PATIENCE {
                return Err(Fault::new(format!(
                    "after {PATIENCE:?} {} of {} agents report, {} are connected; {}",
                    tally.reporting(),
                    self.load.agents,
                    tally.connected.load(Ordering::Relaxed),
                    tally.why_away(),
                )));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until the inventory of each agent is stored, which costs more than everything else about joining and
    /// goes on long after all report.
    pub async fn all_told(&self, say: &dyn Fn(&str)) -> Outcome {
        let sql = "SELECT count(*) AS nodes FROM sections WHERE kind = 'packages'";
        let begun = Instant::now();
        loop {
            let rows = self.fleet.query(sql).await?;
            let told = rows.first().and_then(|row| row["nodes"].as_u64());
            let told = told.and_then(|nodes| usize::try_from(nodes).ok());
            if told.is_some_and(|nodes| nodes >= self.load.agents) {
                break;
            }
            self.swarm.check()?;
            if begun.elapsed() > PATIENCE {
                return Err(Fault::new(format!(
                    "after {PATIENCE:?} the inventory of {} of {} agents is stored",
                    told.unwrap_or_default(),
                    self.load.agents
                )));
            }
            sleep(TOLD_LOOK).await;
        }
        say(&format!(
            "all inventory is stored after {:.1} s more",
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// What the collector uses now.
    pub fn usage(&self) -> Usage {
        let id = self.fleet.collector.id().unwrap_or(0);
        Usage {
            cpu: usage::cpu_time(id),
            resident: usage::resident_bytes(id),
            disk: bytes_in(self.fleet.collector.dir()),
        }
    }

    /// Ends everything in order.
    pub async fn end(self) -> Outcome {
        self.swarm.stop().await
    }
}

/// Of a program.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Processor time.
    pub cpu: Duration,
    /// Resident memory, bytes.
    pub resident: u64,
    /// Bytes of its files.
    pub disk: u64,
}

/// Bytes of all files beneath a folder.
fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// A figure of ours.
fn figure(
    bench: &'static str,
    figure: &'static str,
    value: f64,
    unit: &'static str,
    params: &Map<String, Value>,
) -> Figure {
    Figure {
        bench,
        figure,
        subject: "nexus",
        value,
        unit,
        params: params.clone(),
    }
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

/// A number of agents as a divisor.
fn each(load: &Load) -> f64 {
    float(u64::try_from(load.agents).unwrap_or(u64::MAX).max(1))
}
