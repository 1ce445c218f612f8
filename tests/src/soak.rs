//! Programs that are killed again and again under agents that report and run jobs, and the count at the end.
//!
//! Every agent appends its run's name to one file when it executes a job, so that executions are counted by
//! the jobs themselves. In the end each agent's own account of what was acknowledged is held against what the
//! shards say in SQL, and the shards against their own logs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nexus_agent::spool::{LaneConfig, Spool, SpoolConfig};
use nexus_proto::ids::Lane;
use nexus_runtime::clock::Clock;
use nexus_store::{Settings, Store};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Map, Value, json};
use tokio::time::{interval_at, timeout};

use crate::{
    fault::{Fault, Outcome},
    figure::Figure,
    fleet::{Fleet, SOON},
    poll,
};

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victims {
    /// The collector.
    Collector,
    /// One agent at a time.
    Agents,
    /// Either.
    Both,
}

impl Victims {
    /// As on a command line.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "collector" => Some(Self::Collector),
            "agents" => Some(Self::Agents),
            "both" => Some(Self::Both),
            _ => None,
        }
    }
}

/// How it goes.
#[derive(Debug, Clone, Copy)]
pub struct Params {
    /// How long there is killing.
    pub span: Duration,
    /// From one kill to the next.
    pub every: Duration,
    /// How many agents.
    pub agents: usize,
    /// Who is killed.
    pub victims: Victims,
    /// The same seed kills in the same order.
    pub seed: u64,
}

/// What it came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Programs killed.
    pub kills: u64,
    /// Jobs the collector took.
    pub jobs: u64,
    /// Executions of them, counted by themselves.
    pub executions: u64,
    /// Runs by final state.
    pub states: BTreeMap<String, u64>,
    /// Records the agents know to be acknowledged.
    pub acked: u64,
    /// Acknowledged records the shards do not have, and reports that were begun and have no end.
    pub lost: u64,
    /// Records that are there twice, and runs that were executed twice.
    pub duplicated: u64,
    /// Everything that is not as it should be, in words.
    pub faults: Vec<String>,
}

impl Report {
    /// The figures of the contract.
    #[must_use]
    pub fn figures(&self, params: &Params) -> Vec<Figure> {
        let victims = match params.victims {
            Victims::Collector => "collector",
            Victims::Agents => "agents",
            Victims::Both => "both",
        };
        let given = json!({
            "seconds": params.span.as_secs_f64(),
            "every_seconds": params.every.as_secs_f64(),
            "agents": params.agents,
            "killed": victims,
            "seed": params.seed,
            "kills": self.kills,
            "jobs": self.jobs,
            "executions": self.executions,
            "states": self.states,
        });
        let given: Map<String, Value> = given.as_object().cloned().unwrap_or_default();
        let figure = |figure, value: u64| Figure {
            bench: "soak",
            figure,
            subject: "nexus",
            #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 records")]
            value: value as f64,
            unit: "records",
            params: given.clone(),
        };
        vec![
            figure("acked", self.acked),
            figure("lost", self.lost),
            figure("duplicated", self.duplicated),
        ]
    }
}

/// Runs it.
pub async fn run(params: &Params, say: &dyn Fn(&str)) -> Outcome<Report> {
    let mut fleet = Fleet::new(&[]).await?;
    let names: Vec<String> = (1..=params.agents).map(|n| format!("node-{n}")).collect();
    for name in &names {
        fleet.add(name, &["interval=1s"]).await?;
    }
    for name in &names {
        fleet.connected(name).await?;
    }
    say(&format!("{} agents report and run jobs", names.len()));
    let ran = fleet.dir().join("ran");
    let kills = torment(&mut fleet, params, &ran, say).await?;
    for name in &names {
        fleet.connected(name).await?;
    }
    // Past every expiry and its grace, each run is in its final state.
    let open = "SELECT id FROM jobs WHERE state = 'active'";
    poll::until_ok("the end of all jobs", 3 * SOON, || async {
        match fleet.query(open).await {
            Ok(rows) if rows.is_empty() => Ok(()),
            Ok(rows) => Err(format!("{} jobs are active", rows.len())),
            Err(fault) => Err(fault.to_string()),
        }
    })
    .await?;
    let mut report = Report {
        kills,
        ..Report::default()
    };
    for agent in &mut fleet.agents {
        agent.stop().await?;
    }
    count_runs(&fleet, &ran, &mut report).await?;
    count_records(&fleet, &mut report).await?;
    fleet.collector.stop().await?;
    rebuild(fleet.collector.dir(), &mut report)?;
    Ok(report)
}

