//! The handshakes of one transport: how many at a time, and whose ends when there are too many.
//!
//! Whoever connects and then says nothing must keep nobody out, so a newcomer is let in and the oldest handshake
//! ends instead: first one that has not spoken (a TCP client whose ClientHello is not in, a QUIC client at
//! an address it has not proved to be its own), else one that has been under way for as long as its transport
//! has patience. Only when there
//! is neither, as when a whole fleet connects at once, has the newcomer to wait or to leave: ending handshakes that get
//! on would let none finish. Once half of all are taken an address may have its share and no more, and
//! has to make room among its own.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// What counts as one address: of IPv6 the first 64 bits, since any machine may have all that follow.
pub(crate) fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// Why there is no place for a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// There are as many connections as may be.
    Connections,
    /// There are as many handshakes as may be.
    Handshakes,
    /// The address has its share of them.
    Address,
}

/// The handshakes under way. Clones are the same.
#[derive(Clone)]
pub(crate) struct HalfOpen {
    limit: usize,
    per_address: usize,
    patience: Duration,
    state: Arc<Mutex<State>>,
    freed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    next: u64,
    // Ids rise with time: the first of a set is the oldest.
    silent: BTreeSet<u64>,
    spoken: BTreeSet<u64>,
    by_origin: HashMap<IpAddr, BTreeSet<u64>>,
    entries: HashMap<u64, Entry>,
}

struct Entry {
    origin: IpAddr,
    since: Instant,
    end: CancellationToken,
}

impl HalfOpen {
    /// `patience`: for how long a handshake may be under way that got on, if newer ones want its place.
    pub(crate) fn new(limit: usize, per_address: usize, patience: Duration) -> Self {
        Self {
            limit,
            per_address,
            patience,
            state: Arc::default(),
            freed: Arc::default(),
        }
    }

    /// Resolves when a place may have become free.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Whether strangers at `address` should first prove that it is theirs.
    pub(crate) fn is_crowded(&self, address: IpAddr) -> bool {
        let state = self.state();
        let of_origin = state.by_origin.get(&origin(address));
        state.entries.len() >= self.limit / 8
            || of_origin.is_some_and(|ids| ids.len() >= self.per_address / 8)
    }

    /// A place for one more, if need be that of another.
    pub(crate) fn begin(&self, address: IpAddr, now: Instant) -> Result<Half, Full> {
        let origin = origin(address);
        let mut state = self.state();
        let taken = state.entries.len();
        let own = state.by_origin.get(&origin).map_or(0, BTreeSet::len);
        if own > 0 && own >= self.per_address && taken >= self.limit / 2 {
            let victim = state
                .oldest_of(origin, self.old(now))
                .ok_or(Full::Address)?;
            state.end(victim);
        } else if taken >= self.limit {
            let victim = state.oldest(self.old(now)).ok_or(Full::Handshakes)?;
            state.end(victim);
        }
        state.next += 1;
        let id = state.next;
        let end = CancellationToken::new();
        let entry = Entry {
            origin,
            since: now,
            end: end.clone(),
        };
        state.entries.insert(id, entry);
        state.silent.insert(id);
        state.by_origin.entry(origin).or_default().insert(id);
        drop(state);
        Ok(Half {
            all: self.clone(),
            id,
            end,
        })
    }

    /// Tells of a handshake whether it has been under way for too long.
    fn old(&self, now: Instant) -> impl Fn(&Entry) -> bool {
        let patience = self.patience;
        move |entry| now.saturating_duration_since(entry.since) >= patience
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn oldest(&self, old: impl Fn(&Entry) -> bool) -> Option<u64> {
        let silent = self.silent.first().copied();
        silent.or_else(|| {
            self.spoken
                .first()
                .copied()
                .filter(|id| self.entries.get(id).is_some_and(&old))
        })
    }

    fn oldest_of(&self, origin: IpAddr, old: impl Fn(&Entry) -> bool) -> Option<u64> {
        let ids = self.by_origin.get(&origin)?;
        let silent = ids.iter().find(|id| self.silent.contains(id)).copied();
        silent.or_else(|| {
            let first = ids.first().copied();
            first.filter(|id| self.entries.get(id).is_some_and(old))
        })
    }

    fn end(&mut self, id: u64) {
        if let Some(entry) = self.remove(id) {
            entry.end.cancel();
        }
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.silent.remove(&id);
        self.spoken.remove(&id);
        if let Some(ids) = self.by_origin.get_mut(&entry.origin) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_origin.remove(&entry.origin);
            }
        }
        Some(entry)
    }
}

