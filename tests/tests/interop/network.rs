//! Networks that fail, in namespaces of their own: a collector in one, an agent in the other, a cable between.

use std::time::Duration;

use nexus_tests::{
    agent::Agent,
    fleet::{Fleet, SOON},
    poll,
};

use super::cable::Cable;

/// How soon a session is to go on over TCP, or with a collector that was restarted.
pub(super) const FALLBACK: Duration = Duration::from_secs(10);

/// Waits until there is a session over that transport.
pub(super) async fn on(fleet: &Fleet, transport: &str, within: Duration) {
    shows(fleet, "transport", transport, within).await;
}

/// Waits until the node is connected, and shows a value that begins like this.
pub(super) async fn shows(fleet: &Fleet, key: &str, begin: &str, within: Duration) {
    let what = format!("a session whose {key} is {begin}");
    let wait = poll::until_ok(&what, within, || async {
        let node = fleet
            .node("alpha")
            .await
            .map_err(|fault| fault.to_string())?;
        let value = node[key].as_str().unwrap_or_default();
        let there = node["state"] == "connected" && value.starts_with(begin);
        if there { Ok(()) } else { Err(node.to_string()) }
    });
    let waited = wait.await;
    waited
        .map_err(|fault| format!("{fault}\n{}", fleet.agents[0].log_text()))
        .unwrap();
}

/// Nothing is missing: every reading is there, in order, and no gap was reported.
async fn nothing_lost(fleet: &Fleet) {
    let gaps = fleet.query("SELECT * FROM gaps").await.unwrap();
    assert!(gaps.is_empty(), "{gaps:?}");
    let sql = "SELECT value FROM metric_history WHERE node = 'alpha' AND name = 'node_time_seconds' ORDER BY time";
    let rows = fleet.query(sql).await.unwrap();
    let times: Vec<f64> = rows
        .iter()
        .map(|row| row["value"].as_f64().unwrap())
        .collect();
    for pair in times.windows(2) {
        assert!((0.5..1.9).contains(&(pair[1] - pair[0])), "{times:?}");
    }
    assert!(times.len() > 10, "{times:?}");
}

#[tokio::test]
async fn without_udp_sessions_use_tcp_and_return_to_quic() {
    let cable = Cable::straight();
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    cable.block_udp(true);
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]).within(&cable.there);
    fleet.join(agent).await.unwrap();
    on(&fleet, "tcp", FALLBACK).await;
    cable.block_udp(false);
    on(&fleet, "quic", SOON).await;
    nothing_lost(&fleet).await;
}

#[tokio::test]
async fn udp_that_stops_in_mid_session_costs_seconds_and_nothing_else() {
    let cable = Cable::straight();
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]).within(&cable.there);
    fleet.join(agent).await.unwrap();
    on(&fleet, "quic", SOON).await;
    cable.block_udp(true);
    on(&fleet, "tcp", FALLBACK).await;
    let (said, document) = fleet
        .job(&["--all"], &["echo", "still here"])
        .await
        .unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(document["runs"][0]["stdout"], "still here\n", "{document}");
    cable.block_udp(false);
    on(&fleet, "quic", SOON).await;
    nothing_lost(&fleet).await;
}

#[tokio::test]
async fn an_idle_agent_notices_too() {
    let cable = Cable::straight();
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    // Nothing to send for as long as the test lasts.
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=10m"]).within(&cable.there);
    fleet.join(agent).await.unwrap();
    on(&fleet, "quic", SOON).await;
    fleet
        .eventually("SELECT * FROM packages LIMIT 1", |rows| !rows.is_empty())
        .await
        .unwrap();
    cable.block_udp(true);
    on(&fleet, "tcp", FALLBACK).await;
}

#[tokio::test]
async fn an_agent_that_moves_keeps_its_session() {
    let cable = Cable::straight();
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]).within(&cable.there);
    fleet.join(agent).await.unwrap();
    on(&fleet, "quic", SOON).await;
    cable.move_to("10.77.0.9");
    let (said, document) = fleet
        .job(&["--all"], &["echo", "from elsewhere"])
        .await
        .unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(
        document["runs"][0]["stdout"], "from elsewhere\n",
        "{document}"
    );
    let log = fleet.agents[0].log_text();
    assert_eq!(log.matches("session opened").count(), 1, "{log}");
    nothing_lost_soon(&fleet).await;
}

