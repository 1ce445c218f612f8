//! Frames on the socket between agent and helper: a length (u32, big endian) and a message.
//!
//! Whoever speaks there may be anybody: a length beyond the limit and bytes that are no message end the connection, and
//! memory grows with what has come, not with what was announced.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use nexus_proto::limits::HELPER_FRAME_BYTES;
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

const LENGTH_BYTES: usize = 4;
/// Room asked for at each read.
const READ_BYTES: usize = 8 * 1024;

/// A connection that cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The socket.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// It ended within a frame.
    #[error("the connection ended within a frame")]
    Cut,
    /// Longer than any frame.
    #[error("a frame has {0} bytes, at most {HELPER_FRAME_BYTES} are allowed")]
    Long(usize),
    /// No message.
    #[error("a frame holds no message")]
    Message(#[from] prost::DecodeError),
}

/// A connection that carries frames.
#[derive(Debug)]
pub(crate) struct Frames {
    stream: UnixStream,
    received: Received,
}

/// What has come and was not read yet.
#[derive(Debug, Default)]
pub(super) struct Received(BytesMut);

impl Frames {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Received::default(),
        }
    }

    /// The next message; `None` at the end. Cancel-safe.
    pub(crate) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        loop {
            if let Some(message) = self.received.message()? {
                return Ok(Some(message));
            }
            if self.stream.read_buf(self.received.room()).await? == 0 {
                return if self.received.0.is_empty() {
                    Ok(None)
                } else {
                    Err(FrameError::Cut)
                };
            }
        }
    }

    /// Sends one. Not cancel-safe: what was begun must be finished.
    pub(crate) async fn send<M: Message>(&mut self, message: &M) -> io::Result<()> {
        self.stream.write_all(&frame(message)).await
    }

    /// Sends one that is small and alone on its way.
    pub(crate) fn send_now<M: Message>(&self, message: &M) -> io::Result<()> {
        let frame = frame(message);
        if self.stream.try_write(&frame)? == frame.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

impl Received {
    /// The next message, if all of it has come.
    pub(super) fn message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        match split(&mut self.0)? {
            Some(frame) => Ok(Some(M::decode(frame)?)),
            None => Ok(None),
        }
    }

    /// Where more of it comes.
    pub(super) fn room(&mut self) -> &mut BytesMut {
        self.0.reserve(READ_BYTES);
        &mut self.0
    }

    /// Whether it takes no more memory than goes with so many bytes.
    pub(super) fn is_within(&self, bytes: usize) -> bool {
        self.0.capacity() <= 2 * (bytes + READ_BYTES)
    }
}

pub(super) fn frame<M: Message>(message: &M) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(LENGTH_BYTES + length);
    // A message that is too long is refused by the other side.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.put(message.encode_to_vec().as_slice());
    frame.freeze()
}

/// The first whole frame of what has come.
fn split(received: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    let Some(head) = received.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
    if length > HELPER_FRAME_BYTES {
        return Err(FrameError::Long(length));
    }
    if received.len() < LENGTH_BYTES + length {
        return Ok(None);
    }
    received.advance(LENGTH_BYTES);
    Ok(Some(received.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use nexus_proto::helper::v1::{ToHelper, to_helper::Kind};
    use proptest::prelude::*;

    use super::*;

    fn stop(reason: &str) -> ToHelper {
        ToHelper {
            kind: Some(Kind::Stop(nexus_proto::helper::v1::Stop {
                reason: reason.to_owned(),
                hurried: false,
            })),
        }
    }

    #[tokio::test]
    async fn messages_come_whole_however_they_are_cut() {
        let (mut one, two) = UnixStream::pair().unwrap();
        let mut frames = Frames::new(two);
        let mut bytes = frame(&stop("one")).to_vec();
        bytes.extend_from_slice(&frame(&stop("two")));
        for byte in bytes {
            one.write_all(&[byte]).await.unwrap();
        }
        drop(one);
        for reason in ["one", "two"] {
            let got: ToHelper = frames.next().await.unwrap().unwrap();
            assert_eq!(got, stop(reason));
        }
        assert!(frames.next::<ToHelper>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_or_cut_or_no_message_ends_the_connection() {
        for (bytes, expected) in [
            (vec![0xff, 0xff, 0xff, 0xff], "at most"),
            (vec![0, 0, 0, 9, 1], "within a frame"),
            (vec![0, 0], "within a frame"),
            (vec![0, 0, 0, 2, 0xff, 0xff], "no message"),
        ] {
            let (mut one, two) = UnixStream::pair().unwrap();
            one.write_all(&bytes).await.unwrap();
            drop(one);
            let error = Frames::new(two).next::<ToHelper>().await.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut received = BytesMut::from(bytes.as_slice());
            while let Ok(Some(frame)) = split(&mut received) {
                drop(ToHelper::decode(frame));
            }
        }
    }
}
