//! Making the process, and waiting for it without giving its number back.

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use nexus_pki::files;
use nexus_proto::job::{Action, Context};
use rustix::{
    fs::MemfdFlags,
    process::{Pid, PidfdFlags, Signal},
};
use tokio::{
    io::{AsyncWriteExt as _, Interest, unix::AsyncFd},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::sleep,
};

use super::{
    Ending, Identity, MARK, Plan,
    child::{self, Child as Becoming},
    leftover,
    users::{self, PASSWD, User},
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Passed on from the agent's own environment; everything else stays with the agent.
const INHERITED: [&str; 4] = ["PATH", "LANG", "TZ", "LC_ALL"];

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program itself.
    #[error("cannot run {program}")]
    Program {
        /// As the job names it.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The working folder.
    #[error("cannot work in {folder}")]
    Folder {
        /// As the job names it.
        folder: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The script could not be written.
    #[error("cannot write the script")]
    Script(#[source] io::Error),
    /// The user database.
    #[error("cannot look up users")]
    Users(#[source] io::Error),
    /// No such user.
    #[error("there is no user `{0}`")]
    NoUser(String),
    /// A folder, the program or its interpreter does not answer.
    #[error("the start hangs for {}s, perhaps on a mount whose server is gone", .0.as_secs())]
    Hangs(Duration),
    /// The agent's own threads.
    #[error("no thread to start it")]
    Thread(#[source] io::Error),
    /// The agent may not become somebody else.
    #[error("without its helper, or root's rights, an agent cannot run something as `{0}`")]
    NotRoot(String),
    /// It was cancelled before the helper was asked: nothing ran.
    #[error("{0}")]
    Cancelled(String),
    /// The helper says no: nothing ran.
    #[error("{0}")]
    Refused(String),
    /// The helper cannot: nothing ran.
    #[error("{0}")]
    Failed(String),
    /// There is no way to the helper: nothing ran.
    #[error("the helper cannot be reached")]
    NoHelper(#[source] io::Error),
    /// It is over already.
    #[error("{}", .0.reason)]
    Over(Box<Ending>),
    /// Nobody can tell any more what became of it; nothing of it is left.
    #[error("the helper lost it")]
    Lost,
    /// The agent stopped meanwhile; what became of it the next one asks for.
    #[error("the agent stopped")]
    Stopped,
}

pub(super) struct Running {
    child: Child,
    exit: Option<AsyncFd<OwnedFd>>,
    pid: Pid,
    pub(super) identity: Identity,
    stdin: Option<(ChildStdin, Bytes)>,
    _script: Option<ScriptFile>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// What is executed.
struct Program {
    path: PathBuf,
    args: Vec<String>,
    file: Option<ScriptFile>,
    /// A script in memory, for a user who cannot look into the state folder.
    memory: Option<OwnedFd>,
}

/// A script on disk, removed with this.
struct ScriptFile(PathBuf);

impl Drop for ScriptFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a script stays behind");
        }
    }
}

/// Removes scripts that an agent which did not end cleanly left behind.
pub fn clean_scripts(dir: &Path) -> Result<(), files::FileError> {
    files::create_folder(dir)?;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Err(error) = fs::remove_file(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "a script stays behind");
        }
    }
    Ok(())
}

/// Blocks for as long as the file systems do. Within the runtime's context. `network`: the namespace the program is to
/// run in, when it is not this process's.
pub(super) fn start(plan: &Plan, network: Option<&OwnedFd>) -> Result<Running, StartError> {
    let context = plan.action.context();
    let (user, other) = whose(context)?;
    let folder = context.cwd.as_deref().unwrap_or("/");
    let in_folder = |source| StartError::Folder {
        folder: folder.to_owned(),
        source,
    };
    if !fs::metadata(folder).map_err(in_folder)?.is_dir() {
        return Err(in_folder(io::ErrorKind::NotADirectory.into()));
    }
    let (program, input) = match &plan.action {
        Action::Command { argv, stdin, .. } => {
            let mut args = argv.clone();
            let path = if args.is_empty() {
                String::new()
            } else {
                args.remove(0)
            };
            (
                Program {
                    path: path.into(),
                    args,
                    file: None,
                    memory: None,
                },
                stdin.clone(),
            )
        }
        Action::Script { content, args, .. } => {
            let program = script(content, args, plan, other).map_err(StartError::Script)?;
            (program, Bytes::new())
        }
    };
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .env_clear()
        .envs(environment(plan, context, user.as_ref()))
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let becoming = Becoming {
        network,
        user: user.filter(|_| other).map(|user| (user.uid, user.gid)),
        folder: CString::new(folder).map_err(|error| in_folder(error.into()))?,
        keep_open: program.memory.as_ref(),
    };
    child::prepare(&mut command, becoming);
    let mut child = command.spawn().map_err(|source| StartError::Program {
        program: program.path.display().to_string(),
        source,
    })?;
    // A child that was not waited for has a number, and there is no other to fall back to.
    let number = child.id().unwrap_or(0);
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| StartError::Program {
        program: program.path.display().to_string(),
        source: io::ErrorKind::NotFound.into(),
    })?;
    expose(number);
    let stdin = child.stdin.take().map(|pipe| (pipe, input));
    Ok(Running {
        exit: watch_exit(pid),
        pid,
        // A process that has not been reaped has a stat file.
        identity: Identity {
            pid: number,
            start_ticks: leftover::start_ticks(number).unwrap_or(0),
        },
        child,
        stdin,
        _script: program.file,
    })
}

/// As whom, and whether that is somebody other than the agent.
fn whose(context: &Context) -> Result<(Option<User>, bool), StartError> {
    let passwd = Path::new(PASSWD);
    let own = rustix::process::geteuid();
    let Some(name) = &context.user else {
        let user = users::by_uid(passwd, own.as_raw()).unwrap_or(None);
        return Ok((user, false));
    };
    let user = users::by_name(passwd, name).map_err(StartError::Users)?;
    let user = user.ok_or_else(|| StartError::NoUser(name.clone()))?;
    let other = user.uid != own.as_raw();
    if other && !own.is_root() {
        return Err(StartError::NotRoot(name.clone()));
    }
    Ok((Some(user), other))
}

fn environment(plan: &Plan, context: &Context, user: Option<&User>) -> Vec<(String, String)> {
    let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    for name in INHERITED {
        if let Ok(value) = std::env::var(name) {
            env.push((name.to_owned(), value));
        }
    }
    if let Some(user) = user {
        env.push(("HOME".to_owned(), user.home.display().to_string()));
        env.push(("USER".to_owned(), user.name.clone()));
        env.push(("LOGNAME".to_owned(), user.name.clone()));
        env.push(("SHELL".to_owned(), user.shell.clone()));
    }
    env.extend(context.env.iter().cloned());
    // Last, so that a job cannot take its own run's name away.
    env.push(("NEXUS_JOB".to_owned(), plan.job.clone()));
    env.push((MARK.to_owned(), plan.mark.clone()));
    env
}

fn script(content: &[u8], args: &[String], plan: &Plan, other: bool) -> io::Result<Program> {
    let (path, file, memory) = if other {
        let memory = rustix::fs::memfd_create("nexus-script", MemfdFlags::CLOEXEC)?;
        let mut writer = fs::File::from(memory.try_clone()?);
        writer.write_all(content)?;
        (
            PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd())),
            None,
            Some(memory),
        )
    } else {
        let path = plan.scripts.join(plan.mark.replace('/', "-"));
        let mut options = OpenOptions::new();
        let mut writer = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o700)
            .open(&path)?;
        let file = ScriptFile(path.clone());
        writer.write_all(content)?;
        (path, Some(file), None)
    };
    if content.starts_with(b"#!") {
        return Ok(Program {
            path,
            args: args.to_vec(),
            file,
            memory,
        });
    }
    // As a shell does with a file that names no interpreter.
    let mut all = vec![path.display().to_string()];
    all.extend_from_slice(args);
    Ok(Program {
        path: "/bin/sh".into(),
        args: all,
        file,
        memory,
    })
}

