use std::sync::{Arc, Mutex};

use nexus_proto::job::Context;

use super::*;
use crate::ledger::Process;

fn plan(dir: &tempfile::TempDir, action: Action) -> Plan {
    Plan {
        action,
        mark: format!("test/{}", nexus_proto::ids::JobId::random()),
        job: "a-job".to_owned(),
        timeout: Duration::from_secs(20),
        grace: Duration::from_millis(300),
        output_limit_bytes: 1 << 20,
        scripts: dir.path().to_owned(),
        stop_grace: Duration::from_millis(300),
    }
}

async fn started(plan: Plan) -> Result<Execution, StartError> {
    // Its threads outlive it, and so do the programs.
    Starter::default().start(plan).await
}

fn command(argv: &[&str]) -> Action {
    Action::Command {
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        context: Context::default(),
        stdin: Bytes::new(),
    }
}

fn sh(text: &str) -> Action {
    command(&["/bin/sh", "-c", text])
}

type Pieces = Arc<Mutex<Vec<Piece>>>;

async fn run(plan: Plan, cancel: Option<Duration>) -> (Ending, Pieces) {
    let pieces = Pieces::default();
    let sink = {
        let pieces = Arc::clone(&pieces);
        move |piece| {
            pieces.lock().unwrap().push(piece);
            true
        }
    };
    let execution = started(plan).await.unwrap();
    let cancelled = async move {
        match cancel {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
        Stop {
            reason: "told to".to_owned(),
            hurried: false,
        }
    };
    let ending = execution.finish(Box::new(sink), cancelled).await.unwrap();
    (ending, pieces)
}

fn text(pieces: &Pieces, stream: OutputStream) -> String {
    let mut all = Vec::new();
    for piece in pieces
        .lock()
        .unwrap()
        .iter()
        .filter(|piece| piece.stream == stream)
    {
        assert_eq!(piece.offset, all.len() as u64);
        assert!(piece.data.len() <= 64 * 1024);
        all.extend_from_slice(&piece.data);
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn brings_back_output_and_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (ending, pieces) = run(plan(&dir, sh("echo out; echo err >&2; exit 3")), None).await;
    assert_eq!(
        (ending.outcome, ending.exit_code),
        (RunOutcome::Exited, Some(3))
    );
    assert_eq!(text(&pieces, OutputStream::Stdout), "out\n");
    assert_eq!(text(&pieces, OutputStream::Stderr), "err\n");
    assert_eq!((ending.produced, ending.dropped), ([4, 4], [0, 0]));
}

#[tokio::test]
async fn feeds_stdin_and_sets_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let action = Action::Command {
        argv: vec![
            "/bin/sh".into(),
            "-c".into(),
            "cat; echo $A $NEXUS_JOB; pwd".into(),
        ],
        context: Context {
            env: vec![("A".into(), "b".into())],
            cwd: Some("/usr".into()),
            user: None,
        },
        stdin: vec![b'x'; 200_000].into(),
    };
    let (ending, pieces) = run(plan(&dir, action), None).await;
    assert_eq!(ending.exit_code, Some(0));
    let out = text(&pieces, OutputStream::Stdout);
    assert_eq!(out.trim_start_matches('x'), "b a-job\n/usr\n");
    assert_eq!(ending.produced[0], 200_000 + 13);
}

#[tokio::test]
async fn runs_scripts_and_removes_them() {
    let dir = tempfile::tempdir().unwrap();
    for content in ["#!/bin/sh\necho $1-$2", "echo $1-$2"] {
        let action = Action::Script {
            content: content.into(),
            args: vec!["a".into(), "b".into()],
            context: Context::default(),
        };
        let (ending, pieces) = run(plan(&dir, action), None).await;
        assert_eq!(ending.exit_code, Some(0));
        assert_eq!(text(&pieces, OutputStream::Stdout), "a-b\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn keeps_output_up_to_the_limit_and_counts_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(
        &dir,
        sh("head -c 300000 /dev/zero; head -c 5 /dev/zero >&2"),
    );
    plan.output_limit_bytes = 100_000;
    let (ending, pieces) = run(plan, None).await;
    let kept: usize = pieces
        .lock()
        .unwrap()
        .iter()
        .map(|piece| piece.data.len())
        .sum();
    assert_eq!(kept, 100_000);
    assert_eq!(ending.produced, [300_000, 5]);
    assert_eq!(ending.dropped.iter().sum::<u64>(), 200_005);
}

fn alive(mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let path = entry.path();
        let environ = std::fs::read(path.join("environ")).unwrap_or_default();
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes()) && !stat.contains(") Z ")
    })
}

