//! Inventory: a change shows within half a minute, and what did not change is not sent.

use std::{net::TcpListener, time::Duration};

use nexus_runtime::clock::Clock;
use nexus_tests::{
    agent::Agent,
    fleet::{Fleet, SOON},
    page, poll,
};

/// As the product promises.
const PROMISED: Duration = Duration::from_secs(30);

/// Waits until the collector knows that this port listens, or does not.
async fn listens(fleet: &Fleet, port: u16, expected: usize) {
    let sql = format!("SELECT port FROM sockets WHERE node = 'alpha' AND port = {port}");
    poll::until_ok(&sql, PROMISED, || async {
        let rows = fleet.query(&sql).await.map_err(|fault| fault.to_string())?;
        if rows.len() == expected {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    })
    .await
    .unwrap();
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Kinds of the sections the agent has handed to its spool, in order, over all its lives.
fn sent(fleet: &Fleet) -> Vec<String> {
    let log = fleet.agents[0].log_text();
    let lines = log
        .lines()
        .filter(|line| line.contains("a section is to be sent"));
    lines
        .filter_map(|line| line.split("kind=").nth(1)?.split_whitespace().next())
        .map(|kind| kind.trim_matches('"').to_owned())
        .collect()
}

/// Waits until the collector has committed what the agent has sent, neither more nor less.
async fn settled(fleet: &Fleet) -> Vec<String> {
    poll::until_ok("as many sections as were sent", SOON, || async {
        let page = fleet
            .page("/metrics")
            .await
            .map_err(|fault| fault.to_string())?;
        let lane = [("lane", "inventory")];
        let acked = page::value(&page, "nexus_records_acked_total", &lane).unwrap_or(0.0);
        let sent = sent(fleet);
        if acked.to_string() == sent.len().to_string() {
            Ok(sent)
        } else {
            Err(format!("{acked} were committed of {sent:?}"))
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_change_shows_within_half_a_minute() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    // The first look has been.
    fleet
        .eventually("SELECT * FROM sockets LIMIT 1", |rows| !rows.is_empty())
        .await
        .unwrap();
    let (socket, port) = listener();
    listens(&fleet, port, 1).await;
    let during = Clock::system().now().to_string();
    drop(socket);
    listens(&fleet, port, 0).await;
    // What has gone is still known of the time when it was there.
    let sql = format!("SELECT port FROM sockets WHERE port = {port}");
    let args = ["query", &sql, "--as-of", &during];
    assert_eq!(
        fleet.ctl.json(&args).await.unwrap(),
        serde_json::json!([{"port": port}])
    );
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_again() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]);
    let agent = agent.env("NEXUS_LOG", "info,nexus_agent::agent=debug");
    fleet.join(agent).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    let kinds = "SELECT kind, since FROM sections ORDER BY kind";
    let first = fleet
        .eventually(kinds, |rows| rows.len() == 10)
        .await
        .unwrap();
    let before = settled(&fleet).await.len();
    fleet.agents[0].stop().await.unwrap();
    fleet.in_state("alpha", "disconnected").await.unwrap();
    fleet.agents[0].start().await.unwrap();
    // Looks after the restart: what is new in each of two shows.
    for _ in 0..2 {
        let (_socket, port) = listener();
        listens(&fleet, port, 1).await;
    }
    let again = settled(&fleet).await.split_off(before);
    let second = fleet.query(kinds).await.unwrap();
    // Another program of this host may change something meanwhile: then it is told, and only then.
    let changed: Vec<_> = first
        .iter()
        .zip(&second)
        .filter(|(first, second)| first["since"] != second["since"])
        .map(|(_, second)| second["kind"].as_str().unwrap())
        .collect();
    assert!(changed.contains(&"sockets"), "{changed:?}");
    assert!(changed.len() < 10, "everything changed: {changed:?}");
    for kind in &again {
        assert!(
            changed.contains(&kind.as_str()),
            "{kind} was sent again: {again:?}, {changed:?}"
        );
    }
}
