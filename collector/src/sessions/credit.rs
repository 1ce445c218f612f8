//! How many bytes an agent may have in flight on a lane.
//!
//! Additive increase, multiplicative decrease by how long commits take: quick commits widen the window step
//! by step up to its maximum, slow ones halve it down to one record of the largest size's worth. What does
//! not fit waits in the agents' spools, which is what they are for.

use std::time::Duration;

use nexus_proto::limits;
use prometheus_client::metrics::gauge::Gauge;

/// The least: one record must always fit.
const LEAST: u64 = limits::RECORD_BYTES as u64 / 8;
/// How much a quick commit adds.
const STEP: u64 = 64 * 1024;

/// One lane's window.
#[derive(Debug)]
pub(crate) struct Credit {
    window: u64,
    most: u64,
    target: Duration,
    /// The sum of all windows.
    shown: Gauge,
}

impl Credit {
    /// Starts in the middle, so that a crowd that comes back at once does not bring all it has.
    pub(crate) fn new(most: u64, target: Duration, shown: Gauge) -> Self {
        let most = most.max(LEAST);
        let credit = Self {
            window: (most / 2).max(LEAST),
            most,
            target,
            shown,
        };
        credit.shown.inc_by(credit.level());
        credit
    }

    /// Bytes the agent may have sent without an ack.
    pub(crate) fn bytes(&self) -> u64 {
        self.window
    }

    /// Learns from one commit.
    pub(crate) fn committed_in(&mut self, latency: Duration) {
        self.shown.dec_by(self.level());
        self.window = if latency > self.target {
            (self.window / 2).max(LEAST)
        } else {
            self.window.saturating_add(STEP).min(self.most)
        };
        self.shown.inc_by(self.level());
    }

    fn level(&self) -> i64 {
        i64::try_from(self.window).unwrap_or(i64::MAX)
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.shown.dec_by(self.level());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinks_when_slow_and_recovers() {
        let shown = Gauge::default();
        let mut credit = Credit::new(1 << 20, Duration::from_millis(100), shown.clone());
        for _ in 0..20 {
            credit.committed_in(Duration::from_millis(1));
        }
        assert_eq!(credit.bytes(), 1 << 20);
        credit.committed_in(Duration::from_secs(1));
        assert_eq!(credit.bytes(), 1 << 19);
        for _ in 0..20 {
            credit.committed_in(Duration::from_secs(1));
        }
        assert_eq!(credit.bytes(), LEAST);
        let other = Credit::new(1 << 20, Duration::from_millis(100), shown.clone());
        assert_eq!(shown.get(), i64::try_from(LEAST + (1 << 19)).unwrap());
        drop(other);
        credit.committed_in(Duration::ZERO);
        assert!(credit.bytes() > LEAST);
        drop(credit);
        assert_eq!(shown.get(), 0);
    }
}
