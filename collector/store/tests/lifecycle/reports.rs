//! What nodes report: once, in order, and remembered.

use nexus_proto::{
    ids::{Lane, SessionId},
    record::{Body, Gap, Section},
    time::Timestamp,
};
use nexus_store::{
    QueryOptions, Value,
    entry::{Outcome, SessionOpened},
};

use crate::{World, packages, record, snapshot};

#[tokio::test]
async fn a_node_connects_and_reports_once() {
    let world = World::new().await;
    let session = SessionId::random();
    let opened = SessionOpened {
        node: world.node.to_wire(),
        session: session.to_wire(),
        counter: 7,
        transport: "quic".into(),
        key_exchange: "X25519MLKEM768".into(),
        time_ms: 2_100_000,
        ..SessionOpened::default()
    };
    world.store.append_for(world.node, opened).await.unwrap();
    let node = world.store.node(world.node).unwrap().unwrap();
    assert_eq!(
        (node.state.as_str(), node.session, node.session_counter),
        ("connected", Some(session), 7)
    );
    assert_eq!(
        (node.kernel.as_str(), node.labels["role"].as_str()),
        ("6.1", "web")
    );

    world.clock.advance(std::time::Duration::from_secs(200));
    let one = record(1, Body::Metrics(snapshot(1.5)));
    let two = record(2, Body::Metrics(snapshot(2.5)));
    assert_eq!(
        world
            .report(Lane::Metrics, vec![one.clone(), two.clone()])
            .await,
        Outcome::Committed(2)
    );
    // Sent again, with one more.
    let three = record(3, Body::Metrics(snapshot(3.5)));
    assert_eq!(
        world.report(Lane::Metrics, vec![one, two, three]).await,
        Outcome::Committed(3)
    );
    assert_eq!(
        world.store.cursors(world.node, world.incarnation).unwrap(),
        [(Lane::Results, 0), (Lane::Inventory, 0), (Lane::Metrics, 3)]
    );
    let values = |world: &World| -> Vec<f64> {
        let points = world
            .store
            .history(world.node, "node_load1", Timestamp(0), Timestamp(i64::MAX))
            .unwrap();
        points.iter().map(|point| point.value).collect()
    };
    assert_eq!(values(&world), [1.5, 2.5, 3.5]);
    assert_eq!(
        *world.store.newest(world.node).unwrap().snapshot,
        snapshot(3.5)
    );
    assert_eq!(
        world.store.node(world.node).unwrap().unwrap().last_seen,
        Some(world.clock.now())
    );

    let world = world.reopen();
    assert_eq!(values(&world), [1.5, 2.5, 3.5]);
    let node = world.store.node(world.node).unwrap().unwrap();
    assert_eq!((node.state.as_str(), node.session), ("disconnected", None));

    // Ten minutes later the head becomes a chunk.
    world.clock.advance(std::time::Duration::from_secs(3600));
    world
        .report(Lane::Metrics, vec![record(4, Body::Metrics(snapshot(4.5)))])
        .await;
    world
        .report(
            Lane::Metrics,
            vec![record(5, Body::Metrics(snapshot(f64::NAN)))],
        )
        .await;
    assert_eq!(values(&world)[..4], [1.5, 2.5, 3.5, 4.5]);
    world.same_when_rebuilt().await;
    let world = world.reopen();
    assert_eq!(values(&world).len(), 5);
    assert!(values(&world)[4].is_nan());
    let then = world.store.nodes(Some(Timestamp(2_150_000))).unwrap();
    assert_eq!(then[0].state, "connected");
    assert!(world.store.nodes(Some(Timestamp(1))).unwrap().is_empty());
}

/// What is missing is what neither came before nor stands in the gap's own record.
#[tokio::test]
async fn a_gap_begins_where_the_records_end() {
    let world = World::new().await;
    let gap = |first_seq, last_seq| {
        let reason = "unclean_start".into();
        Body::Gap(Gap {
            first_seq,
            last_seq,
            reason,
        })
    };
    for records in [
        vec![record(1, packages(&["a"])), record(2, packages(&["b"]))],
        vec![record(1024, gap(1, 1024)), record(1025, packages(&["a"]))],
        vec![record(2048, gap(1030, 2048))],
    ] {
        world.report(Lane::Inventory, records).await;
    }
    let sql = "SELECT first_seq, last_seq FROM gaps ORDER BY first_seq";
    let mut rows = world
        .store
        .query(sql, QueryOptions::default())
        .await
        .unwrap();
    let found = rows.next().await.unwrap().unwrap();
    let expected = [[3, 1024], [1030, 2048]];
    assert_eq!(found, expected.map(|row| row.map(Value::Integer).to_vec()));
    world.same_when_rebuilt().await;
}

#[tokio::test]
async fn inventory_remembers_what_was() {
    let world = World::new().await;
    world
        .report(
            Lane::Inventory,
            vec![record(1, packages(&["bash", "dash"]))],
        )
        .await;
    world.clock.advance(std::time::Duration::from_secs(60));
    world
        .report(Lane::Inventory, vec![record(2, packages(&["dash", "zsh"]))])
        .await;
    let failed = Body::Section(Section::failed(
        "packages",
        "dpkg's status file is gone".into(),
    ));
    world.report(Lane::Inventory, vec![record(3, failed)]).await;
    let sections = world.store.sections(world.node).unwrap();
    assert_eq!(sections.len(), 1);
    assert_eq!(
        sections[0].error.as_deref(),
        Some("dpkg's status file is gone")
    );
    let Body::Section(now) = packages(&["dash", "zsh"]) else {
        unreachable!()
    };
    assert_eq!(sections[0].hash, now.hash);
    world.same_when_rebuilt().await;
}

#[tokio::test]
async fn the_newest_report_is_the_last_one_whatever_its_clock_says() {
    let world = World::new().await;
    let mut ahead = record(1, Body::Metrics(snapshot(1.0)));
    ahead.time = Timestamp(i64::MAX / 2);
    world.report(Lane::Metrics, vec![ahead]).await;
    world
        .report(Lane::Metrics, vec![record(2, Body::Metrics(snapshot(2.0)))])
        .await;
    let world = {
        let newest = world.store.newest(world.node).unwrap();
        assert_eq!(newest.snapshot, snapshot(2.0).into());
        world.reopen()
    };
    let newest = world.store.newest(world.node).unwrap();
    assert_eq!(newest.snapshot, snapshot(2.0).into());
}
