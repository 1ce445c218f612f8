//! A disk that fills up: nothing is acknowledged that is not durable, and it goes on by itself afterwards. And when
//! commits wait for one another.

use nexus_proto::{
    ids::{Incarnation, Lane, NodeId},
    record::{Body, Event, Record},
};

use super::*;
use crate::{
    entry::{Entry, Records},
    shard::Shard,
    watch::Watches,
};

const RECORDS: u64 = 40;

/// The n-th batch of records.
fn batch(n: u64) -> Vec<Entry> {
    let record = |seq| {
        // Random, so that no compression makes it fit.
        let message = (0..100)
            .map(|_| Incarnation::random().to_string())
            .collect();
        Record {
            seq,
            time: Timestamp(1),
            body: Body::Event(Event {
                kind: "k".into(),
                message,
            }),
        }
    };
    let (node, incarnation) = (
        NodeId(uuid::Uuid::from_u128(1)),
        Incarnation(uuid::Uuid::from_u128(2)),
    );
    let records = ((n - 1) * RECORDS + 1..=n * RECORDS).map(record).collect();
    vec![
        Records {
            node,
            incarnation,
            lane: Lane::Results,
            records,
        }
        .into(),
    ]
}

fn committed(n: u64) -> [Outcome; 1] {
    [Outcome::Committed(n * RECORDS)]
}

fn limit(file: &Connection, more: i64) {
    let pages: i64 = file
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap();
    let _: i64 = file
        .query_row(
            &format!("PRAGMA max_page_count = {}", pages + more),
            [],
            |row| row.get(0),
        )
        .unwrap();
}

fn core(dir: &Path) -> Core<Shard> {
    Core::open(
        dir,
        Clock::fixed(Timestamp(1)),
        Shard::new(Watches::default()),
    )
    .unwrap()
}

fn events(core: &Core<Shard>) -> i64 {
    core.rows
        .query_row("SELECT count(*) / 40 FROM events", [], |row| row.get(0))
        .unwrap()
}

#[test]
fn a_full_disk_under_the_log_acknowledges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut core = core(dir.path());
    assert_eq!(core.write(batch(1)).unwrap(), committed(1));
    limit(core.log.connection(), 2);
    let error = core.write(batch(2)).unwrap_err();
    assert!(is_fatal(&error), "{error:?}");
    assert_eq!((core.log.index(), events(&core)), (1, 1));
    limit(core.log.connection(), 1_000_000);
    assert_eq!(core.write(batch(2)).unwrap(), committed(2));
    assert_eq!((core.log.index(), events(&core)), (2, 2));
}

#[test]
fn a_full_disk_under_the_projections_is_caught_up_with() {
    let dir = tempfile::tempdir().unwrap();
    let mut core = core(dir.path());
    assert_eq!(core.write(batch(1)).unwrap(), committed(1));
    limit(&core.rows, 2);
    let error = core.write(batch(2)).unwrap_err();
    assert!(matches!(error, StoreError::Unapplied(_)), "{error:?}");
    // It is in the log; that is not known to the agent, which sends it again.
    assert_eq!((core.log.index(), events(&core)), (2, 1));
    assert!(core.write(batch(2)).is_err());
    limit(&core.rows, 1_000_000);
    assert_eq!(core.write(batch(2)).unwrap(), committed(2));
    assert_eq!(events(&core), 2);
}

#[test]
fn a_record_that_cannot_be_read_back_becomes_a_dead_letter() {
    let dir = tempfile::tempdir().unwrap();
    let mut core = core(dir.path());
    let mut facts = batch(1);
    if let Some(Entry::Records(records)) = facts.first_mut() {
        let message = "x".repeat(1024 * 1024);
        records.records[20].body = Body::Event(Event {
            kind: "k".into(),
            message,
        });
    }
    core.write(facts).unwrap();
    core.rebuild().unwrap();
    let letters: i64 = core
        .rows
        .query_row("SELECT seq FROM dead_letters", [], |row| row.get(0))
        .unwrap();
    assert_eq!(letters, 21);
    assert_eq!(core.write(batch(1)).unwrap(), committed(1));
}

#[test]
fn an_entry_that_cannot_be_applied_costs_its_neighbours_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut core = core(dir.path());
    let mut facts = batch(1);
    // Of no node there could be.
    facts.push(crate::entry::DeadLetter::default().into());
    facts.extend(batch(2));
    let outcomes = core.write(facts).unwrap();
    let [first, bad, second] = outcomes.as_slice() else {
        panic!("{outcomes:?}");
    };
    assert_eq!([first, second], [&committed(1)[0], &committed(2)[0]]);
    assert!(bad.refusal().is_some(), "{bad:?}");
    assert_eq!((core.log.index(), events(&core)), (1, 2));
    core.rebuild().unwrap();
    assert_eq!(events(&core), 2);
}

#[test]
fn a_commit_waits_for_others_only_after_one_that_had_many() {
    assert_eq!(pause_after(0), Duration::ZERO);
    assert_eq!(pause_after(1), Duration::ZERO);
    assert_eq!(pause_after(2), GATHER_EACH);
    assert_eq!(pause_after(1000), GATHER);
}

#[test]
fn a_moment_that_is_past_is_not_waited_for() {
    let clock = Clock::system();
    let now = clock.instant();
    rest(&clock, now);
    let until = clock.instant() + Duration::from_millis(5);
    rest(&clock, until);
    assert!(clock.instant() >= until);
}
