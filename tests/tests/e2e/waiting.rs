//! Agents that are there before their collector is.

use std::time::Duration;

use nexus_tests::{agent::Agent, fleet::Fleet, poll};

const AGENTS: usize = 20;

/// User and system time of a process, in hundredths of a second (proc_pid_stat(5), fields 14 and 15).
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn twenty_agents_wait_calmly_and_all_come() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let uses = AGENTS.to_string();
    let token = fleet.token(&["--uses", &uses]).await.unwrap();
    for number in 0..AGENTS {
        let agent = Agent::new(fleet.dir(), &format!("node-{number}"), &[]);
        agent.enroll(&token).await.unwrap();
        fleet.agents.push(agent);
    }
    fleet.collector.stop().await.unwrap();
    for agent in &mut fleet.agents {
        agent.start().await.unwrap();
    }
    let patience = Duration::from_secs(60);
    for agent in &fleet.agents {
        poll::until_ok("three tries", patience, || {
            let log = agent.log_text();
            let tries = log.matches("no session").count();
            std::future::ready(if tries >= 3 { Ok(()) } else { Err(log) })
        })
        .await
        .unwrap();
    }
    for agent in &fleet.agents {
        let used = ticks(agent.id().unwrap());
        assert!(
            used < 200,
            "{} has used {used} ticks while it waited",
            agent.name()
        );
    }
    fleet.collector.start().await.unwrap();
    for number in 0..AGENTS {
        fleet.connected(&format!("node-{number}")).await.unwrap();
    }
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_said_and_tried_again() {
    let mut fleet = Fleet::new(&[]).await.unwrap();
    let token = fleet.token(&[]).await.unwrap();
    let mut agent = Agent::new(fleet.dir(), "alpha", &[]);
    agent.enroll(&token).await.unwrap();
    // RFC 6761: this name never resolves.
    agent.set("addresses", "collector.invalid:7460");
    agent.start().await.unwrap();
    poll::until_ok("two tries", Duration::from_secs(60), || {
        let log = agent.log_text();
        let tries = log
            .matches("collector.invalid:7460: cannot resolve the name")
            .count();
        std::future::ready(if tries >= 2 { Ok(()) } else { Err(log) })
    })
    .await
    .unwrap();
    agent.stop().await.unwrap();
    fleet.agents.push(agent);
}

#[tokio::test]
async fn what_a_collector_calls_itself_costs_no_agent_its_way() {
    let mut fleet = Fleet::new(&["advertise.agents=collector.invalid:7460"])
        .await
        .unwrap();
    fleet.add("alpha", &[]).await.unwrap();
    fleet.connected("alpha").await.unwrap();
    // And with what it was told in its state.
    let agent = &mut fleet.agents[0];
    agent.stop().await.unwrap();
    fleet.in_state("alpha", "disconnected").await.unwrap();
    fleet.agents[0].start().await.unwrap();
    fleet.connected("alpha").await.unwrap();
}