/// Three jobs and a dozen reports, with that many of a hundred packets lost either way.
async fn goes_on_without(percent: u32) {
    let cable = Cable::straight();
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]).within(&cable.there);
    fleet.join(agent).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    let before = cable.packets();
    cable.lose(percent);
    for _ in 0..3 {
        let lines = "for i in 1 2 3 4 5 6 7 8 9; do echo $i; done";
        let (said, document) = fleet.job(&["--all"], &["sh", "-c", lines]).await.unwrap();
        assert_eq!(said.code, 0, "{said:?}");
        assert_eq!(
            document["runs"][0]["stdout"], "1\n2\n3\n4\n5\n6\n7\n8\n9\n",
            "{document}"
        );
    }
    nothing_lost_soon(&fleet).await;
    let packets = cable.packets() - before;
    println!("{percent} % loss: {packets} packets sent");
    // Some 100 are needed; whoever sends again at once, and at once again, sends far more.
    assert!(packets < 5_000, "{packets} packets sent");
}

#[tokio::test]
async fn a_twentieth_of_all_packets_lost_loses_nothing() {
    goes_on_without(5).await;
}

#[tokio::test]
async fn a_third_of_all_packets_lost_loses_nothing() {
    goes_on_without(30).await;
}

#[tokio::test]
async fn a_restarted_collector_is_noticed_at_the_next_packet() {
    let cable = Cable::straight();
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]).within(&cable.there);
    fleet.join(agent).await.unwrap();
    on(&fleet, "quic", SOON).await;
    fleet.collector.kill().await.unwrap();
    fleet.collector.start().await.unwrap();
    on(&fleet, "quic", FALLBACK).await;
    let log = fleet.agents[0].log_text();
    assert!(log.contains("no longer knows the connection"), "{log}");
    nothing_lost_soon(&fleet).await;
}

#[tokio::test]
async fn large_packets_that_vanish_do_not_stop_a_session() {
    let cable = Cable::straight();
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]).within(&cable.there);
    fleet.join(agent).await.unwrap();
    on(&fleet, "quic", SOON).await;
    for namespace in [&cable.here, &cable.there] {
        cable.run(namespace, "nft add table inet hole");
        let chain = "nft add chain inet hole in { type filter hook input priority 0 ; }";
        cable.run(namespace, chain);
        let rule =
            "nft add rule inet hole in iifname cable meta l4proto udp meta length > 1300 drop";
        cable.run(namespace, rule);
    }
    let lines = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i and some more words to fill the packets; done";
    let (said, document) = fleet.job(&["--all"], &["sh", "-c", lines]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let output = document["runs"][0]["stdout"].as_str().unwrap();
    assert_eq!(output.lines().count(), 2000);
    nothing_lost_soon(&fleet).await;
}

#[tokio::test]
async fn a_tcp_peer_that_falls_silent_is_given_up() {
    let cable = Cable::straight();
    let mut fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
    let settings = ["interval=1s", "transport=tcp"];
    let agent = Agent::new(fleet.dir(), "alpha", &settings).within(&cable.there);
    fleet.join(agent).await.unwrap();
    on(&fleet, "tcp", SOON).await;
    // Neither side hears of the other's end: no reset, no farewell.
    cable.run(&cable.there, "ip link set cable down");
    poll::until_ok("the agent's giving up", SOON, || {
        let log = fleet.agents[0].log_text();
        let given_up = log.contains("the session ended") && log.contains("no session");
        std::future::ready(if given_up { Ok(()) } else { Err(log) })
    })
    .await
    .unwrap();
    fleet.in_state("alpha", "disconnected").await.unwrap();
    cable.run(&cable.there, "ip link set cable up");
    on(&fleet, "tcp", 2 * SOON).await;
    nothing_lost_soon(&fleet).await;
}

/// As [`nothing_lost`], once there is enough to look at.
pub(super) async fn nothing_lost_soon(fleet: &Fleet) {
    let sql = "SELECT time FROM metric_history WHERE node = 'alpha' AND name = 'node_time_seconds'";
    fleet.eventually(sql, |rows| rows.len() > 12).await.unwrap();
    nothing_lost(fleet).await;
}
