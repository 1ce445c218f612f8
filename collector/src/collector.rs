//! The one wiring file: everything the collector is made of, in the order of the flow, and how it ends.
//!
//! Shutdown: the ports take nothing new, every session is told to come back, what is under way is committed
//! and acknowledged, then the store closes. What is left after the deadline is named and abandoned; nothing
//! of it was acknowledged, and a store on a disk that hangs is left to the next start. A second signal ends
//! the process at once.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use nexus_pki::{authority::Authority, files};
use nexus_proto::{agent::v1::GoodbyeReason, metrics::KeyPool};
use nexus_runtime::{
    clock::Clock,
    errors,
    fault::{Doing as _, Fault, Outcome},
    log::Filter,
    reload::{Hangups, Reload},
    service,
    shutdown::Signals,
    tasks::Tasks,
};
use nexus_store::{
    Store, StoreError,
    entry::{CollectorStarted, ControlEntry},
};
use nexus_transport::{AgentPort, OperatorPort, ResetKeys};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};

use crate::{
    addresses::Addresses,
    codes::Codes,
    config::{self, Config, QueryLimits},
    enrolment::Enrolment,
    folder::{Endpoints, Folder, Instance},
    identity::Identity,
    init,
    jobs::{hints::Hints, scheduler::Scheduler, submit::Jobs},
    operator::Operators,
    pages::{self, metrics::Metrics, source::Pages},
    ports::{self, Bound, Seen},
    refusals::Refusals,
    sessions::{
        self, Sessions,
        registry::{End, Registry},
    },
    trust::Trust,
};

/// An agent that is told to come back does so after this, with jitter of its own.
const RETRY_AFTER_SHUTDOWN: Duration = Duration::from_secs(1);

/// How often the end of the audit chain is noted in the control log.
const AUDIT_HEAD: Duration = Duration::from_secs(60);

/// What the store gets to close when draining took all the time there was.
const CLOSE: Duration = Duration::from_secs(1);

/// Refused certificates that wait to be noted.
const REFUSED: usize = 256;

