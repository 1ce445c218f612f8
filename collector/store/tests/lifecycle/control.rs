//! Runs of jobs, tokens and the audit chain.

use nexus_proto::{
    agent::v1::{Envelope, Target},
    ids::{JobId, Lane, NodeId, RunKey, TokenId},
    operator::v1::AuditRow,
    record::{Body, Finished, Gap, Output, OutputStream, RunOutcome, Started},
    time::Timestamp,
};
use nexus_store::{
    RunState,
    entry::{
        ControlEntry, JobCreated, JobEnded, Outcome, RunDispatched, RunSettled, RunsPlanned,
        TokenCreated, TokenUsed,
    },
};

use crate::{World, record};

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
    let first = (0, NodeId(uuid::Uuid::nil()));
    let here = (world.store.shard_of(world.node), world.node);
    assert_eq!(world.store.open_run(job, first).unwrap(), Some(here));
    assert_eq!(world.store.open_run(job, here).unwrap(), Some(here));
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
    changes.changed().await;
    assert_eq!(changes.take(), [world.node].into());
    assert!(changes.take().is_empty());
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
    assert_eq!(
        world.store.run_states(job).unwrap(),
        [(world.node, RunState::Succeeded)]
    );
    assert_eq!(world.store.open_run(job, here).unwrap(), None);
    let rows = world.store.runs_on(job, [world.node, NodeId::random()]);
    assert_eq!(rows.unwrap(), [row]);
    let known = world.store.identities([world.node, NodeId::random()]);
    let own = ("web-1".to_owned(), world.incarnation);
    assert_eq!(known.unwrap(), [(world.node, own)].into());
    assert_eq!(world.store.active_jobs().unwrap().len(), 1);
    assert_eq!(world.store.job_end(job).unwrap(), None);
    let ended = JobEnded {
        job: job.to_wire(),
        counts: [("succeeded".to_owned(), 1)].into(),
        time_ms: 5,
    };
    let ended = ControlEntry::JobEnded(ended);
    world.store.control_append(vec![ended]).await.unwrap();
    assert_eq!(
        world.store.job_end(job).unwrap(),
        Some([("succeeded".to_owned(), 1)].into())
    );
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
