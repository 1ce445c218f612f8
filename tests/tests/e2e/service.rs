//! Both daemons under a service manager: readiness, what they show of themselves, watchdog, and settings that are read
//! anew.

use std::{fs, path::Path, time::Duration};

use nexus_tests::{
    agent::Agent,
    collector::Place,
    fleet::{Fleet, SOON},
    manager::Manager,
    poll, process,
};
use rustix::process::{Pid, Signal, kill_process};

/// Of a service's watchdog.
const LIMIT: Duration = Duration::from_millis(600);

fn hang_up(pid: Option<u32>) {
    let pid = i32::try_from(pid.unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::HUP).unwrap();
}

fn with_env(agent: Agent, env: Vec<(String, String)>) -> Agent {
    env.iter()
        .fold(agent, |agent, (name, value)| agent.env(name, value))
}

/// Waits until a log has as many lines with that in them.
async fn logged(log: impl Fn() -> String, part: &str, times: usize) {
    poll::until_ok(part, SOON, || {
        let text = log();
        let enough = text.matches(part).count() >= times;
        std::future::ready(if enough { Ok(()) } else { Err(text) })
    })
    .await
    .unwrap();
}

/// The settings' file of a program whose state is there, which the next start empties.
fn configure(state: &Path, text: &str) {
    fs::write(state.with_extension("toml"), text).unwrap();
}

#[tokio::test]
async fn an_agent_is_ready_without_a_collector_and_says_what_it_waits_for() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let manager = Manager::in_folder(fleet.dir()).unwrap();
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]);
    let mut agent = with_env(agent, manager.env(Some(LIMIT)));
    agent
        .enroll(&fleet.token(&[]).await.unwrap())
        .await
        .unwrap();
    fleet.collector.stop().await.unwrap();
    agent.start().await.unwrap();
    manager.hears("READY=1", 1).await.unwrap();
    manager.shows("not connected: ").await.unwrap();
    fleet.collector.start().await.unwrap();
    manager.shows("connected to ").await.unwrap();
    manager.hears("WATCHDOG=1", 5).await.unwrap();
    agent.stop().await.unwrap();
    assert_eq!(manager.count("STOPPING=1"), 1, "{:?}", manager.heard());
}

#[tokio::test]
async fn what_an_agent_reads_anew_holds_at_once_or_waits_for_a_restart() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let manager = Manager::in_folder(fleet.dir()).unwrap();
    let agent = with_env(Agent::new(fleet.dir(), "alpha", &[]), manager.env(None));
    fleet.join(agent).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    let state = fleet.agents[0].dir().to_owned();
    let reload = |text: &str| {
        configure(&state, text);
        hang_up(fleet.agents[0].id());
    };

    // From ten seconds to one.
    reload("interval = \"1s\"\nlog.filter = \"debug\"\nexec.concurrency = 2\n");
    let waits = "connected to";
    manager
        .shows("a restart is needed for exec.concurrency")
        .await
        .unwrap();
    manager.shows(waits).await.unwrap();
    manager.hears("READY=1", 2).await.unwrap();
    let heard = manager.heard();
    let reloading = heard.iter().position(|line| line == "RELOADING=1");
    let after = reloading.and_then(|at| heard.get(at + 1)).unwrap();
    assert!(after.starts_with("MONOTONIC_USEC="), "{heard:?}");
    let log = || fleet.agents[0].log_text();
    logged(
        log,
        "need a restart to take effect keys=\"exec.concurrency\"",
        1,
    )
    .await;
    logged(log, "DEBUG", 1).await;
    let times =
        "SELECT value FROM metric_history WHERE node = 'alpha' AND name = 'node_time_seconds'
                 ORDER BY time DESC LIMIT 3";
    fleet
        .eventually(times, |rows| {
            let times: Vec<_> = rows
                .iter()
                .filter_map(|row| row["value"].as_f64())
                .collect();
            times.len() == 3 && times[0] - times[2] < 4.0
        })
        .await
        .unwrap();

    // What cannot be read changes nothing.
    reload("interval = \"1h\"\nintervall = \"1s\"\n");
    manager
        .shows("the configuration in force is an older one")
        .await
        .unwrap();
    assert!(
        manager.status().contains("alpha.toml:2"),
        "{}",
        manager.status()
    );
    logged(log, "the configuration in force stays: ", 1).await;
    poll::until_ok("the same in `nexus-agent status`", SOON, || {
        let status = fs::read_to_string(state.join("status")).unwrap_or_default();
        let both = status.contains("connected to ") && status.contains("alpha.toml:2");
        std::future::ready(if both { Ok(()) } else { Err(status) })
    })
    .await
    .unwrap();
    let seq = "SELECT seq FROM lanes WHERE lane = 'metrics'";
    let before = fleet.query(seq).await.unwrap()[0]["seq"].as_u64().unwrap();
    fleet
        .eventually(seq, |rows| rows[0]["seq"].as_u64().unwrap() > before + 3)
        .await
        .unwrap();

    // As it was at the start, so that nothing waits.
    reload("");
    manager.hears("READY=1", 4).await.unwrap();
    poll::until("a status without remark", SOON, || {
        let clear = !manager.status().contains("restart") && !manager.status().contains("older");
        std::future::ready(clear.then_some(()))
    })
    .await
    .unwrap();
    assert_eq!(log().matches("session opened").count(), 1, "{}", log());
}

