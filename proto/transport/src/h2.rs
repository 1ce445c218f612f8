//! gRPC over HTTP/2 on an established TLS stream, both sides.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{Arc, OnceLock, atomic::Ordering},
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nexus_proto::limits;
use nexus_runtime::tasks::spawn_detached;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

use crate::{
    connections::{Connections, Cut},
    fault::{Closed, chain},
    peer::Peer,
    port::CallService,
    tune::{KEEP_ALIVE_TIMEOUT, Windows},
};

/// Bytes of a header section that a peer may send.
fn header_bytes() -> u32 {
    limits::PREFACE_BYTES.try_into().unwrap_or(u32::MAX)
}

/// Runs hyper's tasks, which end with their connection.
#[derive(Clone)]
struct Spawner;

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        spawn_detached("http2", task);
    }
}

/// Serves until the connection ends, is cut, or has drained.
pub(crate) async fn serve<S: CallService>(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    peer: Peer,
    service: S,
    connections: &Connections,
    cut: &Cut,
    drain: &CancellationToken,
) {
    let (calls, windows) = if peer.identity.is_some() {
        let limits = connections.limits();
        (limits.calls, limits.windows)
    } else {
        (limits::ANONYMOUS_CALLS, Windows::agent())
    };
    let answer = service_fn(|request: Request<Incoming>| {
        connections.counters().calls.fetch_add(1, Ordering::Relaxed);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        call(service.clone(), request)
    });
    let serving = hyper::server::conn::http2::Builder::new(Spawner)
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::PING)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(calls)
        .max_header_list_size(header_bytes())
        .max_send_buf_size(windows.stream_bytes.try_into().unwrap_or(usize::MAX))
        .initial_stream_window_size(windows.stream_bytes)
        .initial_connection_window_size(windows.connection_bytes)
        .serve_connection(TokioIo::new(stream), answer);
    let mut serving = pin!(serving);
    let mut draining = false;
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(remote = %peer.remote, error = chain(&error), "connection ended");
                }
                return;
            }
            _ = cut.wait() => return,
            () = drain.cancelled(), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn call<S: CallService>(
    mut service: S,
    request: Request<Body>,
) -> Result<Response<Body>, Infallible> {
    std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}

/// Answers every call with why the connection was refused: HTTP/2 has no close reason that clients show.
#[derive(Clone)]
pub(crate) struct Refusing(pub(crate) Arc<str>);

impl tower_service::Service<Request<Body>> for Refusing {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        std::future::ready(Ok(Status::unauthenticated(self.0.as_ref()).into_http()))
    }
}

/// Makes calls on a connection. The connection ends when the last clone and the last call have.
#[derive(Clone)]
pub(crate) struct Calls(hyper::client::conn::http2::SendRequest<Body>);

/// How a connection ended, once it has.
pub(crate) type Ended = watch::Receiver<Option<Closed>>;

/// Speaks HTTP/2 on `stream`, and waits until the peer does too: a collector does once it has admitted us.
pub(crate) async fn start(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    windows: Windows,
    stop: CancellationToken,
) -> Result<(Calls, Ended), Closed> {
    let heard = CancellationToken::new();
    let alert = Arc::new(OnceLock::new());
    let stream = Heard {
        stream,
        heard: heard.clone(),
        alert: Arc::clone(&alert),
    };
    let (sender, connection) = hyper::client::conn::http2::Builder::new(Spawner)
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::PING)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_header_list_size(header_bytes())
        .max_send_buf_size(windows.stream_bytes.try_into().unwrap_or(usize::MAX))
        .initial_stream_window_size(windows.stream_bytes)
        .initial_connection_window_size(windows.connection_bytes)
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|error| Closed::of_error(&error))?;
    let (ended, mut when_ended) = watch::channel(None);
    spawn_detached("http2-client", async move {
        let closed = tokio::select! {
            result = connection => match result {
                Ok(()) => Closed::Peer("without a reason".to_owned()),
                Err(error) if error.is_timeout() => Closed::Silent,
                Err(error) => alert.get().map_or_else(
                    || Closed::of_error(&error),
                    |alert| Closed::Certificate(alert.clone()),
                ),
            },
            () = stop.cancelled() => Closed::Local,
        };
        ended.send_replace(Some(closed));
    });
    tokio::select! {
        () = heard.cancelled() => Ok((Calls(sender), when_ended)),
        closed = wait(&mut when_ended) => Err(closed),
    }
}

/// Waits for the end.
pub(crate) async fn wait(ended: &mut Ended) -> Closed {
    match ended.wait_for(Option::is_some).await {
        Ok(closed) => closed.clone().unwrap_or(Closed::Local),
        Err(_) => Closed::Local,
    }
}

impl Calls {
    pub(crate) async fn call(mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let unavailable = |error: hyper::Error| {
            let why = Closed::of_error(&error);
            if matches!(why, Closed::Certificate(_)) {
                Status::unauthenticated(why.to_string())
            } else {
                Status::unavailable(why.to_string())
            }
        };
        self.0.ready().await.map_err(unavailable)?;
        let response = self.0.send_request(request).await.map_err(unavailable)?;
        Ok(response.map(Body::new))
    }
}

/// Notices the first bytes from the peer, and an alert about our certificate, of which the HTTP/2 library
/// would keep the text alone.
struct Heard<S> {
    stream: S,
    heard: CancellationToken,
    alert: Arc<OnceLock<String>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(cx, buf)) {
            if let Some(refusal) = nexus_pki::tls::refusal_of(&error) {
                self.alert.set(refusal).ok();
            }
            return Poll::Ready(Err(error));
        }
        if buf.filled().len() > before {
            self.heard.cancel();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