#[tokio::test]
async fn times_out_with_term_then_kill_of_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let mut stubborn = plan(
        &dir,
        sh("trap 'echo termed' TERM; sleep 600 & while :; do sleep 600; done"),
    );
    stubborn.timeout = Duration::from_millis(200);
    let mark = stubborn.mark.clone();
    let (ending, pieces) = run(stubborn, None).await;
    assert_eq!(
        (ending.outcome, ending.signal),
        (RunOutcome::TimedOut, Some(9))
    );
    assert_eq!(text(&pieces, OutputStream::Stdout), "termed\n");
    assert!(!alive(&mark));
    let mut gentle = plan(&dir, sh("trap 'exit 7' TERM; while :; do sleep 0.05; done"));
    gentle.timeout = Duration::from_millis(200);
    gentle.grace = Duration::from_secs(20);
    let (ending, _) = run(gentle, None).await;
    assert_eq!(
        (ending.outcome, ending.exit_code),
        (RunOutcome::TimedOut, Some(7))
    );
}

#[tokio::test]
async fn cancels() {
    let dir = tempfile::tempdir().unwrap();
    let (ending, _) = run(
        plan(&dir, sh("sleep 600")),
        Some(Duration::from_millis(100)),
    )
    .await;
    assert_eq!(
        (ending.outcome, ending.reason.as_str()),
        (RunOutcome::Cancelled, "told to")
    );
}

#[tokio::test]
async fn strays_that_hold_the_output_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, sh("sleep 600 & echo done"));
    let mark = plan.mark.clone();
    let (ending, pieces) = run(plan, None).await;
    assert_eq!(
        (ending.outcome, ending.exit_code),
        (RunOutcome::Exited, Some(0))
    );
    assert_eq!(text(&pieces, OutputStream::Stdout), "done\n");
    while alive(&mark) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn says_what_could_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let error = started(plan(&dir, command(&["/no/such/program"])))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot run /no/such/program");
    let context = Context {
        user: Some("nobody-of-this-name".into()),
        ..Context::default()
    };
    let action = Action::Command {
        argv: vec!["true".into()],
        context,
        stdin: Bytes::new(),
    };
    assert!(matches!(
        started(plan(&dir, action)).await,
        Err(StartError::NoUser(_))
    ));
    let context = Context {
        cwd: Some("/no/such/folder".into()),
        ..Context::default()
    };
    let action = Action::Command {
        argv: vec!["true".into()],
        context,
        stdin: Bytes::new(),
    };
    assert!(matches!(
        started(plan(&dir, action)).await,
        Err(StartError::Folder { .. })
    ));
}

#[tokio::test]
async fn root_runs_scripts_as_others() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let context = Context {
        user: Some("nobody".into()),
        ..Context::default()
    };
    let content = "#!/bin/sh\nid -un; echo $1".into();
    let action = Action::Script {
        content,
        args: vec!["arg".into()],
        context,
    };
    let (ending, pieces) = run(plan(&dir, action), None).await;
    assert_eq!(text(&pieces, OutputStream::Stderr), "");
    assert_eq!(text(&pieces, OutputStream::Stdout), "nobody\narg\n");
    assert_eq!(ending.exit_code, Some(0));
}

/// The program loses its agent; what it started in the background, in its session or out of it, is found.
#[tokio::test]
async fn leftovers_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let script = "env -i sleep 600 & setsid sleep 600 & sleep 600";
    let plan = plan(&dir, sh(script));
    let mark = plan.mark.clone();
    let execution = started(plan).await.unwrap();
    let process = Process {
        pid: execution.identity().pid,
        start_ticks: execution.identity().start_ticks,
        boot_id: leftover::boot_id().unwrap(),
    };
    // Until all three stand.
    let session = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| {
            rest.split_whitespace().nth(3) == Some(&process.pid.to_string())
        }) && !stat.contains(") Z ")
    };
    let members = || {
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter(|pid| session(*pid))
            .count()
    };
    while members() < 3 || !alive(&mark) {
        tokio::task::yield_now().await;
    }
    let killed = leftover::kill(&mark, Some(&process)).await.unwrap();
    assert!(killed >= 3, "{killed}");
    assert!(!alive(&mark));
    assert_eq!(members(), 0);
    drop(execution);
}

