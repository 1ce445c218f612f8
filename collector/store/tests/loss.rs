//! Files that go missing while no collector runs are noticed at the next start.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use nexus_proto::{operator::v1::AuditRow, time::Timestamp};
use nexus_runtime::clock::Clock;
use nexus_store::{Layout, Store, StoreError};

fn new_store() -> (tempfile::TempDir, Clock, Store) {
    let dir = tempfile::tempdir().unwrap();
    Store::create(dir.path(), Layout::new(2)).unwrap();
    let clock = Clock::fixed(Timestamp(2_000_000));
    let store = Store::open(dir.path(), clock.clone()).unwrap();
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
    let store = Store::open(dir.path(), clock.clone()).unwrap();
    assert_eq!(
        complaints(&store),
        [
            r#"{"fault":"the audit chain ends at row 0, and had come to row 5: what followed was removed"}"#
        ]
    );
    audited(&store, 4).await;
    drop(store);

    // The newest rows go.
    let store = Store::open(dir.path(), clock.clone()).unwrap();
    assert_eq!(complaints(&store).len(), 1, "it is said once");
    drop(store);
    #[expect(
        clippy::disallowed_methods,
        reason = "this is what somebody does behind the store's back"
    )]
    let file = rusqlite::Connection::open(dir.path().join("audit.db")).unwrap();
    file.execute("DELETE FROM audit WHERE seq > 3", []).unwrap();
    drop(file);
    let store = Store::open(dir.path(), clock.clone()).unwrap();
    assert!(complaints(&store)[1].contains("ends at row 3, and had come to row 5"));
    audited(&store, 4).await;
    drop(store);

    // Another chain of the same length takes its place.
    let (other, _, store) = new_store();
    audited(&store, 100).await;
    drop(store);
    std::fs::copy(other.path().join("audit.db"), dir.path().join("audit.db")).unwrap();
    let store = Store::open(dir.path(), clock).unwrap();
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
    let error = Store::open(dir.path(), clock.clone()).unwrap_err();
    assert!(
        matches!(&error, StoreError::Missing { path } if *path == folder.join("log.db")),
        "{error:?}"
    );
    assert!(!folder.exists());
    std::fs::rename(&elsewhere, &folder).unwrap();
    Store::open(dir.path(), clock).unwrap();
}
