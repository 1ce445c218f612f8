//! Lends quinn's streams to the HTTP/3 library, guarded.
//!
//! - What a request stream carries outside of DATA is bounded by [`Preface`]; a control or QPACK stream,
//!   which never carries DATA, may bring as many bytes in all.
//! - A stream that ends within a frame ends its connection, as RFC 9114 asks (section 7.1): the library would
//!   go on as if the frame were whole, and then find that it is not. So does one refused stream too many.
//! - A stream half dropped before its end is reset, never finished by accident: half a request or
//!   response must not look like a whole one.
//! - [`Watch`] tells the two things the library does not: that the peer has opened its control stream
//!   (so it has accepted us), and that it gave up reading a stream.
//!
//! Reads go straight to quinn: its `read_chunk` keeps no state between polls, so neither a box a read nor a
//! stream that is away while a read is pending is needed.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h3::{
    error::Code,
    quic::{
        self, ConnectionErrorIncoming as ConnectionFault, StreamErrorIncoming as StreamFault,
        StreamId, WriteBuf,
    },
};
use nexus_proto::limits;
use quinn::{ConnectionError, VarInt};
use tokio_util::sync::CancellationToken;

use crate::preface::{Exceeded, Preface};

/// Done when the peer gave up reading a stream of ours.
pub(crate) type Stopped = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the adapter saw of one connection.
pub(crate) struct Watch {
    connection: quinn::Connection,
    /// Cancelled once the peer has opened a unidirectional stream, which a server does after admission.
    pub(crate) heard: CancellationToken,
    /// Streams refused for what they carried outside of DATA.
    pub(crate) refused: AtomicU64,
    /// Of the call accepted last, until it is taken.
    stopped: Mutex<Option<Stopped>>,
}

impl Watch {
    pub(crate) fn new(connection: &quinn::Connection) -> Arc<Self> {
        Arc::new(Self {
            connection: connection.clone(),
            heard: CancellationToken::new(),
            refused: AtomicU64::new(0),
            stopped: Mutex::new(None),
        })
    }

    /// Counts a stream that was refused; the connection ends with the last one it may have.
    fn refuse(&self) {
        let before = self.refused.fetch_add(1, Ordering::Relaxed);
        if before + 1 >= limits::REFUSED_STREAMS {
            self.close(Code::H3_EXCESSIVE_LOAD, b"too many streams were refused");
        }
    }

    fn close(&self, code: Code, reason: &[u8]) {
        self.connection.close(varint(code.value()), reason);
    }

    /// Tells when the peer gives up reading the answer of the call that was accepted last.
    pub(crate) fn take_stopped(&self) -> Option<Stopped> {
        self.stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, ConnectionError>> + Send + Sync>>;
type Halves = (quinn::SendStream, quinn::RecvStream);

/// A QUIC connection as the HTTP/3 library wants it.
pub(crate) struct Wire {
    opener: Opener,
    accepting_bi: Option<Boxed<Halves>>,
    accepting_uni: Option<Boxed<quinn::RecvStream>>,
}

/// Opens streams on a connection.
pub(crate) struct Opener {
    connection: quinn::Connection,
    watch: Arc<Watch>,
    opening_bi: Option<Boxed<Halves>>,
    opening_uni: Option<Boxed<quinn::SendStream>>,
}

impl Wire {
    pub(crate) fn new(connection: quinn::Connection, watch: Arc<Watch>) -> Self {
        let opener = Opener {
            connection,
            watch,
            opening_bi: None,
            opening_uni: None,
        };
        Self {
            opener,
            accepting_bi: None,
            accepting_uni: None,
        }
    }
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        Self {
            connection: self.connection.clone(),
            watch: Arc::clone(&self.watch),
            opening_bi: None,
            opening_uni: None,
        }
    }
}

/// Polls the future in `slot`, made anew when there is none, and clears the slot when it is done.
fn poll_slot<T>(
    slot: &mut Option<Boxed<T>>,
    make: impl FnOnce() -> Boxed<T>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, ConnectionError>> {
    let done = ready!(slot.get_or_insert_with(make).as_mut().poll(cx));
    *slot = None;
    Poll::Ready(done)
}

impl quic::Connection<Bytes> for Wire {
    type RecvStream = Recv;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionFault>> {
        let connection = &self.opener.connection;
        let accept = || -> Boxed<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.accept_uni().await })
        };
        let stream =
            ready!(poll_slot(&mut self.accepting_uni, accept, cx)).map_err(connection_fault)?;
        self.opener.watch.heard.cancel();
        Poll::Ready(Ok(Recv::new(
            stream,
            Bound::Total(limits::PREFACE_BYTES),
            &self.opener.watch,
        )))
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionFault>> {
        let connection = &self.opener.connection;
        let accept = || -> Boxed<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.accept_bi().await })
        };
        let halves =
            ready!(poll_slot(&mut self.accepting_bi, accept, cx)).map_err(connection_fault)?;
        let watch = &self.opener.watch;
        let bidi = Bidi::new(halves, watch);
        *watch.stopped.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Box::pin(bidi.stopped()));
        Poll::Ready(Ok(bidi))
    }

    fn opener(&self) -> Self::OpenStreams {
        self.opener.clone()
    }
}

