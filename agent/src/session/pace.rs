//! How often to reconnect, how much to send, how many jobs to take: arithmetic without clock or chance.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The first wait lies between nothing and this.
const FIRST: Duration = Duration::from_secs(1);
/// The first wait after a crash is that of so many failures and one more: up to four seconds.
const CRASHED: u32 = 2;
/// No wait grows beyond this.
const MOST: Duration = Duration::from_secs(60);
/// However long a collector says to stay away, the agent asks again after this.
const PATIENCE: Duration = Duration::from_secs(3600);
/// A session that held this long was a good one.
const SETTLED: Duration = Duration::from_secs(10);

/// Exponential backoff with full jitter, on top of what the collector asked for.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Of an agent that has just started. When the one before was killed or crashed, others may have been at the same
    /// moment, and all of them are back at once.
    pub(super) fn of_start(after_crash: bool) -> Self {
        Self {
            failures: if after_crash { CRASHED } else { 0 },
        }
    }

    /// How long to wait after one more failure. `chance` is between 0 and 1.
    pub(super) fn failed(&mut self, retry_after: Duration, chance: f64) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(16)).min(MOST);
        self.failures = self.failures.saturating_add(1);
        retry_after.min(PATIENCE) + ceiling.mul_f64(chance.clamp(0.0, 1.0))
    }

    /// Something held for `span`.
    pub(super) fn held(&mut self, span: Duration) {
        if span >= SETTLED {
            self.failures = 0;
        }
    }
}

/// No answer for this long after something was said: the path is dead, or as good as that. With a keep-alive's
/// interval before it and a handshake after it, an agent that had nothing to say is over TCP within ten seconds.
const SILENCE: Duration = Duration::from_secs(2);
/// Between two looks while nothing waits for an answer. Each wakes a program that else sleeps.
const LOOK: Duration = Duration::from_millis(1500);

/// Whether what is said on a connection is still answered: every answer moves the estimate of the round trip.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    rtt: Duration,
    asked: u64,
    unanswered_since: Option<Instant>,
}

impl Pulse {
    /// Looks once more; true when the path has been silent for too long. `asked` counts what wants an answer.
    pub(super) fn is_silent(&mut self, rtt: Duration, asked: u64, now: Instant) -> bool {
        if rtt != self.rtt {
            *self = Self {
                rtt,
                asked,
                unanswered_since: None,
            };
        } else if asked > self.asked && self.unanswered_since.is_none() {
            self.unanswered_since = Some(now);
        }
        self.unanswered_since
            .is_some_and(|since| now.saturating_duration_since(since) >= SILENCE)
    }

    /// How long until the next look: no longer than what waits for an answer may still take.
    pub(super) fn next_look(&self, now: Instant) -> Duration {
        self.unanswered_since.map_or(LOOK, |since| {
            (since + SILENCE).saturating_duration_since(now)
        })
    }
}

/// Dispatches the collector was told it may send and has not sent.
#[derive(Debug)]
pub(super) struct Grants(u32);

impl Grants {
    /// As the Hello said.
    pub(super) fn new(granted: u32) -> Self {
        Self(granted)
    }

    /// One came; `false`: it was not asked for.
    #[must_use]
    pub(super) fn used(&mut self) -> bool {
        let granted = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        granted
    }

    /// How many more to grant now that the agent has room for `room`.
    pub(super) fn top_up(&mut self, room: u32) -> Option<u32> {
        let more = room.saturating_sub(self.0);
        self.0 += more;
        (more > 0).then_some(more)
    }
}

/// Bytes sent and not yet committed, against what the collector allows.
#[derive(Debug)]
pub(super) struct Window {
    credit: u64,
    in_flight: u64,
    batches: VecDeque<(u64, u64)>,
}

impl Window {
    /// Nothing sent, `credit` bytes allowed.
    pub(super) fn new(credit: u64) -> Self {
        Self {
            credit,
            in_flight: 0,
            batches: VecDeque::new(),
        }
    }

