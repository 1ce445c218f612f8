//! The one wiring file: everything the agent is made of, in the order of the flow, and how it ends.
//!
//! Shutdown: sampling stops, runs are stopped and their reports stored, what is stored of results is given a
//! moment to reach the collector, the session ends, the spool is closed. What was not acked is sent at the
//! next start. A second signal ends the process at once, and the programs of runs with it; the next start kills what
//! those have left behind before it reports.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use nexus_pki::{files, tls::LiveLeaf};
use nexus_proto::{
    ids::Lane,
    limits,
    record::{Body, Section},
};
use nexus_runtime::{
    clock::Clock,
    errors,
    fault::{Doing as _, Fault, Outcome},
    log::Filter,
    progress::Progress,
    reload::{Hangups, Reload},
    service,
    shutdown::Signals,
    tasks::Tasks,
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    exec::{self, Executor, leftover},
    helper::Delegate,
    identity::{self, IdentityError, Member, StateFolder},
    inventory::{self, Inventory, InventoryConfig, Wanted},
    ledger::Ledger,
    memory,
    runs::{self, Runs},
    sample::{SampleConfig, Sampler},
    session::{self, Keeper, Reach, State},
    spool::{self, Spool},
    status,
    trouble::{Storing, Troubles},
};

/// From one look at the inventory to the next.
const INVENTORY_INTERVAL: Duration = Duration::from_secs(10);
/// The first look takes about this long.
const INVENTORY_FIRST: Duration = Duration::from_secs(1);
/// From one time that free memory is given back to the next.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);
/// So many of those intervals lie between two times that code is given back, since what is used must be mapped again.
const TIDY_CODE: u64 = 60;
/// By then the agent has started, connected, and told its inventory.
const TIDY_CODE_FIRST: u64 = 2;
/// How long a collector is waited for that is to be told of the agent's removal.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long results may take to reach the collector once everything else has stopped.
const FLUSH: Duration = Duration::from_secs(2);

/// Runs until told to stop. What a reload changes of the settings holds from then on.
pub fn run(config: &Config, filter: Filter, reload: Reload, clock: Clock) -> Outcome {
    // By hand, as root: what it wrote would be nothing that the service can use.
    identity::become_owner(&config.state_dir).map_err(|error| fault("run", &error))?;
    memory::keep_the_heap_small();
    let runtime = runtime()?;
    let result = runtime.block_on(serve(config, filter, reload, clock));
    // A look at a dead mount may block its thread for ever.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// The one both of this program's daemons run on.
pub(crate) fn runtime() -> Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .doing("start")
}

async fn serve(config: &Config, filter: Filter, reload: Reload, clock: Clock) -> Outcome {
    exec::mind_children().doing("watch children")?;
    let tasks = Tasks::new();
    Signals::catch().doing("catch signals")?.govern(&tasks);
    let hangups = Hangups::catch().doing("catch signals")?;
    let executor = Arc::new(Delegate::new(
        config.helper.used,
        &config.helper.socket,
        &tasks,
    ));
    let folder = StateFolder::open(&config.state_dir).map_err(|error| fault("run", &error))?;
    let parts = Parts::assemble(config, folder, executor, &clock, &tasks)?;
    let Parts {
        spool,
        runs,
        keeper,
        wanted,
        troubles,
    } = parts;
    // The session outlives what feeds it.
    let hang_up = CancellationToken::new();
    let state = keeper.state();
    let progress = Progress::default();
    let keeper = keeper.telling(&progress);
    let knobs = Knobs {
        interval: watch::Sender::new(config.interval),
        reach: keeper.reach(),
        filter,
    };
    tasks.spawn_essential(
        "session",
        ended(keeper.run(hang_up.clone()), hang_up.clone()),
    );
    tasks.spawn_essential(
        "metrics",
        metrics(
            knobs.interval.subscribe(),
            Arc::clone(&spool),
            Arc::clone(&troubles),
            (clock.clone(), progress.clone()),
            tasks.token(),
        ),
    );
    tasks.spawn_essential(
        "inventory",
        watch_inventory(
            Arc::clone(&spool),
            wanted,
            troubles,
            (clock.clone(), progress.clone()),
            tasks.token(),
        ),
    );
    tasks.spawn("tidy", tidy(tasks.token()));
    tasks.spawn("watchdog", watchdog(progress, clock.clone(), tasks.token()));
    let remark = watch::Sender::new(None);
    tasks.spawn(
        "status",
        tell(
            state,
            remark.subscribe(),
            config.state_dir.clone(),
            clock.clone(),
            tasks.token(),
        ),
    );
    tasks.spawn(
        "reload",
        reload.keep(
            hangups,
            tasks.token(),
            move |settings| knobs.turn(&Config::from_settings(settings)?),
            move |text| drop(remark.send_replace(text)),
        ),
    );
    service::ready();

    tasks.shutdown_begun().await;
    service::stopping();
    if timeout(config.shutdown_timeout, runs.stop()).await.is_err() {
        tracing::warn!("runs were abandoned at the deadline; the next start reports them");
    }
    if timeout(FLUSH, flushed(&spool)).await.is_err() {
        tracing::info!("results wait in the spool for the next start");
    }
    hang_up.cancel();
    let left = tasks.shutdown(Duration::from_secs(1)).await;
    if !left.is_empty() {
        tracing::warn!(?left, "tasks were abandoned at the deadline");
    }
    spool.close().doing("close the spool")?;
    match tasks.failure() {
        Some(failure) => Err(Fault::new("run", failure)),
        None => {
            tracing::info!("ended");
            Ok(())
        }
    }
}

