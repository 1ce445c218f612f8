//! Many agents in one process or a few: real enrolment, real mutual TLS, the agent's own session, spool, ledger and
//! admission. What differs from an agent is where readings come from ([`host`]) and what executes jobs
//! ([`answers`]).
//!
//! Each agent has a state folder of its own, a UDP socket (or a TCP connection) and a timer; all of a process share
//! its threads. A folder on a tmpfs keeps their fsyncs from measuring the disk of the machine that makes the load.
//!
//! Where the limit of open files is not enough for all of them ([`room`]), further processes of `nexus-swarm` have
//! their share each ([`part`]; [`mod@serve`] is what those do). Number, name, seed and moment of an agent are the same
//! in whichever process it is, and the [`Tally`] counts them all.

pub mod answers;
mod crowd;
pub mod host;
mod member;
pub mod memory;
mod part;
mod room;
mod serve;
pub mod tally;
mod words;

use std::{ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use nexus_pki::token::Token;
use nexus_runtime::tasks::Tasks;
use nexus_transport::Mode;
use tokio::time::timeout;

use self::{
    answers::Answers,
    crowd::Crowd,
    host::Shape,
    part::{Failure, Part},
    tally::Tally,
    words::Command,
};
pub use self::{part::PART, serve::serve};
use crate::{
    fault::{Fault, Outcome},
    usage,
};

/// The most agents of a swarm.
pub const AGENTS_MAX: usize = 20_000;
/// The most processes of a swarm.
pub const PROCESSES_MAX: usize = 64;
/// To end in order; far more than agents take to do so.
const ENDING: Duration = Duration::from_secs(120);

/// What swarms.
#[derive(Debug, Clone)]
pub struct Params {
    /// How many, at most [`AGENTS_MAX`].
    pub agents: usize,
    /// How many processes they are in; without a number, no more than the limit of open files asks for.
    pub processes: Option<usize>,
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
    crowd: Crowd,
    parts: Vec<Part>,
    failure: Failure,
    tasks: Tasks,
}

impl Swarm {
    /// Looks at this host and makes room for so many agents; none has joined yet.
    pub async fn new(mut params: Params) -> Outcome<Self> {
        if params.agents > AGENTS_MAX {
            let text = format!("{} agents are more than {AGENTS_MAX}", params.agents);
            return Err(Fault::new(text));
        }
        let processes = processes(&params)?;
        params.processes = Some(processes);
        let shape = Shape::of_this_host(params.series, params.packages).await;
        let own = share(params.agents, processes, 1);
        let crowd = Crowd::new(params.clone(), own, Arc::new(shape));
        let (failure, tasks) = (Failure::default(), Tasks::new());
        let mut parts = Vec::new();
        for number in 2..=processes {
            let part = Part::start(
                (number, processes),
                share(params.agents, processes, number),
                &params,
                crowd.shape(),
                crowd.tally(),
                &failure,
                &tasks,
            );
            parts.push(part.await?);
        }
        Ok(Self {
            crowd,
            parts,
            failure,
            tasks,
        })
    }

    /// The counts, which go on changing.
    #[must_use]
    pub fn tally(&self) -> &Arc<Tally> {
        self.crowd.tally()
    }

    /// What the hosts are made after.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        self.crowd.shape()
    }

    /// The processes its agents are in, as long as they run: this one first.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let others = self.parts.iter().filter_map(Part::id);
        std::iter::once(std::process::id()).chain(others).collect()
    }

    /// Processor time all its processes have used so far.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        self.processes().into_iter().map(usage::cpu_time).sum()
    }

    /// Fails when one of its processes has.
    pub fn check(&self) -> Outcome {
        match &*self.failure.borrow() {
            None => Ok(()),
            Some(failure) => Err(Fault::new(failure)),
        }
    }

    /// Has all of them join that have not.
    pub async fn enrol(&self) -> Outcome {
        let own = self.crowd.enrol();
        in_all(&self.parts, &self.failure, Command::Enrol, own).await
    }

    /// Starts them, one after the other over the ramp.
    pub async fn start(&mut self) -> Outcome {
        let own = self.crowd.start();
        in_all(&self.parts, &self.failure, Command::Start, own).await
    }

    /// Ends them all in order.
    pub async fn stop(self) -> Outcome {
        let own = self.crowd.stop();
        let stopped = in_all(&self.parts, &self.failure, Command::Stop, own);
        let late = |_| Fault::new(format!("the swarm does not end within {ENDING:?}"));
        timeout(ENDING, stopped).await.map_err(late)??;
        let left = self.tasks.shutdown(ENDING).await;
        if !left.is_empty() {
            return Err(Fault::new("a process of the swarm does not end"));
        }
        self.check()
    }
}

/// Does something in this process and has all parts do it; the first failure ends it.
async fn in_all(
    parts: &[Part],
    failure: &Failure,
    command: Command,
    own: impl Future<Output = Outcome>,
) -> Outcome {
    let all = async {
        let mut told = Vec::new();
        for part in parts {
            told.push(part.tell(command).await);
        }
        own.await?;
        for done in told {
            if done.await.is_err() {
                // Its failure is on its way.
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    };
    let mut failed = failure.subscribe();
    tokio::select! {
        biased;
        Ok(why) = failed.wait_for(Option::is_some) => {
            Err(Fault::new(why.clone().unwrap_or_default()))
        }
        done = all => done,
    }
}

/// How many processes there will be.
fn processes(params: &Params) -> Outcome<usize> {
    let fit = room::raise(params.agents);
    if fit == 0 && params.agents > 0 {
        return Err(Fault::new(
            "the limit of open files (ulimit -Hn) is not enough for one agent",
        ));
    }
    let needed = params.agents.div_ceil(fit.max(1)).max(1);
    let most = PROCESSES_MAX.min(params.agents.max(1));
    let chosen = params.processes.unwrap_or(needed).clamp(1, most);
    if chosen < needed {
        return Err(Fault::new(format!(
            "the limit of open files (ulimit -Hn) is enough for {fit} agents a process: {} need {needed} processes, \
             at most {most} are possible",
            params.agents
        )));
    }
    Ok(chosen)
}

/// The numbers of the agents of a process, which has a number too: as many in each, or one more.
fn share(agents: usize, processes: usize, process: usize) -> RangeInclusive<usize> {
    let up_to = |process: usize| agents * process / processes.max(1);
    up_to(process.saturating_sub(1)) + 1..=up_to(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_is_in_one_process_and_all_have_as_many() {
        for (agents, processes) in [(6, 3), (7, 3), (20_000, 13), (10, 1), (3, 3)] {
            let shares: Vec<_> = (1..=processes)
                .map(|process| share(agents, processes, process))
                .collect();
            let all: Vec<_> = shares.iter().cloned().flatten().collect();
            assert_eq!(all, (1..=agents).collect::<Vec<_>>());
            let sizes = || shares.iter().map(|share| share.clone().count());
            assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        }
    }
}
