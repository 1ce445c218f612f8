use crate::{
    admit::tests::Scene,
    spool::{LaneConfig, SpoolConfig},
};

use super::*;

struct Node {
    dir: tempfile::TempDir,
    scene: Scene,
    clock: Clock,
}

struct Agent {
    runs: Runs,
    spool: Arc<Spool>,
    tasks: Tasks,
}

impl Node {
    fn new() -> Self {
        let clock = Clock::system();
        let scene = Scene::new(clock.now().before(Duration::from_secs(5)));
        Self {
            dir: tempfile::tempdir().unwrap(),
            scene,
            clock,
        }
    }

    fn agent(&self) -> Agent {
        let lane = LaneConfig {
            bytes: 1 << 20,
            segment_bytes: 1 << 16,
            age: Duration::from_secs(86_400),
        };
        let config = SpoolConfig {
            results: lane,
            inventory: lane,
            metrics: lane,
        };
        let now = self.clock.now();
        let (spool, _) = Spool::open(&self.dir.path().join("spool"), &config, 0, now).unwrap();
        let spool = Arc::new(spool);
        let scripts = self.dir.path().join("scripts");
        crate::exec::clean_scripts(&scripts).unwrap();
        let tasks = Tasks::new();
        let trust = Trust::new(
            self.scene.policy.clone(),
            Some(self.scene.freshness.clone()),
        );
        let around = Surroundings {
            own: self.scene.own.clone(),
            trust: Arc::new(trust),
            spool: Arc::clone(&spool),
            scripts,
            clock: self.clock.clone(),
            tasks: tasks.clone(),
            capacity: 2,
            output_limit_bytes: 1 << 20,
            stop_grace: Duration::from_millis(200),
        };
        let ledger = Ledger::open(&self.dir.path().join("ledger")).unwrap();
        Agent {
            runs: Runs::resume(ledger, around),
            spool,
            tasks,
        }
    }

    fn sh(&self, text: &str) -> Job {
        self.scene.job(self.clock.now(), &["/bin/sh", "-c", text])
    }
}

impl Agent {
    fn records(&self) -> Vec<Record> {
        let mut upload = self.spool.upload(Lane::Results, 0);
        let batch = upload
            .next_batch(&self.spool, usize::MAX, Timestamp(0))
            .unwrap();
        batch
            .into_iter()
            .map(|(_, bytes)| Record::decode(bytes, &mut Decoder::new()).unwrap())
            .collect()
    }

    fn reports(&self, key: &RunKey) -> Vec<Finished> {
        let report = |record: Record| match record.body {
            Body::Finished(finished) if finished.run == *key => Some(finished),
            _ => None,
        };
        self.records().into_iter().filter_map(report).collect()
    }

