//! The agents' and the operators' ports of a collector.

use std::{
    convert::Infallible,
    error::Error as StdError,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{Request, Response};
use nexus_pki::{
    admission::{Admission, PeerIdentity, Refusal},
    spiffe::Role,
};
use nexus_proto::{ALPN_ENROL, limits};
use nexus_runtime::clock::Clock;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;

use crate::{
    connections::{Connections, Refused, Slot},
    fault::{REFUSED, chain, refusal_of},
    h2, h3_server,
    peer::{Peer, Rtt, TransportKind, canonical, group_name, quic_chain, quic_group},
    tune::{ResetKeys, quic_transport},
};

/// Attempts to find a port number that is free for UDP and for TCP.
const BIND_ATTEMPTS: u32 = 20;

/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(1);
/// How often more of what it sent is read meanwhile.
const LINGER_READS: u32 = 64;

/// What can be served: tonic's generated servers and `Routes` are such services.
pub trait CallService:
    tower_service::Service<
        Request<Body>,
        Response = Response<Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> CallService for S where
    S: tower_service::Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// The agents' port's configurations, by way in.
#[derive(Clone)]
pub struct TlsSet {
    /// HTTP/3.
    pub quic: Arc<ServerConfig>,
    /// HTTP/2.
    pub tcp: Arc<ServerConfig>,
    /// Enrolment, without client certificates.
    pub enrol: Arc<ServerConfig>,
}

/// What serving a port takes beside its services.
#[derive(Clone)]
pub struct Serving {
    /// Decides on every connection.
    pub admission: Admission,
    /// Tells admission the time.
    pub clock: Clock,
    /// The port's limits, counters and hook.
    pub connections: Connections,
    /// Begins the drain.
    pub shutdown: CancellationToken,
}

/// UDP and TCP under one number.
pub struct AgentPort {
    udp: std::net::UdpSocket,
    tcp: TcpListener,
}

impl AgentPort {
    /// Binds both. Port 0 finds a number that is free for both; where the machine has no IPv6, `[::]` is
    /// all of IPv4.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut attempt = 1;
        loop {
            let tcp = bind_tcp(address).await?;
            match std::net::UdpSocket::bind(tcp.local_addr()?) {
                Ok(udp) => {
                    udp.set_nonblocking(true)?;
                    return Ok(Self { udp, tcp });
                }
                Err(_) if address.port() == 0 && attempt < BIND_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until shutdown has begun and calls have ended, or their time is over.
    pub async fn serve<A: CallService, E: CallService>(
        self,
        tls: TlsSet,
        keys: &ResetKeys,
        agents: A,
        enrolment: E,
        serving: Serving,
    ) -> io::Result<()> {
        let endpoint = endpoint(self.udp, tls.quic, keys, &serving.connections)?;
        let running = Running::new();
        let ways = TcpWays {
            main: tls.tcp,
            enrol: Some(tls.enrol),
            roles: &[Role::Agent],
        };
        tokio::join!(
            accept_quic(&endpoint, &agents, &serving, &running),
            accept_tcp(&self.tcp, ways, &agents, &enrolment, &serving, &running),
        );
        drain(&running, &serving).await;
        endpoint.close(REFUSED.into(), b"shutting down");
        // Lets the farewells go out.
        timeout(Duration::from_millis(500), endpoint.wait_idle())
            .await
            .ok();
        Ok(())
    }
}

/// TCP alone.
pub struct OperatorPort {
    tcp: TcpListener,
}

impl OperatorPort {
    /// Binds it; `[::]` as in [`AgentPort::bind`].
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            tcp: bind_tcp(address).await?,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until shutdown has begun and calls have ended, or their time is over.
    pub async fn serve<S: CallService>(
        self,
        tls: Arc<ServerConfig>,
        service: S,
        serving: Serving,
    ) -> io::Result<()> {
        let running = Running::new();
        let ways = TcpWays {
            main: tls,
            enrol: None,
            roles: &[Role::Operator],
        };
        accept_tcp(&self.tcp, ways, &service, &service, &serving, &running).await;
        drain(&running, &serving).await;
        Ok(())
    }
}

async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.ip().is_unspecified()
                && address.is_ipv6()
                && matches!(
                    error.kind(),
                    io::ErrorKind::Unsupported | io::ErrorKind::AddrNotAvailable
                ) =>
        {
            let everywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            TcpListener::bind(SocketAddr::new(everywhere, address.port())).await
        }
        bound => bound,
    }
}

fn endpoint(
    udp: std::net::UdpSocket,
    tls: Arc<ServerConfig>,
    keys: &ResetKeys,
    connections: &Connections,
) -> io::Result<quinn::Endpoint> {
    let limits = connections.limits();
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(quic_transport(limits.windows, limits.calls, None))
        .migration(true);
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new(keys.endpoint_config(), Some(config), udp, runtime)
}

/// The tasks of a port's connections.
struct Running {
    tracker: TaskTracker,
    /// Ends them all.
    end: CancellationToken,
}

impl Running {
    fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            end: CancellationToken::new(),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker
            .spawn(self.end.clone().run_until_cancelled_owned(task));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// Calls may go on for a while; what is left then is dropped.
async fn drain(running: &Running, serving: &Serving) {
    let tracker = &running.tracker;
    tracker.close();
    let deadline = serving.connections.limits().drain;
    if timeout(deadline, tracker.wait()).await.is_err() {
        tracing::warn!(
            connections = tracker.len(),
            "connections cut at the end of their drain"
        );
    }
}

async fn accept_quic<S: CallService>(
    endpoint: &quinn::Endpoint,
    service: &S,
    serving: &Serving,
    running: &Running,
) {
    loop {
        let incoming = tokio::select! {
            () = serving.shutdown.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let begun = serving.connections.begin(incoming.remote_address().ip());
        let Some((slot, handshake)) = begun else {
            incoming.refuse();
            continue;
        };
        let (service, serving) = (service.clone(), serving.clone());
        running.spawn(async move {
            let counters = serving.connections.counters();
            let remote = canonical(incoming.remote_address());
            let connecting = async { incoming.accept()?.await };
            let connection = match timeout(limits::HANDSHAKE_TIMEOUT, connecting).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => {
                    return handshake_failed(&serving, remote, TransportKind::Quic, &error);
                }
                Err(_) => {
                    return handshake_given_up(&serving, remote, TransportKind::Quic, "timed out");
                }
            };
            drop(handshake);
            let admitted = serving.admission.admit(
                &quic_chain(&connection),
                &[Role::Agent],
                serving.clock.now(),
            );
            match admitted {
                Err(refusal) => {
                    not_admitted(&serving, remote, TransportKind::Quic, &refusal);
                    connection.close(REFUSED.into(), refusal.to_string().as_bytes());
                }
                Ok(identity) => {
                    let mut slot = slot;
                    slot.identify(&identity.spiffe);
                    counters.accepted_quic.fetch_add(1, Ordering::Relaxed);
                    let _open = Open::count(&serving.connections, TransportKind::Quic);
                    let peer = Peer {
                        identity: Some(identity),
                        transport: TransportKind::Quic,
                        key_exchange: quic_group(&connection),
                        remote,
                        rtt: Rtt::Live(connection.clone()),
                    };
                    let (connections, drain) = (&serving.connections, &serving.shutdown);
                    h3_server::serve(connection, peer, service, connections, &slot.cut, drain)
                        .await;
                }
            }
        });
    }
}

#[derive(Clone)]
struct TcpWays {
    main: Arc<ServerConfig>,
    enrol: Option<Arc<ServerConfig>>,
    roles: &'static [Role],
}

async fn accept_tcp<S: CallService, E: CallService>(
    listener: &TcpListener,
    ways: TcpWays,
    service: &S,
    enrolment: &E,
    serving: &Serving,
    running: &Running,
) {
    loop {
        let accepted = tokio::select! {
            () = serving.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: the next attempt fails at once, too.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some((slot, permit)) = serving.connections.begin(remote.ip()) else {
            continue;
        };
        let (ways, serving) = (ways.clone(), serving.clone());
        let (service, enrolment) = (service.clone(), enrolment.clone());
        running.spawn(async move {
            let remote = canonical(remote);
            let shaken = timeout(limits::HANDSHAKE_TIMEOUT, handshake(stream, &ways)).await;
            drop(permit);
            match shaken {
                Ok(Ok(shaken)) => {
                    serve_tcp(shaken, remote, slot, &ways, service, enrolment, &serving).await;
                }
                Ok(Err(error)) => {
                    handshake_failed(&serving, remote, TransportKind::Tcp, &error);
                }
                Err(_) => handshake_given_up(&serving, remote, TransportKind::Tcp, "timed out"),
            }
        });
    }
}

struct Shaken {
    stream: TlsStream<TcpStream>,
    enrol: bool,
    rtt: Duration,
}

async fn handshake(stream: TcpStream, ways: &TcpWays) -> io::Result<Shaken> {
    stream.set_nodelay(true)?;
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let asked = start.client_hello().alpn();
    let enrol = asked.is_some_and(|mut asked| asked.any(|alpn| alpn == ALPN_ENROL));
    let config = ways.enrol.as_ref().filter(|_| enrol);
    let enrol = config.is_some();
    let config = Arc::clone(config.unwrap_or(&ways.main));
    let begun = Instant::now();
    let stream = match start.into_stream(config).into_fallible().await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            linger(stream).await;
            return Err(error);
        }
    };
    // From our answer to the client's: a round trip and the client's arithmetic.
    let rtt = begun.elapsed();
    if stream.get_ref().1.alpn_protocol().is_none() {
        return Err(io::Error::other("the client named no protocol (ALPN)"));
    }
    Ok(Shaken { stream, enrol, rtt })
}

/// Reads what a refused client had already sent, for a moment: closing a socket over unread bytes resets the
/// connection, and the alert that says why would be lost on the way.
async fn linger(mut stream: TcpStream) {
    let mut unread = [0; 1024];
    let drain = async {
        stream.shutdown().await?;
        for _ in 0..LINGER_READS {
            if stream.read(&mut unread).await? == 0 {
                break;
            }
        }
        Ok::<_, io::Error>(())
    };
    // It is over either way.
    timeout(LINGER, drain).await.ok();
}

async fn serve_tcp<S: CallService, E: CallService>(
    shaken: Shaken,
    remote: SocketAddr,
    mut slot: Slot,
    ways: &TcpWays,
    service: S,
    enrolment: E,
    serving: &Serving,
) {
    let Shaken { stream, enrol, rtt } = shaken;
    let tls = stream.get_ref().1;
    let group = tls.negotiated_key_exchange_group();
    let key_exchange = group.map_or_else(String::new, |group| group_name(group.name()));
    let presented = tls.peer_certificates().unwrap_or_default();
    let admitted = if enrol {
        Ok(None)
    } else {
        admit_tcp(presented, ways.roles, serving)
    };
    let peer = |identity| Peer {
        identity,
        transport: TransportKind::Tcp,
        key_exchange,
        remote,
        rtt: Rtt::Handshake(rtt),
    };
    let connections = &serving.connections;
    let identity = match admitted {
        Ok(identity) => identity,
        Err(refusal) => {
            not_admitted(serving, remote, TransportKind::Tcp, &refusal);
            let refusing = h2::Refusing(refusal.to_string().into());
            let drain = &serving.shutdown;
            let telling = h2::serve(stream, peer(None), refusing, connections, &slot.cut, drain);
            timeout(limits::HANDSHAKE_TIMEOUT, telling).await.ok();
            return;
        }
    };
    connections
        .counters()
        .accepted_tcp
        .fetch_add(1, Ordering::Relaxed);
    let _open = Open::count(connections, TransportKind::Tcp);
    let anonymous = identity.is_none();
    if let Some(identity) = &identity {
        slot.identify(&identity.spiffe);
    }
    let peer = peer(identity);
    let (cut, drain) = (&slot.cut, &serving.shutdown);
    let life = connections.limits().anonymous_life;
    if enrol {
        timeout(
            life,
            h2::serve(stream, peer, enrolment, connections, cut, drain),
        )
        .await
        .ok();
    } else if anonymous {
        timeout(
            life,
            h2::serve(stream, peer, service, connections, cut, drain),
        )
        .await
        .ok();
    } else {
        h2::serve(stream, peer, service, connections, cut, drain).await;
    }
}

/// Who it is; nobody where the operators' port was shown no certificate.
fn admit_tcp(
    presented: &[CertificateDer<'_>],
    roles: &[Role],
    serving: &Serving,
) -> Result<Option<PeerIdentity>, Refusal> {
    if presented.is_empty() && roles == [Role::Operator] {
        return Ok(None);
    }
    serving
        .admission
        .admit(presented, roles, serving.clock.now())
        .map(Some)
}

fn handshake_failed(
    serving: &Serving,
    remote: SocketAddr,
    transport: TransportKind,
    error: &(dyn StdError + 'static),
) {
    match refusal_of(error) {
        Some(reason) => {
            let counters = serving.connections.counters();
            counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            refused(serving, remote, transport, reason);
        }
        None => handshake_given_up(serving, remote, transport, &chain(error)),
    }
}

fn handshake_given_up(serving: &Serving, remote: SocketAddr, transport: TransportKind, why: &str) {
    serving
        .connections
        .counters()
        .handshakes_failed
        .fetch_add(1, Ordering::Relaxed);
    // Counted; a line each would let any stranger fill the log.
    tracing::debug!(%remote, %transport, why, "handshake failed");
}

fn not_admitted(
    serving: &Serving,
    remote: SocketAddr,
    transport: TransportKind,
    refusal: &Refusal,
) {
    serving
        .connections
        .counters()
        .not_admitted
        .fetch_add(1, Ordering::Relaxed);
    refused(serving, remote, transport, refusal.to_string());
}

fn refused(serving: &Serving, remote: SocketAddr, transport: TransportKind, reason: String) {
    tracing::warn!(%remote, %transport, refusal = reason, "connection refused");
    serving.connections.tell(Refused {
        remote,
        transport,
        reason,
    });
}

/// Counts a connection as open.
struct Open {
    connections: Connections,
    transport: TransportKind,
}

impl Open {
    fn count(connections: &Connections, transport: TransportKind) -> Self {
        let open = Self {
            connections: connections.clone(),
            transport,
        };
        open.counter().fetch_add(1, Ordering::Relaxed);
        open
    }

    fn counter(&self) -> &std::sync::atomic::AtomicU64 {
        let counters = self.connections.counters();
        match self.transport {
            TransportKind::Quic => &counters.open_quic,
            TransportKind::Tcp => &counters.open_tcp,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counter().fetch_sub(1, Ordering::Relaxed);
    }
}