/// One handshake. It is over when this is dropped.
pub(crate) struct Half {
    all: HalfOpen,
    id: u64,
    end: CancellationToken,
}

impl Half {
    /// Notes that the peer said what a client says first, from an address that is its own.
    pub(crate) fn spoke(&self) {
        let mut state = self.all.state();
        if state.silent.remove(&self.id) {
            state.spoken.insert(self.id);
        }
    }

    /// Waits until it has to end, for a newer one.
    pub(crate) async fn ended(&self) {
        self.end.cancelled().await;
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.all.state().remove(self.id);
        self.all.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn has_to_end(half: &Half) -> bool {
        half.end.is_cancelled()
    }

    #[test]
    fn the_oldest_that_says_nothing_makes_room() {
        let (all, now) = (HalfOpen::new(4, 4, PATIENCE), Instant::now());
        let mut halves: Vec<_> = (0..4)
            .map(|last| all.begin(address(last), now).unwrap())
            .collect();
        halves[0].spoke();
        for turn in 1..10 {
            halves.push(all.begin(address(9), now).unwrap());
            let ended = halves.iter().filter(|half| has_to_end(half)).count();
            assert_eq!(ended, turn);
        }
        assert!(!has_to_end(&halves[0]));
        drop(halves);
        assert!(all.state().entries.is_empty() && all.state().by_origin.is_empty());
    }

    #[test]
    fn handshakes_that_get_on_are_ended_only_when_they_take_long() {
        let (all, now) = (HalfOpen::new(2, 2, PATIENCE), Instant::now());
        let halves = [0, 1].map(|last| all.begin(address(last), now).unwrap());
        halves.iter().for_each(Half::spoke);
        assert!(matches!(all.begin(address(2), now), Err(Full::Handshakes)));
        let late = all.begin(address(2), now + PATIENCE).unwrap();
        assert!(has_to_end(&halves[0]) && !has_to_end(&halves[1]) && !has_to_end(&late));
    }

    #[test]
    fn an_address_makes_room_among_its_own_once_half_are_taken() {
        let (all, now) = (HalfOpen::new(8, 2, PATIENCE), Instant::now());
        let other = all.begin(address(1), now).unwrap();
        let own: Vec<_> = (0..3)
            .map(|_| all.begin(address(2), now).unwrap())
            .collect();
        let fourth = all.begin(address(2), now).unwrap();
        assert!(has_to_end(&own[0]));
        assert!(
            ![&other, &own[1], &own[2], &fourth]
                .into_iter()
                .any(has_to_end)
        );
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(
            origin(parse("2001:db8::1")),
            origin(parse("2001:db8::ffff:1"))
        );
        assert_ne!(
            origin(parse("2001:db8::1")),
            origin(parse("2001:db8:0:1::1"))
        );
        assert_eq!(origin(parse("::ffff:192.0.2.1")), address(1));
    }

    #[test]
    fn crowding_begins_long_before_the_limit() {
        let (all, now) = (HalfOpen::new(64, 16, PATIENCE), Instant::now());
        assert!(!all.is_crowded(address(1)));
        let _two = [0, 1].map(|_| all.begin(address(1), now).unwrap());
        assert!(all.is_crowded(address(1)) && !all.is_crowded(address(2)));
        let _eight: Vec<_> = (10..18)
            .map(|last| all.begin(address(last), now).unwrap())
            .collect();
        assert!(all.is_crowded(address(2)));
    }
}
