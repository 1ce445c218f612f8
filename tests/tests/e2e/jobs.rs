//! Jobs: what runs, how it ends, and that every target is in exactly one state.

use nexus_tests::{fleet::Fleet, poll};
use serde_json::Value;

fn run<'a>(document: &'a Value, node: &str) -> &'a Value {
    let runs = document["runs"]
        .as_array()
        .unwrap_or_else(|| panic!("{document}"));
    runs.iter()
        .find(|run| run["node"] == node)
        .unwrap_or_else(|| panic!("{document}"))
}

#[tokio::test]
async fn output_exit_code_and_signal_come_home() {
    let fleet = Fleet::with_agents(&["alpha", "beta"]).await.unwrap();
    let script = "echo out; echo err >&2";
    let (said, document) = fleet.job(&["--all"], &["sh", "-c", script]).await.unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    for node in ["alpha", "beta"] {
        let run = run(&document, node);
        assert_eq!(run["state"], "succeeded", "{document}");
        assert_eq!(
            (&run["stdout"], &run["stderr"]),
            (&"out\n".into(), &"err\n".into())
        );
    }
    assert_eq!(document["counts"]["succeeded"], 2, "{document}");

    let (said, document) = fleet
        .job(&["--nodes", "alpha"], &["sh", "-c", "exit 7"])
        .await
        .unwrap();
    assert_eq!(
        (said.code, &run(&document, "alpha")["exit_code"]),
        (3, &7.into()),
        "{said:?}"
    );
    let (said, document) = fleet
        .job(&["--nodes", "alpha"], &["sh", "-c", "kill -9 $$"])
        .await
        .unwrap();
    assert_eq!(
        (said.code, &run(&document, "alpha")["signal"]),
        (3, &9.into()),
        "{said:?}"
    );
    let (said, document) = fleet
        .job(&["--nodes", "alpha"], &["/no/such/program"])
        .await
        .unwrap();
    assert_eq!(
        (said.code, &run(&document, "alpha")["state"]),
        (3, &"failed".into()),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_timeout_ends_the_whole_group() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let script = "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000";
    let (said, document) = fleet
        .job(&["--all", "--timeout", "1s"], &["sh", "-c", script])
        .await
        .unwrap();
    let run = run(&document, "alpha");
    assert_eq!(
        (said.code, &run["state"]),
        (3, &"timed_out".into()),
        "{said:?}"
    );
    // Deaf to TERM, it was killed.
    assert_eq!(run["signal"], 9, "{document}");
    let child = run["stdout"].as_str().unwrap().trim().to_owned();
    assert!(!child.is_empty(), "{document}");
    poll::until("the child's end", nexus_tests::fleet::SOON, || {
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        std::future::ready((state.is_empty() || state.contains(") Z ")).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_absent_node_expires() {
    let mut fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    fleet.agents[0].stop().await.unwrap();
    fleet.in_state("alpha", "disconnected").await.unwrap();
    let (said, document) = fleet
        .job(&["--all", "--expires", "1s"], &["true"])
        .await
        .unwrap();
    assert_eq!(
        (said.code, &run(&document, "alpha")["state"]),
        (3, &"expired".into()),
        "{said:?}"
    );
}

#[tokio::test]
async fn one_request_id_stands_in_all_three_logs() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let said = fleet
        .ctl
        .run(&["-v", "run", "--yes", "--all", "--", "true"])
        .await
        .unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let id = said
        .err
        .split(|c: char| !c.is_ascii_hexdigit() && c != '-')
        .find(|w| w.len() == 36);
    let id = id.unwrap_or_else(|| panic!("no request id in {said:?}"));
    // The job's whole way, step by step under the one id.
    let (collector, agent) = (fleet.collector.log_text(), fleet.agents[0].log_text());
    for (log, steps) in [
        (
            &collector,
            &["SubmitJob", "dispatched", "the job has ended"][..],
        ),
        (&agent, &["job admitted", "run started", "run finished"]),
    ] {
        let ours: Vec<_> = log.lines().filter(|line| line.contains(id)).collect();
        let mut last = 0;
        for step in steps {
            let at = ours.iter().position(|line| line.contains(step));
            let at = at.unwrap_or_else(|| panic!("no {step} of {id}: {log}"));
            assert!(at >= last, "{step} is out of order: {ours:#?}");
            last = at;
        }
    }
}
