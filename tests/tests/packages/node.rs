//! What a node goes through, whichever tool its package came by.

use nexus_tests::process::Process;
use serde_json::Value;

use super::{
    machine::Machine,
    scene::{AGENT, HELPER, Scene},
};

/// The service is there and enabled, does not start, and says why.
pub(super) async fn waits_for_an_identity(machine: &Machine) {
    machine.ok("systemctl start nexus-agent").await;
    assert_eq!(machine.show(AGENT, "ActiveState").await, "inactive");
    assert_eq!(machine.show(AGENT, "UnitFileState").await, "enabled");
    let status = machine.status(AGENT).await;
    let why = "ConditionPathExists=/var/lib/nexus/agent/identity was not met";
    assert!(status.contains(why), "{status}");
    assert_eq!(machine.ok("systemctl --failed --quiet").await, "");
}

pub(super) async fn runs_once_it_is_enrolled(scene: &Scene) {
    let machine = &scene.machine;
    let said = scene.enrol().await;
    assert!(said.contains("enrolled as alpha"), "{said}");
    let node = scene.connected().await;
    assert_eq!(node["transport"], "quic", "{node}");
    machine.shows(AGENT, "ActiveState", "active").await;
    let status = machine.status(AGENT).await;
    assert!(status.contains("active (running)"), "{status}");
    assert!(status.contains("connected to "), "{status}");
    let restarts = machine.show(AGENT, "NRestarts").await;
    assert_eq!(restarts, "0", "{status}");
}

pub(super) async fn runs_jobs_as_root(scene: &Scene) {
    let run = scene.run(&["id", "-u"]).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    assert_eq!(run["stdout"], "0\n", "{run}");
    assert_eq!(scene.machine.show(HELPER, "ActiveState").await, "active");
}

/// What an upgrade finds: a node, and a job that goes on until it is told to end.
pub(super) struct Before {
    node: Value,
    identity: String,
    job: Process,
    helper: String,
    agent: String,
}

impl Before {
    pub(super) async fn of(scene: &Scene) -> Self {
        let machine = &scene.machine;
        let node = scene.connected().await;
        let identity = identity(machine).await;
        let job = scene
            .start("while [ ! -e /root/go ]; do sleep 0.1; done; echo went on; id -u")
            .await;
        Self {
            node,
            identity,
            job,
            helper: machine.show(HELPER, "InvocationID").await,
            agent: machine.show(AGENT, "MainPID").await,
        }
    }

    /// There is another agent now, and still that helper.
    pub(super) async fn agent_was_replaced(&self, machine: &Machine) {
        assert_ne!(machine.show(AGENT, "MainPID").await, self.agent);
        machine.shows(AGENT, "ActiveState", "active").await;
        assert_eq!(machine.show(HELPER, "InvocationID").await, self.helper);
    }

    /// The node is the same one, and its job ends well. It was told to, in /root/go.
    pub(super) async fn comes_home(mut self, scene: &Scene) {
        assert_eq!(scene.connected().await["id"], self.node["id"]);
        let ended = self.job.wait().await.unwrap();
        let log = self.job.log_text();
        assert!(ended.success() && log.contains("went on\n"), "{log}");
        assert_eq!(identity(&scene.machine).await, self.identity);
        let id = log
            .lines()
            .find_map(|line| line.strip_prefix("job ")?.split(':').next());
        let runs = format!("SELECT state FROM runs WHERE job_id = '{}'", id.unwrap());
        let runs = scene.fleet.query(&runs).await.unwrap();
        assert_eq!(runs, [serde_json::json!({"state": "succeeded"})]);
    }
}

async fn identity(machine: &Machine) -> String {
    let files = "agent/incarnation agent/identity/* helper/identity/*";
    let script = format!("cd /var/lib/nexus && sha256sum {files}");
    machine.ok(&script).await
}

/// Once its package is removed: it said so, once, nothing of it runs, and its state is there.
pub(super) async fn has_left_its_state(scene: &Scene, node: &Value) {
    let machine = &scene.machine;
    let told = "SELECT * FROM events WHERE kind = 'agent_removed'";
    let events = scene.fleet.eventually(told, |rows| !rows.is_empty());
    let events = events.await.unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["node_id"], node["id"], "{events:?}");
    let left = machine
        .ok("systemctl list-units --all --plain --no-legend 'nexus*'")
        .await;
    assert!(!left.contains(" active "), "{left}");
    assert!(!machine.path("/usr/bin/nexus-agent").exists());
    for kept in ["agent/identity/identity.pem", "helper/identity/pin"] {
        assert!(machine.path("/var/lib/nexus").join(kept).exists(), "{kept}");
    }
}
