//! Bodies between tonic and HTTP/3 streams: messages as DATA frames, gRPC's status as trailers.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h3::error::{Code, StreamError};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tonic::Status;

use crate::{
    fault::status_of,
    h3_wire::{Recv, SendHalf},
};

/// The half of a call that receives, on either side.
pub(crate) trait Receive {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>>;
    fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, StreamError>>;
}

/// The half of a call that sends, on either side.
pub(crate) trait Transmit: Send {
    fn data(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), StreamError>> + Send;
    fn trailers(&mut self, map: HeaderMap) -> impl Future<Output = Result<(), StreamError>> + Send;
    fn finish(&mut self) -> impl Future<Output = Result<(), StreamError>> + Send;
    fn abort(&mut self);
}

macro_rules! halves {
    ($side:ident) => {
        impl Receive for h3::$side::RequestStream<Recv, Bytes> {
            fn poll_data(
                &mut self,
                cx: &mut Context<'_>,
            ) -> Poll<Result<Option<Bytes>, StreamError>> {
                let data = ready!(self.poll_recv_data(cx))?;
                Poll::Ready(Ok(data.map(|mut data| data.copy_to_bytes(data.remaining()))))
            }

            fn poll_trailers(
                &mut self,
                cx: &mut Context<'_>,
            ) -> Poll<Result<Option<HeaderMap>, StreamError>> {
                self.poll_recv_trailers(cx)
            }
        }

        impl Transmit for h3::$side::RequestStream<SendHalf, Bytes> {
            async fn data(&mut self, bytes: Bytes) -> Result<(), StreamError> {
                self.send_data(bytes).await
            }

            async fn trailers(&mut self, map: HeaderMap) -> Result<(), StreamError> {
                self.send_trailers(map).await
            }

            async fn finish(&mut self) -> Result<(), StreamError> {
                h3::$side::RequestStream::finish(self).await
            }

            fn abort(&mut self) {
                self.stop_stream(Code::H3_REQUEST_CANCELLED);
            }
        }
    };
}

halves!(client);
halves!(server);

/// What a call receives. `K` is kept for as long as the body is.
pub(crate) struct Incoming<R, K> {
    stream: R,
    connection: quinn::Connection,
    state: State,
    _kept: K,
}

enum State {
    Data,
    Trailers,
    Done,
}

impl<R, K> Incoming<R, K> {
    pub(crate) fn new(stream: R, connection: quinn::Connection, kept: K) -> Self {
        Self {
            stream,
            connection,
            state: State::Data,
            _kept: kept,
        }
    }
}

impl<R: Receive + Unpin, K: Unpin> http_body::Body for Incoming<R, K> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            let outcome = match this.state {
                State::Data => match ready!(this.stream.poll_data(cx)) {
                    Ok(Some(data)) => Ok(Some(Frame::data(data))),
                    Ok(None) => {
                        this.state = State::Trailers;
                        continue;
                    }
                    Err(error) => Err(error),
                },
                State::Trailers => {
                    let trailers = ready!(this.stream.poll_trailers(cx));
                    this.state = State::Done;
                    trailers.map(|trailers| trailers.map(Frame::trailers))
                }
                State::Done => return Poll::Ready(None),
            };
            if outcome.is_err() {
                this.state = State::Done;
            }
            let outcome = outcome.map_err(|error| status_of(&error, &this.connection));
            return Poll::Ready(outcome.transpose());
        }
    }
}

/// Sends a body to its end. A body that fails is aborted, so that it cannot look whole.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn would hold what it is given twice, for as long as the call lasts"
)]
pub(crate) fn transmit<T: Transmit>(
    mut body: tonic::body::Body,
    mut stream: T,
) -> impl Future<Output = Result<(), StreamError>> + Send {
    async move {
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let Ok(frame) = frame else {
                stream.abort();
                return Ok(());
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => stream.data(data).await?,
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        Box::pin(stream.trailers(trailers)).await?;
                        break;
                    }
                }
            }
        }
        Box::pin(stream.finish()).await
    }
}
