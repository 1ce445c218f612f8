//! How many bytes an agent may have in flight on a lane.
//!
//! Additive increase, multiplicative decrease by how long commits take: quick commits widen the window step
//! by step up to its maximum, slow ones halve it down to one record of the largest size's worth. What does
//! not fit waits in the agents' spools, which is what they are for.

use std::time::Duration;

use nexus_proto::limits;

/// The least: one record must always fit.
const LEAST: u64 = limits::RECORD_BYTES as u64 / 8;
/// How much a quick commit adds.
const STEP: u64 = 64 * 1024;

/// One lane's window.
#[derive(Debug, Clone)]
pub(crate) struct Credit {
    window: u64,
    most: u64,
    target: Duration,
}

impl Credit {
    /// Starts in the middle, so that a crowd that comes back at once does not bring all it has.
    pub(crate) fn new(most: u64, target: Duration) -> Self {
        let most = most.max(LEAST);
        Self {
            window: (most / 2).max(LEAST),
            most,
            target,
        }
    }

    /// Bytes the agent may have sent without an ack.
    pub(crate) fn bytes(&self) -> u64 {
        self.window
    }

    /// Learns from one commit.
    pub(crate) fn committed_in(&mut self, latency: Duration) {
        self.window = if latency > self.target {
            (self.window / 2).max(LEAST)
        } else {
            self.window.saturating_add(STEP).min(self.most)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinks_when_slow_and_recovers() {
        let mut credit = Credit::new(1 << 20, Duration::from_millis(100));
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
        credit.committed_in(Duration::ZERO);
        assert!(credit.bytes() > LEAST);
    }
}
