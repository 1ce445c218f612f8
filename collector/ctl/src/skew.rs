//! How far this machine's clock and the collector's are apart.

use std::{fmt, time::Duration};

use nexus_proto::{operator::v1::WhoAmIRequest, time::Timestamp};

use crate::{
    connection::{Collector, fault},
    fault::Outcome,
    session::Session,
    when,
};

/// A difference of two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Skew {
    apart: Duration,
    ahead: bool,
}

impl Skew {
    /// By the collector's answer, whose way counts as difference.
    pub(crate) async fn ask(session: &Session, collector: &mut Collector) -> Outcome<Self> {
        let request = collector.request(WhoAmIRequest {});
        let answer = collector.client.who_am_i(request).await.map_err(fault)?;
        let theirs = Timestamp(answer.into_inner().time_ms);
        Ok(Self::of(session.now(), theirs))
    }

    fn of(ours: Timestamp, theirs: Timestamp) -> Self {
        let ahead = ours > theirs;
        let apart = if ahead {
            ours.since(theirs)
        } else {
            theirs.since(ours)
        };
        Self { apart, ahead }
    }

    /// Whether it is more than a program can put up with.
    pub(crate) fn exceeds(self, limit: Duration) -> bool {
        self.apart > limit
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.ahead { "ahead of" } else { "behind" };
        let apart = when::age(self.apart);
        write!(f, "this machine's clock is {apart} {word} the collector's")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_clock_is_ahead() {
        let (early, late) = (Timestamp(0), Timestamp(301_000));
        let limit = Duration::from_secs(300);
        assert!(Skew::of(early, late).exceeds(limit) && Skew::of(late, early).exceeds(limit));
        assert!(!Skew::of(Timestamp(1_000), late).exceeds(limit));
        assert_eq!(
            Skew::of(late, early).to_string(),
            "this machine's clock is 5m1s ahead of the collector's"
        );
    }
}
