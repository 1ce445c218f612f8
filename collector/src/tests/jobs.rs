//! Jobs from submission to end, with played agents.

use std::{collections::BTreeMap, time::Duration};

use nexus_proto::{
    agent::v1::{self as wire, collector_frame::Kind},
    ids::{JobId, Lane, RunKey},
    operator::v1::{self as operator, job_update},
    record::{Body, Finished, Output, OutputStream, RunOutcome, Started},
};
use tonic::Code;

use crate::testing::{Agent, Collector, Link, PATIENCE, until, welcomed};

fn finished(run: RunKey, collector: &Collector) -> Body {
    Body::Finished(Finished {
        run,
        outcome: RunOutcome::Exited,
        exit_code: Some(0),
        signal: None,
        reason: String::new(),
        stdout_bytes: 3,
        stderr_bytes: 0,
        stdout_dropped_bytes: 0,
        stderr_dropped_bytes: 0,
        started: collector.clock.now(),
        finished: collector.clock.now(),
    })
}

/// What an agent would report of a `true` that said `hi`.
fn whole_run(run: RunKey, collector: &Collector) -> Vec<Body> {
    vec![
        Body::Started(Started { run, pid: 1 }),
        Body::Output(Output {
            run,
            stream: OutputStream::Stdout,
            offset: 0,
            data: "hi\n".into(),
        }),
        finished(run, collector),
    ]
}

fn job_of(dispatch: &wire::Dispatch) -> JobId {
    let payload = &dispatch.job.as_ref().unwrap().payload;
    nexus_proto::job::Job::decode(payload).unwrap().id
}

/// Follows a job to its end; the states of its runs, and the end's counts.
async fn followed(
    mut updates: tonic::Streaming<operator::JobUpdate>,
) -> (Vec<job_update::Kind>, BTreeMap<String, u64>) {
    let mut seen = Vec::new();
    loop {
        let update = tokio::time::timeout(PATIENCE, updates.message())
            .await
            .expect("an update in time");
        match update.unwrap().expect("the end first").kind.unwrap() {
            job_update::Kind::Ended(ended) => return (seen, ended.counts.into_iter().collect()),
            other => seen.push(other),
        }
    }
}

async fn play(
    collector: &Collector,
    agent: &mut Agent,
    link: &mut Link,
    session: &prost::bytes::Bytes,
) {
    let dispatch = link.dispatch().await;
    let run = RunKey::once(job_of(&dispatch));
    let bodies = whole_run(run, collector);
    agent
        .upload(collector, session, Lane::Results, bodies)
        .await;
}