/// Runs until told to stop.
pub(crate) fn serve(config: Config, filter: Filter, reload: Reload, clock: Clock) -> Outcome {
    raise_descriptor_limit();
    let folder = Folder::new(&config.state_dir);
    let instance = init::instance_of(&folder, &config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("nexus-collector")
        .build()
        .doing("start")?;
    let result = runtime.block_on(run(config, folder, instance, (filter, reload), clock));
    // What blocks a thread past the deadline does not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// Every connection takes a descriptor: whatever the machine allows is taken, since the usual soft limit of
/// 1024 stems from programs that use select(2).
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => tracing::debug!(
            descriptors = limit.maximum,
            "raised the limit of open files"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}

async fn run(
    config: Config,
    folder: Folder,
    instance: Instance,
    (filter, reload): (Filter, Reload),
    clock: Clock,
) -> Outcome {
    let tasks = Tasks::new();
    Signals::catch().doing("catch signals")?.govern(&tasks);
    let hangups = Hangups::catch().doing("catch signals")?;
    service::status("opening the store");
    let store = open_store(&folder, &clock, config.keep)?;
    let started = start(&config, &folder, &instance, &clock, &tasks, &store).await;
    match started {
        Ok(Started {
            registry,
            knobs,
            serving,
        }) => {
            service::status(&serving);
            let keep = reload.keep(
                hangups,
                tasks.token(),
                move |settings| {
                    let config = Config::from_settings(settings)?;
                    filter.set(&config.log_filter).doing("log.filter")?;
                    knobs.turn(&config);
                    Ok(())
                },
                move |remark| match remark {
                    Some(remark) => service::status(&format!("{serving}; {remark}")),
                    None => service::status(&serving),
                },
            );
            tasks.spawn("reload", keep);
            service::ready();
            tasks.shutdown_begun().await;
            service::stopping();
            let end = clock.instant() + config.shutdown_timeout;
            drain(&registry, &tasks, config.shutdown_timeout).await;
            let left = end.saturating_duration_since(clock.instant());
            close(store, &tasks, left.max(CLOSE)).await;
        }
        Err(fault) => {
            tasks.shutdown(Duration::from_secs(1)).await;
            store.close();
            return Err(fault);
        }
    }
    match tasks.failure() {
        Some(failure) => Err(Fault::new("serve", failure)),
        None => {
            tracing::info!("ended");
            Ok(())
        }
    }
}

/// A collector that serves.
pub(crate) struct Started {
    pub(crate) registry: Arc<Registry>,
    knobs: Knobs,
    serving: String,
}

/// What a reload changes.
struct Knobs {
    addresses: Addresses,
    bound: SocketAddr,
    query: watch::Sender<QueryLimits>,
}

impl Knobs {
    fn turn(&self, config: &Config) {
        let told = config::advertised(&config.advertise_agents, self.bound);
        self.addresses.set(told);
        self.query.send_replace(config.query);
    }
}

/// Binds, builds and starts everything; nothing is announced before all of it stands.
pub(crate) async fn start(
    config: &Config,
    folder: &Folder,
    instance: &Instance,
    clock: &Clock,
    tasks: &Tasks,
    store: &Store,
) -> Outcome<Started> {
    const WHAT: &str = "serve";
    let now = clock.now();
    let authority = init::open_authority(folder, instance, now)?;
    let authority = Arc::new(authority);
    let identity =
        Identity::open(Arc::clone(&authority), instance.clone(), folder.leaf(), now).doing(WHAT)?;
    let bound = bind(config).await?;
    let addresses = Addresses::default();
    let agents_addr = bound.agents_addr().doing(WHAT)?;
    let operators_addr = bound.operators_addr().doing(WHAT)?;
    let metrics_addr = bound.metrics.local_addr().doing(WHAT)?;
    addresses.set(config::advertised(&config.advertise_agents, agents_addr));

    let parts = Parts::assemble(config, folder, clock, tasks, store, &authority, &addresses)?;
    record_start(store, instance, clock).await.doing(WHAT)?;

    let stop = tasks.token();
    let registry = parts.metrics.registry();
    tasks.spawn_essential(
        "pages",
        pages::server::serve(bound.metrics, parts.pages, registry, stop.clone()),
    );
    let tls = ports::Tls::new(&identity.live(), authority.admission(), config.key_exchange)
        .doing("prepare TLS")?;
    let ground = ports::Ground {
        admission: authority.admission(),
        keys: ResetKeys::new(
            key(folder, init::RESET_KEY)?,
            key(folder, init::CONNECTION_ID_KEY)?,
        ),
        clock,
        tasks,
    };
    let services = ports::Services {
        agents: parts.sessions.server(),
        enrolment: parts.enrolment.server(),
        operators: parts.operators.server(),
    };
    ports::serve(
        ground,
        (bound.agents, bound.operators),
        tls,
        services,
        &parts.seen,
    );
    tasks.spawn_essential("certificate", identity.keep_current(clock.clone(), stop));
    tasks.spawn_essential("scheduler", parts.scheduler.run());
    tasks.spawn("audit head", keep_audit_head(tasks.clone(), store.clone()));
    tasks.spawn("watchdog", watchdog(tasks.clone(), store.clone()));

    let endpoints = Endpoints {
        agents: reachable(agents_addr).to_string(),
        operators: format!("https://{}", reachable(operators_addr)),
        metrics: format!("http://{}", reachable(metrics_addr)),
    };
    folder.set_endpoints(&endpoints).doing(WHAT)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        state_dir = %folder.path().display(),
        trust_domain = instance.trust_domain,
        agents = %agents_addr,
        operators = %operators_addr,
        metrics = %metrics_addr,
        "serving"
    );
    Ok(Started {
        registry: parts.registry,
        knobs: Knobs {
            addresses,
            bound: agents_addr,
            query: parts.query,
        },
        serving: format!("serves agents at {agents_addr}, operators at {operators_addr}"),
    })
}

/// Everything between the ports and the store.
pub(crate) struct Parts {
    pub(crate) metrics: Metrics,
    pub(crate) registry: Arc<Registry>,
    pub(crate) enrolment: Arc<Enrolment>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) operators: Arc<Operators>,
    pub(crate) scheduler: Scheduler,
    pub(crate) pages: Pages,
    pub(crate) seen: Seen,
    pub(crate) query: watch::Sender<QueryLimits>,
}

