mod delegated;

use crate::{
    admit::tests::Scene,
    exec::leftover,
    spool::{LaneConfig, SpoolConfig},
};

use nexus_pki::{
    policy::SignerPolicy,
    signing::{Signer, SigningKey},
};
use nexus_proto::{
    job::Job,
    metrics::{Decoder, Encoder},
    record::{Finished, Output, OutputStream, Record},
};

use super::*;

struct Node {
    dir: tempfile::TempDir,
    scene: Scene,
    clock: Clock,
}

struct Agent {
    runs: Runs,
    trust: Arc<Trust>,
    troubles: Arc<Troubles>,
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
        self.agent_that_trusts(self.trust())
    }

    fn trust(&self) -> Trust {
        Trust::new(
            self.scene.policy.clone(),
            Some(self.scene.freshness.clone()),
        )
    }

    fn agent_that_trusts(&self, trust: Trust) -> Agent {
        self.agent_of(trust, Arc::new(crate::exec::Starter::default()))
    }

    fn agent_that_runs(&self, executor: impl Executor + 'static) -> Agent {
        self.agent_of(self.trust(), Arc::new(executor))
    }

    fn agent_of(&self, trust: Trust, executor: Arc<dyn Executor>) -> Agent {
        let (trust, troubles) = (Arc::new(trust), Arc::new(Troubles::default()));
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
        let around = Surroundings {
            own: self.scene.own.clone(),
            trust: Arc::clone(&trust),
            spool: Arc::clone(&spool),
            executor,
            scripts,
            policy: self.dir.path().join("policy.toml"),
            clock: self.clock.clone(),
            tasks: tasks.clone(),
            troubles: Arc::clone(&troubles),
            capacity: 2,
            output_limit_bytes: 1 << 20,
            stop_grace: Duration::from_millis(200),
        };
        let ledger = Ledger::open(&self.dir.path().join("ledger"), false, now).unwrap();
        Agent {
            runs: Runs::resume(ledger, around),
            trust,
            troubles,
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
        until(|| self.reports(key).pop()).await
    }

    fn events(&self, kind: &str) -> usize {
        let said = |r: &Record| matches!(&r.body, Body::Event(e) if e.kind == kind);
        self.records().iter().filter(|record| said(record)).count()
    }

    /// The process of a run that has begun.
    async fn started(&self, job: &Job) -> u32 {
        let key = RunKey::once(job.id);
        let pid = |record: &Record| match &record.body {
            Body::Started(started) if started.run == key => Some(started.pid),
            _ => None,
        };
        until(|| self.records().iter().find_map(pid)).await
    }
}

async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn runs_once_and_reports_in_order() {
    let node = Node::new();
    let agent = node.agent();
    let marker = node.dir.path().join("marker");
    let job = node.sh(&format!("echo ran >> {}; echo hello", marker.display()));
    let key = RunKey::once(job.id);
    agent.runs.offer(&node.scene.dispatch(&job));
    agent.runs.offer(&node.scene.dispatch(&job));
    let report = agent.report(&key).await;
    assert_eq!(
        (report.outcome, report.exit_code),
        (RunOutcome::Exited, Some(0))
    );
    agent.runs.offer(&node.scene.dispatch(&job));
    assert_eq!(agent.reports(&key).len(), 1);
    assert_eq!(agent.events("job_refused"), 0, "it was taken");
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
    agent.runs.offer(&forged);
    let key = RunKey::once(job.id);
    assert_eq!(agent.report(&key).await.outcome, RunOutcome::Rejected);
    assert_eq!(agent.events("job_refused"), 1);
    // The forgery does not stand in the way of the real one.
    agent.runs.offer(&node.scene.dispatch(&job));
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
    let more = [node.sh("sleep 600"), node.sh("true")];
    for job in jobs.iter().chain(&more) {
        agent.runs.offer(&node.scene.dispatch(job));
    }
    assert_eq!(agent.runs.credit(), 0);
    let refused = agent.report(&RunKey::once(more[1].id)).await;
    assert_eq!(refused.outcome, RunOutcome::Rejected);
    agent.started(&jobs[0]).await;
    agent.started(&jobs[1]).await;
    agent.runs.cancel(more[0].id, "not even begun");
    let report = agent.report(&RunKey::once(more[0].id)).await;
    assert_eq!(
        (report.outcome, report.reason.as_str()),
        (RunOutcome::Cancelled, "not even begun")
    );
    let held = RunKey::once(jobs[2].id);
    assert_eq!(agent.reports(&held), [], "there is no place for it");
    agent.runs.cancel(jobs[0].id, "no longer needed");
    let report = agent.report(&RunKey::once(jobs[0].id)).await;
    assert_eq!(
        (report.outcome, report.reason.as_str()),
        (RunOutcome::Cancelled, "no longer needed")
    );
    assert_eq!(agent.report(&held).await.outcome, RunOutcome::Exited);
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
    let mut ledger = Ledger::open(&node.dir.path().join("ledger"), false, Timestamp(0)).unwrap();
    for job in [&begun, &taken, &over] {
        let dispatch = node.scene.dispatch(job).encode_to_vec();
        ledger
            .receive(RunKey::once(job.id), job.expires, dispatch.into())
            .unwrap();
    }
    let now = node.clock.now();
    ledger
        .start(RunKey::once(begun.id), now, node.scene.own.node)
        .unwrap();
    ledger
        .start(RunKey::once(over.id), now, node.scene.own.node)
        .unwrap();
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
        agent.runs.offer(&node.scene.dispatch(job));
        assert_eq!(agent.reports(&RunKey::once(job.id)).len(), 1);
    }
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), "taken\n");
}

