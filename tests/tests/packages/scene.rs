//! A collector and an operator here, and a machine at the other end of a cable that is to become a node.

use nexus_tests::{fleet::Fleet, process::Process};
use serde_json::Value;

use super::{cable::Cable, debian::Kind, machine::Machine};

pub(super) const AGENT: &str = "nexus-agent.service";
pub(super) const HELPER: &str = "nexus-agent-helper.service";
/// What the machine calls itself, and so the node is called.
pub(super) const NAME: &str = "alpha";

/// The machine ends first, then what it is connected to.
pub(super) struct Scene {
    pub(super) machine: Machine,
    pub(super) fleet: Fleet,
    cable: Cable,
}

impl Scene {
    pub(super) async fn new() -> Self {
        Self::of(Kind::Stock).await
    }

    pub(super) async fn of(kind: Kind) -> Self {
        let cable = Cable::straight();
        let fleet = Fleet::new_at(cable.place(), &[]).await.unwrap();
        let machine = Machine::boot(kind, &cable.there).await;
        Self {
            machine,
            fleet,
            cable,
        }
    }

    /// The same with a node that is connected.
    pub(super) async fn with_node() -> Self {
        let scene = Self::new().await;
        scene.machine.bring("nexus-agent");
        scene
            .machine
            .ok("apt-get install --yes /root/nexus-agent.deb")
            .await;
        scene.enrol().await;
        scene.connected().await;
        scene
    }

    pub(super) async fn enrol(&self) -> String {
        let token = self.fleet.token(&[]).await.unwrap();
        self.machine
            .ok(&format!("nexus-agent enroll {token}"))
            .await
    }

    /// Pulls the cable, or plugs it in again.
    pub(super) fn pull_cable(&self, pull: bool) {
        let state = if pull { "down" } else { "up" };
        let line = format!("ip link set cable {state}");
        self.cable.run(&self.cable.here, &line);
    }

    /// Waits until the node is connected.
    pub(super) async fn connected(&self) -> Value {
        self.fleet.connected(NAME).await.unwrap()
    }

    /// The one run of a job on all nodes.
    pub(super) async fn run(&self, command: &[&str]) -> Value {
        let (said, document) = self.fleet.job(&["--all"], command).await.unwrap();
        let run = document["runs"][0].clone();
        assert!(run.is_object(), "{said:?}");
        run
    }

    /// A job that runs by now.
    pub(super) async fn start(&self, script: &str) -> Process {
        let log = self.fleet.dir().join("job.log");
        let args = ["run", "--yes", "--all", "--", "/bin/sh", "-c", script];
        let job = self.fleet.ctl.start(&args, &log).await.unwrap();
        let running = "SELECT node FROM runs WHERE state = 'running'";
        let begun = self.fleet.eventually(running, |rows| !rows.is_empty());
        begun.await.unwrap();
        job
    }
}
