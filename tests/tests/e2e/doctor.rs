//! What `nexus-agent doctor` and `nexus-agent status` say of an agent that is well, and of what can be wrong. What takes
//! root to make wrong is in the interop suite.

use std::{fs, os::unix::fs::PermissionsExt as _};

use nexus_tests::{
    agent::Agent,
    doctor::Examined,
    fleet::{Fleet, SOON},
    poll, process,
};

async fn examined(agent: &Agent, flags: &[&str]) -> Examined {
    let mut command = agent.command().await.unwrap();
    Examined::by(command.args(flags)).await.unwrap()
}

#[tokio::test]
async fn an_agent_that_is_well_is_said_to_be() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let node = fleet.node("alpha").await.unwrap();
    let said = examined(&fleet.agents[0], &[]).await;
    assert_eq!(
        (said.code, said.complaints()),
        (Some(0), vec![]),
        "{said:#?}"
    );
    let addresses = fleet.collector.endpoints().agents.clone();
    for (what, words) in [
        ("state", "mode 0700"),
        ("permissions", "files and folders"),
        ("disk", "MiB free"),
        ("identity", node["id"].as_str().unwrap()),
        ("clock", "nothing here was signed later"),
        ("certificate", "valid from"),
        ("root", "pinned root, SHA-256"),
        ("signers", "policy 1"),
        ("dns", "needs no name server"),
        ("udp", &addresses),
        ("tcp", &addresses),
        ("session", "connected to"),
        ("helper", "not used"),
        ("policy", "there is none"),
    ] {
        said.says(what, "ok", &[words]);
    }
    // It was only looked at.
    assert_eq!(fleet.node("alpha").await.unwrap()["state"], "connected");
}

#[tokio::test]
async fn the_status_is_that_of_the_session() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let status = async |fleet: &Fleet| {
        let mut command = fleet.agents[0].command().await.unwrap();
        let output = process::run(command.arg("status"), b"").await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text, err)
    };
    let id = fleet.node("alpha").await.unwrap()["id"].clone();
    let (code, text, err) = status(&fleet).await;
    assert_eq!((code, err.as_str()), (Some(0), ""), "{text}");
    assert!(text.contains(id.as_str().unwrap()), "{text}");
    assert!(text.contains("session      connected to "), "{text}");

    fleet.collector.kill().await.unwrap();
    let fleet_ref = &fleet;
    poll::until("it says so", SOON, || async move {
        let (code, text, _) = status(fleet_ref).await;
        (code == Some(1) && text.contains("not connected: ")).then_some(())
    })
    .await
    .unwrap();

    fleet.agents[0].stop().await.unwrap();
    let (code, _, err) = status(&fleet).await;
    assert_eq!(code, Some(1), "{err}");
    let said = "error: status: the agent does not run\nhint: `journalctl -u nexus-agent` says how it ended, `systemctl start nexus-agent` starts it\n";
    assert_eq!(err, said);
}

#[tokio::test]
async fn a_machine_that_has_not_enrolled_is_told_how_to() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::new(dir.path(), "alpha", &[]);
    let said = examined(&agent, &[]).await;
    let words = ["not enrolled", "`nexus-agent enroll TOKEN`"];
    said.says("state", "error", &words);
    assert_eq!(said.code, Some(1));
    assert_eq!(said.err, "error: doctor: one thing is wrong\n");
    // A package makes the folder.
    fs::create_dir(agent.dir()).unwrap();
    fs::set_permissions(agent.dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let said = examined(&agent, &[]).await;
    said.says("identity", "error", &words);
    assert_eq!(said.code, Some(1));
}

