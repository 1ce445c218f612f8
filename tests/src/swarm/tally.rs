//! What the agents of a swarm have counted, together.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Counts of all agents.
#[derive(Debug, Default)]
pub struct Tally {
    /// Enrolled, now or before.
    pub enrolled: AtomicUsize,
    /// With a session.
    pub connected: AtomicUsize,
    /// Sessions opened.
    pub sessions: AtomicU64,
    /// Reports of metrics stored in spools.
    pub reports: AtomicU64,
    /// Samples in them.
    pub samples: AtomicU64,
    /// Reports of metrics the collector has acknowledged.
    pub acked: AtomicU64,
    /// Reports that could not be stored.
    pub failed: AtomicU64,
    reporting: watch::Sender<Reporting>,
    waits: Mutex<Waits>,
    why_away: Mutex<String>,
}

impl Tally {
    /// A report was acknowledged that long after it was made.
    pub fn waited(&self, span: Duration) {
        self.acked.fetch_add(1, Ordering::Relaxed);
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.note(span);
    }

    /// The waits since the last call.
    pub fn take_waits(&self) -> Waits {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waits)
    }

    /// So many more agents' metrics were acknowledged for the first time since that mark. It counts unless there
    /// has been another one.
    pub fn reports_since(&self, mark: u64, agents: usize) {
        self.reporting.send_if_modified(|now| {
            if now.mark == mark {
                now.agents += agents;
            }
            // Who watches waits for marks.
            false
        });
    }

    /// Agents of which metrics were acknowledged since the last mark.
    pub fn reporting(&self) -> usize {
        self.reporting.borrow().agents
    }

    /// Counts from here on which agents report.
    pub fn mark(&self) {
        self.reporting.send_modify(|now| {
            *now = Reporting {
                mark: now.mark + 1,
                agents: 0,
            };
        });
    }

    /// The same as the mark of another process.
    pub fn mark_as(&self, mark: u64) {
        let agents = 0;
        self.reporting.send_replace(Reporting { mark, agents });
    }

    /// How many marks there were.
    pub fn marks(&self) -> u64 {
        self.reporting.borrow().mark
    }

    /// Changes with every mark.
    pub fn watch_marks(&self) -> watch::Receiver<Reporting> {
        self.reporting.subscribe()
    }

    /// All counts now.
    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            enrolled: self.enrolled.load(Ordering::Relaxed),
            connected: self.connected.load(Ordering::Relaxed),
            sessions: read(&self.sessions),
            reports: read(&self.reports),
            samples: read(&self.samples),
            acked: read(&self.acked),
            failed: read(&self.failed),
            reporting: *self.reporting.borrow(),
        }
    }

    /// Takes in what has become of the counts of another process.
    pub fn follow(&self, before: &Counts, after: &Counts) {
        // Atomics wrap, so what has become less is counted as well.
        let add = |count: &AtomicU64, before: u64, after: u64| {
            count.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        };
        let add_agents = |count: &AtomicUsize, before: usize, after: usize| {
            count.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        };
        add_agents(&self.enrolled, before.enrolled, after.enrolled);
        add_agents(&self.connected, before.connected, after.connected);
        add(&self.sessions, before.sessions, after.sessions);
        add(&self.reports, before.reports, after.reports);
        add(&self.samples, before.samples, after.samples);
        add(&self.acked, before.acked, after.acked);
        add(&self.failed, before.failed, after.failed);
        let new = if after.reporting.mark == before.reporting.mark {
            let known = before.reporting.agents;
            after.reporting.agents.saturating_sub(known)
        } else {
            after.reporting.agents
        };
        self.reports_since(after.reporting.mark, new);
    }

    /// Waits that another process has noted; what they were for stands in its counts.
    pub fn add_waits(&self, more: &Waits) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.add(more);
    }

    /// An agent has no session, for this.
    pub fn away(&self, why: &str) {
        let mut last = self.why_away.lock().unwrap_or_else(PoisonError::into_inner);
        why.clone_into(&mut last);
    }

    /// What the last agent without a session said.
    pub fn why_away(&self) -> String {
        let last = self.why_away.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }
}

/// Agents of which metrics were acknowledged since a mark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporting {
    /// How many marks there were.
    pub mark: u64,
    /// How many agents.
    pub agents: usize,
}

/// What stands in a [`Tally`] at a moment, as one process tells it another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub enrolled: usize,
    pub connected: usize,
    pub sessions: u64,
    pub reports: u64,
    pub samples: u64,
    pub acked: u64,
    pub failed: u64,
    pub reporting: Reporting,
}

/// Buckets a doubling of the wait.
const STEPS: u64 = 16;
/// Up to the longest wait there is.
const BUCKETS: usize = 976;

