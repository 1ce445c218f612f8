//! What goes missing: files while no collector runs are noticed at the next start; what a record needs in order to be
//! applied costs that record, and not those after it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use nexus_proto::{
    ids::{Incarnation, Lane, NodeId},
    operator::v1::AuditRow,
    record::{Body, Event, Record, Section},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{
    Layout, QueryOptions, Settings, Store, StoreError, Value,
    entry::{NodeEnrolled, Outcome, Records},
};

fn new_store() -> (tempfile::TempDir, Clock, Store) {
    let dir = tempfile::tempdir().unwrap();
    Store::create(dir.path(), Layout::new(2)).unwrap();
    let clock = Clock::fixed(Timestamp(2_000_000));
    let store = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap();
    (dir, clock, store)
}

async fn audited(store: &Store, count: u64) {
    for _ in 0..count {
        store.audit(AuditRow::default()).await.unwrap();
    }
    store.note_audit_head().await.unwrap();
}

/// What the chain says of itself.
fn complaints(store: &Store) -> Vec<String> {
    let rows = store.audit_rows(1, 1000).unwrap().into_iter();
    rows.filter(|row| row.action == "audit-chain")
        .map(|row| row.detail)
        .collect()
}

#[tokio::test]
async fn an_audit_chain_that_was_removed_or_cut_says_so_once() {
    let (dir, clock, store) = new_store();
    audited(&store, 5).await;
    drop(store);
    for file in ["audit.db", "audit.db-wal", "audit.db-shm"] {
        std::fs::remove_file(dir.path().join(file)).ok();
    }
    let store = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap();
    assert_eq!(
        complaints(&store),
        [
            r#"{"fault":"the audit chain ends at row 0, and had come to row 5: what followed was removed"}"#
        ]
    );
    audited(&store, 4).await;
    drop(store);

    // The newest rows go.
    let store = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap();
    assert_eq!(complaints(&store).len(), 1, "it is said once");
    drop(store);
    #[expect(
        clippy::disallowed_methods,
        reason = "this is what somebody does behind the store's back"
    )]
    let file = rusqlite::Connection::open(dir.path().join("audit.db")).unwrap();
    file.execute("DELETE FROM audit WHERE seq > 3", []).unwrap();
    drop(file);
    let store = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap();
    assert!(complaints(&store)[1].contains("ends at row 3, and had come to row 5"));
    audited(&store, 4).await;
    drop(store);

    // Another chain of the same length takes its place.
    let (other, _, store) = new_store();
    audited(&store, 100).await;
    drop(store);
    std::fs::copy(other.path().join("audit.db"), dir.path().join("audit.db")).unwrap();
    let store = Store::open(dir.path(), clock, Settings::default()).unwrap();
    let complaints = complaints(&store);
    assert!(
        complaints.last().unwrap().contains("another than it was"),
        "{complaints:?}"
    );
}

#[tokio::test]
async fn a_shard_that_is_gone_is_not_made_anew() {
    let (dir, clock, store) = new_store();
    drop(store);
    let folder = dir.path().join("shards").join("1");
    let elsewhere = dir.path().join("elsewhere");
    std::fs::rename(&folder, &elsewhere).unwrap();
    let error = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap_err();
    assert!(
        matches!(&error, StoreError::Missing { path } if *path == folder.join("log.db")),
        "{error:?}"
    );
    assert!(!folder.exists());
    std::fs::rename(&elsewhere, &folder).unwrap();
    Store::open(dir.path(), clock, Settings::default()).unwrap();
}

#[tokio::test]
async fn a_record_that_cannot_be_applied_costs_only_itself() {
    let (dir, _, store) = new_store();
    let (node, incarnation) = (NodeId::random(), Incarnation::random());
    let enrolled = NodeEnrolled {
        node: node.to_wire(),
        name: "web-1".to_owned(),
        incarnation: incarnation.to_wire(),
        ..NodeEnrolled::default()
    };
    store.append_for(node, enrolled).await.unwrap();
    let file = dir
        .path()
        .join(format!("shards/{}/state.db", store.shard_of(node)));
    #[expect(
        clippy::disallowed_methods,
        reason = "this is what somebody does behind the store's back"
    )]
    let file = rusqlite::Connection::open(file).unwrap();
    file.execute_batch("DROP TABLE inventory_packages").unwrap();

    let event = |message: &str| {
        Body::Event(Event {
            kind: "test".to_owned(),
            message: message.to_owned(),
        })
    };
    let packages = vec![nexus_proto::record::Row(vec!["bash".to_owned().into()])];
    let bodies = [
        event("before"),
        Body::Section(Section::new("packages", packages)),
        event("after"),
    ];
    let records = (1..).zip(bodies).map(|(seq, body)| Record {
        seq,
        time: Timestamp(1),
        body,
    });
    let records = Records {
        node,
        incarnation,
        lane: Lane::Inventory,
        records: records.collect(),
    };
    let outcome = store.append_for(node, records).await.unwrap();
    assert_eq!(outcome, Outcome::Committed(3));
    let texts = async |sql: &str| {
        let mut rows = store.query(sql, QueryOptions::default()).await.unwrap();
        let mut found = Vec::new();
        while let Some(batch) = rows.next().await {
            found.extend(batch.unwrap().into_iter().flatten());
        }
        found
    };
    let text = |text: &str| Value::Text(text.to_owned());
    assert_eq!(
        texts("SELECT message FROM events ORDER BY message").await,
        [text("after"), text("before")]
    );
    let letters = texts("SELECT seq, reason FROM dead_letters").await;
    assert_eq!(letters[0], Value::Integer(2));
    assert!(
        matches!(&letters[1], Value::Text(why) if why.contains("it cannot be applied: ")),
        "{letters:?}"
    );
}
