//! `nexus-agent helper`: the process that runs jobs as root, so that the one with the network need not be root.
//!
//! ```text
//! agent (its own user, network)  ── raw dispatch ──▶  helper (root, no network)  ── fork, exec ──▶  program
//!                                ◀── output, end ──
//! ```
//! The helper takes nothing from the agent on trust. It verifies the operator's signature and this node's place among
//! the job's targets itself (`admit`), by a pin that only root writes (`pin`); it asks the machine's own policy
//! (`local_policy`); and it keeps a ledger of its own, so that nothing runs twice (`works`). An agent that was taken
//! over can withhold a job, stop one that runs, or lie about what came of it; it cannot make one.
//!
//! It has no network: before anything else it leaves the namespace it was started in for an empty one (`namespace`), and
//! its programs get back into the one that was left. It listens on a UNIX socket (`socket`) and serves one user: the
//! agent's, by SO_PEERCRED. Root is no exception: who is root needs no helper, and what a root process sends by mistake
//! must not count as the agent's.
//!
//! A run does not end with the connection it was asked for on: its output is held (`shelf`) and its end kept until an
//! agent asks for them (`serve`), so that an agent may be restarted or replaced while its jobs run. `client` is the
//! agent's side.

mod client;
mod frame;
pub mod inside;
mod namespace;
pub(crate) mod pin;
mod serve;
mod shelf;
mod socket;
mod works;

use std::{
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nexus_proto::limits;
use nexus_runtime::{
    clock::Clock,
    errors::chain,
    fault::{Doing as _, Fault, Outcome},
    reload::Hangups,
    service,
    shutdown::Signals,
    tasks::Tasks,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{MissedTickBehavior, interval, timeout},
};

pub(crate) use self::client::greet;
pub use self::client::{Delegate, Use};
use self::{
    pin::Pins,
    socket::Door,
    works::{Around, Works},
};
use crate::{
    config::Config,
    exec::{
        self, Starter,
        users::{self, PASSWD, User},
    },
    identity::{self, IdentityError},
    ledger::Ledger,
    local_policy, memory,
    ration::Ration,
};

/// The helper's programs and its policy are root's.
const ROOT: u32 = 0;
const LEDGER: &str = "ledger";
const SCRIPTS: &str = "scripts";
/// How often it is seen whether anybody needs the helper.
const LOOK: Duration = Duration::from_secs(5);
/// Of those looks, the share after which memory is given back.
const TIDY: u32 = 4;
/// How long agents may take for what is left to tell once the helper stops.
const FLUSH: Duration = Duration::from_secs(2);

/// What agent and helper must agree on, and what the helper stands on. By default there is none.
#[derive(Debug, Clone, Default)]
pub struct HelperConfig {
    /// Whether jobs go to the helper.
    pub used: Use,
    /// Where it listens.
    pub socket: PathBuf,
    /// The user it serves.
    pub user: String,
    /// What it keeps.
    pub state_dir: PathBuf,
    /// The machine's own policy.
    pub policy: PathBuf,
}

/// Runs until told to stop, or until nobody has needed it for a while. `file`: where its settings were read from.
pub fn run(config: &Config, file: &Path, clock: Clock) -> Outcome {
    let what = "helper";
    if !rustix::process::geteuid().is_root() {
        let why = "it runs jobs as root and as others, and was not started as root";
        return Err(Fault::new(what, why).hint(
            "without a helper the agent runs jobs as its own user; set helper.use to `never`",
        ));
    }
    let network = namespace::leave().map_err(|error| {
        Fault::because(what, &error).hint(
            "the helper needs CAP_SYS_ADMIN and the system call unshare(2), and does not start with a network",
        )
    })?;
    check_settings(file)?;
    check_folder(&config.helper.state_dir)?;
    let user = account(config)?;
    let door = socket::open(&config.helper.socket, user.gid).doing(what)?;
    memory::keep_the_heap_small();
    let runtime = crate::agent::runtime()?;
    let result = runtime.block_on(serve(config, &user, network, door, clock));
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// The user the helper serves.
fn account(config: &Config) -> Outcome<User> {
    let (what, name) = ("helper.user", config.helper.user.as_str());
    let user = users::by_name(Path::new(PASSWD), name).doing(what)?;
    let user = user.ok_or_else(|| {
        Fault::new(what, format!("there is no user `{name}`"))
            .hint("make it, or name the one that nexus-agent runs as")
    })?;
    if user.uid == ROOT {
        let why = format!("`{name}` is root, and an agent that runs as root needs no helper");
        return Err(Fault::new(what, why));
    }
    Ok(user)
}

/// What decides whom the helper serves is root's own: the file, its drop-ins, and the folders they are in.
fn check_settings(file: &Path) -> Outcome {
    let drop_ins = file.with_added_extension("d");
    let mut places = vec![file.to_owned()];
    places.extend(file.parent().map(Path::to_owned));
    for entry in std::fs::read_dir(&drop_ins).into_iter().flatten().flatten() {
        places.push(entry.path());
    }
    places.push(drop_ins);
    check_roots(places)
}

/// So is what says whom the helper believes, and what has run.
pub(crate) fn check_folder(folder: &Path) -> Outcome {
    let mut places: Vec<_> = ["identity", LEDGER, SCRIPTS]
        .map(|name| folder.join(name))
        .into();
    places.push(folder.to_owned());
    places.extend(folder.parent().map(Path::to_owned));
    check_roots(places)
}

fn check_roots(places: Vec<PathBuf>) -> Outcome {
    for place in places {
        let metadata = match std::fs::metadata(&place) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(Fault::because(place.display().to_string(), &error));
            }
        };
        if metadata.uid() != ROOT || metadata.mode() & 0o022 != 0 {
            let why = format!("{} can be written by others than root", place.display());
            let hint = "chown root and chmod go-w, once you know what it says";
            return Err(Fault::new("helper", why).hint(hint));
        }
    }
    Ok(())
}