    /// How many bytes may be sent now.
    pub(super) fn room(&self) -> u64 {
        self.credit.saturating_sub(self.in_flight)
    }

    /// Whether everything sent is committed.
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// A batch whose last record is `seq` was sent.
    pub(super) fn sent(&mut self, seq: u64, bytes: u64) {
        self.in_flight = self.in_flight.saturating_add(bytes);
        self.batches.push_back((seq, bytes));
    }

    /// Everything up to `seq` is committed, and the credit is this.
    pub(super) fn acked(&mut self, seq: u64, credit: u64) {
        while let Some((last, bytes)) = self.batches.front().copied() {
            if last > seq {
                break;
            }
            self.in_flight = self.in_flight.saturating_sub(bytes);
            self.batches.pop_front();
        }
        self.credit = credit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_jitter_and_fall_back() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.failed(Duration::ZERO, 0.0), Duration::ZERO);
        assert_eq!(backoff.failed(Duration::ZERO, 1.0), 2 * FIRST);
        for _ in 0..100 {
            assert!(backoff.failed(Duration::ZERO, 1.0) <= MOST);
        }
        assert_eq!(backoff.failed(Duration::ZERO, 0.5), MOST / 2);
        assert_eq!(
            backoff.failed(Duration::from_secs(5), 0.0),
            Duration::from_secs(5)
        );
        assert_eq!(backoff.failed(Duration::MAX, 0.0), PATIENCE);
        backoff.held(Duration::from_secs(1));
        assert_eq!(backoff.failed(Duration::ZERO, 1.0), MOST);
        backoff.held(SETTLED);
        assert_eq!(backoff.failed(Duration::ZERO, 1.0), FIRST);
    }

    #[test]
    fn a_path_is_silent_when_it_does_not_answer() {
        let start = nexus_runtime::clock::Clock::system().instant();
        let mut pulse = Pulse::default();
        let mut silent = |rtt_ms, asked, seconds| {
            let now = start + Duration::from_secs(seconds);
            pulse.is_silent(Duration::from_millis(rtt_ms), asked, now)
        };
        assert!(!silent(10, 5, 0));
        assert!(!silent(10, 5, 60), "nothing was said");
        assert!(!silent(10, 6, 61));
        assert!(!silent(11, 6, 62), "it was answered");
        assert!(!silent(11, 7, 63));
        assert!(!silent(11, 9, 64));
        assert!(silent(11, 9, 65));
        assert!(!silent(12, 9, 66), "it came back");
    }

    #[test]
    fn looks_are_rare_until_an_answer_is_due() {
        let start = nexus_runtime::clock::Clock::system().instant();
        let mut pulse = Pulse::default();
        let rtt = Duration::from_millis(10);
        assert!(!pulse.is_silent(rtt, 5, start));
        assert_eq!(pulse.next_look(start), LOOK);
        assert!(!pulse.is_silent(rtt, 6, start));
        let half = start + SILENCE / 2;
        assert!(!pulse.is_silent(rtt, 6, half));
        assert_eq!(pulse.next_look(half), SILENCE / 2);
        assert!(pulse.is_silent(rtt, 6, half + pulse.next_look(half)));
    }

    #[test]
    fn grants_never_exceed_the_room() {
        let mut grants = Grants::new(4);
        assert_eq!(grants.top_up(4), None);
        assert!(grants.used());
        assert_eq!(grants.top_up(3), None, "it runs");
        assert_eq!(grants.top_up(4), Some(1), "it ended");
        for _ in 0..4 {
            assert!(grants.used());
        }
        assert!(!grants.used(), "nobody asked for a fifth");
        assert_eq!(grants.top_up(2), Some(2));
    }

    #[test]
    fn the_window_closes_and_opens() {
        let mut window = Window::new(100);
        window.sent(3, 60);
        window.sent(5, 70);
        assert_eq!(window.room(), 0);
        window.acked(4, 100);
        assert_eq!(window.room(), 30);
        assert!(!window.is_empty());
        window.acked(5, 10);
        assert_eq!(window.room(), 10);
        assert!(window.is_empty());
    }
}
