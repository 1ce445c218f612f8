//! Connecting: QUIC first, TCP raced when QUIC does not answer, address after address.

mod attempt;

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri, uri::PathAndQuery};
use nexus_pki::{admission::Admission, spiffe::Role, tls::server_name};
use nexus_proto::limits;
use nexus_runtime::clock::Clock;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{ClientConfig, pki_types::CertificateDer};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

use self::attempt::Fault;
pub use self::attempt::{Attempt, DialError};
use crate::{
    fault::Closed,
    h2, h3_client,
    peer::{TransportKind, group_name, quic_chain, quic_group},
    tune::{Windows, quic_transport},
};

/// QUIC's head start over TCP.
const HEAD_START: Duration = Duration::from_secs(1);
/// What QUIC gets once TCP found nobody: a machine that refuses TCP seldom answers UDP.
const LAST_CHANCE: Duration = Duration::from_secs(2);

/// Which transports may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// QUIC, or TCP where QUIC does not come through.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// TCP only.
    Tcp,
}

impl Mode {
    /// As in a configuration: `auto`, `quic`, `tcp`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "quic" => Some(Self::Quic),
            "tcp" => Some(Self::Tcp),
            _ => None,
        }
    }
}

/// One configuration a transport (`nexus_pki::tls::agent_client` with the ALPN of each).
#[derive(Clone)]
pub struct DialTls {
    /// HTTP/3.
    pub quic: Arc<ClientConfig>,
    /// HTTP/2.
    pub tcp: Arc<ClientConfig>,
    /// Needed wherever sessions resume.
    pub judge: Option<Judge>,
}

/// Admits the chain a collector showed. A full handshake did so already; a resumed one asks nobody.
#[derive(Clone)]
pub struct Judge {
    /// Decides.
    pub admission: Admission,
    /// Tells it the time.
    pub clock: Clock,
}

impl Judge {
    fn check(judge: Option<&Self>, chain: &[CertificateDer<'_>]) -> Result<(), Fault> {
        let Some(Self { admission, clock }) = judge else {
            return Ok(());
        };
        let admitted = admission.admit(chain, &[Role::Collector], clock.now());
        admitted
            .map(drop)
            .map_err(|refusal| Fault::Closed(Closed::Certificate(refusal.to_string())))
    }
}

/// Connects to the first of several addresses that answers.
#[derive(Clone)]
pub struct Dialer {
    addresses: Vec<String>,
    tls: DialTls,
    mode: Mode,
    windows: Windows,
    udp_blocked: Arc<AtomicBool>,
}

/// An established connection. It ends when this, all its channels and all its calls have been dropped.
pub struct Connection {
    /// Makes calls.
    pub channel: Channel,
    /// What carries it.
    pub transport: TransportKind,
    /// The negotiated group, by its IANA name.
    pub key_exchange: String,
    /// Where it leads.
    pub remote: SocketAddr,
    end: End,
}

#[derive(Clone)]
enum End {
    Quic(quinn::Connection),
    Tcp {
        ended: h2::Ended,
        token: CancellationToken,
        rtt: Duration,
    },
}

impl Connection {
    /// The round trip: of now on QUIC, of the TCP handshake on TCP.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        match &self.end {
            End::Quic(connection) => connection.rtt(),
            End::Tcp { rtt, .. } => *rtt,
        }
    }

    /// On QUIC, the estimate of the round trip, and how many frames were sent that want an acknowledgement. Each
    /// one that acknowledges something new moves the estimate (RFC 9002, section 5.1), so frames that count on
    /// while it stands still are how a path shows that died in one direction or both.
    #[must_use]
    pub fn pulse(&self) -> Option<(Duration, u64)> {
        match &self.end {
            End::Quic(connection) => {
                let stats = connection.stats();
                let sent = stats.frame_tx;
                // What a probe of a path repeats is among these, too: whatever was not acknowledged.
                let asked = sent.ping
                    + sent.immediate_ack
                    + sent.stream
                    + sent.reset_stream
                    + sent.stop_sending
                    + sent.max_data
                    + sent.max_stream_data
                    + sent.max_streams_bidi
                    + sent.max_streams_uni;
                Some((stats.path.rtt, asked))
            }
            End::Tcp { .. } => None,
        }
    }

    /// Waits until the connection has ended; why. The future outlives the connection's handle.
    pub fn closed(&self) -> impl Future<Output = Closed> + Send + 'static {
        let end = match &self.end {
            End::Quic(connection) => Ok(connection.clone()),
            End::Tcp { ended, .. } => Err(ended.clone()),
        };
        async move {
            match end {
                Ok(connection) => Closed::of_quic(&connection.closed().await),
                Err(mut ended) => h2::wait(&mut ended).await,
            }
        }
    }

    /// Ends it at once.
    pub fn close(&self, reason: &str) {
        match &self.end {
            // H3_NO_ERROR (RFC 9114, section 8.1).
            End::Quic(connection) => connection.close(0x100_u32.into(), reason.as_bytes()),
            End::Tcp { token, .. } => token.cancel(),
        }
    }
}

