//! A store on real files: what is appended is applied once, survives reopening, and follows from the log.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::sync::Arc;

use nexus_proto::{
    agent::v1::{Envelope, NodeFacts, Target},
    ids::{Incarnation, JobId, Lane, NodeId, RunKey, SessionId, TokenId},
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    operator::v1::AuditRow,
    record::{
        Body, Cell, Finished, Gap, Output, OutputStream, Record, Row, RunOutcome, Section, Started,
    },
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{
    Layout, QueryOptions, RunState, Settings, Store, StoreError, Value,
    entry::{
        ControlEntry, JobCreated, NodeEnrolled, Outcome, Records, Reports, RunDispatched,
        RunSettled, RunsPlanned, SessionOpened, TokenCreated, TokenUsed,
    },
};

fn snapshot(value: f64) -> Snapshot {
    let sample = |name: &str, labels: &[(&str, &str)], value| Sample {
        key: Arc::new(SeriesKey::new(name, labels)),
        kind: SeriesType::Gauge,
        value,
    };
    Snapshot {
        interval_ms: 10_000,
        samples: vec![
            sample("node_load1", &[], value),
            sample("node_cpu", &[("cpu", "0")], 2.0),
        ],
    }
}

fn record(seq: u64, body: Body) -> Record {
    Record {
        seq,
        time: Timestamp(1_000_000 + i64::try_from(seq).unwrap()),
        body,
    }
}

fn packages(names: &[&str]) -> Body {
    let rows = names
        .iter()
        .map(|name| Row(vec![(*name).to_owned().into(), Cell::Text("1".into())]))
        .collect();
    Body::Section(Section::new("packages", rows))
}

struct World {
    dir: tempfile::TempDir,
    clock: Clock,
    store: Store,
    node: NodeId,
    incarnation: Incarnation,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Store::create(dir.path(), Layout::new(2)).unwrap();
        let clock = Clock::fixed(Timestamp(2_000_000));
        let store = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap();
        let (node, incarnation) = (NodeId::random(), Incarnation::random());
        let enrolled = NodeEnrolled {
            node: node.to_wire(),
            name: "web-1".into(),
            incarnation: incarnation.to_wire(),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            facts: Some(NodeFacts {
                kernel: "6.1".into(),
                ..NodeFacts::default()
            }),
            certificate_expires_ms: 9_000_000,
            time_ms: 2_000_000,
        };
        assert_eq!(
            store.append_for(node, enrolled).await.unwrap(),
            Outcome::Applied
        );
        Self {
            dir,
            clock,
            store,
            node,
            incarnation,
        }
    }

    async fn report(&self, lane: Lane, records: Vec<Record>) -> Outcome {
        let (node, incarnation) = (self.node, self.incarnation);
        if lane == Lane::Metrics {
            let snapshots = records.into_iter().map(|record| match record.body {
                Body::Metrics(snapshot) => (record.seq, record.time, snapshot),
                other => panic!("{other:?}"),
            });
            let reports = Reports::encode(node, incarnation, 1, snapshots.collect());
            return self.store.append_reports(reports).await.unwrap();
        }
        self.store
            .append_for(
                node,
                Records {
                    node,
                    incarnation,
                    lane,
                    records,
                },
            )
            .await
            .unwrap()
    }

    fn reopen(self) -> Self {
        let Self {
            dir,
            clock,
            store,
            node,
            incarnation,
        } = self;
        drop(store);
        let store = Store::open(dir.path(), clock.clone(), Settings::default()).unwrap();
        Self {
            dir,
            clock,
            store,
            node,
            incarnation,
        }
    }

    async fn same_when_rebuilt(&self) {
        for shard in 0..self.store.shards() {
            let digest = self.store.digest(shard).unwrap();
            self.store.rebuild_projections(shard).await.unwrap();
            assert_eq!(self.store.digest(shard).unwrap(), digest);
        }
    }
}

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
async fn a_run_ends_in_one_state() {
    let world = World::new().await;
    let job = JobId::random();
    let changes = world.store.watch(job);
    let target = Target {
        node_id: world.node.to_wire(),
        name: "web-1".into(),
        incarnation: world.incarnation.to_wire(),
    };
    let created = JobCreated {
        job: job.to_wire(),
        envelope: Some(Envelope::default()),
        targets: vec![target.clone()],
        created_ms: 1,
        ..JobCreated::default()
    };
    let outcome = world
        .store
        .control_append(vec![
            ControlEntry::Job(created.clone()),
            ControlEntry::Job(created),
        ])
        .await;
    let outcome = outcome.unwrap();
    assert_eq!(outcome[0], Outcome::Applied);
    assert!(outcome[1].refusal().is_some());
    let planned = RunsPlanned {
        job: job.to_wire(),
        targets: vec![target],
        time_ms: 1,
    };
    world.store.append_for(world.node, planned).await.unwrap();
    let dispatched = RunDispatched {
        job: job.to_wire(),
        node: world.node.to_wire(),
        time_ms: 2,
        ..RunDispatched::default()
    };
    world
        .store
        .append_for(world.node, dispatched.clone())
        .await
        .unwrap();
    let run = RunKey::once(job);
    let output = |offset, data: &'static str| {
        Body::Output(Output {
            run,
            stream: OutputStream::Stdout,
            offset,
            data: data.into(),
        })
    };
    let finished = Finished {
        run,
        outcome: RunOutcome::Exited,
        exit_code: Some(0),
        signal: None,
        reason: String::new(),
        stdout_bytes: 5,
        stderr_bytes: 0,
        stdout_dropped_bytes: 0,
        stderr_dropped_bytes: 0,
        started: Timestamp(3),
        finished: Timestamp(4),
    };
    world
        .report(
            Lane::Results,
            vec![
                record(1, Body::Started(Started { run, pid: 1 })),
                record(2, output(0, "hel")),
                record(3, output(3, "lo")),
                record(4, Body::Finished(finished.clone())),
                record(
                    9,
                    Body::Gap(Gap {
                        first_seq: 5,
                        last_seq: 8,
                        reason: "unclean_start".into(),
                    }),
                ),
            ],
        )
        .await;
    assert!(changes.has_changed().unwrap());
    let shard = world.store.shard_of(world.node);
    let pieces = world.store.run_outputs(job, shard, 0, 10).unwrap();
    let text: Vec<u8> = pieces
        .iter()
        .flat_map(|piece| piece.data.to_vec())
        .collect();
    assert_eq!(text, b"hello");
    assert!(
        world
            .store
            .run_outputs(job, shard, pieces[1].id, 10)
            .unwrap()
            .is_empty()
    );

    let settled = RunSettled {
        job: job.to_wire(),
        node: world.node.to_wire(),
        state: "lost".into(),
        ..RunSettled::default()
    };
    assert!(
        world
            .store
            .append_for(world.node, settled)
            .await
            .unwrap()
            .refusal()
            .is_some()
    );
    assert!(
        world
            .store
            .append_for(world.node, dispatched)
            .await
            .unwrap()
            .refusal()
            .is_some()
    );
    let late = Finished {
        outcome: RunOutcome::Unknown,
        exit_code: None,
        ..finished.clone()
    };
    let other = Finished {
        run: RunKey::once(JobId::random()),
        ..finished
    };
    world
        .report(
            Lane::Results,
            vec![
                record(10, Body::Finished(late)),
                record(11, Body::Finished(other)),
            ],
        )
        .await;
    let row = world.store.run(job, world.node).unwrap().unwrap();
    assert_eq!(
        (row.state, row.exit_code, row.late_state.as_str()),
        (RunState::Succeeded, Some(0), "unknown")
    );
    assert_eq!(
        world.store.run_counts(job).unwrap(),
        [(RunState::Succeeded, 1)].into()
    );
    assert_eq!(world.store.active_jobs().unwrap().len(), 1);
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
async fn a_token_is_used_no_more_often_than_it_may() {
    let world = World::new().await;
    let token = TokenId::random();
    let created = TokenCreated {
        token: token.to_wire(),
        uses: 1,
        expires_ms: 5_000,
        ..TokenCreated::default()
    };
    world
        .store
        .control_append(vec![ControlEntry::Token(created)])
        .await
        .unwrap();
    let used = |node: NodeId, time_ms| {
        ControlEntry::TokenUsed(TokenUsed {
            token: token.to_wire(),
            node: node.to_wire(),
            name: "a".into(),
            time_ms,
        })
    };
    let node = NodeId::random();
    let outcome = world
        .store
        .control_append(vec![
            used(NodeId::random(), 5_000),
            used(node, 10),
            used(node, 10),
            used(NodeId::random(), 10),
        ])
        .await
        .unwrap();
    assert_eq!(outcome[0].refusal(), Some("the token has expired"));
    assert_eq!(
        (&outcome[1], &outcome[2]),
        (&Outcome::Applied, &Outcome::Applied)
    );
    assert_eq!(outcome[3].refusal(), Some("the token has no use left"));
    let world = world.reopen();
    assert_eq!(world.store.token(token).unwrap().unwrap().used, 1);
}

#[tokio::test]
async fn the_audit_chain_grows_across_restarts() {
    let mut world = World::new().await;
    for round in 0..3 {
        let row = AuditRow {
            actor: format!("operator {round}"),
            ..AuditRow::default()
        };
        assert_eq!(world.store.audit(row).await.unwrap().seq, round + 1);
        world = world.reopen();
    }
    let rows = world.store.audit_rows(1, 100).unwrap();
    let mut prev = nexus_proto::audit::GENESIS;
    for row in &rows {
        assert_eq!(row.prev_hash.as_ref(), prev);
        prev = nexus_proto::audit::row_hash(&prev, row);
        assert_eq!(row.hash.as_ref(), prev);
    }
    assert_eq!(rows.len(), 3);
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