#[tokio::test]
async fn a_refused_job_stays_refused() {
    let node = Node::new();
    let agent = node.agent_that_trusts(Trust::new(node.scene.policy.clone(), None));
    let marker = node.dir.path().join("marker");
    let job = node.sh(&format!("touch {}", marker.display()));
    let key = RunKey::once(job.id);
    agent.runs.offer(&node.scene.dispatch(&job));
    assert_eq!(agent.report(&key).await.outcome, RunOutcome::Rejected);
    std::fs::create_dir(node.dir.path().join("identity")).unwrap();
    let update = wire::TrustUpdate {
        policy: None,
        freshness: Some(node.scene.freshness.clone()),
    };
    agent.trust.update(node.dir.path(), update).unwrap();
    // The connection broke before the report was acked, and the collector offers it once more.
    agent.runs.offer(&node.scene.dispatch(&job));
    let good = node.sh("true");
    agent.runs.offer(&node.scene.dispatch(&good));
    let report = agent.report(&RunKey::once(good.id)).await;
    assert_eq!(report.outcome, RunOutcome::Exited);
    agent.tasks.shutdown(Duration::from_secs(5)).await;
    assert_eq!(agent.reports(&key).len(), 1);
    assert!(!marker.exists());
}

#[tokio::test]
async fn what_is_held_is_judged_again_when_it_begins() {
    let node = Node::new();
    let agent = node.agent();
    let busy = [node.sh("sleep 600"), node.sh("sleep 600")];
    let held = node.sh("true");
    for job in busy.iter().chain([&held]) {
        agent.runs.offer(&node.scene.dispatch(job));
    }
    agent.started(&busy[0]).await;
    let policy = SignerPolicy {
        version: 2,
        trust_domain: "fleet.test".to_owned(),
        threshold: 1,
        signers: vec![Signer {
            name: "bob".to_owned(),
            public_key: SigningKey::generate().unwrap().public_key(),
        }],
        created: node.clock.now(),
    };
    std::fs::create_dir(node.dir.path().join("identity")).unwrap();
    let update = wire::TrustUpdate {
        policy: Some(policy.sign(&node.scene.key).unwrap()),
        // Of the policy before, and so of none.
        freshness: Some(node.scene.freshness.clone()),
    };
    agent.trust.update(node.dir.path(), update).unwrap_err();
    assert_eq!(agent.trust.state(), (2, Timestamp(0)), "the policy stands");
    agent.runs.cancel(busy[0].id, "");
    let report = agent.report(&RunKey::once(held.id)).await;
    assert_eq!(report.outcome, RunOutcome::Rejected);
    assert!(report.reason.contains("signature"), "{}", report.reason);
    agent.runs.stop().await;
}

