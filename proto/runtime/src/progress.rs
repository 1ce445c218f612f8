//! Whether a program gets on with its work, for the watchdog of its service manager: each of its loops says when it will
//! be back, and one that is not back long after that is stuck, though the program as a whole still turns.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Of all loops. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Mutex<BTreeMap<&'static str, Instant>>>);

impl Progress {
    /// This loop is at work or waits, and will be back by then.
    pub fn due(&self, name: &'static str, at: Instant) {
        self.loops().insert(name, at);
    }

    /// This loop waits for what others do, for as long as that takes.
    pub fn rests(&self, name: &'static str) {
        self.loops().remove(name);
    }

    /// A loop that should have been back by `patience` before `now`.
    #[must_use]
    pub fn stuck(&self, now: Instant, patience: Duration) -> Option<&'static str> {
        let late = |due: &Instant| now.saturating_duration_since(*due) > patience;
        let loops = self.loops();
        let mut stuck = loops.iter().filter(|(_, due)| late(due));
        stuck.next().map(|(name, _)| *name)
    }

    fn loops(&self) -> MutexGuard<'_, BTreeMap<&'static str, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use nexus_proto::time::Timestamp;

    #[test]
    fn one_loop_that_does_not_come_back_is_stuck_whatever_the_others_do() {
        let clock = Clock::fixed(Timestamp(0));
        let (progress, second) = (Progress::default(), Duration::from_secs(1));
        let patience = 10 * second;
        assert_eq!(progress.stuck(clock.instant(), patience), None);
        progress.due("slow", clock.instant() + 60 * second);
        for _ in 0..70 {
            progress.due("quick", clock.instant() + second);
            assert_eq!(progress.stuck(clock.instant(), patience), None);
            clock.advance(second);
        }
        clock.advance(second);
        progress.due("quick", clock.instant() + second);
        assert_eq!(progress.stuck(clock.instant(), patience), Some("slow"));
        progress.rests("slow");
        assert_eq!(progress.stuck(clock.instant(), patience), None);
    }
}
