//! The agents' and the operators' ports of a collector.

mod quic;
mod tcp;
mod waiting;

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use nexus_pki::{
    admission::{Admission, Refusal},
    spiffe::Role,
};
use nexus_proto::limits;
use nexus_runtime::clock::Clock;
use rustix::net::sockopt;
use rustls::ServerConfig;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;

use crate::{
    connections::{Connections, Refused},
    fault::REFUSED,
    half_open::Half,
    peer::TransportKind,
    tune::ResetKeys,
};

/// Attempts to find a port number that is free for UDP and for TCP.
const BIND_ATTEMPTS: u32 = 20;

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

/// Bytes of packets that wait for the port, at best: one socket has the first packets of a whole fleet that comes back.
/// The kernel's own default holds some ninety packets, and drops the others.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Asks for [`RECEIVE_BUFFER`]; without CAP_NET_ADMIN it is as much as `net.core.rmem_max` allows.
fn make_room(udp: &std::net::UdpSocket) {
    let forced = sockopt::set_socket_recv_buffer_size_force(udp, RECEIVE_BUFFER);
    let asked = forced.or_else(|_| sockopt::set_socket_recv_buffer_size(udp, RECEIVE_BUFFER));
    // The kernel counts its own overhead as much again.
    let has = asked.and_then(|()| sockopt::socket_recv_buffer_size(udp));
    let has = has.map_or(0, |bytes| bytes / 2);
    if has < RECEIVE_BUFFER {
        tracing::info!(
            bytes = has,
            wanted = RECEIVE_BUFFER,
            "the receive buffer of the agents' port is small: packets are dropped when many agents come at once; \
             net.core.rmem_max allows no more"
        );
    }
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
                    make_room(&udp);
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
        let endpoint = quic::endpoint(self.udp, tls.quic, keys, &serving.connections)?;
        let running = Running::new();
        let ways = tcp::Ways {
            main: tls.tcp,
            enrol: Some(tls.enrol),
            roles: &[Role::Agent],
        };
        tokio::join!(
            quic::accept(&endpoint, &agents, &serving, &running),
            tcp::accept(&self.tcp, ways, &agents, &enrolment, &serving, &running),
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
        let ways = tcp::Ways {
            main: tls,
            enrol: None,
            roles: &[Role::Operator],
        };
        tcp::accept(&self.tcp, ways, &service, &service, &serving, &running).await;
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

/// Why a handshake came to nothing by our own doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GivenUp {
    TimedOut,
    MadeRoom,
}

/// Gives up what takes too long, or has to make room for a newer handshake.
async fn bounded<T>(half: &Half, opening: impl Future<Output = T>) -> Result<T, GivenUp> {
    tokio::select! {
        () = half.ended() => Err(GivenUp::MadeRoom),
        done = timeout(limits::HANDSHAKE_TIMEOUT, opening) => done.map_err(|_| GivenUp::TimedOut),
    }
}

fn given_up(serving: &Serving, remote: SocketAddr, transport: TransportKind, why: GivenUp) {
    match why {
        GivenUp::TimedOut => handshake_failed(serving, remote, transport, "timed out"),
        GivenUp::MadeRoom => serving.connections.count_overload(),
    }
}

/// Counts a certificate that was refused in its handshake, and tells of it.
fn certificate_refused(
    serving: &Serving,
    remote: SocketAddr,
    transport: TransportKind,
    reason: String,
) {
    let counters = serving.connections.counters();
    counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    refused(serving, remote, transport, reason);
}

fn handshake_failed(serving: &Serving, remote: SocketAddr, transport: TransportKind, why: &str) {
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
    let now = serving.clock.instant();
    if let Some(left_out) = serving.connections.knocks().line(now) {
        tracing::warn!(%remote, %transport, refusal = reason, left_out, "connection refused");
    }
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
        let (now, ever) = open.counters();
        now.fetch_add(1, Ordering::Relaxed);
        ever.fetch_add(1, Ordering::Relaxed);
        open
    }

    fn counters(&self) -> (&AtomicU64, &AtomicU64) {
        let counters = self.connections.counters();
        match self.transport {
            TransportKind::Quic => (&counters.open_quic, &counters.accepted_quic),
            TransportKind::Tcp => (&counters.open_tcp, &counters.accepted_tcp),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counters().0.fetch_sub(1, Ordering::Relaxed);
    }
}
