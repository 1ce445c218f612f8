//! How a writer fares, for whoever watches.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A failure counts as lasting for this long, unless a commit works before; one that lasts is told again after it.
const FAILING: Duration = Duration::from_secs(60);

/// Failures of one writer.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failures: AtomicU64,
    last: Mutex<Option<Failure>>,
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    told: Instant,
    why: String,
}

impl Health {
    /// Notes a failure; whether it is to be told, or was told a moment ago.
    pub(crate) fn failed(&self, at: Instant, why: &str) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut last = self.last();
        let told = last
            .as_ref()
            .map(|last| last.told)
            .filter(|told| at.saturating_duration_since(*told) < FAILING);
        *last = Some(Failure {
            at,
            told: told.unwrap_or(at),
            why: why.to_owned(),
        });
        told.is_none()
    }

    /// Notes a success; whether it ends failures.
    pub(crate) fn worked(&self) -> bool {
        self.last().take().is_some()
    }

    /// Why the last attempt failed, if that was less than a minute before `now`.
    pub(crate) fn failing(&self, now: Instant) -> Option<String> {
        self.last()
            .as_ref()
            .filter(|last| now.saturating_duration_since(last.at) < FAILING)
            .map(|last| last.why.clone())
    }

    /// Whether the last attempt failed less than that before `now`.
    pub(crate) fn failed_within(&self, now: Instant, span: Duration) -> bool {
        self.last()
            .as_ref()
            .is_some_and(|last| now.saturating_duration_since(last.at) < span)
    }

    /// How many there were.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    fn last(&self) -> MutexGuard<'_, Option<Failure>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use nexus_runtime::clock::Clock;

    use super::*;

    #[test]
    fn a_failure_that_lasts_is_told_once_a_minute() {
        let start = Clock::system().instant();
        let health = Health::default();
        let told = (0..150)
            .map(|second| start + Duration::from_secs(second))
            .filter(|at| health.failed(*at, "full"));
        assert_eq!(told.count(), 3);
        assert_eq!(health.failures(), 150);
        assert_eq!(health.failing(start).as_deref(), Some("full"));
        assert!(health.worked() && !health.worked());
        assert_eq!(health.failing(start), None);
        assert!(health.failed(start, "full"));
    }
}
