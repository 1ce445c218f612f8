//! Two machines that claim to be one.

use std::{fs, path::Path};

use nexus_tests::{
    agent::Agent,
    fleet::{Fleet, SOON},
    poll,
};

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Lines of an agent's log that its admin has to act on.
fn warnings(agent: &Agent) -> Vec<String> {
    let text = agent.log_text();
    let lines = text.lines().filter(|line| line.contains("ERROR"));
    lines.map(str::to_owned).collect()
}

async fn says_why(agent: &Agent, why: &str) {
    let said = poll::until_ok("the agent's word", SOON, || {
        let lines = warnings(agent);
        let told = lines.iter().any(|line| line.contains(why));
        std::future::ready(if told { Ok(()) } else { Err(agent.log_text()) })
    });
    said.await.unwrap();
}

async fn told(fleet: &Fleet, why: &str) {
    let node = fleet.in_state("alpha", "quarantined").await.unwrap();
    let reason = node["state_reason"].as_str().unwrap();
    assert!(reason.contains(why), "{node}");
    let rows = fleet
        .query(
            "SELECT subject, detail FROM audit WHERE action = 'session' AND decision = 'refused'",
        )
        .await
        .unwrap();
    // Once, however often the copies come again.
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(
        rows[0]["subject"],
        format!("nodes/{}", node["id"].as_str().unwrap())
    );
    assert!(
        rows[0]["detail"].as_str().unwrap().contains(why),
        "{rows:?}"
    );
}

#[tokio::test]
async fn a_copied_folder_puts_both_copies_into_quarantine() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet.agents[0].stop().await.unwrap();
    let mut twin = Agent::new(&fleet.dir().join("copies"), "alpha", &["interval=1s"]);
    copy(fleet.agents[0].dir(), twin.dir());
    fleet.agents[0].start().await.unwrap();
    fleet.connected("alpha").await.unwrap();

    twin.start().await.unwrap();
    told(&fleet, "session counter").await;
    says_why(&twin, "session counter").await;
    says_why(&fleet.agents[0], "session counter").await;
    // Neither is given anything to do.
    let marker = fleet.dir().join("ran");
    let (said, _) = fleet
        .job(
            &["--nodes", "alpha", "--expires", "3s"],
            &["touch", marker.to_str().unwrap()],
        )
        .await
        .unwrap();
    assert_ne!(said.code, 0, "{said:?}");
    assert!(!marker.exists());
    // And it is so after everything was started again.
    fleet.collector.stop().await.unwrap();
    fleet.collector.start().await.unwrap();
    fleet.in_state("alpha", "quarantined").await.unwrap();
}

#[tokio::test]
async fn a_restored_snapshot_is_noticed() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet.agents[0].stop().await.unwrap();
    let snapshot = fleet.dir().join("snapshot");
    copy(fleet.agents[0].dir(), &snapshot);
    fleet.agents[0].start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
    fleet.agents[0].stop().await.unwrap();

    fs::remove_dir_all(fleet.agents[0].dir()).unwrap();
    copy(&snapshot, fleet.agents[0].dir());
    fleet.agents[0].start().await.unwrap();
    told(&fleet, "session counter").await;
    says_why(&fleet.agents[0], "restored snapshot").await;
}

#[tokio::test]
async fn a_machine_made_anew_from_an_old_identity_is_noticed() {
    let mut fleet = Fleet::with_agents(&["alpha", "beta"]).await.unwrap();
    for agent in &mut fleet.agents {
        agent.stop().await.unwrap();
    }
    // Only the identity travels, as it does with an image or a careless backup.
    let (alpha, beta) = (fleet.agents[0].dir(), fleet.agents[1].dir());
    fs::remove_dir_all(beta.join("identity")).unwrap();
    copy(&alpha.join("identity"), &beta.join("identity"));
    fleet.agents[1].start().await.unwrap();
    told(&fleet, "incarnation").await;
    says_why(&fleet.agents[1], "incarnation").await;
}
