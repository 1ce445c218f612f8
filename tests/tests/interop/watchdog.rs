//! A daemon that does not get on starves its watchdog, whatever else of it still turns. Needs strace.

use std::time::Duration;

use nexus_tests::{
    agent::Agent,
    collector::Place,
    fleet::{Fleet, SOON},
    manager::Manager,
    poll,
};

use super::interference::{DISK_WRITES, Interference};

const LIMIT: Duration = Duration::from_secs(2);
const FED: &str = "WATCHDOG=1";
/// Each call takes a minute.
const HANGS: &str = "delay_enter=60000000";

async fn starved_by(manager: &Manager, program: u32, calls: &str) {
    manager.hears(FED, 5).await.unwrap();
    let fault = Interference::with(program, calls, HANGS).await;
    poll::until("a watchdog that starves", SOON, || {
        std::future::ready((manager.silence(FED) > LIMIT).then_some(()))
    })
    .await
    .unwrap();
    fault.end().await;
    let before = manager.count(FED);
    manager.hears(FED, before + 3).await.unwrap();
}

#[tokio::test]
async fn an_agent_whose_readings_hang_starves_its_watchdog() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let manager = Manager::in_folder(fleet.dir()).unwrap();
    let agent = Agent::new(fleet.dir(), "alpha", &["interval=1s"]);
    let env = manager.env(Some(LIMIT));
    let agent = env
        .iter()
        .fold(agent, |agent, (name, value)| agent.env(name, value));
    fleet.join(agent).await.unwrap();
    starved_by(&manager, fleet.agents[0].id().unwrap(), "openat").await;
}

#[tokio::test]
async fn a_collector_whose_disk_hangs_starves_its_watchdog_while_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::in_folder(dir.path()).unwrap();
    let place = Place {
        env: manager.env(Some(LIMIT)),
        ..Place::default()
    };
    let mut fleet = Fleet::make(place, dir, &[]).await.unwrap();
    fleet.add("alpha", &["interval=1s"]).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    starved_by(&manager, fleet.collector.id().unwrap(), DISK_WRITES).await;
}
