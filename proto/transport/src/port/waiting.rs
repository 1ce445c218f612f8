//! Peers that wait for a handshake's place, when a whole fleet connects at once.
//!
//! A handshake that is begun and not finished in time is lost work for both sides, and its peer begins another: a
//! collector that began all of them at once would finish few. So those for which there is no place wait, first come,
//! first served, address by address in turn. Who has waited for so long that the peer is about to give up is sent away
//! unserved when its turn comes; that costs next to nothing.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use nexus_proto::limits::{HANDSHAKE_WAIT, HANDSHAKES_WAITING};
use tokio::time::Instant;

use crate::half_open::{Full, Half, origin};

/// What waits, by address.
pub(super) struct Waiting<T> {
    queues: HashMap<IpAddr, VecDeque<Entry<T>>>,
    /// Whose turn it is: every address of which something waits.
    turns: VecDeque<IpAddr>,
    len: usize,
}

struct Entry<T> {
    what: T,
    address: IpAddr,
    since: Instant,
}

/// What becomes of the next one.
pub(super) enum Turn<T> {
    /// It has its place.
    Begin(T, Half),
    /// There is no place for it, or it has waited too long.
    Leave(T),
}

impl<T> Waiting<T> {
    pub(super) fn new() -> Self {
        Self {
            queues: HashMap::new(),
            turns: VecDeque::new(),
            len: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Lets one wait; hands it back when too many do, of all or of its address.
    pub(super) fn push(&mut self, what: T, address: IpAddr, now: Instant) -> Result<(), T> {
        let origin = origin(address);
        let own = self.queues.get(&origin).map_or(0, VecDeque::len);
        if self.len >= HANDSHAKES_WAITING || own >= HANDSHAKES_WAITING / 2 {
            return Err(what);
        }
        if own == 0 {
            self.turns.push_back(origin);
        }
        self.len += 1;
        self.queues.entry(origin).or_default().push_back(Entry {
            what,
            address,
            since: now,
        });
        Ok(())
    }

    /// The next one that has a place, or has to leave; none while the others have to wait on.
    pub(super) fn next(
        &mut self,
        now: Instant,
        place: impl Fn(IpAddr) -> Result<Half, Full>,
    ) -> Option<Turn<T>> {
        for _ in 0..self.turns.len() {
            let origin = self.turns.pop_front()?;
            let first = self.queues.get(&origin).and_then(VecDeque::front)?;
            let late = now.saturating_duration_since(first.since) >= HANDSHAKE_WAIT;
            let place = if late {
                Err(Full::Connections)
            } else {
                place(first.address)
            };
            match place {
                Ok(half) => return self.take(origin).map(|what| Turn::Begin(what, half)),
                Err(Full::Connections) => return self.take(origin).map(Turn::Leave),
                Err(Full::Handshakes) => {
                    self.turns.push_front(origin);
                    return None;
                }
                Err(Full::Address) => self.turns.push_back(origin),
            }
        }
        None
    }

    /// The first of an address, whose turn comes again after that of all others.
    fn take(&mut self, origin: IpAddr) -> Option<T> {
        let queue = self.queues.get_mut(&origin)?;
        let entry = queue.pop_front()?;
        self.len -= 1;
        if queue.is_empty() {
            self.queues.remove(&origin);
        } else {
            self.turns.push_back(origin);
        }
        Some(entry.what)
    }
}

#[cfg(test)]
mod tests {
    use nexus_proto::limits::HANDSHAKE_PATIENCE_QUIC;

    use super::*;
    use crate::half_open::HalfOpen;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// Those that begin, in order.
    fn begun(waiting: &mut Waiting<u32>, places: &HalfOpen, now: Instant) -> Vec<(u32, Half)> {
        let mut begun = Vec::new();
        while let Some(turn) = waiting.next(now, |address| places.begin(address, now)) {
            match turn {
                Turn::Begin(what, half) => {
                    half.spoke();
                    begun.push((what, half));
                }
                Turn::Leave(what) => panic!("{what} had to leave"),
            }
        }
        begun
    }

    fn names(begun: &[(u32, Half)]) -> Vec<u32> {
        begun.iter().map(|(what, _)| *what).collect()
    }

    #[test]
    fn addresses_take_turns_and_each_is_served_in_order() {
        let now = Instant::now();
        let places = HalfOpen::new(4, 4, HANDSHAKE_PATIENCE_QUIC);
        let mut waiting = Waiting::new();
        for what in 0..5 {
            waiting.push(what, address(1), now).unwrap();
        }
        waiting.push(10, address(2), now).unwrap();
        let first = begun(&mut waiting, &places, now);
        assert_eq!(names(&first), [0, 10, 1, 2]);
        drop(first);
        assert_eq!(names(&begun(&mut waiting, &places, now)), [3, 4]);
        assert!(waiting.is_empty() && waiting.queues.is_empty() && waiting.turns.is_empty());
    }

    #[test]
    fn an_address_that_has_its_share_keeps_nobody_waiting() {
        let now = Instant::now();
        let places = HalfOpen::new(8, 4, HANDSHAKE_PATIENCE_QUIC);
        let mut waiting = Waiting::new();
        for what in 0..6 {
            waiting.push(what, address(1), now).unwrap();
        }
        let own = begun(&mut waiting, &places, now);
        assert_eq!(names(&own), [0, 1, 2, 3]);
        waiting.push(10, address(2), now).unwrap();
        let other = begun(&mut waiting, &places, now);
        assert_eq!(names(&other), [10]);
        assert!(!waiting.is_empty());
    }

    #[test]
    fn who_waited_too_long_leaves() {
        let now = Instant::now();
        let places = HalfOpen::new(4, 4, HANDSHAKE_PATIENCE_QUIC);
        let mut waiting = Waiting::new();
        waiting.push(1, address(1), now).unwrap();
        let late = now + HANDSHAKE_WAIT;
        waiting.push(2, address(1), late).unwrap();
        let mut next = || waiting.next(late, |address| places.begin(address, late));
        assert!(matches!(next(), Some(Turn::Leave(1))));
        assert!(matches!(next(), Some(Turn::Begin(2, _))));
        assert!(next().is_none());
    }

    #[test]
    fn no_more_wait_than_may() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        for last in 1..=2 {
            for what in 0..HANDSHAKES_WAITING / 2 {
                waiting.push(what, address(last), now).unwrap();
            }
            assert!(waiting.push(0, address(last), now).is_err());
        }
        assert!(waiting.push(0, address(3), now).is_err());
    }
}