/// What a reload changes.
struct Knobs {
    interval: watch::Sender<Duration>,
    reach: watch::Sender<Reach>,
    filter: Filter,
}

impl Knobs {
    fn turn(&self, config: &Config) -> Outcome {
        self.filter.set(&config.log_filter).doing("log.filter")?;
        self.interval.send_if_modified(|interval| {
            let differs = *interval != config.interval;
            *interval = config.interval;
            differs
        });
        self.reach.send_if_modified(|reach| {
            let wanted = Reach {
                addresses: config.addresses.clone(),
                mode: config.transport,
                key_exchange: reach.key_exchange,
            };
            let differs = *reach != wanted;
            *reach = wanted;
            differs
        });
        Ok(())
    }
}

/// An agent that is put together and does nothing yet.
pub struct Parts {
    /// What is to be sent.
    pub spool: Arc<Spool>,
    /// What runs.
    pub runs: Runs,
    /// Keeps the session once it is run.
    pub keeper: Keeper,
    /// Inventory the collector asks for.
    pub wanted: Arc<Wanted>,
    /// What does not work.
    pub troubles: Arc<Troubles>,
}

impl Parts {
    /// Of the state folder of an agent that has enrolled. What ran when it stopped is settled or taken up.
    pub fn assemble(
        config: &Config,
        folder: StateFolder,
        executor: Arc<dyn Executor>,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Outcome<Self> {
        let member = Member::load(folder.path()).map_err(|error| fault("run", &error))?;
        let live = LiveLeaf::new(member.leaf.clone(), &member.root).doing("use the identity")?;
        let facts = inventory::facts(&InventoryConfig::default());
        let now = clock.now();
        tracing::info!(
            version = facts.agent_version, state_dir = %folder.path().display(), node = %member.node,
            name = member.name, trust_domain = member.trust_domain,
            certificate_expires = %member.leaf.not_after(), "starting"
        );
        if config.name_given && config.name != member.name {
            tracing::warn!(
                name = config.name,
                enrolled = member.name,
                "the node keeps the name it was enrolled under"
            );
        }
        // One that cannot be read keeps sessions from being opened, and nothing else.
        let sessions = folder.sessions().unwrap_or(u64::MAX);
        let place = folder.path().join("spool");
        let (spool, findings) =
            Spool::open(&place, &config.spool, sessions, now).doing("open the spool")?;
        let after_crash = findings
            .iter()
            .any(|finding| finding.kind == spool::UNCLEAN_START);
        for finding in findings {
            tracing::warn!(lane = %finding.lane, lost = ?finding.lost, "{}", finding.message);
        }
        let spool = Arc::new(spool);
        let ledger = Ledger::open(&folder.path().join("ledger"), sessions > 0, now)
            .doing("open the ledger")?;
        // Nothing is written before both are known to be of this version or an older one.
        let started = format!("nexus-agent {}", facts.agent_version);
        if let Err(error) = spool.event(now, "agent_started", &started) {
            tracing::error!(error = %errors::chain(&error), "an event cannot be stored");
        }
        if let Some(found) = ledger.found() {
            let message =
                format!("{found}: no job signed before {now} runs, since it may have run before");
            tracing::error!("{message}");
            if let Err(error) = spool.event(now, "ledger_damaged", &message) {
                tracing::error!(error = %errors::chain(&error), "an event cannot be stored");
            }
        }
        let troubles = Arc::new(Troubles::default());
        let scripts = folder.path().join("scripts");
        files::create_folder(&scripts).doing("make the folder for scripts")?;
        exec::clean_scripts(&scripts).doing("clean the folder for scripts")?;
        let runs = Runs::resume(
            ledger,
            runs::Surroundings {
                own: member.target(folder.incarnation()),
                trust: Arc::clone(&member.trust),
                spool: Arc::clone(&spool),
                executor,
                scripts,
                policy: config.helper.policy.clone(),
                clock: clock.clone(),
                tasks: tasks.clone(),
                troubles: Arc::clone(&troubles),
                capacity: config.concurrency,
                output_limit_bytes: limits::RUN_OUTPUT_BYTES_MAX,
                stop_grace: config.kill_grace.min(config.shutdown_timeout / 2),
            },
        );
        let wanted = Arc::new(Wanted::default());
        let around = session::Surroundings {
            folder,
            member,
            live,
            obtained: Mutex::new(None),
            spool: Arc::clone(&spool),
            runs: runs.clone(),
            wanted: Arc::clone(&wanted),
            troubles: Arc::clone(&troubles),
            facts,
            boot_id: leftover::boot_id().unwrap_or_default(),
            after_crash,
            clock: clock.clone(),
        };
        let reach = Reach {
            addresses: config.addresses.clone(),
            mode: config.transport,
            key_exchange: config.key_exchange,
        };
        let keeper = Keeper::new(around, reach).doing("prepare TLS")?;
        Ok(Self {
            spool,
            runs,
            keeper,
            wanted,
            troubles,
        })
    }
}

/// A fault with the identity's own hint.
pub(crate) fn fault(what: &str, error: &IdentityError) -> Fault {
    let fault = Fault::because(what, error);
    match error.hint() {
        Some(hint) => fault.hint(hint),
        None => fault,
    }
}

/// The session task may end only when it was told to.
async fn ended(task: impl Future<Output = ()>, told: CancellationToken) -> io::Result<()> {
    task.await;
    if told.is_cancelled() {
        // Shutdown waits for it.
        return Ok(());
    }
    Err(io::Error::other("it ended early"))
}

/// Every interval, one reading of the host into the spool.
async fn metrics(
    mut every: watch::Receiver<Duration>,
    spool: Arc<Spool>,
    troubles: Arc<Troubles>,
    (clock, progress): (Clock, Progress),
    stop: CancellationToken,
) -> io::Result<()> {
    let mut between = *every.borrow_and_update();
    let mut sampler = Sampler::new(SampleConfig {
        interval: between,
        ..SampleConfig::default()
    })
    .with_keys(spool.keys());
    let mut ticks = interval(between);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut storing = Storing::new("metrics", troubles);
    loop {
        progress.due("metrics", clock.instant() + between);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Ok(()) = every.changed() => {
                between = *every.borrow_and_update();
                sampler.set_interval(between);
                ticks = interval(between);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
                continue;
            }
            _ = ticks.tick() => {}
        }
        let now = clock.now();
        let stored = spool.append(now, Body::Metrics(sampler.sample(now)));
        storing.note(&stored, now, &spool);
    }
}