async fn agent_upload(
    collector: &Collector,
    agent: &mut Agent,
    session: &prost::bytes::Bytes,
    end: Finished,
) {
    let started = Body::Started(Started {
        run: end.run,
        pid: 1,
    });
    agent
        .upload(
            collector,
            session,
            Lane::Results,
            vec![started, Body::Finished(end)],
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_everywhere_and_its_output_comes_before_its_end() {
    const COUNT: u32 = 50;
    let collector = Collector::start();
    let mut admin = collector.log_in().await;
    let token = admin.token(COUNT).await;
    let mut agents = Vec::new();
    for index in 0..COUNT {
        let mut agent = collector
            .enrol(&token, &format!("node-{index}"))
            .await
            .unwrap();
        let mut link = agent.connect(&collector).await;
        let session = welcomed(&mut link).await;
        agents.push((agent, link, session));
    }
    let targets: Vec<&Agent> = agents.iter().map(|(agent, ..)| agent).collect();
    let request = admin.job(&targets, Duration::from_secs(60));
    let start = collector.clock.instant();
    let job_id = admin
        .client
        .submit_job(request)
        .await
        .unwrap()
        .into_inner()
        .job_id;
    let updates = admin.watch(job_id).await;
    let played = agents
        .iter_mut()
        .map(|(agent, link, session)| play(&collector, agent, link, session));
    let (_, (seen, counts)) =
        tokio::join!(futures_util::future::join_all(played), followed(updates));
    let took = collector.clock.instant() - start;
    assert_eq!(
        counts,
        BTreeMap::from([("succeeded".to_owned(), u64::from(COUNT))])
    );
    println!("{COUNT} nodes in {took:?}");
    let mut output: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
    for kind in seen {
        match kind {
            job_update::Kind::Output(piece) => {
                assert_eq!(&piece.data[..], b"hi\n");
                output.insert(piece.node_id.to_vec(), true);
            }
            job_update::Kind::Run(run) if run.r#final => {
                assert!(
                    output.contains_key(&run.node_id.to_vec()),
                    "an end before its output"
                );
            }
            _ => {}
        }
    }
    assert_eq!(output.len(), usize::try_from(COUNT).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_on_after_a_restart_and_is_sent_again_to_a_new_session() {
    let collector = Collector::start();
    let mut admin = collector.log_in().await;
    let token = admin.token(2).await;
    let mut here = collector.enrol(&token, "here").await.unwrap();
    let gone = collector.enrol(&token, "gone").await.unwrap();
    let mut link = here.connect(&collector).await;
    welcomed(&mut link).await;
    let request = admin.job(&[&here, &gone], Duration::from_secs(3));
    let job_id = admin
        .client
        .submit_job(request)
        .await
        .unwrap()
        .into_inner()
        .job_id;
    let id = JobId::from_wire(&job_id).unwrap();
    link.dispatch().await;
    drop(link);
    let identity = admin.identity.clone();
    drop(admin);
    let collector = collector.restart().await;
    let mut link = here.connect(&collector).await;
    let session = welcomed(&mut link).await;
    play(&collector, &mut here, &mut link, &session).await;
    until("the job has ended", || {
        collector.store.job(id).unwrap().unwrap().ended.is_some()
    })
    .await;
    let job = collector.store.job(id).unwrap().unwrap();
    let expected = [("expired".to_owned(), 1), ("succeeded".to_owned(), 1)];
    assert_eq!(job.counts, BTreeMap::from(expected));
    let request = operator::WatchJobRequest {
        job_id,
        ..Default::default()
    };
    let mut client = collector.operators_as(Some(identity));
    let (seen, _) = followed(client.watch_job(request).await.unwrap().into_inner()).await;
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatched_run_without_a_report_is_lost_and_a_late_report_is_kept() {
    let collector = Collector::start();
    let mut admin = collector.log_in().await;
    let token = admin.token(1).await;
    let mut agent = collector.enrol(&token, "silent").await.unwrap();
    let mut link = agent.connect(&collector).await;
    let session = welcomed(&mut link).await;
    let request = admin.job(&[&agent], Duration::from_secs(1));
    let job_id = admin
        .client
        .submit_job(request)
        .await
        .unwrap()
        .into_inner()
        .job_id;
    let run = RunKey::once(job_of(&link.dispatch().await));
    let (_, counts) = followed(admin.watch(job_id).await).await;
    assert_eq!(counts, BTreeMap::from([("lost".to_owned(), 1)]));
    let bodies = whole_run(run, &collector);
    agent
        .upload(&collector, &session, Lane::Results, bodies)
        .await;
    let row = collector.store.run(run.job, agent.node).unwrap().unwrap();
    assert_eq!(row.state.name(), "lost");
    assert_eq!(row.late_state, "succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_ends_what_was_not_sent_and_stops_the_rest() {
    let collector = Collector::start();
    let mut admin = collector.log_in().await;
    let token = admin.token(2).await;
    let mut here = collector.enrol(&token, "here").await.unwrap();
    let gone = collector.enrol(&token, "gone").await.unwrap();
    let mut link = here.connect(&collector).await;
    let session = welcomed(&mut link).await;
    let request = admin.job(&[&here, &gone], Duration::from_secs(60));
    let job_id = admin
        .client
        .submit_job(request)
        .await
        .unwrap()
        .into_inner()
        .job_id;
    let run = RunKey::once(job_of(&link.dispatch().await));
    let request = operator::CancelJobRequest {
        job_id: job_id.clone(),
        reason: "enough".to_owned(),
    };
    let answer = admin.client.cancel_job(request).await.unwrap().into_inner();
    assert_eq!((answer.cancelled, answer.stopping), (1, 1));
    loop {
        match link.next().await {
            Some(Kind::Cancel(cancel)) => {
                assert_eq!(
                    (cancel.job_id, cancel.reason.as_str()),
                    (job_id.clone(), "enough")
                );
                break;
            }
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
    let Body::Finished(mut end) = finished(run, &collector) else {
        panic!("not an end");
    };
    end.outcome = RunOutcome::Cancelled;
    end.exit_code = None;
    end.reason = "enough".to_owned();
    agent_upload(&collector, &mut here, &session, end).await;
    let (_, counts) = followed(admin.watch(job_id).await).await;
    assert_eq!(counts, BTreeMap::from([("cancelled".to_owned(), 2)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_taken_only_as_it_was_signed() {
    let collector = Collector::start();
    let mut admin = collector.log_in().await;
    let token = admin.token(2).await;
    let one = collector.enrol(&token, "one").await.unwrap();
    let two = collector.enrol(&token, "two").await.unwrap();
    let good = admin.job(&[&one], Duration::from_secs(60));

    let mut other_targets = good.clone();
    other_targets.targets = admin.job(&[&two], Duration::from_secs(60)).targets;
    let refused = admin.client.submit_job(other_targets).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let mut forged = good.clone();
    let envelope = forged.job.as_mut().unwrap();
    envelope.signatures[0].sig = vec![0; 64].into();
    let refused = admin.client.submit_job(forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // Another operator's certificate does not make it another's job.
    let mut bob = collector.operators_as(Some(collector.operator("bob")));
    let refused = bob.submit_job(good.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("`bob` handed it in"),
        "{refused:?}"
    );

    let mut renamed = one.clone();
    renamed.name = "another".to_owned();
    let refused = admin
        .client
        .submit_job(admin.job(&[&renamed], Duration::from_secs(60)))
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);

    let expired = admin.job(&[&one], Duration::from_millis(1));
    let end = collector.clock.now().after(Duration::from_millis(1));
    until("the job has expired", || collector.clock.now() > end).await;
    let refused = admin.client.submit_job(expired).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);

    admin.client.submit_job(good.clone()).await.unwrap();
    let refused = admin.client.submit_job(good).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
}
