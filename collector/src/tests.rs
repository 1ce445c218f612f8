//! The collector as a whole, by its services: what agents and operators see, and what a restart keeps.

mod ports;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use nexus_proto::{
    agent::v1::{self as wire, collector_frame::Kind},
    ids::{JobId, Lane, RunKey},
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    operator::v1::{self as operator, job_update},
    record::{Body, Finished, Output, OutputStream, RunOutcome, Started},
};
use tonic::Code;

use crate::testing::{Agent, Collector, Link, PATIENCE, until, welcomed};

fn report(value: f64) -> Body {
    let key = Arc::new(SeriesKey::new("node_load1", &[]));
    Body::Metrics(Snapshot {
        interval_ms: 10_000,
        samples: vec![Sample {
            key,
            kind: SeriesType::Gauge,
            value,
        }],
    })
}

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

async fn enrolled(collector: &Collector, count: u32) -> Vec<Agent> {
    let mut admin = collector.log_in().await;
    let token = admin.token(count).await;
    let mut agents = Vec::new();
    for index in 0..count {
        agents.push(
            collector
                .enrol(&token, &format!("node-{index}"))
                .await
                .unwrap(),
        );
    }
    agents
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_without_a_certificate_and_every_refusal_is_audited() {
    let collector = Collector::start();
    let refused = collector
        .operators_as(None)
        .list_nodes(operator::ListNodesRequest::default())
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let mut admin = collector.log_in().await;
    let who = admin
        .client
        .who_am_i(operator::WhoAmIRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(who.name, "admin");
    assert_eq!(who.transport, "quic");
    let agent = {
        let token = admin.token(1).await;
        collector.enrol(&token, "web-1").await.unwrap()
    };
    // An agent's certificate opens nothing here.
    let mut as_agent = collector.operators_as(Some(agent.identity.clone()));
    let refused = as_agent.get_trust(operator::GetTrustRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let rows = collector.store.audit_rows(1, 100).unwrap();
    let acts: Vec<_> = rows
        .iter()
        .map(|row| (row.action.as_str(), row.decision.as_str()))
        .collect();
    assert_eq!(
        acts,
        [
            ("ListNodes", "refused"),
            ("Login", "allowed"),
            ("CreateToken", "allowed"),
            ("enrol", "allowed"),
            ("GetTrust", "refused"),
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_logs_in_once() {
    let collector = Collector::start();
    let _admin = collector.log_in().await;
    let (_, csr) = nexus_pki::csr::new_csr().unwrap();
    let again = operator::LoginRequest {
        code_id: collector.code.id.to_vec().into(),
        code_secret: collector.code.secret.to_vec().into(),
        csr_der: csr.into(),
        signing_public_key: vec![1; 32].into(),
        ..Default::default()
    };
    let refused = collector.operators_as(None).login(again).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tokens_uses_are_counted_under_contention_and_across_a_restart() {
    let collector = Collector::start();
    let token = collector.log_in().await.token(3).await;
    let attempts = (0..8).map(|index| {
        let (collector, token) = (&collector, &token);
        async move {
            collector
                .enrol(token, &format!("node-{index}"))
                .await
                .is_ok()
        }
    });
    let granted = futures_util::future::join_all(attempts).await;
    assert_eq!(granted.into_iter().filter(|granted| *granted).count(), 3);
    let collector = collector.restart().await;
    assert_eq!(collector.store.nodes(None).unwrap().len(), 3);
    let refused = collector.enrol(&token, "late").await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let collector = Collector::start();
    let mut agent = enrolled(&collector, 1).await.remove(0);
    let mut link = agent.connect(&collector).await;
    let session = welcomed(&mut link).await;
    agent
        .upload(
            &collector,
            &session,
            Lane::Metrics,
            vec![report(0.5), report(0.75)],
        )
        .await;
    let newest = collector.store.newest(agent.node).unwrap();
    assert_eq!(
        newest.snapshot.samples[0].value.to_bits(),
        0.75_f64.to_bits()
    );
    drop(link);
    let collector = collector.restart().await;
    let mut link = agent.connect(&collector).await;
    let Some(Kind::Welcome(welcome)) = link.next().await else {
        panic!("no Welcome");
    };
    let cursor = welcome
        .cursors
        .iter()
        .find(|state| state.lane == i32::from(wire::Lane::Metrics));
    assert_eq!(cursor.unwrap().seq, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_costs_both_their_sessions() {
    let collector = Collector::start();
    let mut agent = enrolled(&collector, 1).await.remove(0);
    let mut first = agent.connect(&collector).await;
    welcomed(&mut first).await;
    // The same counter again, as a copy of the machine would show.
    let mut second = agent.connect_as(&collector, agent.counter).await;
    for link in [&mut second, &mut first] {
        let goodbye = loop {
            match link.next().await {
                Some(Kind::Goodbye(goodbye)) => break goodbye,
                Some(_) => {}
                None => panic!("ended without a word"),
            }
        };
        assert_eq!(
            goodbye.reason(),
            wire::GoodbyeReason::Quarantined,
            "{goodbye:?}"
        );
    }
    let row = collector.store.node(agent.node).unwrap().unwrap();
    assert_eq!(row.state, "quarantined");
    let mut third = agent.connect(&collector).await;
    assert!(matches!(third.next().await, Some(Kind::Goodbye(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_session_takes_over() {
    let collector = Collector::start();
    let mut agent = enrolled(&collector, 1).await.remove(0);
    let mut first = agent.connect(&collector).await;
    welcomed(&mut first).await;
    let mut second = agent.connect(&collector).await;
    welcomed(&mut second).await;
    loop {
        match first.next().await {
            Some(Kind::Goodbye(goodbye)) => {
                assert_eq!(goodbye.reason(), wire::GoodbyeReason::Superseded);
                break;
            }
            Some(_) => {}
            None => panic!("ended without a word"),
        }
    }
    drop(second);
    until("the node is shown as disconnected", || {
        collector.store.node(agent.node).unwrap().unwrap().state == "disconnected"
    })
    .await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_change_and_select() {
    let collector = Collector::start();
    let mut admin = collector.log_in().await;
    let token = admin.token(2).await;
    let mut agent = collector.enrol(&token, "one").await.unwrap();
    collector.enrol(&token, "two").await.unwrap();
    let mut link = agent.connect(&collector).await;
    welcomed(&mut link).await;
    let set = |value: &str, overwrite| operator::SetLabelsRequest {
        node: "one".to_owned(),
        set: [("zone".to_owned(), value.to_owned())].into(),
        overwrite,
        ..Default::default()
    };
    admin.client.set_labels(set("a", false)).await.unwrap();
    let refused = admin.client.set_labels(set("b", false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let node = admin
        .client
        .set_labels(set("b", true))
        .await
        .unwrap()
        .into_inner()
        .node
        .unwrap();
    assert_eq!(node.labels.get("zone").unwrap(), "b");
    let request = operator::ListNodesRequest {
        selector: "zone in (b,c),role=test".to_owned(),
        field_selector: "name=one".to_owned(),
        ..Default::default()
    };
    let mut stream = admin.client.list_nodes(request).await.unwrap().into_inner();
    let nodes = stream.message().await.unwrap().unwrap().nodes;
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].state, "connected");
    loop {
        if let Some(Kind::Labels(update)) = link.next().await
            && update.labels.get("zone").is_some_and(|zone| zone == "b")
        {
            break;
        }
    }
    let unknown = operator::ListNodesRequest {
        names: vec!["three".to_owned()],
        ..Default::default()
    };
    assert_eq!(
        admin.client.list_nodes(unknown).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_certificate() {
    let collector = Collector::start();
    let mut agent = enrolled(&collector, 1).await.remove(0);
    agent.identity.not_after = collector.clock.now().after(Duration::from_millis(300));
    let mut link = agent.connect(&collector).await;
    welcomed(&mut link).await;
    loop {
        match link.next().await {
            Some(Kind::Goodbye(goodbye)) => {
                assert_eq!(goodbye.reason(), wire::GoodbyeReason::Expired);
                break;
            }
            Some(_) => {}
            None => panic!("ended without a word"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_renews_with_the_identity_of_its_connection() {
    let collector = Collector::start();
    let agent = enrolled(&collector, 1).await.remove(0);
    let (private, csr) = nexus_pki::csr::new_csr().unwrap();
    let request = wire::RenewRequest {
        csr_der: csr.into(),
    };
    let identity = collector
        .agents_as(&agent)
        .renew(request)
        .await
        .unwrap()
        .into_inner();
    let leaf = nexus_pki::leaf::Leaf::from_wire(private, &identity.chain_der).unwrap();
    assert_eq!(leaf.spiffe(), &agent.identity.spiffe);
    assert_ne!(leaf.serial(), &agent.identity.serial);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_too_long_is_quarantined_until_its_hello_is_consistent() {
    let collector = Collector::start();
    let mut agent = enrolled(&collector, 1).await.remove(0);
    let old = brief_leaf(&collector, agent.node);
    until("the certificate has expired", || {
        collector.clock.now() > old.not_after()
    })
    .await;
    let now = collector.clock.now();
    let (_, new_csr) = nexus_pki::csr::new_csr().unwrap();
    let request = nexus_pki::renewal::sign(&old, &new_csr, now).unwrap();
    let identity = collector.renew_expired(request.clone()).await.unwrap();
    let state = || collector.store.node(agent.node).unwrap().unwrap().state;
    assert_eq!(state(), "quarantined");
    assert_eq!(identity.node_id, agent.node.to_wire());
    let mut link = agent.connect(&collector).await;
    welcomed(&mut link).await;
    until("the quarantine has ended", || {
        collector.store.node(agent.node).unwrap().unwrap().state == "connected"
    })
    .await;
    // Somebody without the old key gets nothing.
    let mut forged = request;
    forged.proof = vec![0; 64].into();
    let refused = collector.renew_expired(forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

/// A certificate that is about to expire, as an agent that was away holds it.
fn brief_leaf(collector: &Collector, node: nexus_proto::ids::NodeId) -> nexus_pki::leaf::Leaf {
    use nexus_pki::authority::{Authority, Lives};
    let folder = crate::folder::Folder::new(&collector.config.state_dir);
    let domain = collector.authority.trust_domain();
    let now = collector.clock.now();
    let lives = Lives {
        agent: Duration::from_secs(1),
        ..Lives::default()
    };
    let authority = Authority::open(&folder.authority(), domain, now)
        .unwrap()
        .with_lives(lives);
    let (private, csr) = nexus_pki::csr::new_csr().unwrap();
    let issued = authority.issue_agent(&csr, node, now).unwrap();
    nexus_pki::leaf::Leaf::new(private, issued.chain).unwrap()
}