impl Parts {
    /// Builds them; nothing is served yet.
    pub(crate) fn assemble(
        config: &Config,
        folder: &Folder,
        clock: &Clock,
        tasks: &Tasks,
        store: &Store,
        authority: &Arc<Authority>,
        addresses: &Addresses,
    ) -> Outcome<Self> {
        let metrics = Metrics::default();
        let registry = Arc::new(Registry::default());
        let hints = Arc::new(Hints::default());
        let trust = Arc::new(
            Trust::load(store.clone(), authority.trust_domain(), clock.now())
                .doing("read the signer policy")?,
        );
        let (refusals, book) = Refusals::new();
        let enrolment = Arc::new(Enrolment {
            refusals: refusals.clone(),
            store: store.clone(),
            authority: Arc::clone(authority),
            trust: Arc::clone(&trust),
            addresses: addresses.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
        });
        let sessions = Arc::new(Sessions {
            store: store.clone(),
            registry: Arc::clone(&registry),
            trust: Arc::clone(&trust),
            enrolment: Arc::clone(&enrolment),
            hints: Arc::clone(&hints),
            addresses: addresses.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            limits: sessions::Limits {
                upload_credit: config.upload_credit,
                gather: config.keep.gather,
                commit_latency: config.commit_latency,
                sessions: config.connections,
            },
            keys: KeyPool::new(),
            intake: Arc::new(Semaphore::new(sessions::INTAKE_KIB)),
            inventory: sessions::Turns::default(),
            tasks: tasks.clone(),
        });
        let query = watch::Sender::new(config.query);
        let operators = Arc::new(Operators {
            store: store.clone(),
            authority: Arc::clone(authority),
            trust: Arc::clone(&trust),
            registry: Arc::clone(&registry),
            jobs: Jobs {
                store: store.clone(),
                trust,
                hints: Arc::clone(&hints),
            },
            codes: Codes::new(folder.codes()),
            refusals: refusals.clone(),
            addresses: addresses.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            query: query.subscribe(),
        });
        let scheduler = Scheduler {
            store: store.clone(),
            registry: Arc::clone(&registry),
            hints,
            clock: clock.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            grace: config.jobs_grace,
        };
        let (refused, knocks) = mpsc::channel(REFUSED);
        let seen = Seen::new(config, &refused);
        tasks.spawn("refused", refusals.clone().of_port(knocks));
        let keep = book.keep(store.clone(), clock.clone(), tasks.token());
        tasks.spawn("refusals", keep);
        let pages = Pages {
            store: store.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            folder: folder.clone(),
            registry: Arc::clone(&registry),
            seen: seen.clone(),
            intake: Arc::clone(&sessions.intake),
        };
        Ok(Self {
            query,
            seen,
            metrics,
            registry,
            enrolment,
            sessions,
            operators,
            scheduler,
            pages,
        })
    }
}

fn open_store(folder: &Folder, clock: &Clock, keep: nexus_store::Settings) -> Outcome<Store> {
    let what = format!("open {}", folder.path().display());
    Store::open(folder.path(), clock.clone(), keep).map_err(|error| {
        let fault = Fault::because(&what, &error);
        match error {
            StoreError::InUse { .. } => fault.hint(
                "one collector runs on a state folder: stop it, or choose another --state-dir",
            ),
            StoreError::Newer { .. } => fault.hint("run the newer nexus-collector"),
            StoreError::Missing { path } => fault.hint(format!(
                "put {} back, from a backup if need be: the collector does not go on as if it had never been",
                path.parent().unwrap_or(&path).display()
            )),
            error if error.is_full_disk() => fault.hint("make room on that file system"),
            _ => fault,
        }
    })
}

async fn bind(config: &Config) -> Outcome<Bound> {
    let metrics = TcpListener::bind(config.metrics_listen)
        .await
        .map_err(|error| in_use("metrics.listen", config.metrics_listen, &error))?;
    let operators = OperatorPort::bind(config.operators_listen)
        .await
        .map_err(|error| in_use("operators.listen", config.operators_listen, &error))?;
    let agents = AgentPort::bind(config.agents_listen)
        .await
        .map_err(|error| in_use("agents.listen", config.agents_listen, &error))?;
    Ok(Bound {
        agents,
        operators,
        metrics,
    })
}

