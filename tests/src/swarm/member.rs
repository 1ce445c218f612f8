//! One agent of a swarm: everything of the real one but its sampler and its programs.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use nexus_agent::{
    agent::Parts,
    config::Config,
    helper::HelperConfig,
    identity::{self, Enrolment, IdentityError, Member, StateFolder},
    inventory::{self, InventoryConfig},
    runs::Runs,
    session::State,
    spool::{LaneConfig, Spool, SpoolConfig},
};
use nexus_pki::{tls::KeyExchange, token::Token};
use nexus_proto::{ids::Lane, record::Body};
use nexus_runtime::{clock::Clock, errors, log, tasks::Tasks};
use rand::RngExt as _;
use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::{Params, answers::Answers, host::Host, tally::Tally};
use crate::fault::{Fault, Outcome};

/// From one upgrade of a package to the next, about.
const UPGRADES: Duration = Duration::from_secs(1800);

/// Its settings: the defaults, but for a spool that thousands can have on one disk.
pub(super) fn config(params: &Params, number: usize) -> Config {
    let lane = |bytes: u64| LaneConfig {
        bytes,
        segment_bytes: 512 * 1024,
        age: Duration::from_secs(48 * 3600),
    };
    let mib = 1024 * 1024;
    Config {
        state_dir: params.dir.join(format!("{number:05}")),
        name: format!("{}-{number:05}", params.name),
        name_given: true,
        addresses: Vec::new(),
        interval: params.interval,
        transport: params.transport,
        key_exchange: KeyExchange::Auto,
        spool: SpoolConfig {
            results: lane(128 * mib),
            inventory: lane(16 * mib),
            metrics: lane(4 * mib),
        },
        concurrency: 4,
        kill_grace: Duration::from_secs(10),
        helper: HelperConfig::default(),
        shutdown_timeout: Duration::from_secs(5),
        log_format: log::Format::Text,
        log_filter: log::Targets::default(),
    }
}

/// Joins the fleet, unless it has joined before.
pub(super) async fn enrol(config: &Config, token: &Token, clock: &Clock) -> Outcome {
    let fault = |error: IdentityError| Fault::new(format!("enrol {}: {error}", config.name));
    if joined(&config.state_dir) {
        return Ok(());
    }
    let folder = StateFolder::open(&config.state_dir).map_err(fault)?;
    let enrolment = Enrolment {
        token: token.clone(),
        name: config.name.clone(),
        facts: inventory::facts(&InventoryConfig::default()),
        key_exchange: config.key_exchange,
        force: false,
    };
    identity::enrol(&folder, enrolment, clock.now())
        .await
        .map_err(fault)?;
    Ok(())
}

fn joined(dir: &Path) -> bool {
    let there: PathBuf = dir.join("identity");
    there.exists() && Member::load(dir).is_ok()
}

/// A running one.
#[derive(Debug)]
pub(super) struct Running {
    spool: Arc<Spool>,
    runs: Runs,
}

impl Running {
    /// Starts it.
    pub(super) fn start(
        config: &Config,
        answers: Arc<Answers>,
        host: Host,
        tally: &Arc<Tally>,
        clock: &Clock,
        tasks: &Tasks,
        hang_up: &CancellationToken,
    ) -> Outcome<Self> {
        let failed = |why: String| Fault::new(format!("start {}: {why}", config.name));
        let folder = StateFolder::open(&config.state_dir)
            .map_err(|error| failed(errors::chain(&error).to_string()))?;
        let parts = Parts::assemble(config, folder, answers, clock, tasks)
            .map_err(|fault| failed(fault.to_string()))?;
        let Parts {
            spool,
            runs,
            keeper,
            ..
        } = parts;
        let feeder = Feeder {
            spool: Arc::clone(&spool),
            tally: Arc::clone(tally),
            host,
            interval: config.interval,
            clock: clock.clone(),
            waiting: VecDeque::new(),
            connected: false,
            reporting: None,
        };
        tasks.spawn("readings", feeder.run(keeper.state(), tasks.token()));
        tasks.spawn("session", keeper.run(hang_up.clone()));
        Ok(Self { spool, runs })
    }

    /// Ends what runs.
    pub(super) async fn stop(&self) {
        self.runs.stop().await;
    }

    /// Closes the spool once nothing uses it any more.
    pub(super) fn close(&self) -> Outcome {
        let closed = self.spool.close();
        closed.map_err(|error| Fault::new(format!("close a spool: {error}")))
    }
}

/// Stores readings, and counts what becomes of them.
struct Feeder {
    spool: Arc<Spool>,
    tally: Arc<Tally>,
    host: Host,
    interval: Duration,
    clock: Clock,
    /// Seqs that are not acknowledged, and since when.
    waiting: VecDeque<(u64, Instant)>,
    connected: bool,
    /// The mark since which it was counted as reporting.
    reporting: Option<u64>,
}

impl Feeder {
    async fn run(
        mut self,
        mut state: tokio::sync::watch::Receiver<State>,
        stop: CancellationToken,
    ) {
        self.join();
        // As an agent does: at once, and from then on at a moment of its own.
        self.read();
        let phase = self.interval.mul_f64(rand::rng().random_range(0.0..1.0));
        let mut ticks = interval_at(tokio::time::Instant::now() + phase, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let spool = Arc::clone(&self.spool);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => self.read(),
                () = spool.ack_arrived() => self.acked(),
                changed = state.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let now = state.borrow_and_update().clone();
                    self.is(&now);
                }
            }
        }
        self.is(&State::Away("stopped".to_owned()));
    }

    /// The inventory, as far as it is not on its way since an earlier time.
    fn join(&mut self) {
        let known = self.spool.sections();
        for section in self.host.sections() {
            if known.contains_key(&section.kind) {
                continue;
            }
            let stored = self
                .spool
                .append(self.clock.now(), Body::Section(section.clone()));
            if stored.is_err() {
                self.tally.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn read(&mut self) {
        let now = self.clock.now();
        let report = self.host.report(now, self.interval);
        let samples = u64::try_from(report.samples.len()).unwrap_or(0);
        match self.spool.append(now, Body::Metrics(report)) {
            Ok(seq) => {
                self.tally.reports.fetch_add(1, Ordering::Relaxed);
                self.tally.samples.fetch_add(samples, Ordering::Relaxed);
                self.waiting.push_back((seq, self.clock.instant()));
            }
            Err(_) => {
                self.tally.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        let ratio = self.interval.as_secs_f64() / UPGRADES.as_secs_f64();
        if rand::rng().random_bool(ratio.clamp(0.0, 1.0))
            && let Some(section) = self.host.upgrade()
            && self.spool.append(now, Body::Section(section)).is_err()
        {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn acked(&mut self) {
        let acked = self.spool.acked(Lane::Metrics);
        let now = self.clock.instant();
        while let Some((_, since)) = self.waiting.pop_front_if(|(seq, _)| *seq <= acked) {
            self.tally.waited(now.saturating_duration_since(since));
            let mark = self.tally.marks();
            if self.reporting.replace(mark) != Some(mark) {
                self.tally.reports_since(mark, 1);
            }
        }
    }

    fn is(&mut self, state: &State) {
        let connected = matches!(state, State::Connected(_));
        if connected {
            self.tally.sessions.fetch_add(1, Ordering::Relaxed);
        }
        if let State::Away(why) = state {
            self.tally.away(why);
        }
        match (self.connected, connected) {
            (false, true) => {
                self.tally.connected.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => {
                self.tally.connected.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.connected = connected;
    }
}