/// How many waits were how long, in the same space however many there are: exact below 32 ms, from there on in
/// sixteenths of each power of two.
#[derive(Debug, Clone)]
pub struct Waits {
    counts: Box<[u64; BUCKETS]>,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
        }
    }
}

impl Waits {
    /// One more.
    pub fn note(&mut self, span: Duration) {
        let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(ms)) {
            *count += 1;
        }
    }

    /// These as well.
    pub fn add(&mut self, others: &Self) {
        for (count, more) in self.counts.iter_mut().zip(others.counts.iter()) {
            *count += more;
        }
    }

    /// Buckets that are not empty, with what is in them.
    #[must_use]
    pub fn sparse(&self) -> Vec<(usize, u64)> {
        let counts = self.counts.iter().copied().enumerate();
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// From [`Waits::sparse`]; what is in no bucket there is, is left out.
    #[must_use]
    pub fn from_sparse(buckets: &[(usize, u64)]) -> Self {
        let mut waits = Self::default();
        for (bucket, more) in buckets {
            if let Some(count) = waits.counts.get_mut(*bucket) {
                *count += more;
            }
        }
        waits
    }

    /// The longest a wait in the quantile's bucket can be; nothing of none.
    #[must_use]
    pub fn quantile(&self, percent: u64) -> Duration {
        let all: u64 = self.counts.iter().sum();
        let place = (all * percent).div_ceil(100).max(1);
        let mut before = 0;
        let found = self.counts.iter().position(|count| {
            before += count;
            before >= place
        });
        found.map_or(Duration::ZERO, |bucket| {
            Duration::from_millis(longest(bucket))
        })
    }
}

fn bucket(ms: u64) -> usize {
    let doublings = u64::from(ms.max(STEPS).ilog2() - STEPS.ilog2());
    usize::try_from(doublings * STEPS + (ms >> doublings)).unwrap_or(usize::MAX)
}

fn longest(bucket: usize) -> u64 {
    let bucket = u64::try_from(bucket).unwrap_or(u64::MAX);
    let doublings = (bucket / STEPS).saturating_sub(1);
    ((bucket - doublings * STEPS + 1) << doublings).wrapping_sub(1)
}

/// A quantile of sorted values; nothing of none.
#[must_use]
pub fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_keep_their_quantiles_in_a_fixed_space() {
        let mut waits = Waits::default();
        assert_eq!(waits.quantile(99), Duration::ZERO);
        for ms in 1..=10_000 {
            waits.note(Duration::from_millis(ms));
        }
        for (percent, exact) in [(50, 5000.0), (99, 9900.0), (100, 10_000.0)] {
            let ratio = waits.quantile(percent).as_secs_f64() * 1000.0 / exact;
            assert!((1.0..1.07).contains(&ratio), "{percent}: {ratio}");
        }
        let mut few = Waits::default();
        few.note(Duration::from_millis(7));
        assert_eq!(few.quantile(50), Duration::from_millis(7));
        few.note(Duration::MAX);
        assert_eq!(few.quantile(100), Duration::from_millis(u64::MAX));
        waits.add(&Waits::from_sparse(&few.sparse()));
        assert_eq!(few.sparse().len(), 2);
        assert_eq!(waits.quantile(100), Duration::from_millis(u64::MAX));
    }

    #[test]
    fn a_tally_follows_the_counts_of_another_process() {
        let (whole, part) = (Tally::default(), Tally::default());
        whole.connected.store(3, Ordering::Relaxed);
        let mut before = part.counts();
        let mut told = |part: &Tally| {
            let after = part.counts();
            whole.follow(&before, &after);
            before = after;
        };
        part.connected.store(5, Ordering::Relaxed);
        part.waited(Duration::from_millis(1));
        part.reports_since(0, 2);
        told(&part);
        let connected = || whole.connected.load(Ordering::Relaxed);
        assert_eq!((connected(), whole.reporting()), (8, 2));
        part.connected.store(1, Ordering::Relaxed);
        part.reports_since(0, 1);
        told(&part);
        assert_eq!((connected(), whole.reporting()), (4, 3));
        assert_eq!(whole.acked.load(Ordering::Relaxed), 1);

        // What was acknowledged before the part knew of the mark does not count after it.
        whole.mark();
        part.reports_since(0, 1);
        told(&part);
        assert_eq!(whole.reporting(), 0);
        part.mark_as(whole.marks());
        part.reports_since(0, 1);
        part.reports_since(1, 4);
        told(&part);
        assert_eq!(whole.reporting(), 4);
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let waits: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&waits, 50), Duration::from_millis(100));
        assert_eq!(quantile(&waits, 99), Duration::from_millis(198));
        assert_eq!(quantile(&waits, 100), Duration::from_millis(200));
        assert_eq!(quantile(&[], 99), Duration::ZERO);
    }
}
