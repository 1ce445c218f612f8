//! What a run of the helper has to tell and its agent has not taken yet: the process it became, its output, its end.
//!
//! Output is held within a bound; beyond it the program waits until the agent takes some, as at any full pipe. One
//! agent follows a run at a time: whoever comes later begins where the one before stopped, and that one is done.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use nexus_proto::{
    limits::{HELPER_OUTPUT_BYTES, HELPER_PIECES, OUTPUT_PIECE_BYTES},
    record::{Finished, OutputStream},
};
use tokio::sync::{Notify, watch};

use crate::exec::{Identity, Piece};

/// What is still in the pipes when a program has ended is held as well: a pipe's worth each, and what was being gathered.
const REST_BYTES: usize = 4 * OUTPUT_PIECE_BYTES;

#[derive(Debug)]
pub(super) struct Shelf {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    room: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// Of the pieces, those that are on their way to the follower.
    sent: usize,
    /// Streams of which nothing more is wanted, and bytes that were held and not wanted.
    refused: [bool; 2],
    unwanted: [u64; 2],
    identity: Option<Identity>,
    ending: Option<(Finished, Instant)>,
    follower: u64,
}

/// What a follower gets next.
#[derive(Debug)]
pub(super) enum Next {
    Began(Identity),
    Piece(Piece),
    /// All of it was taken, and it is over.
    Over(Finished),
    /// Something, later.
    Nothing,
    /// Somebody else follows now.
    Superseded,
}

/// What somebody who follows a run has seen of it.
#[derive(Debug)]
pub(super) struct Follower {
    number: u64,
    began: bool,
    pub(super) changes: watch::Receiver<u64>,
}

impl Shelf {
    pub(super) fn new() -> Self {
        Self {
            inner: Mutex::default(),
            changed: watch::Sender::new(0),
            room: Notify::new(),
        }
    }

    /// Follows it from now on, from the first piece that was not taken.
    pub(super) fn follow(&self) -> Follower {
        let changes = self.changed.subscribe();
        let mut inner = self.inner();
        inner.sent = 0;
        inner.follower += 1;
        let number = inner.follower;
        drop(inner);
        self.tell();
        Follower {
            number,
            began: false,
            changes,
        }
    }

    pub(super) fn begin(&self, identity: Identity) {
        self.inner().identity = Some(identity);
        self.tell();
    }

    /// Takes a piece of output; `false`: there is no room, or nobody wants it.
    pub(super) fn put(&self, piece: Piece) -> bool {
        let mut inner = self.inner();
        let full = inner.bytes + piece.data.len() > HELPER_OUTPUT_BYTES + REST_BYTES;
        if full || inner.is_refused(piece.stream) {
            return false;
        }
        inner.bytes += piece.data.len();
        inner.pieces.push_back(piece);
        drop(inner);
        self.tell();
        true
    }

    pub(super) fn is_full(&self) -> bool {
        self.inner().bytes >= HELPER_OUTPUT_BYTES
    }

    pub(super) async fn room(&self) {
        self.room.notified().await;
    }

    /// It is over.
    pub(super) fn end(&self, finished: Finished, now: Instant) {
        self.inner().ending = Some((finished, now));
        self.tell();
    }

    /// When it ended; `None`: it has not.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.inner().ending.as_ref().map(|(_, at)| *at)
    }

    /// Bytes of stdout and stderr that were not taken yet.
    pub(super) fn untaken(&self) -> [u64; 2] {
        let inner = self.inner();
        let mut bytes = [0, 0];
        for piece in &inner.pieces {
            add(&mut bytes, piece);
        }
        bytes
    }

    /// What a follower has not seen yet.
    pub(super) fn next(&self, follower: &mut Follower) -> Next {
        let mut inner = self.inner();
        if inner.follower != follower.number {
            return Next::Superseded;
        }
        if let Some(identity) = inner.identity
            && !follower.began
        {
            follower.began = true;
            return Next::Began(identity);
        }
        if inner.drop_unwanted() {
            self.room.notify_one();
        }
        if inner.sent < HELPER_PIECES
            && let Some(piece) = inner.pieces.get(inner.sent).cloned()
        {
            inner.sent += 1;
            return Next::Piece(piece);
        }
        match &inner.ending {
            Some((finished, _)) if inner.pieces.is_empty() => {
                let mut finished = finished.clone();
                let [stdout, stderr] = inner.unwanted;
                finished.stdout_dropped_bytes += stdout;
                finished.stderr_dropped_bytes += stderr;
                Next::Over(finished)
            }
            _ => Next::Nothing,
        }
    }

    /// The first piece on its way has arrived; `false`: there is none.
    pub(super) fn taken(&self, follower: &Follower, refused: bool) -> bool {
        let mut inner = self.inner();
        if inner.follower != follower.number || inner.sent == 0 {
            return false;
        }
        let Some(piece) = inner.pieces.pop_front() else {
            return false;
        };
        inner.sent -= 1;
        inner.bytes -= piece.data.len();
        if refused {
            add(&mut inner.unwanted, &piece);
            *stream_of(&mut inner.refused, piece.stream) = true;
        }
        drop(inner);
        self.room.notify_one();
        self.tell();
        true
    }

    fn tell(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_refused(&self, stream: OutputStream) -> bool {
        let [stdout, stderr] = self.refused;
        match stream {
            OutputStream::Stdout => stdout,
            OutputStream::Stderr => stderr,
        }
    }

    /// Lets go of what was held of a stream before nobody wanted it any more; whether there was any.
    fn drop_unwanted(&mut self) -> bool {
        let held = self.bytes;
        if self.refused == [false, false] {
            return false;
        }
        while let Some(piece) = self.pieces.get(self.sent)
            && self.is_refused(piece.stream)
        {
            if let Some(piece) = self.pieces.remove(self.sent) {
                self.bytes -= piece.data.len();
                add(&mut self.unwanted, &piece);
            }
        }
        self.bytes < held
    }
}

