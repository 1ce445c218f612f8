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
    waits: Mutex<Vec<u32>>,
    why_away: Mutex<String>,
}

impl Tally {
    /// A report was acknowledged that long after it was made.
    pub fn waited(&self, span: Duration) {
        self.acked.fetch_add(1, Ordering::Relaxed);
        let ms = u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.push(ms);
    }

    /// The waits since the last call, shortest first.
    pub fn take_waits(&self) -> Vec<Duration> {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waits = std::mem::take(&mut *waits);
        waits.sort_unstable();
        let waits = waits.into_iter();
        waits.map(|ms| Duration::from_millis(ms.into())).collect()
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
    fn quantiles_are_values_that_occurred() {
        let waits: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&waits, 50), Duration::from_millis(100));
        assert_eq!(quantile(&waits, 99), Duration::from_millis(198));
        assert_eq!(quantile(&waits, 100), Duration::from_millis(200));
        assert_eq!(quantile(&[], 99), Duration::ZERO);
    }
}