/// Makes the ledger that goes with a new pin: one that is gone later on was lost.
pub(crate) fn begin_ledger(folder: &Path, clock: &Clock) -> Outcome {
    let place = folder.join(LEDGER);
    if !place.exists() {
        Ledger::open(&place, false, clock.now()).doing("make the helper's ledger")?;
    }
    Ok(())
}

async fn serve(
    config: &Config,
    user: &User,
    network: OwnedFd,
    door: Door,
    clock: Clock,
) -> Outcome {
    exec::mind_children().doing("watch children")?;
    let tasks = Tasks::new();
    Signals::catch().doing("catch signals")?.govern(&tasks);
    // It has nothing to read anew, and must not end its jobs when all of a supervisor's programs are told to.
    let _hangups = Hangups::catch().doing("catch signals")?;
    let folder = &config.helper.state_dir;
    nexus_pki::files::create_folder(folder).doing("make the helper's folder")?;
    let _lock = identity::lock(folder).doing("use the helper's folder")?;
    {
        let _pins = pin::hold(folder).doing("use the helper's folder")?;
        identity::settle(folder).doing("use the helper's folder")?;
    }
    let scripts = folder.join(SCRIPTS);
    exec::clean_scripts(&scripts).doing("clean the folder for scripts")?;
    let pins = Pins::new(folder);
    let pinned = match pins.current() {
        Ok(_) => true,
        Err(error) => {
            let reason = chain(&error).to_string();
            tracing::warn!(
                reason,
                "every job is refused: run `nexus-agent enroll TOKEN` as root, or `nexus-agent pin TOKEN`"
            );
            !matches!(error, IdentityError::NotEnrolled(_))
        }
    };
    let place = folder.join(LEDGER);
    let ledger = Ledger::open(&place, pinned, clock.now()).doing("open the helper's ledger")?;
    if let Some(found) = ledger.found() {
        tracing::error!("{found}: no job signed before now runs, since it may have run before");
    }
    if let Err(error) = local_policy::load(&config.helper.policy, ROOT) {
        tracing::warn!(error = %chain(&error), "every job is refused");
    }
    let works = Works::resume(
        ledger,
        Around {
            pins,
            policy: config.helper.policy.clone(),
            policy_owner: ROOT,
            starter: Starter::default().in_network(network),
            scripts,
            clock: clock.clone(),
            tasks: tasks.clone(),
            stop_grace: config.kill_grace.min(config.shutdown_timeout / 2),
        },
    );
    let listener =
        UnixListener::from_std(door.listener.try_clone().doing("listen")?).doing("listen")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), serves = user.name, state_dir = %folder.display(),
        policy = %config.helper.policy.display(), "the helper is ready"
    );
    service::ready();
    let lasting = door.own.is_some();
    let connections = Arc::new(Semaphore::new(limits::HELPER_CONNECTIONS));
    tokio::select! {
        () = tasks.shutdown_begun() => {}
        () = receive(&listener, user.uid, &works, &connections, &tasks, &clock) => {}
        () = unneeded(&works, &connections, lasting) => {
            tracing::info!("nobody needs the helper; it ends until somebody does");
        }
    }
    service::stopping();
    drop(listener);
    if timeout(config.shutdown_timeout, works.stop())
        .await
        .is_err()
    {
        tracing::warn!("runs were abandoned at the deadline; the next start reports them");
    }
    // Who follows a run may still take what is left of it.
    let gone = connections.acquire_many(u32::try_from(limits::HELPER_CONNECTIONS).unwrap_or(1));
    if timeout(FLUSH, gone).await.is_err() {
        tracing::info!("what was not taken waits for the next start");
    }
    tasks.shutdown(Duration::ZERO).await;
    drop(door);
    match tasks.failure() {
        Some(failure) => Err(Fault::new("helper", failure)),
        None => {
            tracing::info!("ended");
            Ok(())
        }
    }
}

