//! Agent's and helper's side together, in one process and without root's rights: what a run is to both of them. What only
//! root can try stands in the interop suite.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use nexus_proto::{
    agent::v1::TrustUpdate,
    ids::{JobId, NodeId, RunKey},
    job::Job,
    record::RunOutcome,
};
use prost::Message as _;

use super::*;
use crate::{
    admit::tests::Scene,
    exec::{
        Boxed, End, Ending, Executing, Executor as _, Order, Piece, Plan, StartError, Stop,
        leftover,
    },
    identity::Trust,
    ledger::Stage,
};

const ANYTHING: &str = "[[allow]]\nwho = \"ann\"\nrun = \"*\"\nas = \"*\"\n";

struct Host {
    dir: tempfile::TempDir,
    scene: Scene,
    clock: Clock,
    tasks: Tasks,
    works: Works,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let scene = Scene::new(clock.now().before(Duration::from_secs(5)));
        let tasks = Tasks::new();
        std::fs::write(dir.path().join("policy.toml"), ANYTHING).unwrap();
        let folder = pinned(dir.path(), "helper", &scene, &clock);
        let policy = dir.path().join("policy.toml");
        let host = Self {
            works: works(&folder, false, &policy, &clock, &tasks),
            dir,
            scene,
            clock,
            tasks,
        };
        let listener = UnixListener::bind(host.socket()).unwrap();
        let (works, own) = (host.works.clone(), rustix::process::geteuid().as_raw());
        let (tasks, clock) = (host.tasks.clone(), host.clock.clone());
        host.tasks.spawn("helper", async move {
            let connections = Arc::new(Semaphore::new(limits::HELPER_CONNECTIONS));
            receive(&listener, own, &works, &connections, &tasks, &clock).await;
        });
        host
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("helper.sock")
    }

    /// A folder of another helper for the same node.
    fn other(&self) -> PathBuf {
        pinned(self.dir.path(), "other", &self.scene, &self.clock)
    }

    /// A helper there; `used`: its ledger must be there too.
    fn works_in(&self, folder: &Path, used: bool) -> Works {
        let policy = self.dir.path().join("policy.toml");
        works(folder, used, &policy, &self.clock, &self.tasks)
    }

    fn agent(&self) -> Delegate {
        Delegate::new(Use::Auto, &self.socket(), &self.tasks)
    }

    fn sh(&self, text: &str) -> (Job, Order) {
        let job = Job {
            output_limit_bytes: 64 << 20,
            ..self.scene.job(self.clock.now(), &["/bin/sh", "-c", text])
        };
        let order = Order {
            run: RunKey::once(job.id),
            dispatch: self.scene.dispatch(&job).encode_to_vec().into(),
            trust: TrustUpdate::default(),
            judged: true,
        };
        (job, order)
    }

    /// Begins it for an agent; the plan is the agent's, and the helper makes its own.
    async fn start(&self, agent: &Delegate, text: &str) -> (RunKey, Box<dyn Executing>) {
        let (job, order) = self.sh(text);
        let begun = agent.start(order, plan(&job), never()).await;
        (
            RunKey::once(job.id),
            begun.unwrap_or_else(|e| panic!("{e}")),
        )
    }
}

fn pinned(dir: &Path, name: &str, scene: &Scene, clock: &Clock) -> PathBuf {
    let folder = dir.join(name);
    nexus_pki::files::create_folder(&folder).unwrap();
    let trust = Trust::new(scene.policy.clone(), Some(scene.freshness.clone()));
    let when = (clock.now(), None);
    pin::write(&folder, &scene.own, "fleet.test", &trust, when).unwrap();
    folder
}

fn works(folder: &Path, used: bool, policy: &Path, clock: &Clock, tasks: &Tasks) -> Works {
    let scripts = folder.join(SCRIPTS);
    exec::clean_scripts(&scripts).unwrap();
    Works::resume(
        Ledger::open(&folder.join(LEDGER), used, clock.now()).unwrap(),
        Around {
            pins: Pins::new(folder),
            policy: policy.to_owned(),
            policy_owner: rustix::process::geteuid().as_raw(),
            starter: Starter::default(),
            scripts,
            clock: clock.clone(),
            tasks: tasks.clone(),
            stop_grace: Duration::from_millis(200),
        },
    )
}

