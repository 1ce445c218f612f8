//! Output as it comes: gathered into pieces of at most 64 KiB, handed on within 200 ms, kept up to a limit.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nexus_proto::{limits::OUTPUT_PIECE_BYTES, record::OutputStream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{ChildStderr, ChildStdout},
    time::{Instant, sleep_until},
};

use super::{Piece, Sink};

const FLUSH_AFTER: Duration = Duration::from_millis(200);
/// Room asked for at each read; pipes hold 64 KiB.
const READ_BYTES: usize = 16 * 1024;

pub(super) struct Capture {
    stdout: Stream<ChildStdout>,
    stderr: Stream<ChildStderr>,
    keep: Keep,
}

struct Stream<P> {
    name: OutputStream,
    pipe: Option<P>,
    buffer: BytesMut,
    /// When the oldest byte in the buffer came.
    since: Option<Instant>,
    produced: u64,
    dropped: u64,
}

/// What both streams share.
struct Keep {
    left: u64,
    sink: Box<dyn Sink>,
}

impl Capture {
    pub(super) fn new(
        (stdout, stderr): (Option<ChildStdout>, Option<ChildStderr>),
        limit: u64,
        sink: Box<dyn Sink>,
    ) -> Self {
        Self {
            stdout: Stream::new(OutputStream::Stdout, stdout),
            stderr: Stream::new(OutputStream::Stderr, stderr),
            keep: Keep { left: limit, sink },
        }
    }

    /// Reads until both streams have ended; `polite`: not while there is no room. Nothing is lost when it is dropped
    /// before.
    pub(super) async fn pump(&mut self, polite: bool) {
        while self.stdout.pipe.is_some() || self.stderr.pipe.is_some() {
            let due = [self.stdout.since, self.stderr.since]
                .into_iter()
                .flatten()
                .min();
            let due = due.map(|since| since + FLUSH_AFTER);
            let full = polite && self.keep.sink.is_full();
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.flush(),
                () = self.keep.sink.room(), if full => {}
                () = self.stdout.read(), if !full && self.stdout.pipe.is_some() => {}
                () = self.stderr.read(), if !full && self.stderr.pipe.is_some() => {}
            }
            self.stdout.settle(&mut self.keep);
            self.stderr.settle(&mut self.keep);
        }
    }

    /// Hands on what is gathered.
    pub(super) fn flush(&mut self) {
        self.stdout.flush(&mut self.keep);
        self.stderr.flush(&mut self.keep);
    }

    pub(super) fn produced(&self) -> [u64; 2] {
        [self.stdout.produced, self.stderr.produced]
    }

    pub(super) fn dropped(&self) -> [u64; 2] {
        [self.stdout.dropped, self.stderr.dropped]
    }
}

impl<P: AsyncRead + Unpin> Stream<P> {
    fn new(name: OutputStream, pipe: Option<P>) -> Self {
        Self {
            name,
            pipe,
            buffer: BytesMut::new(),
            since: None,
            produced: 0,
            dropped: 0,
        }
    }

    async fn read(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return;
        };
        self.buffer.reserve(READ_BYTES);
        // An error of a pipe is its end.
        if pipe.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
            self.pipe = None;
        } else if self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    /// After a read: hands on a full piece, and what is left at the end of the stream.
    fn settle(&mut self, keep: &mut Keep) {
        if self.pipe.is_none() || self.buffer.len() >= OUTPUT_PIECE_BYTES {
            self.flush(keep);
        }
    }

    fn flush(&mut self, keep: &mut Keep) {
        self.since = None;
        let mut whole = self.buffer.split().freeze();
        while !whole.is_empty() {
            let data = whole.split_to(whole.len().min(OUTPUT_PIECE_BYTES));
            self.hand_on(data, keep);
        }
    }

    fn hand_on(&mut self, mut data: Bytes, keep: &mut Keep) {
        let offset = self.produced;
        let bytes = size(&data);
        self.produced += bytes;
        // Once something was dropped, what follows would stand behind a hole.
        let room = if self.dropped > 0 { 0 } else { keep.left };
        data.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let kept = size(&data);
        let piece = Piece {
            stream: self.name,
            offset,
            data,
        };
        if kept > 0 && keep.sink.take(piece) {
            keep.left -= kept;
            self.dropped += bytes - kept;
        } else {
            self.dropped += bytes;
        }
    }
}

fn size(data: &Bytes) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}
