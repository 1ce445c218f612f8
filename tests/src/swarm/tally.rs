//! What the agents of a swarm have counted, together.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

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
    reporting: AtomicUsize,
    marks: AtomicU64,
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

    /// One more agent's metrics were acknowledged for the first time since the last mark.
    pub fn reports(&self) {
        self.reporting.fetch_add(1, Ordering::Relaxed);
    }

    /// Agents of which metrics were acknowledged since the last mark.
    pub fn reporting(&self) -> usize {
        self.reporting.load(Ordering::Relaxed)
    }

    /// Counts from here on which agents report.
    pub fn mark(&self) {
        self.marks.fetch_add(1, Ordering::Relaxed);
        self.reporting.store(0, Ordering::Relaxed);
    }

    /// How many marks there were.
    pub fn marks(&self) -> u64 {
        self.marks.load(Ordering::Relaxed)
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
        waits.add(&few);
        assert_eq!(waits.quantile(100), Duration::from_millis(u64::MAX));
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