impl quic::OpenStreams<Bytes> for Wire {
    type BidiStream = Bidi;
    type SendStream = SendHalf;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, StreamFault>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendHalf, StreamFault>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Bidi;
    type SendStream = SendHalf;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, StreamFault>> {
        let connection = &self.connection;
        let open = || -> Boxed<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.open_bi().await })
        };
        let halves = ready!(poll_slot(&mut self.opening_bi, open, cx)).map_err(lost)?;
        Poll::Ready(Ok(Bidi::new(halves, &self.watch)))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendHalf, StreamFault>> {
        let connection = &self.connection;
        let open = || -> Boxed<_> {
            let connection = connection.clone();
            Box::pin(async move { connection.open_uni().await })
        };
        let stream = ready!(poll_slot(&mut self.opening_uni, open, cx)).map_err(lost)?;
        // Control and QPACK streams live as long as their connection and end with it.
        Poll::Ready(Ok(SendHalf {
            stream,
            writing: None,
            reset_on_drop: false,
        }))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(varint(code.value()), reason);
    }
}

/// A call's stream, both ways.
pub(crate) struct Bidi {
    send: SendHalf,
    recv: Recv,
}

impl Bidi {
    fn new((send, recv): Halves, watch: &Arc<Watch>) -> Self {
        Self {
            send: SendHalf {
                stream: send,
                writing: None,
                reset_on_drop: true,
            },
            recv: Recv::new(
                recv,
                Bound::Frames(Preface::new(limits::PREFACE_BYTES)),
                watch,
            ),
        }
    }

    /// Done when the peer gave up reading what we send.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.send.stream.stopped();
        async move {
            match stopped.await {
                Ok(Some(_)) | Err(_) => {}
                // Finished and acknowledged: nothing is left to be given up.
                Ok(None) => std::future::pending().await,
            }
        }
    }
}

impl quic::BidiStream<Bytes> for Bidi {
    type SendStream = SendHalf;
    type RecvStream = Recv;

    fn split(self) -> (SendHalf, Recv) {
        (self.send, self.recv)
    }
}