fn key(folder: &Folder, name: &str) -> Outcome<[u8; 64]> {
    let path = folder.keys().join(name);
    let what = format!("read {}", path.display());
    let bytes = files::read_private(&path).doing(&what)?;
    bytes
        .as_slice()
        .try_into()
        .map_err(|_| Fault::new(what, format!("it has {} bytes instead of 64", bytes.len())))
}

fn in_use(key: &str, address: SocketAddr, error: &io::Error) -> Fault {
    let fault = Fault::new(format!("bind {key} {address}"), error);
    match error.kind() {
        io::ErrorKind::AddrInUse => fault.hint(format!(
            "another program has the port: stop it, or set {key} to another one (port 0 takes any)"
        )),
        io::ErrorKind::PermissionDenied => fault.hint("ports below 1024 need CAP_NET_BIND_SERVICE"),
        _ => fault,
    }
}

async fn record_start(store: &Store, instance: &Instance, clock: &Clock) -> Result<(), StoreError> {
    let started = ControlEntry::Collector(CollectorStarted {
        id: instance.id.clone(),
        region: instance.region.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time_ms: clock.now().as_ms(),
    });
    store.control_append(vec![started]).await.map(|_| ())
}

/// A wildcard as this host itself can reach it.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr = std::net::Ipv4Addr::LOCALHOST.into();
        address.set_ip(loopback);
    }
    address
}

/// What sessions are told at shutdown.
pub(crate) fn shutdown_end() -> End {
    End {
        reason: GoodbyeReason::Shutdown,
        message: "the collector is shutting down".to_owned(),
        retry_after: RETRY_AFTER_SHUTDOWN,
    }
}

/// Every session is told to come back; what is under way ends by itself or at the deadline.
async fn drain(registry: &Registry, tasks: &Tasks, deadline: Duration) {
    tracing::info!(sessions = registry.len(), "draining");
    registry.end_all(&shutdown_end());
    let left = tasks.shutdown(deadline).await;
    if !left.is_empty() {
        tracing::warn!(
            ?left,
            "tasks were abandoned at the deadline; nothing they held was acknowledged"
        );
    }
}

/// Notes how far the audit chain has come, now and then.
async fn keep_audit_head(tasks: Tasks, store: Store) {
    let stop = tasks.token();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AUDIT_HEAD) => note_audit_head(&store).await,
        }
    }
}

async fn note_audit_head(store: &Store) {
    if let Err(error) = store.note_audit_head().await {
        tracing::debug!(error = %errors::chain(&error), "the end of the audit chain could not be noted");
    }
}

/// What was taken is written and the files are put in order. A disk that hangs does not keep the process: the next
/// start does from the log what was left undone.
async fn close(store: Store, tasks: &Tasks, deadline: Duration) {
    // A task of its own, which goes on when nobody waits for it any more: who drops a store closes it.
    let within = tasks.clone();
    let closing = tasks.spawn("close the store", async move {
        note_audit_head(&store).await;
        within
            .spawn_blocking("close the store", move || store.close())
            .await
    });
    if tokio::time::timeout(deadline, closing).await.is_err() {
        tracing::warn!("the store was not closed by the deadline; the next start takes longer");
    }
}

/// Tells the service manager, if it wants to know, that the collector gets on: each writer of the store has been at its
/// queue, and the store can be read.
async fn watchdog(tasks: Tasks, store: Store) {
    let Some(limit) = service::watchdog() else {
        return;
    };
    let stop = tasks.token();
    loop {
        // What hangs is waited for, and nobody is told meanwhile.
        let turned = tokio::select! {
            () = stop.cancelled() => return,
            turned = store.turn() => turned,
        };
        let read = crate::reads::read(&tasks, &store, "watchdog", |store| store.trust());
        match turned.and(read.await.map(drop)) {
            Ok(()) => service::alive(),
            Err(error) => {
                tracing::error!(error = %errors::chain(&error), "the store does not answer");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(limit / 3) => {}
        }
    }
}
