//! Power cuts, recorded with strace: at any moment, what was promised to be stored is there.

use std::path::{Path, PathBuf};

use nexus_agent::{
    ledger::{Ledger, Stage},
    spool::{LaneConfig, Spool, SpoolConfig},
};
use nexus_proto::{
    ids::{Lane, RunKey},
    record::{Body, Event, Record},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{QueryOptions, Settings, Store, StoreError};
use nexus_tests::{fleet::SOON, poll, powercut::Recording, programs::Programs};
use rand::{SeedableRng as _, rngs::StdRng};

/// Cuts at every call of each recording, this often.
const OFTEN: u64 = 2;
/// Recordings of different work.
const SEEDS: u64 = 2;

async fn record(what: &str, dir: &Path, seed: u64) -> Recording {
    let program = Programs::built()
        .await
        .unwrap()
        .folder()
        .join("nexus-workload");
    let root = dir.join(format!("{what}-{seed}"));
    let trace = dir.join("trace");
    let args = [what, root.to_str().unwrap(), &seed.to_string()];
    let recording = Recording::of(&program, &args, &root, &trace).await.unwrap();
    assert!(recording.len() > 100, "only {} calls", recording.len());
    recording
}

/// Calls `check` with each state a cut may leave and what had been promised; returns how many there were.
async fn at_every_moment(what: &str, check: impl Fn(&Path, &[&str]) -> Result<(), String>) -> u64 {
    // In memory, where the checks' own fsyncs cost nothing.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut cuts = 0;
    for seed in 1..=SEEDS {
        let recording = record(what, dir.path(), seed).await;
        for calls in 0..=recording.len() {
            for again in 0..OFTEN {
                let chosen = seed << 32 | u64::try_from(calls).unwrap() << 8 | again;
                let mut chance = StdRng::seed_from_u64(chosen);
                let left: PathBuf = dir.path().join("left");
                let promises = recording.cut(calls, &left, &mut chance).unwrap();
                if let Err(why) = check(&left, &promises) {
                    panic!("{what}, seed {seed}, after {calls} calls, again {again}: {why}");
                }
                std::fs::remove_dir_all(&left).unwrap();
                cuts += 1;
            }
        }
    }
    cuts
}

fn config() -> SpoolConfig {
    let lane = LaneConfig {
        bytes: 64 * 1024,
        segment_bytes: 8 * 1024,
        age: std::time::Duration::from_secs(3600),
    };
    SpoolConfig {
        results: lane,
        inventory: lane,
        metrics: lane,
    }
}

/// The records of a lane that are still to be sent.
fn stored(spool: &Spool, lane: Lane) -> Result<Vec<Record>, String> {
    let mut upload = spool.upload(lane, spool.acked(lane));
    let mut records = Vec::new();
    loop {
        let batch = upload
            .next_batch(spool, 1 << 20, Timestamp(1_700_000_900_000))
            .map_err(|error| error.to_string())?;
        if batch.is_empty() {
            return Ok(records);
        }
        for (_, bytes) in batch {
            let record = Record::decode(bytes, &mut nexus_proto::metrics::Decoder::new());
            records.push(record.map_err(|error| error.to_string())?);
        }
    }
}

fn check_spool(dir: &Path, promises: &[&str]) -> Result<(), String> {
    let now = Timestamp(1_700_000_900_000);
    let (spool, _) = Spool::open(dir, &config(), 0, now).map_err(|error| format!("{error:?}"))?;
    for lane in [Lane::Results, Lane::Inventory] {
        let promised = |word: &str| {
            let of = format!("{word} ");
            let numbers = promises
                .iter()
                .filter_map(|promise| promise.strip_prefix(&of));
            let numbers = numbers.map(|text| {
                let (seq, time) = text.split_once(' ').unwrap();
                (seq.parse::<u64>().unwrap(), time.parse::<i64>().unwrap())
            });
            numbers.collect::<Vec<_>>()
        };
        let acked = promised(&format!("acked-{lane}"));
        let acked = acked.iter().map(|(seq, _)| *seq).max().unwrap_or(0);
        if spool.acked(lane) > acked {
            return Err(format!(
                "{lane}: {} is acked, {acked} was",
                spool.acked(lane)
            ));
        }
        let records = stored(&spool, lane)?;
        let mut expected = promised(lane.name());
        if lane == Lane::Inventory {
            // All sections are of one kind: the newest supersedes the others.
            expected = expected.last().copied().into_iter().collect();
        }
        for (seq, time) in &expected {
            let there = records.iter().any(|record| {
                record.seq == *seq
                    && record.time.as_ms() == *time
                    && !matches!(record.body, Body::Gap(_))
            });
            if *seq > acked && !there {
                return Err(format!("{lane}: {seq} was stored and is gone: {records:?}"));
            }
        }
        let highest = promised(lane.name())
            .iter()
            .map(|(seq, _)| *seq)
            .max()
            .unwrap_or(0);
        if spool.last(lane) < highest.max(acked) {
            return Err(format!("{lane}: {highest} may be used again"));
        }
    }
    let event = Event {
        kind: "after".to_owned(),
        message: String::new(),
    };
    spool
        .append(now, Body::Event(event))
        .map_err(|error| format!("it takes nothing more: {error:?}"))?;
    Ok(())
}

fn check_ledger(dir: &Path, promises: &[&str]) -> Result<(), String> {
    let now = Timestamp(1_700_000_900_000);
    let ledger = Ledger::open(dir, false, now).map_err(|error| format!("{error:?}"))?;
    for promise in promises {
        let mut words = promise.split(' ');
        let (word, job) = (words.next().unwrap(), words.next().unwrap());
        let run = ledger.get(&RunKey::once(job.parse().unwrap()));
        let stage = run.map(|run| &run.stage);
        let holds = match word {
            // Nothing rests on it: the collector offers it again.
            "received" => true,
            "started" => matches!(stage, Some(Stage::Started { .. } | Stage::Finished { .. })),
            _ => matches!(stage, Some(Stage::Finished { .. })),
        };
        if !holds {
            return Err(format!("{promise}: {stage:?}"));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_spool_has_what_it_stored() {
    let cuts = at_every_moment("spool", check_spool).await;
    println!("{cuts} cuts");
    assert!(cuts > 1000, "only {cuts} cuts");
}

#[tokio::test]
async fn a_ledger_knows_what_began() {
    let cuts = at_every_moment("ledger", check_ledger).await;
    println!("{cuts} cuts");
    assert!(cuts > 1000, "only {cuts} cuts");
}

async fn check_store(dir: PathBuf, promises: Vec<String>) -> Result<(), String> {
    let fail = |error: nexus_store::StoreError| format!("{error:?}");
    let promised = |word: &str| {
        let of = format!("{word} ");
        let found = promises
            .iter()
            .rev()
            .find_map(|promise| promise.strip_prefix(&of));
        found.map(str::to_owned)
    };
    let store = match Store::open(&dir, Clock::system(), Settings::default()) {
        Ok(store) => store,
        // It was not a store yet, and says so.
        Err(_) if promised("created").is_none() => return Ok(()),
        Err(error) => return Err(fail(error)),
    };
    if let Some(node) = promised("node") {
        let (node, incarnation) = node.split_once(' ').unwrap();
        let node = node.parse().unwrap();
        let row = store.node(node).map_err(fail)?;
        row.ok_or("the node is gone")?;
        let cursors = store
            .cursors(node, incarnation.parse().unwrap())
            .map_err(fail)?;
        let [_, (_, sections), (_, reports)] = cursors;
        for (word, cursor) in [("committed", sections), ("reported", reports)] {
            let promise = promised(word).unwrap_or_else(|| "0 0".to_owned());
            let promise: u64 = promise.split(' ').next().unwrap().parse().unwrap();
            if cursor < promise {
                return Err(format!("{promise} was {word}, {cursor} is there"));
            }
        }
        let lanes = "SELECT seq, records FROM lanes WHERE seq <> records";
        let mut rows = store
            .query(lanes, QueryOptions::default())
            .await
            .map_err(fail)?;
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(fail)?;
            if !batch.is_empty() {
                return Err(format!("records are there twice or not at all: {batch:?}"));
            }
        }
    }
    if let Some(audited) = promised("audited") {
        let seq = audited.split(' ').next().unwrap();
        let sql = format!("SELECT 1 FROM audit WHERE action = 'workload {seq}'");
        let mut rows = store
            .query(&sql, QueryOptions::default())
            .await
            .map_err(fail)?;
        let found = rows
            .next()
            .await
            .is_some_and(|batch| batch.is_ok_and(|b| b.len() == 1));
        if !found {
            return Err(format!("the audit row of {seq} is gone"));
        }
    }
    let digest = store.digest(0).map_err(fail)?;
    store.close();
    drop(store);
    for file in ["state.db", "state.db-wal", "state.db-shm"] {
        drop(std::fs::remove_file(dir.join("shards/0").join(file)));
    }
    // A query that has just been answered holds the store until its thread has ended.
    let store = poll::until("the store's release", SOON, || {
        let opened = Store::open(&dir, Clock::system(), Settings::default());
        std::future::ready(match opened {
            Err(StoreError::InUse { .. }) => None,
            other => Some(other),
        })
    });
    let store = store
        .await
        .map_err(|fault| fault.to_string())?
        .map_err(fail)?;
    if store.digest(0).map_err(fail)? != digest {
        return Err("what is made anew from the log differs".to_owned());
    }
    Ok(())
}

#[tokio::test]
async fn a_store_has_what_it_committed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut cuts = 0;
    for seed in 1..=SEEDS {
        let recording = record("store", dir.path(), seed).await;
        // Every third: opening a store takes longer than the rest together.
        for calls in (0..=recording.len()).step_by(3) {
            let mut chance = StdRng::seed_from_u64(seed << 32 | u64::try_from(calls).unwrap());
            let left = dir.path().join("left");
            let promises = recording.cut(calls, &left, &mut chance).unwrap();
            let promises = promises.into_iter().map(str::to_owned).collect();
            if let Err(why) = check_store(left.clone(), promises).await {
                panic!("seed {seed}, after {calls} calls: {why}");
            }
            std::fs::remove_dir_all(&left).unwrap();
            cuts += 1;
        }
    }
    println!("{cuts} cuts");
    assert!(cuts > 1000, "only {cuts} cuts");
}
