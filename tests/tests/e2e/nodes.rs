//! Nodes: how they join, what is known of them, and that it is true.

use std::{fs, net::TcpListener};

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

    let packages = fleet.eventually("SELECT count(*) AS n FROM packages", |rows| {
        rows[0]["n"] != 0
    });
    let packages = packages.await.unwrap();
    let status = fs::read_to_string("/var/lib/dpkg/status").unwrap_or_default();
    let installed = status
        .lines()
        .filter(|line| *line == "Status: install ok installed")
        .count();
    assert_eq!(packages[0]["n"], installed);

    let page = fleet.page("/metrics/nodes").await.unwrap();
    let boot = read("/proc/stat");
    let boot = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime "))
        .unwrap();
    let line = page
        .lines()
        .find(|line| line.starts_with("node_boot_time_seconds{"))
        .unwrap();
    let shown: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(
        (shown - boot.parse::<f64>().unwrap()).abs() < 0.5,
        "{line} is not {boot}"
    );
    let memory = read("/proc/meminfo");
    let total = memory
        .lines()
        .find(|line| line.starts_with("MemTotal:"))
        .unwrap();
    let total: f64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    let line = page
        .lines()
        .find(|line| line.starts_with("node_memory_MemTotal_bytes{"))
        .unwrap();
    let shown: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(
        (shown - total * 1024.0).abs() < 1.0,
        "{line} is not {total} kB"
    );
}

#[tokio::test]
async fn a_new_listening_socket_shows_and_goes() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sql = format!("SELECT protocol, address FROM sockets WHERE port = {port}");
    let rows = fleet
        .eventually(&sql, |rows| !rows.is_empty())
        .await
        .unwrap();
    assert_eq!(rows[0]["protocol"], "tcp");
    assert_eq!(rows[0]["address"], "127.0.0.1");
    drop(listener);
    fleet.eventually(&sql, <[_]>::is_empty).await.unwrap();
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