/// The kernel spares the agent when memory is short, not what it runs.
fn expose(pid: u32) {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    if own.trim().parse::<i32>().is_ok_and(|score| score < 0)
        && let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), "0")
    {
        tracing::debug!(pid, %error, "a program keeps the agent's protection");
    }
}

#[expect(
    unsafe_code,
    reason = "the runtime cannot know that a descriptor stays open"
)]
fn watch_exit(pid: Pid) -> Option<AsyncFd<OwnedFd>> {
    let watched = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)
        .map_err(io::Error::from)
        .and_then(|fd| {
            // SAFETY: the OwnedFd owns the descriptor and moves into the AsyncFd, which gives no way to
            // close or replace it and deregisters it before dropping it.
            let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
            watched.map_err(io::Error::other)
        });
    watched
        .inspect_err(|error| tracing::debug!(%error, "no pidfd"))
        .ok()
}

impl Running {
    pub(super) fn take_output(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// Writes what the program is to read.
    pub(super) fn feed(&mut self) -> impl Future<Output = ()> + use<> {
        let stdin = self.stdin.take();
        async move {
            if let Some((mut pipe, input)) = stdin {
                // A program need not read it.
                pipe.write_all(&input).await.ok();
            }
        }
    }

    /// Resolves once the program has ended. It stays a zombie. Cancel-safe.
    pub(super) async fn exited(&self) {
        if let Some(exit) = &self.exit
            && exit.readable().await.is_ok()
        {
            return;
        }
        while !leftover::is_zombie(self.identity.pid) {
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// To the whole group. Before [`Running::reap`] the number is the group's for certain.
    pub(super) fn signal_group(&self, signal: Signal) {
        match rustix::process::kill_process_group(self.pid, signal) {
            // Nobody is left, or only the zombie.
            Ok(()) | Err(rustix::io::Errno::SRCH | rustix::io::Errno::PERM) => {}
            Err(error) => tracing::warn!(pid = self.identity.pid, %error, "cannot signal a group"),
        }
    }

    /// Exit code or signal.
    pub(super) async fn reap(mut self) -> io::Result<(Option<i32>, Option<i32>)> {
        let status = self.child.wait().await?;
        Ok((status.code(), status.signal()))
    }
}
