//! Runs whose executor is a helper: what becomes of them when it is not there, or says nothing.

use std::os::unix::net::UnixListener;

use nexus_proto::agent::v1::TrustUpdate;

use super::*;
use crate::{
    exec::{Boxed, Executing, Order, Plan, StartError, Stop},
    helper::{Delegate, Use},
};

/// A helper whose socket is there when somebody asks who judges, and gone when the job is to start.
#[derive(Debug)]
struct Vanishing {
    helper: Delegate,
    socket: PathBuf,
}

impl Executor for Vanishing {
    fn start(
        &self,
        order: Order,
        plan: Plan,
        stop: Boxed<'static, Stop>,
    ) -> Boxed<'_, Result<Box<dyn Executing>, StartError>> {
        self.helper.start(order, plan, stop)
    }

    fn judges(&self) -> bool {
        let judges = self.helper.judges();
        std::fs::remove_file(&self.socket).ok();
        judges
    }

    fn trust(&self, update: TrustUpdate) {
        self.helper.trust(update);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_helper_was_to_judge_does_not_run_without_it() {
    let node = Node::new();
    let (socket, marker) = (
        node.dir.path().join("helper.sock"),
        node.dir.path().join("marker"),
    );
    let _listener = UnixListener::bind(&socket).unwrap();
    let helper = Delegate::new(Use::Auto, &socket, &Tasks::new());
    let agent = node.agent_that_runs(Vanishing { helper, socket });
    let job = node.sh(&format!("touch {}", marker.display()));
    agent.runs.offer(&node.scene.dispatch(&job));
    let report = agent.report(&RunKey::once(job.id)).await;
    assert_eq!(
        report.outcome,
        RunOutcome::FailedToStart,
        "{}",
        report.reason
    );
    assert!(
        report.reason.contains("the helper cannot be reached"),
        "{}",
        report.reason
    );
    assert!(!marker.exists());
}

#[tokio::test]
async fn a_run_is_cancelled_while_the_helper_says_nothing() {
    let node = Node::new();
    let socket = node.dir.path().join("helper.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let agent = node.agent_that_runs(Delegate::new(Use::Auto, &socket, &Tasks::new()));
    let job = node.sh("true");
    agent.runs.offer(&node.scene.dispatch(&job));
    let _asked = until(|| listener.accept().ok()).await;
    agent.runs.cancel(job.id, "no longer needed");
    let report = agent.report(&RunKey::once(job.id)).await;
    assert_eq!(
        (report.outcome, report.reason.as_str()),
        (RunOutcome::Cancelled, "no longer needed")
    );
}
