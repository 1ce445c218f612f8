//! A folder and the files in it.

use nexus_proto::ids::Lane;
use nexus_runtime::clock::Clock;
use nexus_store::{Layout, Settings, Store, StoreError};

use crate::{World, packages, record};

#[tokio::test]
async fn a_folder_has_one_store_and_one_user() {
    let world = World::new().await;
    assert!(matches!(
        Store::open(world.dir.path(), world.clock.clone(), Settings::default()),
        Err(StoreError::InUse { .. })
    ));
    let path = world.dir.path().to_owned();
    let World {
        dir: _dir, store, ..
    } = world;
    drop(store);
    assert!(matches!(
        Store::create(&path, Layout::new(1)),
        Err(StoreError::Exists { .. })
    ));
    assert!(Store::open(&path.join("none"), Clock::system(), Settings::default()).is_err());
}

#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "it makes a file of an older version, behind the store's back"
)]
async fn projections_of_an_older_version_are_made_anew_from_the_log() {
    let world = World::new().await;
    world
        .report(Lane::Inventory, vec![record(1, packages(&["bash"]))])
        .await;
    let digests = |store: &Store| {
        let digests = (0..store.shards()).map(|shard| store.digest(shard).unwrap());
        digests.collect::<Vec<_>>()
    };
    let before = digests(&world.store);
    let World {
        dir,
        clock,
        mut store,
        ..
    } = world;
    // As the first version left it, without the count of records, and as the third did.
    let uncounted = "DROP TABLE package_versions; DROP INDEX node_history_by_name;
        CREATE TABLE chunks (id INTEGER PRIMARY KEY);";
    let first = format!("{uncounted} ALTER TABLE cursors DROP COLUMN records;");
    for (version, sql) in [(1, first.as_str()), (3, uncounted)] {
        store.close();
        drop(store);
        for shard in 0..2 {
            let path = dir.path().join(format!("shards/{shard}/state.db"));
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
            let db = rusqlite::Connection::open_with_flags(&path, flags).unwrap();
            db.execute_batch(&format!("{sql} PRAGMA user_version = {version};"))
                .unwrap();
        }
        store = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap();
        assert_eq!(digests(&store), before, "of version {version}");
    }
    assert!(
        dir.path().join("shards/0/state.db.v1").exists(),
        "no backup"
    );
}