fn stream_of<T>([stdout, stderr]: &mut [T; 2], stream: OutputStream) -> &mut T {
    match stream {
        OutputStream::Stdout => stdout,
        OutputStream::Stderr => stderr,
    }
}

fn add(bytes: &mut [u64; 2], piece: &Piece) {
    *stream_of(bytes, piece.stream) += u64::try_from(piece.data.len()).unwrap_or(u64::MAX);
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use bytes::Bytes;
    use nexus_proto::{
        ids::{JobId, RunKey},
        record::RunOutcome,
        time::Timestamp,
    };
    use nexus_runtime::clock::Clock;

    use super::*;

    fn piece(stream: OutputStream, offset: u64, data: &'static [u8]) -> Piece {
        Piece {
            stream,
            offset,
            data: Bytes::from_static(data),
        }
    }

    fn finished() -> Finished {
        Finished {
            run: RunKey::once(JobId::random()),
            outcome: RunOutcome::Exited,
            exit_code: Some(0),
            signal: None,
            reason: String::new(),
            stdout_bytes: 3,
            stderr_bytes: 0,
            stdout_dropped_bytes: 0,
            stderr_dropped_bytes: 0,
            started: Timestamp(0),
            finished: Timestamp(1),
        }
    }

    fn offset(shelf: &Shelf, follower: &mut Follower) -> u64 {
        match shelf.next(follower) {
            Next::Piece(piece) => piece.offset,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn whoever_follows_later_begins_at_what_was_not_taken() {
        let shelf = Shelf::new();
        for offset in 0..3 {
            assert!(shelf.put(piece(OutputStream::Stdout, offset, b"x")));
        }
        shelf.end(finished(), Clock::system().instant());
        let mut one = shelf.follow();
        assert_eq!(offset(&shelf, &mut one), 0);
        assert_eq!(offset(&shelf, &mut one), 1);
        assert!(shelf.taken(&one, false));
        let mut two = shelf.follow();
        assert!(matches!(shelf.next(&mut one), Next::Superseded));
        assert!(!shelf.taken(&one, false));
        assert_eq!(offset(&shelf, &mut two), 1);
        assert_eq!(offset(&shelf, &mut two), 2);
        // Nothing ends before its output was taken.
        assert!(matches!(shelf.next(&mut two), Next::Nothing));
        assert!(shelf.taken(&two, false) && shelf.taken(&two, false));
        assert!(!shelf.taken(&two, false), "nothing was on its way");
        assert!(matches!(shelf.next(&mut two), Next::Over(f) if f.stdout_dropped_bytes == 0));
    }

    #[test]
    fn what_is_not_wanted_is_counted() {
        let shelf = Shelf::new();
        shelf.put(piece(OutputStream::Stdout, 0, b"ab"));
        shelf.put(piece(OutputStream::Stderr, 0, b"e"));
        shelf.put(piece(OutputStream::Stdout, 2, b"cde"));
        let mut follower = shelf.follow();
        offset(&shelf, &mut follower);
        assert!(shelf.taken(&follower, true));
        assert!(!shelf.put(piece(OutputStream::Stdout, 5, b"f")));
        assert!(
            matches!(shelf.next(&mut follower), Next::Piece(p) if p.stream == OutputStream::Stderr)
        );
        assert!(shelf.taken(&follower, false));
        shelf.end(finished(), Clock::system().instant());
        match shelf.next(&mut follower) {
            Next::Over(finished) => assert_eq!(
                (finished.stdout_dropped_bytes, finished.stderr_dropped_bytes),
                (5, 0)
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_waits_for_room_hears_of_what_is_dropped() {
        let shelf = Shelf::new();
        for offset in 0..3 {
            shelf.put(piece(OutputStream::Stdout, offset, b"x"));
        }
        let mut follower = shelf.follow();
        offset(&shelf, &mut follower);
        offset(&shelf, &mut follower);
        assert!(shelf.taken(&follower, true));
        let room = |shelf: &Shelf| {
            let mut nobody = Context::from_waker(Waker::noop());
            pin!(shelf.room()).poll(&mut nobody).is_ready()
        };
        assert!(room(&shelf));
        // What was on its way may be lost with the connection.
        let mut next = shelf.follow();
        assert!(matches!(shelf.next(&mut next), Next::Nothing));
        assert!(room(&shelf), "nobody took anything, and there is room");
        assert!(!room(&shelf));
    }

    #[test]
    fn no_more_is_held_or_on_its_way_than_may_be() {
        let shelf = Shelf::new();
        let data = Bytes::from(vec![b'x'; OUTPUT_PIECE_BYTES]);
        let mut count = 0;
        while shelf.put(Piece {
            stream: OutputStream::Stdout,
            offset: 0,
            data: data.clone(),
        }) {
            count += 1;
        }
        assert_eq!(count, HELPER_OUTPUT_BYTES / OUTPUT_PIECE_BYTES + 4);
        assert!(shelf.is_full());
        let mut follower = shelf.follow();
        for _ in 0..HELPER_PIECES {
            offset(&shelf, &mut follower);
        }
        assert!(matches!(shelf.next(&mut follower), Next::Nothing));
        let [stdout, _] = shelf.untaken();
        assert_eq!(stdout, u64::try_from(count * OUTPUT_PIECE_BYTES).unwrap());
    }
}
