//! What an agent says on its command line when it cannot do what it is asked.

use nexus_tests::{agent::Agent, fleet::Fleet, process};

/// Runs the agent's program to its end: exit code and lines of what it said to people.
async fn said(agent: &Agent, args: &[&str], input: &[u8]) -> (Option<i32>, Vec<String>) {
    let mut command = agent.command().await.unwrap();
    let output = process::run(command.args(args), input).await.unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with("error: "));
    (output.status.code(), lines.map(str::to_owned).collect())
}

#[tokio::test]
async fn what_is_no_token_is_refused_and_leaves_no_identity() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::new(dir.path(), "alpha", &[]);
    for token in ["", "rubbish", "nxt_", "nxt_rubbish", "nxt_!!", "nxo_AAAA"] {
        let (code, lines) = said(&agent, &["enroll", "-"], token.as_bytes()).await;
        assert_eq!(code, Some(1), "{token:?}: {lines:?}");
        assert!(
            lines[0].starts_with("error: enroll: "),
            "{token:?}: {lines:?}"
        );
        let rest = lines.iter().skip(1);
        assert!(
            rest.clone().all(|line| line.starts_with("hint: ")),
            "{token:?}: {lines:?}"
        );
    }
    assert!(!agent.dir().join("identity").join("identity.pem").exists());
    let (code, lines) = said(&agent, &["enroll", "@/no/such/file"], b"").await;
    assert_eq!(code, Some(1), "{lines:?}");
    assert!(lines[0].contains("/no/such/file"), "{lines:?}");
}

#[tokio::test]
async fn one_state_folder_is_one_agents() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let first = fleet.node("alpha").await.unwrap();
    let (code, lines) = said(&fleet.agents[0], &["run"], b"").await;
    assert_eq!(code, Some(1), "{lines:?}");
    assert!(lines[0].starts_with("error: run: "), "{lines:?}");
    let folder = fleet.agents[0].dir().display().to_string();
    assert!(lines[0].contains(&folder), "{lines:?}");
    let token = fleet.token(&[]).await.unwrap();
    let (code, lines) = said(&fleet.agents[0], &["enroll", "-"], token.as_bytes()).await;
    assert_eq!(code, Some(1), "{lines:?}");
    // The first goes on as if nothing had been.
    let (run, _) = fleet.job(&["--all"], &["true"]).await.unwrap();
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(fleet.node("alpha").await.unwrap()["id"], first["id"]);
    fleet.agents[0].stop().await.unwrap();

    // Nobody holds it any more, but it is somebody's still.
    let (code, lines) = said(&fleet.agents[0], &["enroll", "-"], token.as_bytes()).await;
    assert_eq!(code, Some(1), "{lines:?}");
    assert!(lines[0].contains("enrolled"), "{lines:?}");
    fleet.agents[0].start().await.unwrap();
    assert_eq!(fleet.connected("alpha").await.unwrap()["id"], first["id"]);
}
