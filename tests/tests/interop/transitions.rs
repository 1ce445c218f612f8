//! An agent that is killed at each step of a run, before and after it is on its disk: strace kills it at
//! the chosen system call.

use std::{collections::BTreeMap, fs};

use nexus_tests::{
    fleet::{Fleet, SOON},
    poll,
};
use serde_json::Value;

/// No run takes that many calls.
const MANY: u32 = 100;

/// Kills the agent at its first, second, third … such call, from its start to the end of a job, until it
/// outlives them all. Gives how often a job ended in which state.
async fn at_each(calls: &str, of_ledger: bool) -> BTreeMap<String, u32> {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet.agents[0].stop().await.unwrap();
    let ledger = fleet.agents[0].dir().join("ledger").join("ledger");
    assert!(ledger.exists());
    let trace = fleet.dir().join("trace");
    let mut ends = BTreeMap::new();
    for call in 1..=MANY {
        let marks = fleet.dir().join(format!("marks-{call}"));
        let mark = format!("echo ran >> {}", marks.display());
        let inject = format!("inject={calls}:signal=SIGKILL:when={call}");
        let select = format!("trace={calls}");
        let mut strace = vec!["strace", "-DD", "-o", trace.to_str().unwrap()];
        strace.extend(["-e", &select, "-e", &inject]);
        if of_ledger {
            strace.extend(["-P", ledger.to_str().unwrap()]);
        }
        fleet.agents[0].start_by(&strace).await.unwrap();
        let log = fleet.dir().join(format!("run-{call}.log"));
        let args = [
            "run", "--yes", "--nodes", "alpha", "-o", "json", "--", "sh", "-c", &mark,
        ];
        let mut run = fleet.ctl.start(&args, &log).await.unwrap();
        poll::until("the agent's or the job's end", SOON, || {
            let over = fleet.agents[0].check().is_err() || run.check().is_err();
            std::future::ready(over.then_some(()))
        })
        .await
        .map_err(|fault| run.explain(fault))
        .unwrap();
        let killed = fleet.agents[0].check().is_err();
        if killed {
            // Whoever is dead has nothing to stop; the next one mends what is left.
            fleet.agents[0].stop().await.unwrap();
            fleet.agents[0].start().await.unwrap();
        }
        run.wait().await.unwrap();
        let said = run.log_text();
        let from = said
            .find(['[', '{'])
            .unwrap_or_else(|| panic!("{call}: {said}"));
        // What it says to people stands in the same file.
        let (_, document) = said.split_at(from);
        let mut values = serde_json::Deserializer::from_str(document).into_iter::<Value>();
        let document = values.next().unwrap().unwrap();
        let state = document["runs"][0]["state"].as_str();
        let state = state.unwrap_or_else(|| panic!("{call}: {said}")).to_owned();
        let ran = fs::read_to_string(&marks)
            .unwrap_or_default()
            .lines()
            .count();
        let expected = match state.as_str() {
            "succeeded" => ran == 1,
            "unknown" => ran <= 1,
            _ => false,
        };
        assert!(
            expected,
            "call {call}: {state}, and it ran {ran} times\n{}",
            fleet.agents[0].log_text()
        );
        if !killed {
            fleet.agents[0].stop().await.unwrap();
            let text = fs::read_to_string(&trace).unwrap();
            if !text.contains("SIGKILL") {
                return ends;
            }
        } else {
            fleet.agents[0].stop().await.unwrap();
        }
        *ends.entry(state).or_default() += 1;
    }
    panic!("the agent was still killed at call {MANY}");
}

#[tokio::test]
async fn a_run_has_one_end_wherever_its_agent_was_killed() {
    let ends = at_each("write,fsync,fdatasync", true).await;
    eprintln!("at each call on the ledger: {ends:?}");
    // Before and after each of RECEIVED, STARTED and FINISHED.
    assert!(ends.values().sum::<u32>() >= 6, "{ends:?}");
    assert!(ends.contains_key("unknown"), "{ends:?}");
    assert!(ends.contains_key("succeeded"), "{ends:?}");
}

#[tokio::test]
async fn a_run_has_one_end_whichever_file_its_agent_was_writing() {
    let ends = at_each("fsync,fdatasync,rename", false).await;
    eprintln!("at each fsync and rename: {ends:?}");
    assert!(ends.values().sum::<u32>() >= 12, "{ends:?}");
    assert!(ends.contains_key("succeeded"), "{ends:?}");
}