/// Kills and starts again until the time is over, with jobs all the while.
async fn torment(
    fleet: &mut Fleet,
    params: &Params,
    ran: &Path,
    say: &dyn Fn(&str),
) -> Outcome<u64> {
    let clock = Clock::system();
    let end = clock.instant() + params.span;
    let mut chance = StdRng::seed_from_u64(params.seed);
    let ctl = fleet.ctl.clone();
    let script = format!("echo \"$NEXUS_RUN\" >> {}; echo done", ran.display());
    let jobs = async {
        let args = [
            "run",
            "--yes",
            "--all",
            "--expires",
            "10s",
            "--timeout",
            "5s",
            "--",
            "sh",
            "-c",
            &script,
        ];
        while clock.instant() < end {
            // It may fail while the collector is down: what counts is what the collector took.
            drop(timeout(params.every, ctl.run(&args)).await);
        }
    };
    let kill = async {
        let start = tokio::time::Instant::now() + params.every;
        let mut ticks = interval_at(start, params.every);
        let mut kills = 0;
        while clock.instant() + params.every < end {
            ticks.tick().await;
            let collector = match params.victims {
                Victims::Collector => true,
                Victims::Agents => false,
                Victims::Both => chance.random_bool(0.5),
            };
            if collector {
                fleet.collector.kill().await?;
                fleet.collector.start().await?;
                say("killed the collector");
            } else {
                let which = chance.random_range(0..fleet.agents.len());
                if let Some(agent) = fleet.agents.get_mut(which) {
                    agent.kill().await?;
                    agent.start().await?;
                    say(&format!("killed {}", agent.name()));
                }
            }
            kills += 1;
        }
        Ok::<_, Fault>(kills)
    };
    let ((), kills) = tokio::join!(jobs, kill);
    kills
}

async fn count_runs(fleet: &Fleet, ran: &Path, report: &mut Report) -> Outcome {
    let runs = "SELECT node_id, job_id, state FROM runs";
    let runs = fleet.query(runs).await?;
    let executed = fs::read_to_string(ran).unwrap_or_default();
    let mut times: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in executed.lines() {
        // NODE/JOB/OCCURRENCE/STEP/ATTEMPT
        let mut parts = line.split('/');
        if let (Some(node), Some(job)) = (parts.next(), parts.next()) {
            *times.entry((node, job)).or_default() += 1;
            report.executions += 1;
        }
    }
    let text = |row: &Value, key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut jobs = std::collections::BTreeSet::new();
    for row in &runs {
        let (Some(node), Some(job), Some(state)) = (
            text(row, "node_id"),
            text(row, "job_id"),
            text(row, "state"),
        ) else {
            return Err(Fault::new(format!("a run without a key: {row}")));
        };
        let executions = times.get(&(node.as_str(), job.as_str())).copied();
        let fits = match state.as_str() {
            "succeeded" => executions == Some(1),
            // The program may have begun, or not, when its agent was killed.
            "unknown" | "lost" | "failed" | "timed_out" => executions.unwrap_or(0) <= 1,
            "cancelled" | "expired" | "rejected" => executions.is_none(),
            _ => false,
        };
        if !fits {
            let times = executions.unwrap_or(0);
            report.faults.push(format!(
                "run {job} on {node} is {state} and was executed {times} times"
            ));
            if times > 1 {
                report.duplicated += times - 1;
            } else {
                report.lost += 1;
            }
        }
        *report.states.entry(state).or_default() += 1;
        jobs.insert(job);
    }
    report.jobs = u64::try_from(jobs.len()).unwrap_or(u64::MAX);
    Ok(())
}