/// Every few seconds, what changed of the inventory into the spool.
async fn watch_inventory(
    spool: Arc<Spool>,
    wanted: Arc<Wanted>,
    troubles: Arc<Troubles>,
    (clock, progress): (Clock, Progress),
    stop: CancellationToken,
) -> io::Result<()> {
    let mut inventory = Inventory::new(&InventoryConfig::default(), &spool.sections());
    let mut waiting: BTreeMap<String, Section> = BTreeMap::new();
    let mut storing = Storing::new("inventory", troubles);
    let mut wait = INVENTORY_FIRST;
    loop {
        inventory.resend(&wanted.take());
        inventory.resend(&spool.lost_sections());
        for section in inventory.poll() {
            waiting.insert(section.kind.clone(), section);
        }
        // What cannot be stored now is tried again, unless there is something newer by then.
        waiting.retain(|_, section| {
            let now = clock.now();
            let stored = spool.append(now, Body::Section(section.clone()));
            if stored.is_ok() {
                tracing::debug!(kind = section.kind, "a section is to be sent");
            }
            !storing.note(&stored, now, &spool)
        });
        progress.due("inventory", clock.instant() + wait);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
        wait = INVENTORY_INTERVAL;
    }
}

/// A look at the inventory, a job or a handshake takes memory for a moment, and code that is not needed again soon.
async fn tidy(stop: CancellationToken) {
    for round in 1_u64.. {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TIDY_INTERVAL) => memory::give_back(),
        }
        if round % TIDY_CODE == TIDY_CODE_FIRST {
            memory::give_back_code();
        }
    }
}