/// Makes calls; for tonic's generated clients. Cheap to clone.
#[derive(Clone)]
pub struct Channel {
    calls: Calls,
    authority: http::uri::Authority,
}

#[derive(Clone)]
enum Calls {
    H3(h3_client::Calls),
    H2(h2::Calls),
}

impl tower_service::Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().cloned();
        let uri = Uri::builder()
            .scheme("https")
            .authority(self.authority.clone())
            .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
            .build();
        match uri {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => {
                return Box::pin(std::future::ready(Err(Status::internal(error.to_string()))));
            }
        }
        match self.calls.clone() {
            Calls::H3(calls) => Box::pin(calls.call(request)),
            Calls::H2(calls) => Box::pin(calls.call(request)),
        }
    }
}

impl Dialer {
    /// For agents: `HOST:PORT` addresses, tried in turn.
    #[must_use]
    pub fn new(addresses: Vec<String>, tls: DialTls, mode: Mode, windows: Windows) -> Self {
        Self {
            addresses,
            tls,
            mode,
            windows,
            udp_blocked: Arc::default(),
        }
    }

    /// The same with another mode; [`Mode::Quic`] finds out whether UDP comes through by now.
    #[must_use]
    pub fn with_mode(&self, mode: Mode) -> Self {
        Self {
            mode,
            ..self.clone()
        }
    }

    /// Where it tries.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The same with other addresses.
    #[must_use]
    pub fn with_addresses(&self, addresses: Vec<String>) -> Self {
        Self {
            addresses,
            ..self.clone()
        }
    }

    /// Remembers that UDP stopped coming through.
    pub fn note_udp_blocked(&self) {
        self.udp_blocked.store(true, Ordering::Relaxed);
    }

    /// Whether TCP was taken last because QUIC did not come through. QUIC then gets no head start.
    #[must_use]
    pub fn udp_blocked(&self) -> bool {
        self.udp_blocked.load(Ordering::Relaxed)
    }

    /// Connects. A connection that is returned has been admitted by its peer.
    pub async fn connect(&self) -> Result<Connection, DialError> {
        if self.addresses.is_empty() {
            return Err(DialError::NoAddress);
        }
        let mut attempts = Vec::new();
        for address in &self.addresses {
            match resolve(address).await {
                Ok(remotes) => {
                    for remote in remotes {
                        match self.reach(address, remote, &mut attempts).await {
                            Some(connection) => return Ok(connection),
                            None => continue,
                        }
                    }
                }
                Err(fault) => attempts.push(failed(address, None, None, fault)),
            }
        }
        Err(DialError::Failed(attempts))
    }

    async fn reach(
        &self,
        address: &str,
        remote: SocketAddr,
        attempts: &mut Vec<Attempt>,
    ) -> Option<Connection> {
        let tcp = |delay| async move {
            sleep(delay).await;
            within(
                limits::HANDSHAKE_TIMEOUT,
                over_tcp(remote, &self.tls, self.windows),
            )
            .await
        };
        let quic = || {
            within(
                limits::QUIC_PATIENCE,
                over_quic(remote, &self.tls, self.windows),
            )
        };
        let mut note = |transport, fault| {
            attempts.push(failed(address, Some(remote), Some(transport), fault));
        };
        match self.mode {
            Mode::Quic => match quic().await {
                Ok(connection) => {
                    self.udp_blocked.store(false, Ordering::Relaxed);
                    return Some(connection);
                }
                Err(fault) => note(TransportKind::Quic, fault),
            },
            Mode::Tcp => match tcp(Duration::ZERO).await {
                Ok(connection) => return Some(connection),
                Err(fault) => note(TransportKind::Tcp, fault),
            },
            Mode::Auto => {
                let head_start = if self.udp_blocked() {
                    Duration::ZERO
                } else {
                    HEAD_START
                };
                let (mut quic, mut over_tcp) = (pin!(quic()), pin!(tcp(head_start)));
                tokio::select! {
                    biased;
                    reached = quic.as_mut() => match reached {
                        Ok(connection) => {
                            self.udp_blocked.store(false, Ordering::Relaxed);
                            return Some(connection);
                        }
                        Err(fault) => {
                            note(TransportKind::Quic, fault);
                            match tcp(Duration::ZERO).await {
                                Ok(connection) => return Some(connection),
                                Err(fault) => note(TransportKind::Tcp, fault),
                            }
                        }
                    },
                    reached = over_tcp.as_mut() => match reached {
                        Ok(connection) => {
                            self.udp_blocked.store(true, Ordering::Relaxed);
                            return Some(connection);
                        }
                        Err(fault) => {
                            let chance = if fault.is_nobody() {
                                LAST_CHANCE
                            } else {
                                // Somebody is there and has no place yet, as when a whole fleet connects at once.
                                limits::QUIC_PATIENCE
                            };
                            note(TransportKind::Tcp, fault);
                            match timeout(chance, quic).await {
                                Ok(Ok(connection)) => return Some(connection),
                                Ok(Err(fault)) => note(TransportKind::Quic, fault),
                                Err(_) => note(
                                    TransportKind::Quic,
                                    Fault::Timeout(HEAD_START + chance),
                                ),
                            }
                        }
                    },
                }
            }
        }
        None
    }
}

