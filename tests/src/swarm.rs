//! Many agents in one process: real enrolment, real mutual TLS, the agent's own session, spool, ledger and
//! admission. What differs from an agent is where readings come from ([`host`]) and what executes jobs
//! ([`answers`]).
//!
//! Each agent has a state folder of its own, a UDP socket (or a TCP connection) and a timer; all share the
//! threads. A folder on a tmpfs keeps their fsyncs from measuring the disk of the machine that makes the load.

pub mod answers;
pub mod host;
mod member;
pub mod tally;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nexus_pki::token::Token;
use nexus_runtime::{clock::Clock, tasks::Tasks};
use nexus_transport::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    answers::Answers,
    host::{Host, Shape},
    member::Running,
    tally::Tally,
};
use crate::fault::{Fault, Outcome};

/// The most agents in one process.
pub const AGENTS_MAX: usize = 20_000;
/// Agents that enrol at the same time.
const ENROLLING: usize = 32;
/// Descriptors an agent holds: lock, ledger, a file of each lane, a socket, and one more while it changes them.
const DESCRIPTORS: u64 = 8;

/// What swarms.
#[derive(Debug, Clone)]
pub struct Params {
    /// How many, at most [`AGENTS_MAX`].
    pub agents: usize,
    /// Lets all of them join.
    pub token: Token,
    /// The folder with their state folders.
    pub dir: PathBuf,
    /// Their names are this with a number.
    pub name: String,
    /// What carries their sessions.
    pub transport: Mode,
    /// From one reading to the next.
    pub interval: Duration,
    /// Series of each.
    pub series: usize,
    /// Packages of each.
    pub packages: usize,
    /// What jobs seem to do.
    pub answers: Answers,
    /// From the first agent's start to the last one's.
    pub ramp: Duration,
    /// The same seed makes the same hosts.
    pub seed: u64,
}

/// Agents that run.
#[derive(Debug)]
pub struct Swarm {
    tally: Arc<Tally>,
    tasks: Tasks,
    hang_up: CancellationToken,
    members: Vec<Running>,
    params: Params,
    shape: Arc<Shape>,
    clock: Clock,
}

impl Swarm {
    /// Looks at this host and makes room for so many agents; none has joined yet.
    pub async fn new(params: Params) -> Outcome<Self> {
        if params.agents > AGENTS_MAX {
            let text = format!("{} agents are more than {AGENTS_MAX}", params.agents);
            return Err(Fault::new(text));
        }
        make_room(params.agents)?;
        let shape = Shape::of_this_host(params.series, params.packages).await;
        Ok(Self {
            tally: Arc::default(),
            tasks: Tasks::new(),
            hang_up: CancellationToken::new(),
            members: Vec::new(),
            shape: Arc::new(shape),
            clock: Clock::system(),
            params,
        })
    }

    /// The counts, which go on changing.
    #[must_use]
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// What the hosts are made after.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Has all of them join that have not.
    pub async fn enrol(&self) -> Outcome {
        let mut joining = JoinSet::new();
        for number in 1..=self.params.agents {
            if joining.len() >= ENROLLING {
                settled(joining.join_next().await)?;
            }
            let config = member::config(&self.params, number);
            let (token, clock) = (self.params.token.clone(), self.clock.clone());
            let tally = Arc::clone(&self.tally);
            joining.spawn(async move {
                member::enrol(&config, &token, &clock).await?;
                tally.enrolled.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
        }
        while !joining.is_empty() {
            settled(joining.join_next().await)?;
        }
        Ok(())
    }

    /// Starts them, one after the other over the ramp.
    pub async fn start(&mut self) -> Outcome {
        let begun = Instant::now();
        let count = u32::try_from(self.params.agents).unwrap_or(u32::MAX).max(1);
        for (number, place) in (1..=self.params.agents).zip(0_u32..) {
            sleep_until(
                begun
                    + self
                        .params
                        .ramp
                        .mul_f64(f64::from(place) / f64::from(count)),
            )
            .await;
            let seed = self.params.seed.wrapping_mul(1 << 32) + u64::from(place);
            let running = Running::start(
                &member::config(&self.params, number),
                Arc::new(self.params.answers.clone()),
                Host::new(&self.shape, seed),
                &self.tally,
                &self.clock,
                &self.tasks,
                &self.hang_up,
            )?;
            self.members.push(running);
        }
        Ok(())
    }

    /// Ends them all in order.
    pub async fn stop(self) -> Outcome {
        self.tasks.begin_shutdown();
        for member in &self.members {
            member.stop().await;
        }
        self.hang_up.cancel();
        let left = self.tasks.shutdown(Duration::from_secs(10)).await;
        for member in &self.members {
            member.close()?;
        }
        match left.len() {
            0 => Ok(()),
            some => Err(Fault::new(format!("{some} tasks of agents do not end"))),
        }
    }
}

fn settled(joined: Option<Result<Outcome, tokio::task::JoinError>>) -> Outcome {
    match joined {
        None => Ok(()),
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => Err(Fault::new(format!("enrol: {error}"))),
    }
}

/// Raises the limit of open files to what so many agents need.
fn make_room(agents: usize) -> Outcome {
    let needed = u64::try_from(agents)
        .unwrap_or(u64::MAX)
        .saturating_mul(DESCRIPTORS)
        + 256;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|most| most.max(needed));
    let wanted = Rlimit {
        current: Some(needed),
        maximum,
    };
    setrlimit(Resource::Nofile, wanted).map_err(|_| {
        let most = limit.maximum.unwrap_or(needed).saturating_sub(256) / DESCRIPTORS;
        Fault::new(format!(
            "{agents} agents need {needed} open files; the limit of this process (ulimit -Hn) is enough for {most}"
        ))
    })
}
