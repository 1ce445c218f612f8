//! Work whose system calls are recorded, to find out what a power cut would leave of it
//! (`nexus_tests::powercut`). Every line on standard output is a promise: what it names was stored.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use nexus_agent::{
    ledger::Ledger,
    spool::{LaneConfig, Spool, SpoolConfig},
};
use nexus_proto::{
    ids::{Incarnation, JobId, Lane, NodeId, RunKey},
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    operator::v1::AuditRow,
    record::{Body, Event, Record, Section},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{
    Layout, Settings, Store,
    entry::{NodeEnrolled, Records, Reports},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// When the work is done, by its own reckoning.
const START: Timestamp = Timestamp(1_700_000_000_000);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let [_, what, dir, seed] = args.as_slice() else {
        return failed("usage: nexus-workload spool|ledger|store DIR SEED");
    };
    let Ok(seed) = seed.parse() else {
        return failed("the seed is no number");
    };
    let chance = StdRng::seed_from_u64(seed);
    let result = match what.as_str() {
        "spool" => spool(Path::new(dir), chance),
        "ledger" => ledger(Path::new(dir), chance),
        "store" => store(Path::new(dir), chance),
        _ => Err(format!("there is no work `{what}`")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

fn failed(why: &str) -> ExitCode {
    let _closed = writeln!(io::stderr(), "error: {why}");
    ExitCode::FAILURE
}

/// One write each, so that a recording shows when it was said.
fn promise(text: &str) -> Result<(), String> {
    io::stdout()
        .write_all(format!("{text}\n").as_bytes())
        .map_err(|error| error.to_string())
}

/// Small lanes, so that files are begun, finished, given up and removed often.
#[must_use]
fn config() -> SpoolConfig {
    let lane = LaneConfig {
        bytes: 64 * 1024,
        segment_bytes: 8 * 1024,
        age: Duration::from_secs(3600),
    };
    SpoolConfig {
        results: lane,
        inventory: lane,
        metrics: lane,
    }
}

fn spool(dir: &Path, mut chance: StdRng) -> Result<(), String> {
    let fail = |error: nexus_agent::spool::SpoolError| error.to_string();
    let mut now = START;
    for _ in 0..3 {
        let (spool, _) = Spool::open(dir, &config(), 0, now).map_err(fail)?;
        for _ in 0..60 {
            now = now.after(Duration::from_secs(1));
            match chance.random_range(0..10) {
                0..4 => {
                    let words = "word ".repeat(chance.random_range(1..200));
                    let message = format!("{} {words}", now.as_ms());
                    let seq = event(&spool, now, &message).map_err(fail)?;
                    promise(&format!("results {seq} {}", now.as_ms()))?;
                }
                4..6 => {
                    let section = section(now, chance.random_range(1..60));
                    let seq = spool.append(now, Body::Section(section)).map_err(fail)?;
                    promise(&format!("inventory {seq} {}", now.as_ms()))?;
                }
                6..9 => {
                    spool
                        .append(now, Body::Metrics(snapshot(&mut chance)))
                        .map_err(fail)?;
                }
                _ => {
                    for lane in [Lane::Results, Lane::Inventory] {
                        let (acked, last) = (spool.acked(lane), spool.last(lane));
                        if last > acked {
                            let seq = chance.random_range(acked..=last);
                            promise(&format!("acked-{lane} {seq} 0"))?;
                            spool.ack(lane, seq).map_err(fail)?;
                        }
                    }
                }
            }
        }
        if chance.random_bool(0.5) {
            spool.close().map_err(fail)?;
        }
    }
    Ok(())
}

fn event(
    spool: &Spool,
    now: Timestamp,
    message: &str,
) -> Result<u64, nexus_agent::spool::SpoolError> {
    let event = Event {
        kind: "workload".to_owned(),
        message: message.to_owned(),
    };
    spool.append(now, Body::Event(event))
}

fn section(now: Timestamp, rows: usize) -> Section {
    use nexus_proto::record::{Cell, Row};
    let rows = (0..rows)
        .map(|row| Row(vec![Cell::Text(format!("{} {row}", now.as_ms()))]))
        .collect();
    Section::new("groups", rows)
}

fn snapshot(chance: &mut StdRng) -> Snapshot {
    let samples = (0..20).map(|number| Sample {
        key: std::sync::Arc::new(SeriesKey {
            name: format!("workload_{number}"),
            labels: Vec::new(),
        }),
        kind: SeriesType::Gauge,
        value: chance.random::<f64>(),
    });
    Snapshot {
        interval_ms: 1000,
        samples: samples.collect(),
    }
}

fn ledger(dir: &Path, mut chance: StdRng) -> Result<(), String> {
    let fail = |error: nexus_agent::ledger::LedgerError| error.to_string();
    let expires = START.after(Duration::from_secs(1_000_000));
    let mut now = START;
    for _ in 0..3 {
        let mut ledger = Ledger::open(dir, false, now).map_err(fail)?;
        for _ in 0..25 {
            now = now.after(Duration::from_secs(1));
            let key = RunKey::once(JobId::random());
            ledger
                .receive(key, expires, vec![7; 100].into())
                .map_err(fail)?;
            promise(&format!("received {} 0", key.job))?;
            if chance.random_bool(0.8) {
                ledger.start(key, now, NodeId::random()).map_err(fail)?;
                promise(&format!("started {} 0", key.job))?;
                if chance.random_bool(0.8) {
                    ledger
                        .finish(key, expires, vec![9; 300].into())
                        .map_err(fail)?;
                    promise(&format!("finished {} 0", key.job))?;
                }
            }
        }
        ledger.compact(now).map_err(fail)?;
    }
    Ok(())
}

fn store(dir: &Path, chance: StdRng) -> Result<(), String> {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| error.to_string())?
        .block_on(work_on_store(dir, chance))
}

async fn work_on_store(dir: &Path, mut chance: StdRng) -> Result<(), String> {
    let fail = |error: nexus_store::StoreError| error.to_string();
    Store::create(dir, Layout::new(1)).map_err(fail)?;
    promise("created - 0")?;
    let (node, incarnation) = (NodeId::random(), Incarnation::random());
    let (mut seq, mut reported) = (0, 0);
    for round in 0..3 {
        let store = Store::open(dir, Clock::system(), Settings::default()).map_err(fail)?;
        if round == 0 {
            let enrolled = NodeEnrolled {
                node: node.to_wire(),
                name: "workload".to_owned(),
                incarnation: incarnation.to_wire(),
                time_ms: START.as_ms(),
                ..NodeEnrolled::default()
            };
            store.append_for(node, enrolled).await.map_err(fail)?;
            promise(&format!("node {node} {incarnation}"))?;
        }
        for _ in 0..20 {
            let mut records = Vec::new();
            for _ in 0..chance.random_range(1..5) {
                seq += 1;
                let body = Body::Section(section(START, chance.random_range(1..40)));
                let time = START.after(Duration::from_secs(seq));
                records.push(Record { seq, time, body });
            }
            let batch = Records {
                node,
                incarnation,
                lane: Lane::Inventory,
                records,
            };
            store.append_for(node, batch).await.map_err(fail)?;
            promise(&format!("committed {seq} 0"))?;
            let mut snapshots = Vec::new();
            for _ in 0..chance.random_range(1..5) {
                reported += 1;
                let time = START.after(Duration::from_secs(reported));
                snapshots.push((reported, time, snapshot(&mut chance)));
            }
            let reports = Reports::encode(node, incarnation, reported, snapshots);
            store.append_reports(reports).await.map_err(fail)?;
            promise(&format!("reported {reported} 0"))?;
            if chance.random_bool(0.2) {
                let row = AuditRow {
                    action: format!("workload {seq}"),
                    ..AuditRow::default()
                };
                store.audit(row).await.map_err(fail)?;
                promise(&format!("audited {seq} 0"))?;
            }
        }
        store.close();
    }
    Ok(())
}