#[tokio::test]
async fn other_addresses_are_tried_at_once_by_an_agent_that_has_no_session() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let state = fleet.agents[0].dir().to_owned();
    let log = |fleet: &Fleet| fleet.agents[0].log_text();
    // The session that is there stays until there is one at the new address.
    configure(&state, "addresses = [\"127.0.0.1:1\"]\n");
    hang_up(fleet.agents[0].id());
    logged(|| log(&fleet), "changed=\"addresses\"", 1).await;
    logged(|| log(&fleet), "no session by the new settings yet", 2).await;
    assert_eq!(fleet.node("alpha").await.unwrap()["state"], "connected");
    fleet.collector.kill().await.unwrap();
    fleet.collector.start().await.unwrap();
    logged(|| log(&fleet), "127.0.0.1:1 over tcp", 1).await;
    configure(&state, "");
    hang_up(fleet.agents[0].id());
    fleet.connected("alpha").await.unwrap();
}

#[tokio::test]
async fn a_session_moves_to_the_transport_that_a_reload_says() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let state = fleet.agents[0].dir().to_owned();
    assert_eq!(fleet.node("alpha").await.unwrap()["transport"], "quic");
    for (settings, transport) in [("transport = \"tcp\"\n", "tcp"), ("", "quic")] {
        configure(&state, settings);
        hang_up(fleet.agents[0].id());
        let nodes = "SELECT state, transport FROM nodes WHERE name = 'alpha'";
        fleet
            .eventually(nodes, |rows| rows[0]["transport"] == transport)
            .await
            .unwrap();
    }
    // One took over from the other.
    let log = fleet.agents[0].log_text();
    assert!(!log.contains("the session ended"), "{log}");
}

#[tokio::test]
async fn a_collector_is_ready_once_it_serves_and_reads_its_settings_anew() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::in_folder(dir.path()).unwrap();
    let place = Place {
        env: manager.env(Some(LIMIT)),
        ..Place::default()
    };
    let mut fleet = Fleet::make(place, dir, &[]).await.unwrap();
    manager.hears("READY=1", 1).await.unwrap();
    let serving = format!("serves agents at {}", fleet.collector.endpoints().agents);
    manager.shows(&serving).await.unwrap();
    manager.hears("WATCHDOG=1", 5).await.unwrap();

    let state = fleet.collector.dir().to_owned();
    let reload = |text: &str| {
        configure(&state, text);
        hang_up(fleet.collector.id());
    };
    let three = "SELECT 1 AS n UNION SELECT 2 UNION SELECT 3";
    assert_eq!(fleet.query(three).await.unwrap().len(), 3);
    reload("query.rows = 2\nshards = 2\n");
    manager
        .shows("a restart is needed for shards")
        .await
        .unwrap();
    manager.hears("READY=1", 2).await.unwrap();
    assert_eq!(fleet.query(three).await.unwrap().len(), 2);
    reload("query.rows = \"many\"\n");
    manager
        .shows("the configuration in force is an older one")
        .await
        .unwrap();
    assert!(
        manager.status().contains("collector.toml:1"),
        "{}",
        manager.status()
    );
    assert_eq!(fleet.query(three).await.unwrap().len(), 2);
    fleet.collector.stop().await.unwrap();
    assert_eq!(manager.count("STOPPING=1"), 1, "{:?}", manager.heard());
}

#[tokio::test]
async fn keys_and_tokens_may_be_the_service_managers_to_hand_out() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = dir.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let env = vec![(
        "CREDENTIALS_DIRECTORY".to_owned(),
        credentials.display().to_string(),
    )];
    let place = Place {
        env: env.clone(),
        ..Place::default()
    };
    let mut fleet = Fleet::make(place, dir, &[]).await.unwrap();
    // The keys of the intermediates leave the collector's folder.
    fleet.collector.stop().await.unwrap();
    for role in ["agents", "collectors", "operators"] {
        let key = fleet
            .collector
            .dir()
            .join("pki/ca")
            .join(format!("{role}.pem"));
        let credential = credentials.join(format!("nexus.{role}.pem"));
        fs::rename(key, credential).unwrap();
    }
    fleet.collector.start().await.unwrap();
    let mut code = fleet.collector.command().await.unwrap();
    code.env_remove("CREDENTIALS_DIRECTORY").arg("login-code");
    let output = process::run(&mut code, b"").await.unwrap();
    assert!(output.status.success(), "{output:?}");

    let token = fleet.token(&[]).await.unwrap();
    fs::write(credentials.join("nexus.enrol-token"), token).unwrap();
    let agent = with_env(Agent::new(fleet.dir(), "alpha", &[]), env);
    let mut enrol = agent.command().await.unwrap();
    let output = process::run(enrol.arg("enroll"), b"").await.unwrap();
    assert!(output.status.success(), "{output:?}");
    fleet.agents.push(agent);
    fleet.agents[0].start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
}