#[tokio::test]
async fn a_stop_takes_no_more_and_leaves_what_has_not_begun() {
    let node = Node::new();
    let marker = node.dir.path().join("marker");
    let echo = |text: &str| node.sh(&format!("echo {text} >> {}", marker.display()));
    let busy = [node.sh("sleep 600"), node.sh("sleep 600")];
    let (held, early, late) = (echo("held"), echo("early"), echo("late"));
    let early = Job {
        not_before: early.created.after(Duration::from_secs(30)),
        ..early
    };
    let agent = node.agent();
    for job in busy.iter().chain([&held, &early]) {
        agent.runs.offer(&node.scene.dispatch(job));
    }
    agent.started(&busy[1]).await;
    agent.runs.stop().await;
    agent.runs.offer(&node.scene.dispatch(&late));
    assert_eq!(agent.runs.credit(), 0);
    for job in &busy {
        let report = agent.report(&RunKey::once(job.id)).await;
        assert_eq!(report.outcome, RunOutcome::Cancelled);
    }
    agent.tasks.shutdown(Duration::from_secs(5)).await;
    for job in [&held, &early, &late] {
        assert_eq!(agent.reports(&RunKey::once(job.id)), []);
    }
    drop(agent);
    let agent = node.agent();
    let report = agent.report(&RunKey::once(held.id)).await;
    assert_eq!(report.outcome, RunOutcome::Exited);
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), "held\n");
    assert_eq!(agent.runs.credit(), 1, "one is held for its time");
    agent.runs.stop().await;
}

#[tokio::test]
async fn a_job_the_disk_does_not_take_waits_for_it() {
    let node = Node::new();
    let agent = node.agent();
    agent.runs.0.ledger().on_disk(false);
    let job = node.sh("true");
    agent.runs.offer(&node.scene.dispatch(&job));
    assert_eq!(agent.runs.credit(), 1, "it has its place");
    assert!(
        agent.troubles.text().contains("jobs"),
        "{}",
        agent.troubles.text()
    );
    agent.runs.0.ledger().on_disk(true);
    let report = agent.report(&RunKey::once(job.id)).await;
    assert_eq!(report.outcome, RunOutcome::Exited);
    assert_eq!(agent.troubles.text(), "");
}

#[tokio::test]
async fn room_for_results_is_room_for_jobs() {
    let node = Node::new();
    let agent = node.agent();
    let data = Bytes::from(vec![0; 60_000]);
    let mut last = 0;
    while agent.spool.takes_jobs() {
        let output = Output {
            run: RunKey::once(JobId::random()),
            stream: OutputStream::Stdout,
            offset: 0,
            data: data.clone(),
        };
        last = agent
            .spool
            .append(Timestamp(0), Body::Output(output))
            .unwrap();
    }
    assert_eq!(agent.runs.credit(), 0);
    agent.spool.ack(Lane::Results, last).unwrap();
    agent.runs.acked(last);
    let told = tokio::time::timeout(Duration::from_secs(20), agent.runs.ended());
    told.await.unwrap();
    assert_eq!(agent.runs.credit(), 2);
}

/// Somebody else takes the exit status; what the program left behind is killed all the same.
#[tokio::test]
async fn an_end_nobody_saw_is_unknown_and_leaves_nothing() {
    let node = Node::new();
    let agent = node.agent();
    let job = node.sh("setsid sleep 600 & sleep 0.2");
    agent.runs.offer(&node.scene.dispatch(&job));
    let pid = agent.started(&job).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
    let options = rustix::process::WaitOptions::NOHANG;
    until(|| rustix::process::waitpid(pid, options).unwrap()).await;
    let report = agent.report(&RunKey::once(job.id)).await;
    assert_eq!(report.outcome, RunOutcome::Unknown);
    let mark = leftover::mark(node.scene.own.node, &RunKey::once(job.id));
    assert_eq!(leftover::kill(&mark, None).await.unwrap(), 0);
}

#[tokio::test]
async fn a_job_refused_at_a_restart_is_remembered_as_long_as_it_lives() {
    let node = Node::new();
    let job = node.sh("true");
    let key = RunKey::once(job.id);
    let dir = node.dir.path().join("ledger");
    let mut ledger = Ledger::open(&dir, false, Timestamp(0)).unwrap();
    let dispatch = node.scene.dispatch(&job).encode_to_vec();
    ledger.receive(key, job.expires, dispatch.into()).unwrap();
    drop(ledger);
    let other = Scene::new(node.clock.now());
    let agent = node.agent_that_trusts(Trust::new(other.policy.clone(), Some(other.freshness)));
    assert_eq!(agent.report(&key).await.outcome, RunOutcome::Rejected);
    let expires = agent.runs.0.ledger().get(&key).map(|run| run.expires);
    assert_eq!(expires, Some(job.expires));
}
