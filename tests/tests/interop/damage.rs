//! An agent's state that is damaged while it is stopped: it starts, says so, accounts for every seq, neither loses
//! nor repeats what the collector had acknowledged, and executes nothing that it may have executed before.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
};

struct Damage {
    what: &'static str,
    does: fn(&Path),
    /// What the agent then says in its log.
    says: &'static str,
    /// The event the collector gets, where it is more than an unclean start.
    event: Option<&'static str>,
}

const DAMAGES: [Damage; 4] = [
    Damage {
        what: "a torn tail",
        does: |state| {
            let newest = segments(state).pop().unwrap();
            let bytes = fs::read(&newest).unwrap();
            fs::write(&newest, &bytes[..bytes.len() - 7]).unwrap();
        },
        says: "was not closed",
        event: None,
    },
    Damage {
        what: "a bad middle",
        does: |state| {
            let newest = segments(state).pop().unwrap();
            let mut bytes = fs::read(&newest).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(&newest, bytes).unwrap();
        },
        says: "is damaged and was moved",
        event: Some("spool_quarantined"),
    },
    Damage {
        what: "a spool full of garbage",
        does: |state| {
            for lane in ["results", "inventory", "metrics"] {
                for entry in fs::read_dir(state.join("spool").join(lane)).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_file() {
                        fs::write(path, garbage(300)).unwrap();
                    }
                }
            }
            fs::write(state.join("spool/sections"), garbage(300)).unwrap();
        },
        says: "is damaged and was moved",
        event: Some("spool_quarantined"),
    },
    Damage {
        what: "no spool",
        does: |state| fs::remove_dir_all(state.join("spool")).unwrap(),
        says: "was not closed",
        event: None,
    },
];

/// The same every time, and nothing that means anything.
fn garbage(bytes: usize) -> Vec<u8> {
    let words = (0..).map(|n: u32| n.wrapping_mul(2_654_435_761).to_le_bytes());
    words.flatten().take(bytes).collect()
}

/// Files of readings, oldest first.
fn segments(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state.join("spool/metrics")).unwrap().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|it| it == "seg"))
        .collect();
    paths.sort();
    paths
}

/// Readings the collector has.
async fn readings(fleet: &Fleet) -> u64 {
    let sql = "SELECT count(*) AS n, count(DISTINCT time) AS times FROM metric_history
         WHERE node = 'alpha' AND name = 'node_time_seconds'";
    let row = fleet.query(sql).await.unwrap().remove(0);
    assert_eq!(row["n"], row["times"], "a reading is there twice");
    row["n"].as_u64().unwrap()
}

/// Each seq of each lane is a record or within a gap, and each record of a reading is a reading.
async fn all_accounted_for(fleet: &Fleet, what: &str) {
    let sql = "SELECT lane, seq, records,
         (SELECT coalesce(sum(g.last_seq - g.first_seq), 0) FROM gaps g
          WHERE g.node_id = l.node_id AND g.lane = l.lane) AS missing,
         (SELECT count(*) FROM gaps g WHERE g.node_id = l.node_id AND g.lane = l.lane) AS gaps,
         (SELECT count(*) FROM metric_history m
          WHERE m.node = 'alpha' AND m.name = 'node_time_seconds') AS readings
         FROM lanes l WHERE l.node = 'alpha'";
    let rows = fleet.query(sql).await.unwrap();
    assert!(rows.len() >= 2, "{rows:?}");
    for row in rows {
        let number = |key: &str| row[key].as_u64().unwrap();
        let known = number("records") + number("missing");
        assert_eq!(known, number("seq"), "{what}: {row}");
        if row["lane"] == "metrics" {
            let readings = number("records") - number("gaps");
            assert_eq!(readings, number("readings"), "{what}: {row}");
        }
    }
}