fn plan(job: &Job) -> Plan {
    Plan {
        action: job.action.clone(),
        mark: String::new(),
        job: String::new(),
        timeout: job.timeout,
        grace: job.kill_grace,
        output_limit_bytes: 0,
        scripts: PathBuf::new(),
        stop_grace: Duration::ZERO,
    }
}

fn never() -> Boxed<'static, Stop> {
    Box::pin(std::future::pending())
}

fn stop(hurried: bool) -> Boxed<'static, Stop> {
    Box::pin(std::future::ready(Stop {
        reason: "told to".to_owned(),
        hurried,
    }))
}

/// Takes so many pieces, and what they were.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<Piece>>>);

impl Taken {
    fn sink(&self, most: usize) -> Box<dyn exec::Sink> {
        let pieces = Arc::clone(&self.0);
        Box::new(move |piece: Piece| {
            let mut pieces = pieces.lock().unwrap();
            let room = pieces.len() < most;
            if room {
                pieces.push(piece);
            }
            room
        })
    }

    fn text(&self) -> String {
        let pieces = self.0.lock().unwrap();
        let all: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| piece.data.to_vec())
            .collect();
        String::from_utf8(all).unwrap()
    }
}

fn over(end: std::io::Result<End>) -> Ending {
    match end.unwrap() {
        End::Over(ending) => ending,
        End::GoesOn => panic!("it goes on"),
    }
}

async fn until(mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap();
}

#[tokio::test]
async fn a_run_is_the_helpers_until_the_agent_has_its_report() {
    let host = Host::new();
    let agent = host.agent();
    let (run, execution) = host.start(&agent, "echo out; exit 7").await;
    assert!(execution.identity().pid > 0);
    let taken = Taken::default();
    let ending = over(execution.finish(taken.sink(9), never()).await);
    assert_eq!((ending.exit_code, ending.produced), (Some(7), [4, 0]));
    assert!(ending.at.is_some());
    assert_eq!(taken.text(), "out\n");
    assert!(matches!(
        host.works.stage(&run),
        Some(Stage::Finished { .. })
    ));
    agent.reported(run);
    until(|| matches!(host.works.stage(&run), Some(Stage::Acked(_)))).await;
}

#[tokio::test]
async fn the_next_agent_gets_what_the_one_before_did_not_take() {
    let host = Host::new();
    let gone = host.dir.path().join("gone");
    let script = format!(
        "echo one; until [ -e {0} ]; do sleep 0.02; done; echo two; echo three >&2; exit 1",
        gone.display()
    );
    let before = host.agent();
    let (run, execution) = host.start(&before, &script).await;
    let end = execution.finish(Taken::default().sink(9), stop(true)).await;
    assert_eq!(end.unwrap(), End::GoesOn);
    std::fs::write(&gone, "").unwrap();
    // Whether it has ended by then or not.
    let after = host.agent();
    let execution = after.attach(run).await.unwrap();
    let taken = Taken::default();
    let ending = over(execution.finish(taken.sink(9), never()).await);
    assert_eq!((ending.exit_code, ending.dropped), (Some(1), [0, 0]));
    let text = taken.text();
    // Two streams come in any order.
    assert!(text.contains("two\n") && text.contains("three\n"), "{text}");
    // One that took all and did not live to say so.
    let execution = host.agent().attach(run).await.unwrap();
    let ending = over(execution.finish(Taken::default().sink(0), never()).await);
    assert_eq!(ending.exit_code, Some(1));
    assert!(
        host.agent()
            .attach(RunKey::once(host.sh("true").0.id))
            .await
            .is_none()
    );
}

#[tokio::test]
async fn a_run_is_stopped_for_its_agent() {
    let host = Host::new();
    let agent = host.agent();
    let (_, execution) = host
        .start(&agent, "trap 'echo term; exit 3' TERM; sleep 100 & wait")
        .await;
    let taken = Taken::default();
    let ending = over(execution.finish(taken.sink(9), stop(false)).await);
    assert_eq!(ending.outcome, RunOutcome::Cancelled);
    assert_eq!(ending.reason, "told to");
}

#[tokio::test]
async fn a_program_waits_while_its_output_is_not_taken() {
    let host = Host::new();
    let agent = host.agent();
    let (run, execution) = host.start(&agent, "head -c 3000000 /dev/zero").await;
    // Nobody takes anything.
    drop(execution);
    let execution = host.agent().attach(run).await.unwrap();
    let taken = Taken::default();
    let ending = over(execution.finish(taken.sink(usize::MAX), never()).await);
    assert_eq!((ending.produced, ending.dropped), ([3_000_000, 0], [0, 0]));
    assert_eq!(taken.text().len(), 3_000_000);
}

