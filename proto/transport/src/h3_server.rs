//! Serves tonic services on one admitted QUIC connection.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use h3::error::Code;
use nexus_proto::limits;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    body::{Incoming, transmit},
    connections::{Connections, Cut},
    fault::REFUSED,
    h3_wire::{SendHalf, Stopped, Watch, Wire},
    peer::Peer,
    port::CallService,
};

type Resolver = h3::server::RequestResolver<Wire, Bytes>;
type Request = http::Request<tonic::body::Body>;
type Sending = h3::server::RequestStream<SendHalf, Bytes>;

/// Serves until the connection ends, is cut, or has drained.
pub(crate) async fn serve<S: CallService>(
    connection: quinn::Connection,
    peer: Peer,
    service: S,
    connections: &Connections,
    cut: &Cut,
    drain: &CancellationToken,
) {
    let watch = Watch::new(&connection);
    serve_watched(&connection, &watch, peer, service, connections, cut, drain).await;
    let refused = watch.refused.load(Ordering::Relaxed);
    connections
        .counters()
        .streams_refused
        .fetch_add(refused, Ordering::Relaxed);
}

async fn serve_watched<S: CallService>(
    connection: &quinn::Connection,
    watch: &Arc<Watch>,
    peer: Peer,
    service: S,
    connections: &Connections,
    cut: &Cut,
    drain: &CancellationToken,
) {
    let wire = Wire::new(connection.clone(), Arc::clone(watch));
    let mut builder = h3::server::builder();
    builder
        .max_field_section_size(limits::PREFACE_BYTES.try_into().unwrap_or(u64::MAX))
        .send_grease(false);
    // On the heap, as everything here that is over soon: what is left is held for each connection and call.
    let Ok(mut h3) = Box::pin(builder.build(wire)).await else {
        return;
    };
    let mut calls = JoinSet::new();
    let mut draining = false;
    loop {
        tokio::select! {
            reason = cut.wait() => {
                connection.close(REFUSED.into(), reason.as_bytes());
                break;
            }
            () = drain.cancelled(), if !draining => {
                draining = true;
                if Box::pin(h3.shutdown(0)).await.is_err() {
                    break;
                }
            }
            Some(_) = calls.join_next(), if !calls.is_empty() => {}
            accepted = h3.accept() => match accepted {
                Ok(Some(resolver)) => {
                    connections.counters().calls.fetch_add(1, Ordering::Relaxed);
                    let stopped = watch.take_stopped();
                    let answer =
                        answer(resolver, stopped, connection.clone(), service.clone(), peer.clone());
                    calls.spawn(answer);
                }
                Ok(None) | Err(_) => break,
            },
        }
        if draining && calls.is_empty() {
            let no_error = u32::try_from(Code::H3_NO_ERROR.value()).unwrap_or_default();
            connection.close(no_error.into(), b"shutting down");
            break;
        }
    }
}

/// One call, from its headers to its trailers. It lasts as long as a session: what a step of it needs is on the heap
/// until the step is done.
fn answer<S: CallService>(
    resolver: Resolver,
    stopped: Option<Stopped>,
    connection: quinn::Connection,
    service: S,
    peer: Peer,
) -> impl Future<Output = ()> + Send {
    let resolving = Box::pin(resolve(resolver, connection, peer));
    async move {
        let Some((request, send)) = resolving.await else {
            return;
        };
        let responding = Box::pin(respond(service, request, send));
        let transmitting = async {
            if let Some((body, send)) = responding.await {
                Box::pin(transmit(body, send)).await.ok();
            }
        };
        match stopped {
            // A caller that gave up is noticed even while nothing is being sent to it.
            Some(stopped) => tokio::select! {
                () = transmitting => {}
                () = stopped => {}
            },
            None => transmitting.await,
        }
    }
}

/// The call's headers.
async fn resolve(
    resolver: Resolver,
    connection: quinn::Connection,
    peer: Peer,
) -> Option<(Request, Sending)> {
    let resolving = resolver.resolve_request();
    let (request, stream) = match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, resolving).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(error)) => {
            tracing::debug!(remote = %peer.remote, %error, "call refused");
            return None;
        }
        Err(_) => return None,
    };
    let (send, recv) = stream.split();
    let mut request = request.map(|()| tonic::body::Body::new(Incoming::new(recv, connection, ())));
    request.extensions_mut().insert(peer);
    Some((request, send))
}

/// The answer's headers; its body is to be sent.
async fn respond<S: CallService>(
    mut service: S,
    request: Request,
    mut send: Sending,
) -> Option<(tonic::body::Body, Sending)> {
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .ok()?;
    let Ok(response) = service.call(request).await;
    let (parts, body) = response.into_parts();
    // Errors say that the peer has gone or given up: nobody is left to be told.
    let sent = send.send_response(http::Response::from_parts(parts, ()));
    sent.await.ok().map(|()| (body, send))
}
