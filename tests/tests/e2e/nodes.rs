//! Nodes: how they join, what is known of them, and that it is true.

use std::fs;

use nexus_tests::{agent::Agent, fleet::Fleet};

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_node_is_known_as_it_is() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let node = fleet.node("alpha").await.unwrap();
    assert_eq!(node["transport"], "quic", "{node}");
    assert_eq!(node["key_exchange"], "X25519MLKEM768", "{node}");
    assert_eq!(
        node["kernel"],
        read("/proc/sys/kernel/osrelease").as_str(),
        "{node}"
    );
    for key in [
        "id",
        "labels",
        "os",
        "arch",
        "agent_version",
        "last_seen",
        "enrolled_at",
        "shard",
    ] {
        assert!(!node[key].is_null(), "{key}: {node}");
    }
}

#[tokio::test]
async fn a_token_is_good_for_what_it_says_and_no_more() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let token = fleet.token(&["--uses", "1"]).await.unwrap();
    Agent::new(fleet.dir(), "one", &[])
        .enroll(&token)
        .await
        .unwrap();
    let refused = Agent::new(fleet.dir(), "two", &[])
        .enroll(&token)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("error: "), "{refused}");

    let token = fleet.token(&[]).await.unwrap();
    let tokens = fleet.ctl.json(&["get", "tokens"]).await.unwrap();
    for known in tokens.as_array().unwrap() {
        fleet
            .ctl
            .ok(&["token", "revoke", known["id"].as_str().unwrap()])
            .await
            .unwrap();
    }
    Agent::new(fleet.dir(), "three", &[])
        .enroll(&token)
        .await
        .unwrap_err();

    let mut damaged = fleet.token(&[]).await.unwrap().into_bytes();
    let middle = damaged.len() / 2;
    damaged[middle] = if damaged[middle] == b'A' { b'B' } else { b'A' };
    let damaged = String::from_utf8(damaged).unwrap();
    Agent::new(fleet.dir(), "four", &[])
        .enroll(&damaged)
        .await
        .unwrap_err();
    let nodes = fleet.ctl.json(&["get", "nodes"]).await.unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 1, "{nodes}");
}

#[tokio::test]
async fn transport_and_key_exchange_are_shown_as_they_are() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let classical = ["transport=tcp", "tls.key_exchange=classical"];
    fleet.add("plain", &classical).await.unwrap();
    let node = fleet.connected("plain").await.unwrap();
    assert_eq!(
        (&node["transport"], &node["key_exchange"]),
        (&"tcp".into(), &"X25519".into())
    );

    let agent = &mut fleet.agents[0];
    agent.stop().await.unwrap();
    agent.set("transport", "quic");
    agent.set("tls.key_exchange", "post-quantum");
    fleet.in_state("plain", "disconnected").await.unwrap();
    fleet.agents[0].start().await.unwrap();
    let node = fleet.connected("plain").await.unwrap();
    assert_eq!(
        (&node["transport"], &node["key_exchange"]),
        (&"quic".into(), &"X25519MLKEM768".into())
    );
}

#[tokio::test]
async fn a_collector_that_dies_loses_nothing_it_acknowledged() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let (said, _) = fleet.job(&["--all"], &["echo", "before"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let before = fleet.ctl.json(&["get", "runs"]).await.unwrap();
    fleet.collector.kill().await.unwrap();
    fleet.collector.start().await.unwrap();
    assert_eq!(fleet.ctl.json(&["get", "runs"]).await.unwrap(), before);
    fleet.connected("alpha").await.unwrap();
    let (said, _) = fleet.job(&["--all"], &["echo", "after"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
}
