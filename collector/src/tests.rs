//! The collector as a whole, by its services: what agents and operators see, and what a restart keeps.

mod jobs;
mod login;
mod ports;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use nexus_proto::{
    agent::v1::{self as wire, collector_frame::Kind},
    ids::Lane,
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    operator::v1 as operator,
    record::Body,
};
use tonic::Code;

use crate::testing::{Agent, Collector, PATIENCE, until, welcomed};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_do_not_wait_while_a_crowd_tells_its_inventory() {
    let collector = Collector::start();
    let mut agent = enrolled(&collector, 1).await.remove(0);
    let mut link = agent.connect(&collector).await;
    let session = welcomed(&mut link).await;
    let all = u32::try_from(collector.turns.available_permits()).unwrap();
    let crowd = collector.turns.acquire_many(all).await.unwrap();
    let (_to, mut acks) = agent
        .open_upload(&collector, &session, Lane::Inventory)
        .await;
    agent
        .upload(&collector, &session, Lane::Metrics, vec![report(0.5)])
        .await;
    assert!(
        acks.message().now_or_never().is_none(),
        "it has no turn yet"
    );
    drop(crowd);
    let first = tokio::time::timeout(PATIENCE, acks.message()).await;
    assert_eq!(first.unwrap().unwrap().unwrap().seq, 0);
}

fn many_series(value: f64) -> Body {
    let samples = (0..13_000).map(|index| Sample {
        key: Arc::new(SeriesKey::new(&format!("n{index}"), &[])),
        kind: SeriesType::Gauge,
        value,
    });
    Body::Metrics(Snapshot {
        interval_ms: 10_000,
        samples: samples.collect(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_many_series_delivers_what_gathered_while_it_was_away() {
    let collector = Collector::start();
    let mut agent = enrolled(&collector, 1).await.remove(0);
    let mut link = agent.connect(&collector).await;
    let session = welcomed(&mut link).await;
    // A few kilobytes once encoded: nothing changed. Decoded, more than the writer's queue holds.
    let backlog = vec![many_series(0.5); 250];
    agent
        .upload(&collector, &session, Lane::Metrics, backlog)
        .await;
    let newest = collector.store.newest(agent.node).unwrap();
    assert_eq!(newest.snapshot.samples.len(), 13_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_has_one_upload_at_a_time() {
    let collector = Collector::start();
    let mut agent = enrolled(&collector, 1).await.remove(0);
    let mut link = agent.connect(&collector).await;
    let session = welcomed(&mut link).await;
    let (_first_to, mut first) = agent.open_upload(&collector, &session, Lane::Metrics).await;
    let (_other_to, mut other) = agent.open_upload(&collector, &session, Lane::Results).await;
    assert!(first.message().await.unwrap().is_some());
    assert!(other.message().await.unwrap().is_some());
    let (_second_to, mut second) = agent.open_upload(&collector, &session, Lane::Metrics).await;
    assert!(second.message().await.unwrap().is_some());
    let ended = tokio::time::timeout(PATIENCE, first.message()).await;
    assert!(ended.expect("the first one ends").unwrap().is_none());
    agent
        .upload(&collector, &session, Lane::Results, Vec::new())
        .await;
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
async fn a_hello_that_was_held_up_costs_nobody_a_session() {
    let collector = Collector::start();
    let agent = enrolled(&collector, 1).await.remove(0);
    let held_up = collector.agents_as(&agent);
    let mut session = agent.connect_as(&collector, 2).await;
    welcomed(&mut session).await;
    let mut late = agent.connect_by(held_up, 1).await;
    let Some(Kind::Goodbye(goodbye)) = late.next().await else {
        panic!("no Goodbye");
    };
    assert_eq!(goodbye.reason(), wire::GoodbyeReason::Superseded);
    let row = collector.store.node(agent.node).unwrap().unwrap();
    assert_eq!(row.state, "connected", "{row:?}");
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