#[tokio::test]
async fn what_the_agent_has_no_room_for_is_counted_as_dropped() {
    let host = Host::new();
    let agent = host.agent();
    let (_, execution) = host.start(&agent, "head -c 2000000 /dev/zero").await;
    let taken = Taken::default();
    let ending = over(execution.finish(taken.sink(3), never()).await);
    let kept = u64::try_from(taken.text().len()).unwrap();
    assert_eq!(ending.exit_code, Some(0));
    assert_eq!(
        (ending.produced, ending.dropped),
        ([2_000_000, 0], [2_000_000 - kept, 0])
    );
}

#[tokio::test]
async fn a_refusal_says_why_and_a_start_that_fails_too() {
    let host = Host::new();
    let agent = host.agent();
    let refused = async |order: Order, job: &Job| match agent.start(order, plan(job), never()).await
    {
        Err(error) => error,
        Ok(_) => panic!("it runs"),
    };
    let (job, order) = host.sh("true");
    let rubbish = Order {
        dispatch: Bytes::from_static(b"\xff"),
        ..order.clone()
    };
    let error = refused(rubbish, &job).await;
    assert!(matches!(error, StartError::Refused(_)), "{error}");
    std::fs::write(host.dir.path().join("policy.toml"), "deny = \"everything\"").unwrap();
    let error = refused(order.clone(), &job).await;
    assert!(error.to_string().contains("denies everything"), "{error}");
    std::fs::write(host.dir.path().join("policy.toml"), ANYTHING).unwrap();
    let nothing = host.scene.job(host.clock.now(), &["/no/such/program"]);
    let order = Order {
        run: RunKey::once(nothing.id),
        dispatch: host.scene.dispatch(&nothing).encode_to_vec().into(),
        ..order
    };
    match refused(order, &nothing).await {
        StartError::Over(ending) => assert_eq!(ending.outcome, RunOutcome::FailedToStart),
        other => panic!("{other}"),
    }
}

/// What was begun for a node that the pin names no more as well.
#[tokio::test]
async fn a_run_nobody_saw_the_end_of_is_unknown_and_nothing_of_it_lives() {
    let host = Host::new();
    let folder = host.other();
    let (run, former) = (RunKey::once(JobId::random()), NodeId::random());
    let mut left = std::process::Command::new("sleep")
        .arg("600")
        .env(exec::MARK, leftover::mark(former, &run))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let now = host.clock.now();
    let mut ledger = Ledger::open(&folder.join(LEDGER), false, now).unwrap();
    ledger.receive(run, now, Bytes::new()).unwrap();
    ledger.start(run, now, former).unwrap();
    drop(ledger);
    let works = host.works_in(&folder, true);
    let work = works.attach(run).await.unwrap();
    until(|| work.shelf.ended().is_some()).await;
    match work.shelf.next(&mut work.shelf.follow()) {
        shelf::Next::Over(finished) => assert_eq!(finished.outcome, RunOutcome::Unknown),
        other => panic!("{other:?}"),
    }
    let status = left.try_wait().unwrap();
    assert_eq!(status.and_then(|status| status.signal()), Some(9));
}

#[tokio::test]
async fn what_a_job_left_on_purpose_outlives_what_is_known_of_the_job() {
    let host = Host::new();
    let agent = host.agent();
    let script = "setsid sleep 600 <&- >&- 2>&- & echo $!";
    let (run, execution) = host.start(&agent, script).await;
    let taken = Taken::default();
    let ending = over(execution.finish(taken.sink(9), never()).await);
    assert_eq!(ending.exit_code, Some(0));
    agent.reported(run);
    until(|| matches!(host.works.stage(&run), Some(Stage::Acked(_)))).await;
    let later = host.clock.now().after(Duration::from_secs(7 * 24 * 3600));
    host.works.forget(later).unwrap();
    assert_eq!(host.works.stage(&run), None);
    let daemon = taken.text().trim().to_owned();
    assert!(is_alive(&daemon));
    assert!(host.works.attach(run).await.is_none());
    assert!(is_alive(&daemon), "whoever asks for it ends it");
    // Of a helper whose ledger was lost, nobody knows whether that run had ended.
    let doubtful = host.works_in(&host.other(), true);
    assert!(doubtful.attach(run).await.is_none());
    assert!(!is_alive(&daemon));
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