/// Connects for enrolment (`nexus_pki::tls::enrol_client`).
pub async fn enrol_connect(address: &str, tls: Arc<ClientConfig>) -> Result<Connection, DialError> {
    tcp_connect(address, tls, None, Windows::agent()).await
}

/// Connects to an operators' port (`nexus_pki::tls::operator_client`; without a judge, `operator_login_client`).
pub async fn operator_connect(
    address: &str,
    tls: Arc<ClientConfig>,
    judge: Option<Judge>,
) -> Result<Connection, DialError> {
    tcp_connect(address, tls, judge, Windows::operator()).await
}

async fn tcp_connect(
    address: &str,
    tls: Arc<ClientConfig>,
    judge: Option<Judge>,
    windows: Windows,
) -> Result<Connection, DialError> {
    let both = DialTls {
        quic: Arc::clone(&tls),
        tcp: tls,
        judge,
    };
    Dialer::new(vec![address.to_owned()], both, Mode::Tcp, windows)
        .connect()
        .await
}

fn failed(
    address: &str,
    remote: Option<SocketAddr>,
    transport: Option<TransportKind>,
    fault: Fault,
) -> Attempt {
    Attempt {
        address: address.to_owned(),
        remote,
        transport,
        fault,
    }
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, Fault> {
    if let Ok(literal) = address.parse() {
        return Ok(vec![literal]);
    }
    let found = timeout(limits::HANDSHAKE_TIMEOUT, tokio::net::lookup_host(address)).await;
    let found = found.map_err(|_| Fault::Timeout(limits::HANDSHAKE_TIMEOUT))?;
    Ok(found.map_err(Fault::Resolve)?.collect())
}

async fn within<T>(
    limit: Duration,
    attempt: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    timeout(limit, attempt)
        .await
        .unwrap_or(Err(Fault::Timeout(limit)))
}

fn authority(remote: SocketAddr) -> Result<http::uri::Authority, Fault> {
    let text = remote.to_string();
    text.parse()
        .map_err(|error| Fault::Io(io::Error::other(format!("{text}: {error}"))))
}

async fn over_quic(
    remote: SocketAddr,
    tls: &DialTls,
    windows: Windows,
) -> Result<Connection, Fault> {
    let any = match remote {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let other = |error: String| Fault::Io(io::Error::other(error));
    let endpoint = quinn::Endpoint::client(SocketAddr::new(any, 0)).map_err(Fault::Io)?;
    let crypto = QuicClientConfig::try_from(Arc::clone(&tls.quic))
        .map_err(|error| other(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    // A collector opens no calls to an agent.
    config.transport_config(quic_transport(windows, 0, Some(limits::KEEP_ALIVE)));
    let connecting = endpoint
        .connect_with(config, remote, nexus_pki::tls::SERVER_NAME)
        .map_err(|error| other(error.to_string()))?;
    let closed = |error| Fault::Closed(Closed::of_quic(&error));
    let connection = connecting.await.map_err(closed)?;
    Judge::check(tls.judge.as_ref(), &quic_chain(&connection))?;
    let calls = h3_client::start(connection.clone())
        .await
        .map_err(Fault::Closed)?;
    Ok(Connection {
        channel: Channel {
            calls: Calls::H3(calls),
            authority: authority(remote)?,
        },
        transport: TransportKind::Quic,
        key_exchange: quic_group(&connection),
        remote,
        end: End::Quic(connection),
    })
}

async fn over_tcp(
    remote: SocketAddr,
    tls: &DialTls,
    windows: Windows,
) -> Result<Connection, Fault> {
    let begun = Instant::now();
    let stream = TcpStream::connect(remote).await.map_err(Fault::Io)?;
    let rtt = begun.elapsed();
    stream.set_nodelay(true).map_err(Fault::Io)?;
    let connector = TlsConnector::from(Arc::clone(&tls.tcp));
    let stream = connector
        .connect(server_name(), stream)
        .await
        .map_err(|error| Fault::Closed(Closed::of_error(&error)))?;
    let shaken = stream.get_ref().1;
    let presented = shaken.peer_certificates().unwrap_or_default();
    Judge::check(tls.judge.as_ref(), presented)?;
    let group = shaken.negotiated_key_exchange_group();
    let key_exchange = group.map_or_else(String::new, |group| group_name(group.name()));
    let token = CancellationToken::new();
    let (calls, ended) = h2::start(stream, windows, token.clone())
        .await
        .map_err(Fault::Closed)?;
    let channel = Channel {
        calls: Calls::H2(calls),
        authority: authority(remote)?,
    };
    let end = End::Tcp { ended, token, rtt };
    Ok(Connection {
        channel,
        transport: TransportKind::Tcp,
        key_exchange,
        remote,
        end,
    })
}