/// Tells the collector, as an event, that the agent is being removed from this machine.
pub fn leave(config: &Config, clock: &Clock) -> Outcome {
    let failed = |error: IdentityError| fault("leave", &error);
    identity::become_owner(&config.state_dir).map_err(failed)?;
    // Without an identity there is nobody to tell, and nothing to make here.
    Member::load(&config.state_dir).map_err(failed)?;
    let folder = StateFolder::open(&config.state_dir).map_err(failed)?;
    let runtime = runtime()?;
    let result = runtime.block_on(say_farewell(config, folder, clock));
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn say_farewell(config: &Config, folder: StateFolder, clock: &Clock) -> Outcome {
    let tasks = Tasks::new();
    let executor = Arc::new(exec::Starter::default());
    let parts = Parts::assemble(config, folder, executor, clock, &tasks)?;
    // No job begins any more.
    parts.runs.stop().await;
    let spool = parts.spool;
    let message = "the agent is being removed from this machine";
    spool
        .event(clock.now(), "agent_removed", message)
        .doing("store the event")?;
    let hang_up = CancellationToken::new();
    let session = parts.keeper.run(hang_up.clone());
    tasks.spawn_essential("session", ended(session, hang_up.clone()));
    let told = timeout(FAREWELL, flushed(&spool)).await;
    hang_up.cancel();
    tasks.shutdown(Duration::from_secs(1)).await;
    spool.close().doing("close the spool")?;
    told.map_err(|_| Fault::new("leave", "no collector took the message within five seconds"))
}

/// Resolves when the collector has all results.
async fn flushed(spool: &Spool) {
    loop {
        let ack = spool.ack_arrived();
        if spool.acked(Lane::Results) >= spool.last(Lane::Results) {
            return;
        }
        ack.await;
    }
}

/// Tells the service manager, if it wants to know, that the agent gets on: its loop turns, and readings, inventory and
/// session come back when they said they would.
async fn watchdog(progress: Progress, clock: Clock, stop: CancellationToken) {
    let Some(limit) = service::watchdog() else {
        return;
    };
    loop {
        match progress.stuck(clock.instant(), limit) {
            None => service::alive(),
            Some(stuck) => tracing::error!(stuck, "a part of the agent does not get on"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(limit / 3) => {}
        }
    }
}

/// Shows in `systemctl status` and `nexus-agent status` what became of the session, and of the settings.
async fn tell(
    mut state: watch::Receiver<State>,
    mut remark: watch::Receiver<Option<String>>,
    folder: PathBuf,
    clock: Clock,
    stop: CancellationToken,
) {
    let mut told = String::new();
    loop {
        let mut text = status::words(&state.borrow_and_update());
        if let Some(remark) = remark.borrow_and_update().as_deref() {
            text = format!("{text}; {remark}");
        }
        let text = service::one_line(&text);
        if text != told {
            service::status(&text);
            status::keep(&folder, &text, clock.now());
            told = text;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() {
                return;
            },
            Ok(()) = remark.changed() => {}
        }
    }
}