async fn count_records(fleet: &Fleet, report: &mut Report) -> Outcome {
    let lanes = "SELECT l.node, l.lane, l.seq, l.records,
         (SELECT coalesce(sum(g.last_seq - g.first_seq), 0) FROM gaps g
          WHERE g.node_id = l.node_id AND g.lane = l.lane) AS missing
         FROM lanes l";
    for row in fleet.query(lanes).await? {
        let number = |key: &str| row.get(key).and_then(Value::as_u64).unwrap_or(u64::MAX);
        let (name, lane) = (row.get("node"), row.get("lane"));
        let (seq, records, missing) = (number("seq"), number("records"), number("missing"));
        // Every seq came once, or a gap says that it never will.
        let known = records.saturating_add(missing);
        if known != seq {
            report
                .faults
                .push(format!("{row}: {known} of {seq} seqs are accounted for"));
            report.lost += seq.saturating_sub(known);
            report.duplicated += known.saturating_sub(seq);
        }
        let agent = fleet
            .agents
            .iter()
            .find(|agent| name.is_some_and(|n| n == agent.name()));
        let lane = Lane::ALL
            .into_iter()
            .find(|of| lane.is_some_and(|l| l == of.name()));
        if let (Some(agent), Some(lane)) = (agent, lane) {
            let acked = acked(agent.dir(), lane)?;
            report.acked += acked;
            if acked > seq {
                report
                    .faults
                    .push(format!("{row}: the agent was acknowledged up to {acked}"));
                report.lost += acked - seq;
            }
        }
    }
    let twice = "SELECT l.node, l.records AS records, count(m.time) AS readings, count(DISTINCT m.time) AS times,
         (SELECT count(*) FROM gaps g WHERE g.node_id = l.node_id AND g.lane = 'metrics') AS gaps
         FROM lanes l LEFT JOIN metric_history m
           ON m.node = l.node AND m.name = 'node_time_seconds'
         WHERE l.lane = 'metrics' AND l.node = ";
    for agent in &fleet.agents {
        let sql = format!(
            "{twice}'{0}' AND m.node = '{0}' AND m.name = 'node_time_seconds'",
            agent.name()
        );
        for row in fleet.query(&sql).await? {
            let number = |key: &str| row.get(key).and_then(Value::as_u64).unwrap_or(0);
            let (readings, expected) = (number("readings"), number("records") - number("gaps"));
            if readings != expected || number("times") != readings {
                report
                    .faults
                    .push(format!("{row}: {expected} readings are expected"));
                report.lost += expected.saturating_sub(readings);
                report.duplicated += readings.saturating_sub(expected);
            }
        }
    }
    Ok(())
}

/// What a stopped agent's folder says was acknowledged.
fn acked(dir: &Path, lane: Lane) -> Outcome<u64> {
    let config = LaneConfig {
        bytes: 64 << 20,
        segment_bytes: 4 << 20,
        age: Duration::from_secs(48 * 3600),
    };
    let config = SpoolConfig {
        results: config,
        inventory: config,
        metrics: config,
    };
    let (spool, _) = Spool::open(&dir.join("spool"), &config, 0, Clock::system().now())
        .map_err(|error| Fault::new(format!("{}: {error}", dir.display())))?;
    let acked = spool.acked(lane);
    spool
        .close()
        .map_err(|error| Fault::new(format!("{}: {error}", dir.display())))?;
    Ok(acked)
}

/// Projections that are made anew from the log say the same.
fn rebuild(dir: &Path, report: &mut Report) -> Outcome {
    let before = digests(dir)?;
    for number in 0..before.len() {
        for file in ["state.db", "state.db-wal", "state.db-shm"] {
            let path: PathBuf = dir.join("shards").join(number.to_string()).join(file);
            drop(fs::remove_file(path));
        }
    }
    let after = digests(dir)?;
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        if before != after {
            report.faults.push(format!(
                "shard {number} differs after a rebuild from its log"
            ));
        }
    }
    Ok(())
}

fn digests(dir: &Path) -> Outcome<Vec<[u8; 32]>> {
    let fail = |error: nexus_store::StoreError| Fault::new(format!("{}: {error}", dir.display()));
    let store = Store::open(dir, Clock::system(), Settings::default()).map_err(fail)?;
    let digests = (0..store.shards()).map(|shard| store.digest(shard).map_err(fail));
    let digests = digests.collect();
    store.close();
    digests
}
