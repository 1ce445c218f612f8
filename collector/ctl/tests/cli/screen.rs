//! What nodes and a collector say moves no cursor, sets no title and fills no clipboard.

use nexus_proto::{
    agent::v1::OutputStream,
    ids::NodeId,
    operator::v1::{self as wire, job_update::Kind, sql_value::Value},
};

use crate::{
    World, code, err, out,
    terminal::{self, Shown},
};

/// Clears the screen, writes to the clipboard, rewrites the line, also with C1 and reversed text.
const EVIL: &str = "a\u{1b}[2J\u{1b}]52;c;eA==\u{7}\rb: ok\u{9b}2K\u{7f}\u{202e}z";

fn is_harmless(shown: &Shown) {
    assert!(shown.controls().is_empty(), "{:?}", shown.text);
}

fn update(node: &wire::Node, name: &str, state: &str) -> wire::RunUpdate {
    wire::RunUpdate {
        node_id: node.id.clone(),
        node: name.to_owned(),
        state: state.to_owned(),
        reason: EVIL.to_owned(),
        late_state: EVIL.to_owned(),
        stdout_dropped_bytes: 1,
        ..wire::RunUpdate::default()
    }
}

fn output(node: &wire::Node, name: &str, stream: OutputStream) -> Kind {
    Kind::Output(wire::RunOutputPiece {
        node_id: node.id.clone(),
        node: name.to_owned(),
        stream: stream.into(),
        // The true output begins at 0.
        offset: 100,
        data: format!("{EVIL}\n").into_bytes().into(),
    })
}

impl World {
    /// The collector says of web-1, and of a node that is no target, what it should not.
    fn lie_about_runs(&self) {
        let web = self.fake.nodes[0].clone();
        let other = wire::Node {
            id: NodeId::random().to_wire(),
            ..web.clone()
        };
        let mut updates = Vec::new();
        for node in [&web, &other] {
            updates.push(Kind::Run(update(node, EVIL, EVIL)));
            updates.push(output(node, EVIL, OutputStream::Stdout));
            updates.push(output(node, EVIL, OutputStream::Stderr));
        }
        self.lie(|lies| lies.updates = updates);
    }
}

#[tokio::test]
async fn a_terminal_is_not_moved_by_output_unless_it_is_wanted() {
    let world = World::logged_in().await;
    world.lie_about_runs();
    let args = [
        "run", "--nodes", "web-1", "--wait", "1s", "--", "sh", "hang",
    ];
    let shown = terminal::run(world.command(&args), "").await;
    assert_eq!(shown.status.code(), Some(124), "{}", shown.text);
    is_harmless(&shown);
    let escaped = r"web-1: a\u{1b}[2J\u{1b}]52;c;eA==\u{7}\rb: ok\u{9b}2K\u{7f}\u{202e}z";
    assert_eq!(shown.text.matches(escaped).count(), 2, "{}", shown.text);

    let raw = [&args[..1], &["--raw"], &args[1..]].concat();
    let shown = terminal::run(world.command(&raw), "").await;
    assert!(shown.text.contains("web-1: a\u{1b}[2J"), "{:?}", shown.text);
    // A pipe gets the bytes as they came.
    let piped = world.run(&args).await;
    let line = format!("web-1: {EVIL}\n");
    assert!(out(&piped).contains(&line), "{:?}", out(&piped));
    assert!(err(&piped).contains(&line), "{:?}", err(&piped));
}

#[tokio::test]
async fn states_names_and_reasons_are_words_only() {
    let world = World::logged_in().await;
    world.lie_about_runs();
    let args = [
        "run", "--nodes", "web-1", "--wait", "1s", "--", "sh", "hang",
    ];
    world.run(&args).await;
    let job = world.seen_job().await;
    // Without the targets' names nexusctl has them from the collector alone.
    for args in [
        &["wait", &job, "--timeout", "1s"][..],
        &["wait", &job, "--timeout", "1s", "-o", "json"],
        &["wait", &job, "--timeout", "1s", "-o", "yaml"],
    ] {
        is_harmless(&terminal::run(world.command(args), "").await);
    }
    let args = ["run", "--nodes", "web-1", "--", "true"];
    is_harmless(&terminal::run(world.command(&args), "").await);
    let job = world.seen_job().await;
    let shown = terminal::run(world.command(&["logs", &job]), "").await;
    assert_eq!(shown.status.code(), Some(0), "{}", shown.text);
    is_harmless(&shown);
}

#[tokio::test]
async fn a_node_that_is_no_target_has_no_part_in_a_job() {
    let world = World::logged_in().await;
    world.lie_about_runs();
    let args = ["run", "--nodes", "web-1", "-o", "json", "--", "true"];
    let output = world.run(&args).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let document: serde_json::Value = serde_json::from_str(&out(&output)).unwrap();
    let runs = document["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 1, "{document}");
    assert_eq!(runs[0]["node"], "web-1");
    assert!(
        err(&output).contains("1 target: 1 succeeded"),
        "{}",
        err(&output)
    );
}

#[tokio::test]
async fn refusals_are_words_only() {
    let world = World::logged_in().await;
    world.lie(|lies| lies.refusal = Some(format!("{EVIL}: {EVIL}")));
    let shown = terminal::run(world.command(&["get", "nodes"]), "").await;
    assert_eq!(shown.status.code(), Some(1));
    is_harmless(&shown);
    assert_eq!(shown.text.lines().count(), 1, "{:?}", shown.text);
}

#[tokio::test]
async fn answers_are_shown_escaped_in_every_format() {
    let world = World::logged_in().await;
    let text = |text: &str| wire::SqlValue {
        value: Some(Value::Text(text.to_owned())),
    };
    let answer = wire::QueryResponse {
        columns: vec![EVIL.to_owned(), "state".to_owned()],
        rows: vec![wire::QueryRow {
            values: vec![text(EVIL), text(EVIL)],
        }],
        truncated: false,
    };
    let node = wire::Node {
        name: EVIL.to_owned(),
        state: EVIL.to_owned(),
        labels: [(EVIL.to_owned(), EVIL.to_owned())].into(),
        ..world.fake.nodes[0].clone()
    };
    world.lie(|lies| {
        lies.answer = Some(answer);
        lies.nodes = Some(vec![node]);
    });
    for format in ["table", "wide", "json", "jsonl", "yaml", "csv", "name"] {
        for args in [["query", "SELECT 1"], ["get", "nodes"], ["get", "events"]] {
            let command = world.command(&[args[0], args[1], "-o", format]);
            let shown = terminal::run(command, "").await;
            assert_eq!(shown.status.code(), Some(0), "{args:?}: {}", shown.text);
            is_harmless(&shown);
        }
    }
    // Programs get the very text, JSON with its own escapes.
    let csv = out(&world.run(&["query", "SELECT 1", "-o", "csv"]).await);
    assert!(csv.contains(EVIL), "{csv:?}");
    let json = out(&world.run(&["query", "SELECT 1", "-o", "json"]).await);
    assert!(
        !json.contains('\u{9b}') && !json.contains('\u{7f}'),
        "{json:?}"
    );
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["state"], EVIL);
}
