//! What operators see of nodes: labels, everything about one, how it was, and who did what.

use std::net::TcpListener;

use nexus_runtime::clock::Clock;
use nexus_tests::{fleet::Fleet, page};
use serde_json::{Value, json};

fn names(rows: &Value) -> Vec<&str> {
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| row["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn labels_choose_nodes_everywhere() {
    let fleet = Fleet::with_agents(&["alpha", "beta"]).await.unwrap();
    let ctl = &fleet.ctl;
    ctl.ok(&["label", "node/alpha", "role=web", "zone=a"])
        .await
        .unwrap();
    ctl.ok(&["label", "nodes", "beta", "role=db"])
        .await
        .unwrap();
    assert_eq!(
        fleet.node("alpha").await.unwrap()["labels"],
        json!({"role": "web", "zone": "a"})
    );
    for (selector, expected) in [
        ("role=web", &["alpha"][..]),
        ("role in (web,db)", &["alpha", "beta"]),
        ("role!=web", &["beta"]),
        ("!zone", &["beta"]),
        ("zone,role=db", &[]),
    ] {
        let found = ctl.json(&["get", "nodes", "-l", selector]).await.unwrap();
        assert_eq!(names(&found), expected, "{selector}");
    }
    let (said, document) = fleet
        .job(&["-l", "role=db"], &["echo", "db"])
        .await
        .unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let runs = document["runs"].as_array().unwrap();
    assert_eq!(
        (runs.len(), &runs[0]["node"]),
        (1, &"beta".into()),
        "{document}"
    );
    let (said, _) = fleet.job(&["-l", "role=none"], &["true"]).await.unwrap();
    assert!(
        said.code != 0 && said.err.starts_with("error: "),
        "{said:?}"
    );

    // A scrape has them beside the agent's own.
    let shown = fleet.page("/metrics/nodes").await.unwrap();
    let labels = [("instance", "alpha"), ("role", "web"), ("zone", "a")];
    assert_eq!(
        page::value(&shown, "node_up", &labels),
        Some(1.0),
        "{shown}"
    );

    // A value that is there is not replaced by accident.
    let said = ctl
        .run(&["label", "node/alpha", "role=mail"])
        .await
        .unwrap();
    assert!(said.code == 1 && said.err.contains("role"), "{said:?}");
    assert_eq!(fleet.node("alpha").await.unwrap()["labels"]["role"], "web");
    ctl.ok(&["label", "node/alpha", "role=mail", "zone-", "--overwrite"])
        .await
        .unwrap();
    assert_eq!(
        fleet.node("alpha").await.unwrap()["labels"],
        json!({"role": "mail"})
    );
    let rows = fleet
        .query("SELECT node, key, value FROM labels ORDER BY node")
        .await
        .unwrap();
    assert_eq!(
        Value::from(rows),
        json!([
            {"node": "alpha", "key": "role", "value": "mail"},
            {"node": "beta", "key": "role", "value": "db"}
        ])
    );
}

#[tokio::test]
async fn a_node_is_described_with_all_that_is_known_of_it() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet
        .eventually("SELECT kind FROM sections", |rows| rows.len() == 10)
        .await
        .unwrap();
    let (said, document) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let node = fleet.node("alpha").await.unwrap();
    let by_name = fleet.ctl.json(&["describe", "node/alpha"]).await.unwrap();
    let id = node["id"].as_str().unwrap();
    let by_id = fleet.ctl.json(&["describe", "node", id]).await.unwrap();
    for described in [&by_name, &by_id] {
        for key in [
            "id",
            "name",
            "kernel",
            "incarnation",
            "enrolled_at",
            "shard",
        ] {
            assert_eq!(described[key], node[key], "{key}");
        }
        let inventory = described["inventory"].as_object().unwrap();
        assert_eq!(inventory.len(), 10, "{:?}", inventory.keys());
        assert_eq!(inventory["os"][0]["kernel"], node["kernel"]);
        assert_eq!(described["runs"][0]["job_id"], document["job"]);
        let mut events = described["events"].as_array().unwrap().iter();
        assert!(events.any(|event| event["kind"] == "agent_started"));
    }
    let text = fleet.ctl.ok(&["describe", "node/alpha"]).await.unwrap();
    for heading in ["name", "os:", "interfaces:", "runs:", "events:"] {
        assert!(
            text.lines().any(|line| line.starts_with(heading)),
            "{heading}: {text}"
        );
    }
    let said = fleet.ctl.run(&["describe", "node/nobody"]).await.unwrap();
    assert!(said.code == 1 && said.err.contains("nobody"), "{said:?}");
}

#[tokio::test]
async fn the_past_can_be_asked() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let before = Clock::system().now().to_string();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let sql = format!("SELECT port FROM sockets WHERE port = {port}");
    fleet
        .eventually(&sql, |rows| !rows.is_empty())
        .await
        .unwrap();
    for (time, expected) in [(before.as_str(), 0), ("now", 1), ("-1h", 0)] {
        let rows = fleet
            .ctl
            .json(&["query", &sql, "--as-of", time])
            .await
            .unwrap();
        assert_eq!(rows.as_array().unwrap().len(), expected, "{time}: {rows}");
    }
    // An hour ago there was no such node.
    let nodes = fleet
        .ctl
        .json(&["get", "nodes", "--as-of", "-1h"])
        .await
        .unwrap();
    assert_eq!(nodes, json!([]));
}

#[tokio::test]
async fn the_audit_chain_names_what_was_done_and_holds() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let ctl = fleet.ctl.clone();
    ctl.ok(&["label", "node/alpha", "role=web"]).await.unwrap();
    let (said, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    fleet.agents[0].kill().await.unwrap();
    fleet.collector.kill().await.unwrap();
    fleet.collector.start().await.unwrap();
    fleet.agents[0].start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
    ctl.ok(&["audit", "verify"]).await.unwrap();
    let rows = fleet
        .query("SELECT seq, action, decision, request_id FROM audit ORDER BY seq")
        .await
        .unwrap();
    let rows: Vec<_> = rows.iter().collect();
    let done = |action: &str| {
        let found = rows.iter().any(|row| {
            row["action"]
                .as_str()
                .is_some_and(|text| text.eq_ignore_ascii_case(action))
                && row["decision"] == "allowed"
                && row["request_id"].as_str().is_some_and(|id| !id.is_empty())
        });
        assert!(found, "{action}: {rows:?}");
    };
    for action in ["Login", "CreateToken", "Enrol", "SetLabels", "SubmitJob"] {
        done(action);
    }
    let (first, last) = (
        rows[0]["seq"].as_u64().unwrap(),
        rows[rows.len() - 1]["seq"].as_u64(),
    );
    assert_eq!(
        last,
        Some(first + u64::try_from(rows.len()).unwrap() - 1),
        "a hole"
    );
}
