//! A collector that lies about nodes gets nothing signed.

use nexus_proto::operator::v1 as wire;

use crate::{World, code, err, terminal};

impl World {
    /// From now on the collector answers every question for nodes with these.
    fn answers_with(&self, nodes: Vec<wire::Node>) {
        self.lie(|lies| lies.nodes = Some(nodes));
    }

    /// The node of this name as it truly is.
    fn node(&self, name: &str) -> wire::Node {
        let nodes = self.fake.nodes.iter();
        nodes
            .clone()
            .find(|node| node.name == name)
            .unwrap()
            .clone()
    }

    /// Runs a job that must not be signed.
    async fn refused(&self, args: &[&str], why: &str) {
        let mut all = vec!["run"];
        all.extend(args);
        all.extend(["--", "true"]);
        let output = self.run(&all).await;
        assert_eq!(code(&output), 1, "{}", err(&output));
        assert!(err(&output).contains(why), "{}", err(&output));
        assert!(
            self.fake.seen.lock().unwrap().job.is_none(),
            "it was signed"
        );
    }
}

#[tokio::test]
async fn a_node_that_was_not_asked_for_is_no_target() {
    let world = World::logged_in().await;
    let (web, db) = (world.node("web-1"), world.node("db-1"));
    let id = nexus_proto::ids::NodeId::from_wire(&web.id).unwrap();
    world.answers_with(vec![web.clone(), db.clone()]);
    let asked = ["--nodes", "web-1"];
    world.refused(&asked, "names db-1 (").await;
    world
        .refused(&["--nodes", &id.to_string()], "names db-1 (")
        .await;
    world
        .refused(&["-l", "role=web"], "labels do not match")
        .await;
    world.answers_with(vec![db.clone()]);
    world.refused(&asked, "leaves out `web-1`").await;
    world
        .refused(&["--nodes", &id.to_string()], "leaves out `")
        .await;
    let other = wire::Node {
        id: db.id,
        ..web.clone()
    };
    world.answers_with(vec![web.clone(), other]);
    world.refused(&asked, "has 2 nodes for `web-1`").await;
    world.answers_with(vec![web.clone(), web]);
    world.refused(&asked, "lists web-1 (").await;
}

#[tokio::test]
async fn a_quarantined_node_is_no_target() {
    let world = World::logged_in().await;
    let bad = wire::Node {
        state: "quarantined".to_owned(),
        ..world.node("web-1")
    };
    world.answers_with(vec![bad]);
    world
        .refused(&["--nodes", "web-1"], "node web-1 is quarantined")
        .await;
    world
        .refused(&["--all"], "no node matches `all nodes`")
        .await;
}

#[tokio::test]
async fn targets_are_named_before_anything_is_signed() {
    let world = World::logged_in().await;
    let output = world.run(&["run", "--all", "--", "echo", "x"]).await;
    assert!(
        err(&output).starts_with("runs on 2 nodes: db-1, web-1\n"),
        "{}",
        err(&output)
    );
}

#[tokio::test]
async fn a_terminal_is_asked_about_targets_the_collector_chose() {
    let world = World::logged_in().await;
    for args in [["run", "-l", "role"], ["run", "--all", "--timeout=1m"]] {
        let mut all = args.to_vec();
        all.extend(["--", "echo", "x"]);
        let shown = terminal::run(world.command(&all), "n\n").await;
        assert_eq!(shown.status.code(), Some(1), "{}", shown.text);
        assert!(
            shown.text.contains("runs on 2 nodes: db-1, web-1"),
            "{}",
            shown.text
        );
        assert!(world.fake.seen.lock().unwrap().job.is_none());
        let shown = terminal::run(world.command(&all), "y\n").await;
        assert_eq!(shown.status.code(), Some(0), "{}", shown.text);
        assert!(shown.controls().is_empty(), "{:?}", shown.text);
        world.fake.seen.lock().unwrap().job = None;
    }
    // Who named the nodes needs not be asked.
    let args = ["run", "--nodes", "web-1", "--", "echo", "x"];
    let shown = terminal::run(world.command(&args), "").await;
    assert_eq!(shown.status.code(), Some(0), "{}", shown.text);
}
