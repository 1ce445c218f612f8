//! One gRPC connection to the operators' port: HTTP/2 on TLS 1.3 on TCP.
//!
//! Who the collector is was decided in the handshake, by the TLS configuration's verifier; the name in
//! the URI means nothing.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    Request, Response, Uri,
    uri::{PathAndQuery, Scheme},
};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nexus_pki::tls::server_name;
use nexus_proto::limits;
use nexus_runtime::tasks::spawn_detached;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tower_service::Service;

/// A connection that could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The address does not resolve, or nobody listens there.
    #[error("connect to {address}")]
    Tcp {
        /// `host:port`
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The other side is not who it should be, or does not want us.
    #[error("TLS handshake with {address}")]
    Tls {
        /// `host:port`
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It speaks no HTTP/2.
    #[error("HTTP/2 with {address}")]
    Http {
        /// `host:port`
        address: String,
        /// Why not.
        #[source]
        source: hyper::Error,
    },
}

/// What the generated client calls through. Clones share the connection, which ends with the last.
#[derive(Clone)]
pub(crate) struct Channel(SendRequest<Body>);

/// Connects.
pub(crate) async fn operator_connect(
    address: &str,
    tls: Arc<ClientConfig>,
) -> Result<Channel, DialError> {
    let named = || address.to_owned();
    let tcp = TcpStream::connect(address)
        .await
        .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
        .map_err(|source| DialError::Tcp {
            address: named(),
            source,
        })?;
    let stream = TlsConnector::from(tls)
        .connect(server_name(), tcp)
        .await
        .map_err(|source| DialError::Tls {
            address: named(),
            source,
        })?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::PING)
        .keep_alive_timeout(limits::HANDSHAKE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| DialError::Http {
            address: named(),
            source,
        })?;
    // Its error reaches the calls that were under way.
    spawn_detached("operator connection", async move { drop(connection.await) });
    Ok(Channel(sender))
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    /// Always: of an error here the generated client would keep nothing but words, and a connection that is
    /// gone must be told from an answer. The call finds it out just as well.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        *request.uri_mut() = absolute(request.uri().path_and_query());
        Box::pin(self.0.send_request(request))
    }
}

/// HTTP/2 requests name scheme and authority.
fn absolute(path: Option<&PathAndQuery>) -> Uri {
    let path = path
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let uri = Uri::builder()
        .scheme(Scheme::HTTPS)
        .authority("collector")
        .path_and_query(path);
    uri.build().unwrap_or_default()
}