    async fn report(&self, key: &RunKey) -> Finished {
        tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                if let Some(report) = self.reports(key).pop() {
                    return report;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn runs_once_and_reports_in_order() {
    let node = Node::new();
    let agent = node.agent();
    let marker = node.dir.path().join("marker");
    let job = node.sh(&format!("echo ran >> {}; echo hello", marker.display()));
    let key = RunKey::once(job.id);
    agent.runs.offer(node.scene.dispatch(&job));
    agent.runs.offer(node.scene.dispatch(&job));
    let report = agent.report(&key).await;
    assert_eq!(
        (report.outcome, report.exit_code),
        (RunOutcome::Exited, Some(0))
    );
    agent.runs.offer(node.scene.dispatch(&job));
    assert_eq!(agent.reports(&key).len(), 1);
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), "ran\n");
    let kinds: Vec<_> = agent
        .records()
        .iter()
        .filter_map(|record| match &record.body {
            Body::Started(_) => Some("started"),
            Body::Output(_) => Some("output"),
            Body::Finished(_) => Some("finished"),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, ["started", "output", "finished"]);
}

#[tokio::test]
async fn refusals_are_reported_and_said() {
    let node = Node::new();
    let agent = node.agent();
    let job = node.sh("true");
    let stranger = Scene::new(node.clock.now());
    let forged = stranger.dispatch(&job);
    agent.runs.offer(forged);
    let key = RunKey::once(job.id);
    assert_eq!(agent.report(&key).await.outcome, RunOutcome::Rejected);
    let said = |r: &Record| matches!(&r.body, Body::Event(e) if e.kind == "job_refused");
    assert!(agent.records().iter().any(said));
    // The forgery does not stand in the way of the real one.
    agent.runs.offer(node.scene.dispatch(&job));
    let exited = async {
        while agent.reports(&key).len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), exited)
        .await
        .unwrap();
    assert_eq!(agent.reports(&key)[1].outcome, RunOutcome::Exited);
}

#[tokio::test]
async fn cancels_and_keeps_its_bound() {
    let node = Node::new();
    let agent = node.agent();
    let jobs = [node.sh("sleep 600"), node.sh("sleep 600"), node.sh("true")];
    for job in &jobs {
        agent.runs.offer(node.scene.dispatch(job));
    }
    assert_eq!(agent.runs.credit(), 0);
    let refused = agent.report(&RunKey::once(jobs[2].id)).await;
    assert_eq!(refused.outcome, RunOutcome::Rejected);
    agent.runs.cancel(jobs[0].id, "no longer needed");
    let report = agent.report(&RunKey::once(jobs[0].id)).await;
    assert_eq!(
        (report.outcome, report.reason.as_str()),
        (RunOutcome::Cancelled, "no longer needed")
    );
    agent.runs.stop().await;
    let report = agent.report(&RunKey::once(jobs[1].id)).await;
    assert_eq!(
        (report.outcome, report.reason.as_str()),
        (RunOutcome::Cancelled, STOPPED)
    );
}

/// A crash at every stage: what had begun is unknown, what had not runs, what had ended stays ended.
#[tokio::test]
async fn a_crash_never_runs_anything_twice() {
    let node = Node::new();
    let marker = node.dir.path().join("marker");
    let job = |name: &str| node.sh(&format!("echo {name} >> {}", marker.display()));
    let (begun, taken, over) = (job("begun"), job("taken"), job("over"));
    let mut ledger = Ledger::open(&node.dir.path().join("ledger")).unwrap();
    for job in [&begun, &taken, &over] {
        let dispatch = node.scene.dispatch(job).encode_to_vec();
        ledger
            .receive(RunKey::once(job.id), job.expires, dispatch.into())
            .unwrap();
    }
    let now = node.clock.now();
    ledger.start(RunKey::once(begun.id), now).unwrap();
    ledger.start(RunKey::once(over.id), now).unwrap();
    let key = RunKey::once(over.id);
    let mut report = ended(key, RunOutcome::Exited, String::new(), now, now);
    report.exit_code = Some(4);
    let record = Record {
        seq: 0,
        time: now,
        body: Body::Finished(report),
    };
    ledger
        .finish(key, over.expires, record.encode(&mut Encoder::new()))
        .unwrap();
    drop(ledger);

    let agent = node.agent();
    assert_eq!(
        agent.report(&RunKey::once(begun.id)).await.outcome,
        RunOutcome::Unknown
    );
    assert_eq!(
        agent.report(&RunKey::once(taken.id)).await.outcome,
        RunOutcome::Exited
    );
    assert_eq!(agent.report(&key).await.exit_code, Some(4));
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), "taken\n");
    assert!(
        agent
            .tasks
            .shutdown(Duration::from_secs(5))
            .await
            .is_empty()
    );

    drop(agent);
    let agent = node.agent();
    for job in [&begun, &taken, &over] {
        agent.runs.offer(node.scene.dispatch(job));
        assert_eq!(agent.reports(&RunKey::once(job.id)).len(), 1);
    }
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), "taken\n");
}
