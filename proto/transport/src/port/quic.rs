//! HTTP/3's connections, from the first packet until they are served.

use std::{io, sync::Arc};

use nexus_pki::{admission::PeerIdentity, spiffe::Role};
use nexus_proto::limits::{HANDSHAKE_WAITING_BYTES, HANDSHAKES_WAITING};
use quinn::{ConnectionError, crypto::rustls::QuicServerConfig};
use tokio::time::{Instant, sleep};

use super::{
    waiting::{Turn, Waiting},
    *,
};
use crate::{
    connections::Slot,
    fault::{chain, refusal_of},
    h3_server,
    peer::{Peer, Rtt, canonical, quic_chain, quic_group},
    tune::quic_port_transport,
};

/// Between two looks at those that wait.
const LOOK: Duration = Duration::from_millis(250);

pub(super) fn endpoint(
    udp: std::net::UdpSocket,
    tls: Arc<ServerConfig>,
    keys: &ResetKeys,
    connections: &Connections,
) -> io::Result<quinn::Endpoint> {
    let limits = connections.limits();
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(quic_port_transport(limits.windows, limits.calls))
        .migration(true)
        .max_incoming(HANDSHAKES_WAITING + limits.handshakes)
        .incoming_buffer_size(HANDSHAKE_WAITING_BYTES as u64)
        .incoming_buffer_size_total((HANDSHAKES_WAITING * HANDSHAKE_WAITING_BYTES) as u64);
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new(keys.endpoint_config(), Some(config), udp, runtime)
}

/// Lets connections in until shutdown begins.
pub(super) async fn accept<S: CallService>(
    endpoint: &quinn::Endpoint,
    service: &S,
    serving: &Serving,
    running: &Running,
) {
    let connections = &serving.connections;
    let mut waiting = Waiting::new();
    loop {
        tokio::select! {
            () = serving.shutdown.cancelled() => return,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => arrived(incoming, &mut waiting, connections),
                None => return,
            },
            () = connections.freed(TransportKind::Quic), if !waiting.is_empty() => {}
            // One that is under way may have become old enough to make room.
            () = sleep(LOOK), if !waiting.is_empty() => {}
        }
        let counters = connections.counters();
        let place = |address| connections.begin(TransportKind::Quic, address);
        while let Some(turn) = waiting.next(Instant::now(), place) {
            match turn {
                Turn::Begin(incoming, half) => begin(incoming, half, service, serving, running),
                Turn::Leave(incoming) => turn_away(incoming, connections),
            }
            // Lets what was accepted begin, so that a burst does not push itself out.
            tokio::task::yield_now().await;
        }
        let waiting = u64::try_from(waiting.len()).unwrap_or(u64::MAX);
        counters.waiting_quic.store(waiting, Ordering::Relaxed);
    }
}

/// Lets a newcomer wait for its turn, which may be now.
fn arrived(
    incoming: quinn::Incoming,
    waiting: &mut Waiting<quinn::Incoming>,
    connections: &Connections,
) {
    let address = incoming.remote_address().ip();
    // Anybody can write any address on a packet. A retry costs us nothing and them a round trip.
    if !incoming.remote_address_validated()
        && (!waiting.is_empty() || connections.is_crowded(TransportKind::Quic, address))
    {
        // Fails for those alone that have proved their address.
        incoming.retry().ok();
        return;
    }
    if let Err(incoming) = waiting.push(incoming, address, Instant::now()) {
        turn_away(incoming, connections);
    }
}

fn turn_away(incoming: quinn::Incoming, connections: &Connections) {
    incoming.refuse();
    connections.count_overload();
}

fn begin<S: CallService>(
    incoming: quinn::Incoming,
    half: Half,
    service: &S,
    serving: &Serving,
    running: &Running,
) {
    if incoming.remote_address_validated() {
        half.spoke();
    }
    let (service, serving) = (service.clone(), serving.clone());
    let remote = canonical(incoming.remote_address());
    running.spawn(async move {
        // A connection is held for days: what only its beginning needs is on the heap, and gone after it.
        let opening = Box::pin(open(incoming, remote, serving.clone()));
        let opened = match bounded(&half, opening).await {
            Ok(opened) => opened,
            Err(why) => return given_up(&serving, remote, TransportKind::Quic, why),
        };
        drop(half);
        if let Some((connection, identity, slot)) = opened {
            Box::pin(serve(connection, identity, slot, remote, service, serving)).await;
        }
    });
}

/// Shakes hands and admits; why not was told where it is of use.
async fn open(
    incoming: quinn::Incoming,
    remote: SocketAddr,
    serving: Serving,
) -> Option<(quinn::Connection, PeerIdentity, Slot)> {
    let connection = match async { incoming.accept()?.await }.await {
        Ok(connection) => connection,
        Err(error) => {
            handshake_error(&serving, remote, &error);
            return None;
        }
    };
    let chain = quic_chain(&connection);
    let now = serving.clock.now();
    match serving.admission.admit(&chain, &[Role::Agent], now) {
        Ok(identity) => {
            let Some(slot) = serving.connections.identified(&identity.spiffe) else {
                connection.close(REFUSED.into(), b"too many connections");
                return None;
            };
            Some((connection, identity, slot))
        }
        Err(refusal) => {
            not_admitted(&serving, remote, TransportKind::Quic, &refusal);
            connection.close(REFUSED.into(), refusal.to_string().as_bytes());
            None
        }
    }
}

/// Only what this side found is read for a refused certificate. The reason in a peer's close is what anybody may
/// write, under any address.
fn handshake_error(serving: &Serving, remote: SocketAddr, error: &ConnectionError) {
    let refusal = match error {
        ConnectionError::TransportError(error) => refusal_of(error),
        _ => None,
    };
    let quic = TransportKind::Quic;
    match refusal {
        Some(reason) => certificate_refused(serving, remote, quic, reason),
        None => handshake_failed(serving, remote, quic, &chain(error)),
    }
}

async fn serve<S: CallService>(
    connection: quinn::Connection,
    identity: PeerIdentity,
    slot: Slot,
    remote: SocketAddr,
    service: S,
    serving: Serving,
) {
    let _open = Open::count(&serving.connections, TransportKind::Quic);
    let peer = Peer {
        identity: Some(identity),
        transport: TransportKind::Quic,
        key_exchange: quic_group(&connection),
        remote,
        since: serving.clock.instant(),
        rtt: Rtt::Live(connection.clone()),
    };
    let (connections, drain) = (&serving.connections, &serving.shutdown);
    h3_server::serve(connection, peer, service, connections, &slot.cut, drain).await;
}