impl quic::RecvStream for Bidi {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamFault>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl quic::SendStream<Bytes> for Bidi {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamFault>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamFault> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamFault>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

/// The sending half of a stream.
pub(crate) struct SendHalf {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    reset_on_drop: bool,
}

impl quic::SendStream<Bytes> for SendHalf {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamFault>> {
        if let Some(data) = &mut self.writing {
            while data.has_remaining() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk()))
                    .map_err(write_fault)?;
                data.advance(written);
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamFault> {
        if self.writing.is_some() {
            return Err(StreamFault::Unknown(
                "a frame was begun within another".into(),
            ));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamFault>> {
        self.reset_on_drop = false;
        Poll::Ready(
            self.stream
                .finish()
                .map_err(|fault| StreamFault::Unknown(fault.into())),
        )
    }

    fn reset(&mut self, code: u64) {
        self.reset_on_drop = false;
        // An error says the stream has ended already.
        self.stream.reset(varint(code)).ok();
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if self.reset_on_drop {
            self.stream
                .reset(varint(Code::H3_REQUEST_CANCELLED.value()))
                .ok();
        }
    }
}

/// How much a stream may carry outside of DATA.
enum Bound {
    Frames(Preface),
    Total(usize),
}

/// The receiving half of a stream.
pub(crate) struct Recv {
    stream: quinn::RecvStream,
    bound: Bound,
    watch: Arc<Watch>,
}

impl Recv {
    fn new(stream: quinn::RecvStream, bound: Bound, watch: &Arc<Watch>) -> Self {
        Self {
            stream,
            bound,
            watch: Arc::clone(watch),
        }
    }

    fn check(&mut self, bytes: &[u8]) -> Result<(), Exceeded> {
        match &mut self.bound {
            Bound::Frames(preface) => preface.observe(bytes),
            Bound::Total(left) => {
                let limit = limits::PREFACE_BYTES.try_into().unwrap_or(u64::MAX);
                *left = left.checked_sub(bytes.len()).ok_or(Exceeded { limit })?;
                Ok(())
            }
        }
    }
}

impl quic::RecvStream for Recv {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamFault>> {
        let chunk = ready!(pin!(self.stream.read_chunk(usize::MAX, true)).poll(cx));
        let Some(chunk) = chunk.map_err(read_fault)? else {
            if let Bound::Frames(preface) = &self.bound
                && !preface.is_between_frames()
            {
                let reason = "a stream ended within a frame";
                self.watch.close(Code::H3_FRAME_ERROR, reason.as_bytes());
                return Poll::Ready(Err(StreamFault::Unknown(reason.into())));
            }
            return Poll::Ready(Ok(None));
        };
        if let Err(exceeded) = self.check(&chunk.bytes) {
            self.watch.refuse();
            self.stop_sending(Code::H3_EXCESSIVE_LOAD.value());
            return Poll::Ready(Err(StreamFault::Unknown(exceeded.into())));
        }
        Poll::Ready(Ok(Some(chunk.bytes)))
    }

    fn stop_sending(&mut self, code: u64) {
        // An error says the stream has ended already.
        self.stream.stop(varint(code)).ok();
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

fn varint(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}

fn stream_id(id: quinn::StreamId) -> StreamId {
    let id = VarInt::from(id).into_inner();
    id.try_into()
        .expect("quinn's stream ids are below 2^62, as the library's are")
}

fn connection_fault(error: ConnectionError) -> ConnectionFault {
    match error {
        ConnectionError::ApplicationClosed(close) => ConnectionFault::ApplicationClose {
            error_code: close.error_code.into_inner(),
        },
        ConnectionError::TimedOut => ConnectionFault::Timeout,
        other => ConnectionFault::Undefined(Arc::new(other)),
    }
}

fn lost(error: ConnectionError) -> StreamFault {
    StreamFault::ConnectionErrorIncoming {
        connection_error: connection_fault(error),
    }
}

fn read_fault(error: quinn::ReadError) -> StreamFault {
    match error {
        quinn::ReadError::Reset(code) => StreamFault::StreamTerminated {
            error_code: code.into_inner(),
        },
        quinn::ReadError::ConnectionLost(error) => lost(error),
        other => StreamFault::Unknown(other.into()),
    }
}

fn write_fault(error: quinn::WriteError) -> StreamFault {
    match error {
        quinn::WriteError::Stopped(code) => StreamFault::StreamTerminated {
            error_code: code.into_inner(),
        },
        quinn::WriteError::ConnectionLost(error) => lost(error),
        other => StreamFault::Unknown(other.into()),
    }
}