/// The number of an earlier run's process is another's by now, which has children of its own.
#[tokio::test]
async fn strangers_are_let_live() {
    let dir = tempfile::tempdir().unwrap();
    let stranger = plan(&dir, sh("sleep 600 & echo $!; wait"));
    let mark = stranger.mark.clone();
    let execution = started(stranger).await.unwrap();
    let identity = execution.identity();
    let child = || {
        let path = format!("/proc/{0}/task/{0}/children", identity.pid);
        let children = std::fs::read_to_string(path).unwrap_or_default();
        children.trim().parse::<u32>().ok()
    };
    while child().is_none() {
        tokio::task::yield_now().await;
    }
    let process = Process {
        pid: identity.pid,
        start_ticks: identity.start_ticks - 1,
        boot_id: leftover::boot_id().unwrap(),
    };
    let killed = leftover::kill("another run", Some(&process)).await.unwrap();
    assert_eq!(killed, 0);
    assert!(child().is_some());
    leftover::kill(&mark, None).await.unwrap();
    drop(execution);
}

/// In a process of its own, since it is one that inherited SIGCHLD as ignored.
#[test]
fn ends_are_seen_when_children_are_ignored() {
    let name = "exec::tests::ends_are_seen_when_children_are_ignored";
    if std::env::var_os("NEXUS_TEST_CHILD").is_none() {
        let mut command = std::process::Command::new("env");
        command.arg("--ignore-signal=CHLD");
        command.arg(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture"]);
        let output = command.env("NEXUS_TEST_CHILD", "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        mind_children().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (ending, _) = run(plan(&dir, sh("exit 3")), None).await;
        assert_eq!(ending.exit_code, Some(3));
    });
}

/// In a process of its own, which has what the service's unit gives to it.
#[test]
fn files_of_jobs_are_for_others_to_read() {
    let name = "exec::tests::files_of_jobs_are_for_others_to_read";
    if std::env::var_os("NEXUS_TEST_CHILD").is_none() {
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "umask 077; exec \"$0\" \"$@\""]);
        command.arg(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture"]);
        let output = command.env("NEXUS_TEST_CHILD", "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (_, pieces) = run(plan(&dir, sh("umask")), None).await;
        assert_eq!(text(&pieces, OutputStream::Stdout), "0022\n");
    });
}

/// A start that hangs costs neither the agent's own time nor other starts, and what it starts in the end is killed.
#[tokio::test]
async fn a_start_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let starter = Starter::with_deadline(Duration::from_millis(300));
    let action = Action::Script {
        content: "sleep 600".into(),
        args: Vec::new(),
        context: Context::default(),
    };
    let hanging = || {
        let hanging = plan(&dir, action.clone());
        // Writing to a pipe nobody reads hangs as a dead mount does.
        let script = dir.path().join(hanging.mark.replace('/', "-"));
        let made = std::process::Command::new("mkfifo").arg(&script).status();
        assert!(made.unwrap().success());
        (hanging, script)
    };
    let (first, script) = hanging();
    let mark = first.mark.clone();
    let error = starter.start(first).await.unwrap_err();
    assert!(matches!(error, StartError::Hangs(_)), "{error}");
    let other = starter.start(plan(&dir, sh("exit 4"))).await.unwrap();
    let sink = |_| true;
    let ending = other
        .finish(Box::new(sink), std::future::pending())
        .await
        .unwrap();
    assert_eq!(ending.exit_code, Some(4));
    for _ in 1..4 {
        starter.start(hanging().0).await.unwrap_err();
    }
    // Nothing can begin now, and it is known that it did not.
    let error = starter.start(plan(&dir, sh("exit 5"))).await.unwrap_err();
    assert!(matches!(error, StartError::Thread(_)), "{error}");
    let mut pipe = std::fs::File::options().read(true).open(&script).unwrap();
    let mut written = String::new();
    std::io::Read::read_to_string(&mut pipe, &mut written).unwrap();
    assert_eq!(written, "sleep 600");
    // The shell reads its script from the pipe, which has a writer no more; the thread is free again.
    drop(pipe);
    while starter.places.available_permits() < 1 {
        tokio::task::yield_now().await;
    }
    while alive(&mark) {
        tokio::task::yield_now().await;
    }
}
