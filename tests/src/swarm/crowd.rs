//! The agents of a swarm that are in this process.

use std::{
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nexus_runtime::{clock::Clock, tasks::Tasks};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Params,
    host::{Host, Shape},
    member::{self, Running},
    tally::Tally,
};
use crate::fault::{Fault, Outcome};

/// Agents of a swarm that enrol at the same time.
const ENROLLING: usize = 32;

/// Those of some numbers.
#[derive(Debug)]
pub(super) struct Crowd {
    params: Params,
    numbers: RangeInclusive<usize>,
    shape: Arc<Shape>,
    tally: Arc<Tally>,
    tasks: Tasks,
    hang_up: CancellationToken,
    members: Vec<Running>,
    clock: Clock,
}

impl Crowd {
    pub(super) fn new(params: Params, numbers: RangeInclusive<usize>, shape: Arc<Shape>) -> Self {
        Self {
            params,
            numbers,
            shape,
            tally: Arc::default(),
            tasks: Tasks::new(),
            hang_up: CancellationToken::new(),
            members: Vec::new(),
            clock: Clock::system(),
        }
    }

    pub(super) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Has all of them join that have not.
    pub(super) async fn enrol(&self) -> Outcome {
        let at_once = ENROLLING / self.params.processes.unwrap_or(1).max(1);
        let mut joining = JoinSet::new();
        for number in self.numbers.clone() {
            if joining.len() >= at_once.max(1) {
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

    /// Starts them, each at its moment of the whole swarm's ramp.
    pub(super) async fn start(&mut self) -> Outcome {
        let begun = Instant::now();
        let count = u32::try_from(self.params.agents).unwrap_or(u32::MAX).max(1);
        for number in self.numbers.clone() {
            let place = u32::try_from(number.saturating_sub(1)).unwrap_or(u32::MAX);
            let offset = f64::from(place) / f64::from(count);
            sleep_until(begun + self.params.ramp.mul_f64(offset)).await;
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
    pub(super) async fn stop(&self) -> Outcome {
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
