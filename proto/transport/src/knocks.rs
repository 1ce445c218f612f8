//! How many of those who are refused are worth a line of the log: some a minute, whoever they are; the others are
//! counted in the next line, so that nobody fills a disk by knocking.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines in [`WINDOW`].
const LINES: u32 = 60;
/// The time they count in.
const WINDOW: Duration = Duration::from_secs(60);

/// Those of one port.
#[derive(Debug, Default)]
pub(crate) struct Knocks(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Knocks {
    /// How many were left out before this one; `None`: it is left out too.
    pub(crate) fn line(&self, now: Instant) -> Option<u64> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = counted
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= WINDOW);
        if fresh {
            counted.since = Some(now);
            counted.lines = 0;
        }
        if counted.lines >= LINES {
            counted.left_out += 1;
            return None;
        }
        counted.lines += 1;
        Some(std::mem::take(&mut counted.left_out))
    }
}

#[cfg(test)]
mod tests {
    use nexus_runtime::clock::Clock;

    use super::*;

    #[test]
    fn a_crowd_gets_a_minutes_lines_and_is_counted() {
        let start = Clock::system().instant();
        let knocks = Knocks::default();
        let lines = (0..1000).filter(|_| knocks.line(start).is_some());
        assert_eq!(u32::try_from(lines.count()).unwrap(), LINES);
        assert_eq!(knocks.line(start + WINDOW), Some(1000 - u64::from(LINES)));
        assert_eq!(knocks.line(start + WINDOW), Some(0));
    }
}