/// Readings wait in the spool since the collector is away.
async fn some_wait(fleet: &Fleet) {
    let sizes = || {
        let segments = segments(fleet.agents[0].dir());
        let sizes = segments
            .iter()
            .map(|path| fs::metadata(path).unwrap().len());
        sizes.sum::<u64>()
    };
    let (mut size, mut times) = (sizes(), 0);
    poll::until("readings in the spool", SOON, || {
        let now = sizes();
        times += u32::from(now > size);
        size = now;
        std::future::ready((times >= 3).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_damaged_spool_is_accounted_for() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let mark = fleet.dir().join("mark");
    let script = format!("echo ran >> {}", mark.display());
    for (number, damage) in DAMAGES.iter().enumerate() {
        let what = damage.what;
        let job = ["run", "--yes", "--all", "--", "sh", "-c", &script];
        fleet.ctl.ok(&job).await.unwrap();
        let before = readings(&fleet).await;
        fleet.collector.stop().await.unwrap();
        some_wait(&fleet).await;
        // As a power cut leaves it, and as a clean stop does.
        if number % 2 == 0 {
            fleet.agents[0].kill().await.unwrap();
        } else {
            fleet.agents[0].stop().await.unwrap();
        }
        (damage.does)(fleet.agents[0].dir());
        let told = fleet.agents[0].log_text().len();
        fleet.collector.start().await.unwrap();
        fleet.agents[0].start().await.unwrap();
        poll::until_ok(what, SOON, || {
            let log = fleet.agents[0].log_text();
            let log = log.get(told..).unwrap_or_default().to_owned();
            let said = log.contains(damage.says) && log.contains("session opened");
            std::future::ready(if said { Ok(()) } else { Err(log) })
        })
        .await
        .unwrap();
        fleet.connected("alpha").await.unwrap();
        if let Some(kind) = damage.event {
            let sql = format!("SELECT message FROM events WHERE kind = '{kind}'");
            fleet
                .eventually(&sql, |rows| !rows.is_empty())
                .await
                .map_err(|fault| format!("{what}: {fault}"))
                .unwrap();
        }
        let after = poll::until(what, SOON, || async {
            let now = readings(&fleet).await;
            (now > before + 1).then_some(now)
        });
        after.await.unwrap();
        // The last word of the run before is the collector's: it is not executed again.
        fleet.ctl.ok(&job).await.unwrap();
        let times = fs::read_to_string(&mark).unwrap().lines().count();
        assert_eq!(times, 2 * (number + 1), "{what}");
        all_accounted_for(&fleet, what).await;
    }
    let runs = "SELECT state, count(*) AS n FROM runs GROUP BY state";
    let runs = fleet.query(runs).await.unwrap();
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert_eq!(runs[0]["n"], 2 * DAMAGES.len(), "{runs:?}");
    fleet.agents[0].stop().await.unwrap();
    all_accounted_for(&fleet, "in the end").await;
}

#[tokio::test]
async fn a_damaged_ledger_starts_nothing_again() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let mark = fleet.dir().join("mark");
    let script = format!("echo ran >> {}", mark.display());
    let job = ["run", "--yes", "--all", "--", "sh", "-c", &script];
    fleet.ctl.ok(&job).await.unwrap();
    let garbles = |state: &Path| fs::write(state.join("ledger/ledger"), garbage(5000)).unwrap();
    let removes = |state: &Path| fs::remove_dir_all(state.join("ledger")).unwrap();
    let damages: [fn(&Path); 2] = [garbles, removes];
    for (number, damage) in damages.into_iter().enumerate() {
        fleet.agents[0].kill().await.unwrap();
        damage(fleet.agents[0].dir());
        fleet.agents[0].start().await.unwrap();
        let sql = "SELECT message FROM events WHERE kind = 'ledger_damaged'";
        fleet
            .eventually(sql, |rows| rows.len() == number + 1)
            .await
            .unwrap();
        // What was signed about then may be what it has run already: clocks differ by minutes.
        let said = fleet.ctl.run(&job).await.unwrap();
        assert_eq!(said.code, 3, "{said:?}");
        assert!(said.err.contains("no longer known"), "{said:?}");
        let times = fs::read_to_string(&mark).unwrap().lines().count();
        assert_eq!(times, 1, "{said:?}");
        // All else goes on.
        let before = readings(&fleet).await;
        poll::until("readings", SOON, || async {
            (readings(&fleet).await > before + 1).then_some(())
        })
        .await
        .unwrap();
    }
    all_accounted_for(&fleet, "a damaged ledger").await;
}
