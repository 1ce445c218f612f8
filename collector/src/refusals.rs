//! Strangers who were turned away: peers whose certificate was refused, calls without one, codes, tokens and
//! late renewals that did not hold. Each is a row of the audit chain and a line of the log, within limits, so that
//! nobody can fill the disk by knocking: what is left out is counted in the next row.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use nexus_proto::operator::v1::AuditRow;
use nexus_runtime::{clock::Clock, errors};
use nexus_store::Store;
use nexus_transport::Refused;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Refusals that wait to be written; more are only counted.
const WAITING: usize = 256;
/// Rows of one address, or of one /64 of IPv6, in [`WINDOW`].
const OF_ONE: u32 = 6;
/// Rows of all addresses in [`WINDOW`].
const OF_ALL: u32 = 120;
/// The time both count in.
const WINDOW: Duration = Duration::from_secs(60);

/// What a peer asked for whose certificate was refused.
const CONNECT: &str = "connect";

/// One who was turned away.
#[derive(Debug)]
struct Knock {
    action: &'static str,
    from: IpAddr,
    reason: String,
    request_id: String,
}

/// The way to the audit chain. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Refusals(mpsc::Sender<Knock>);

/// The other end.
#[derive(Debug)]
pub(crate) struct Book(mpsc::Receiver<Knock>);

impl Refusals {
    /// Both ends.
    pub(crate) fn new() -> (Self, Book) {
        let (knocks, book) = mpsc::channel(WAITING);
        (Self(knocks), Book(book))
    }

    /// Somebody without an identity asked for something in vain.
    pub(crate) fn note(
        &self,
        action: &'static str,
        from: IpAddr,
        reason: String,
        request_id: String,
    ) {
        let knock = Knock {
            action,
            from,
            reason,
            request_id,
        };
        if self.0.try_send(knock).is_err() {
            tracing::debug!("a refusal is left out of the audit chain: too many wait");
        }
    }

    /// Notes what a port's handshakes turned away.
    pub(crate) async fn of_port(self, mut refused: mpsc::Receiver<Refused>) {
        while let Some(refused) = refused.recv().await {
            self.note(CONNECT, refused.remote.ip(), refused.reason, String::new());
        }
    }
}

impl Book {
    /// Writes until shutdown.
    pub(crate) async fn keep(mut self, store: Store, clock: Clock, stop: CancellationToken) {
        let mut limiter = Limiter::default();
        loop {
            let knock = tokio::select! {
                () = stop.cancelled() => return,
                knock = self.0.recv() => knock,
            };
            let Some(knock) = knock else { return };
            let Some(left_out) = limiter.admit(knock.from, clock.instant()) else {
                continue;
            };
            // A port's own line says more.
            if knock.action != CONNECT {
                tracing::warn!(
                    action = knock.action, from = %knock.from, reason = knock.reason, left_out,
                    request_id = knock.request_id, "turned a stranger away"
                );
            }
            let detail = serde_json::json!({ "reason": knock.reason, "left_out": left_out });
            let row = AuditRow {
                time_ms: clock.now().as_ms(),
                actor: format!("anonymous:{}", knock.from),
                action: knock.action.to_owned(),
                decision: "refused".to_owned(),
                detail: detail.to_string(),
                request_id: knock.request_id,
                ..AuditRow::default()
            };
            if let Err(error) = store.audit(row).await {
                tracing::error!(error = %errors::chain(&error), "a refusal could not be written into the audit chain");
            }
        }
    }
}

/// Whom an address stands for: who has one address of IPv6 mostly has a /64 of them.
fn origin(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// Which refusals become rows.
#[derive(Debug, Default)]
struct Limiter {
    since: Option<Instant>,
    by_address: HashMap<IpAddr, u32>,
    all: u32,
    left_out: u64,
}

impl Limiter {
    /// How many were left out before this one; `None`: it is left out too.
    fn admit(&mut self, from: IpAddr, now: Instant) -> Option<u64> {
        let fresh = self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= WINDOW);
        if fresh {
            self.since = Some(now);
            self.by_address.clear();
            self.all = 0;
        }
        let from = origin(from);
        let of_one = self.by_address.get(&from).copied().unwrap_or(0);
        if of_one >= OF_ONE || self.all >= OF_ALL {
            self.left_out += 1;
            return None;
        }
        self.by_address.insert(from, of_one + 1);
        self.all += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_fill_the_chain_nor_can_many() {
        let start = Clock::system().instant();
        let from = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut limiter = Limiter::default();
        for _ in 0..OF_ONE {
            assert_eq!(limiter.admit(from(1), start), Some(0));
        }
        assert_eq!(limiter.admit(from(1), start), None);
        assert_eq!(limiter.admit(from(1), start), None);
        assert_eq!(
            limiter.admit(from(2), start),
            Some(2),
            "what was left out is told"
        );
        let rows = (0..=255).filter(|n| limiter.admit(from(*n), start).is_some());
        assert_eq!(u32::try_from(rows.count()).unwrap(), OF_ALL - OF_ONE - 1);
        assert!(limiter.admit(from(1), start + WINDOW).is_some());

        // A network of IPv6 is one address.
        let later = start + WINDOW * 2;
        let from = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, n]);
        let rows = (0..1000).filter(|n| limiter.admit(from(*n), later).is_some());
        assert_eq!(u32::try_from(rows.count()).unwrap(), OF_ONE);
    }
}
