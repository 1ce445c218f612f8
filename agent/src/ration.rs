//! How often something is told that anybody can cause.

use std::time::Duration;

use nexus_proto::time::Timestamp;

/// As many in a row as anybody reads.
const BURST: u32 = 20;
const SPAN: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Ration {
    begun: Timestamp,
    given: u32,
    withheld: u64,
}

impl Ration {
    /// Whether one more is stored, and how many were not since the last one that was.
    pub(crate) fn take(&mut self, now: Timestamp) -> Option<u64> {
        // A clock that went back begins anew as well.
        if now < self.begun || now >= self.begun.after(SPAN) {
            self.begun = now;
            self.given = 0;
        }
        if self.given >= BURST {
            self.withheld += 1;
            return None;
        }
        self.given += 1;
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_withheld_is_counted() {
        let mut ration = Ration::default();
        let start = Timestamp(1_700_000_000_000);
        for _ in 0..BURST {
            assert_eq!(ration.take(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(ration.take(start.after(SPAN / 2)), None);
        }
        assert_eq!(ration.take(start.after(SPAN)), Some(7));
        assert_eq!(ration.take(start), Some(0), "the clock was set back");
    }
}