/// Serves whoever comes and may.
async fn receive(
    listener: &UnixListener,
    uid: u32,
    works: &Works,
    connections: &Arc<Semaphore>,
    tasks: &Tasks,
    clock: &Clock,
) {
    let mut strangers = Ration::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        if let Err(who) = check_peer(&stream, uid) {
            if let Some(withheld) = strangers.take(clock.now()) {
                tracing::warn!(
                    who,
                    withheld,
                    "a connection of somebody else than the agent is closed"
                );
            }
            continue;
        }
        let Ok(place) = Arc::clone(connections).try_acquire_owned() else {
            tracing::debug!("a connection too many is closed");
            continue;
        };
        let works = works.clone();
        tasks.spawn("connection", async move {
            serve::serve(works, stream).await;
            drop(place);
        });
    }
}

/// Who it is, when it is somebody else.
fn check_peer(stream: &UnixStream, uid: u32) -> Result<(), String> {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == uid => Ok(()),
        Ok(peer) => Err(format!("user {}", peer.uid())),
        Err(error) => Err(error.to_string()),
    }
}

/// Resolves when nobody has been connected and nothing was going on for a while; never, if it is `lasting`. What runs
/// took of memory is given back now and then.
async fn unneeded(works: &Works, connections: &Semaphore, lasting: bool) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quiet = Duration::ZERO;
    for round in 1_u32.. {
        ticks.tick().await;
        let used = connections.available_permits() < limits::HELPER_CONNECTIONS || works.is_busy();
        quiet = if used { Duration::ZERO } else { quiet + LOOK };
        if quiet >= limits::HELPER_IDLE && !lasting {
            return;
        }
        works.let_go();
        if !used && round.is_multiple_of(TIDY) {
            memory::give_back();
            memory::give_back_code();
        }
    }
}

#[cfg(test)]
mod tests;