#[tokio::test]
async fn a_token_that_waits_for_an_enrolment_is_looked_at() {
    let fleet = Fleet::new(&[]).await.unwrap();
    let folder = fleet.dir().join("credentials");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("nexus.enrol-token");
    let agent = Agent::new(fleet.dir(), "alpha", &[])
        .env("CREDENTIALS_DIRECTORY", folder.to_str().unwrap());
    let says = async |words: &[&str]| {
        let mut command = agent.command().await.unwrap();
        let output = process::run(command.args(words), b"").await.unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let token = fleet.token(&[]).await.unwrap();

    let half = token.get(..80).unwrap();
    fs::write(&file, half).unwrap();
    let said = examined(&agent, &[]).await;
    said.says(
        "token",
        "error",
        &[
            "nobody can join with",
            "part of it is missing",
            "nexusctl token create",
        ],
    );
    assert_eq!(said.err, "error: doctor: 2 things are wrong\n");
    assert!(!format!("{said:?}").contains(half), "{said:#?}");
    let (code, said) = says(&["status"]).await;
    assert!(
        code == Some(1) && said.contains("hint: nobody can join with"),
        "{said}"
    );

    fs::write(&file, &token).unwrap();
    let said = examined(&agent, &[]).await;
    let path = file.to_str().unwrap();
    said.says("token", "ok", &[path, "good until", "`nexus-agent enroll`"]);
    assert!(!format!("{said:?}").contains(&token), "{said:#?}");
    let (code, said) = says(&["status"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not enrolled"), "{said}");
    assert!(said.contains("hint: a join token for "), "{said}");

    // One that is not there, and what mends it.
    let (code, said) = says(&["enroll", "@none"]).await;
    assert_eq!(code, Some(1), "{said}");
    let why = "error: enroll: cannot read a join token from none: ";
    assert!(said.starts_with(why), "{said}");
    assert!(said.contains("hint: make a token with"), "{said}");

    // It is nobody's business where there is an identity.
    let (code, said) = says(&["enroll"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(examined(&agent, &[]).await.of("token"), "");
}

#[tokio::test]
async fn what_an_agent_passes_over_in_its_configuration_is_told_beside_the_rest() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let agent = &fleet.agents[0];
    let config = agent.dir().with_extension("toml");
    let mistake = "alpha.toml:1: intervall: unknown key; did you mean `interval`?";
    let says = async |text: &str, word: &str| {
        let mut command = agent.command().await.unwrap();
        fs::write(&config, text).unwrap();
        let output = process::run(command.arg(word), b"").await.unwrap();
        let read = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            read(output.stdout),
            read(output.stderr),
        )
    };
    let unknown = "intervall = \"5s\"\n";
    let (code, text, err) = says(unknown, "status").await;
    assert_eq!(code, Some(0), "{err}");
    assert!(text.contains("session      connected to "), "{text}");
    assert!(
        err.starts_with("warning: ") && err.contains(mistake),
        "{err}"
    );

    let mut command = agent.command().await.unwrap();
    fs::write(&config, unknown).unwrap();
    let said = Examined::by(&mut command).await.unwrap();
    said.says("config", "warning", &[mistake, "nexus-agent check-config"]);
    said.says("session", "ok", &[]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:#?}");

    // What no agent could run with ends it.
    for word in ["status", "doctor"] {
        let (code, text, err) = says("[spool]\nmetrics_bytes = \"1MiB\"\n", word).await;
        assert_eq!((code, text.as_str()), (Some(2), ""), "{err}");
        assert!(err.contains("it must be 4MiB at least"), "{err}");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_is_told_from_a_name_that_leads_nowhere() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let there = fleet.collector.endpoints().agents.clone();
    // One of two is enough.
    let both = format!("addresses=no-such-host.invalid:7460,{there}");
    let said = examined(&fleet.agents[0], &["--set", &both]).await;
    assert_eq!(said.code, Some(0), "{said:#?}");
    said.says("dns", "warning", &["no-such-host.invalid:7460: "]);
    said.says("tcp", "ok", &[]);

    fleet.collector.kill().await.unwrap();
    let said = examined(&fleet.agents[0], &[]).await;
    assert_eq!(said.code, Some(1), "{said:#?}");
    said.says(
        "udp",
        "error",
        &[&there, "no answer within 5s", "drops UDP"],
    );
    said.says(
        "tcp",
        "error",
        &[&there, "Connection refused", "the collector runs"],
    );

    let elsewhere = ["--set", "addresses=no-such-host.invalid:7460"];
    let said = examined(&fleet.agents[0], &elsewhere).await;
    assert_eq!(said.code, Some(1), "{said:#?}");
    said.says(
        "dns",
        "error",
        &["no-such-host.invalid:7460: ", "/etc/resolv.conf"],
    );
    assert_eq!(said.of("tcp"), "");
}

#[tokio::test]
async fn a_collector_of_another_fleet_is_told_from_one_that_is_away() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let other = Fleet::new(&[]).await.unwrap();
    let elsewhere = format!("addresses={}", other.collector.endpoints().agents.clone());
    let said = examined(&fleet.agents[0], &["--set", &elsewhere]).await;
    assert_eq!(said.code, Some(1), "{said:#?}");
    for what in ["udp", "tcp"] {
        said.says(what, "error", &["certificate", "nexusctl get nodes"]);
    }
}

#[tokio::test]
async fn a_helper_that_is_not_there_matters_where_jobs_need_one() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let socket = format!("helper.socket={}", fleet.dir().join("none.sock").display());
    let used = async |used: &str| {
        let flags = ["--set", &socket, "--set", used];
        examined(&fleet.agents[0], &flags).await
    };
    let said = used("helper.use=auto").await;
    said.says(
        "helper",
        "warning",
        &["as the agent's own user", "systemctl enable --now"],
    );
    assert_eq!(said.code, Some(0), "{said:#?}");
    let said = used("helper.use=always").await;
    said.says(
        "helper",
        "error",
        &["every job fails", "systemctl enable --now"],
    );
    assert_eq!(said.code, Some(1), "{said:#?}");
    fs::write(fleet.dir().join("policy.toml"), "[[allow]]\nwho = 7\n").unwrap();
    let said = used("helper.use=auto").await;
    said.says(
        "policy",
        "error",
        &["policy.toml", "nexus-agent check-config"],
    );
}

#[tokio::test]
async fn a_folder_that_others_see_into_and_an_identity_that_is_damaged_are_named() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet.agents[0].stop().await.unwrap();
    let dir = fleet.agents[0].dir().to_owned();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let said = examined(&fleet.agents[0], &[]).await;
    assert_eq!(said.code, Some(1), "{said:#?}");
    said.says("state", "error", &["chmod 0700"]);
    said.says(
        "session",
        "error",
        &["does not run", "systemctl start nexus-agent"],
    );
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();

    // The root of another fleet.
    let other = Fleet::with_agents(&["beta"]).await.unwrap();
    let root = dir.join("identity").join("root.pem");
    fs::copy(
        other.agents[0].dir().join("identity").join("root.pem"),
        &root,
    )
    .unwrap();
    let said = examined(&fleet.agents[0], &[]).await;
    assert_eq!(said.code, Some(1), "{said:#?}");
    said.says(
        "root",
        "error",
        &["not one of the pinned root", "enroll TOKEN --force"],
    );

    fs::write(&root, "rubbish").unwrap();
    let said = examined(&fleet.agents[0], &[]).await;
    assert_eq!(said.code, Some(1), "{said:#?}");
    said.says("identity", "error", &["root.pem", "enroll TOKEN --force"]);
}
