//! HTTP/2's connections, and enrolment's, from the accept until they are served.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use nexus_pki::{
    admission::{PeerIdentity, Refusal},
    spiffe::Role,
};
use nexus_proto::ALPN_ENROL;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::*;
use crate::{
    connections::{Cut, Slot},
    fault::{chain, refusal_of},
    h2,
    peer::{Peer, Rtt, canonical, group_name},
};

/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(1);
/// How often more of what it sent is read meanwhile.
const LINGER_READS: u32 = 64;

/// What a TCP port offers.
#[derive(Clone)]
pub(super) struct Ways {
    pub(super) main: Arc<ServerConfig>,
    pub(super) enrol: Option<Arc<ServerConfig>>,
    pub(super) roles: &'static [Role],
}

pub(super) async fn accept<S: CallService, E: CallService>(
    listener: &TcpListener,
    ways: Ways,
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
        let connections = &serving.connections;
        let Ok(half) = connections.begin(TransportKind::Tcp, remote.ip()) else {
            connections.count_overload();
            continue;
        };
        let (ways, serving) = (ways.clone(), serving.clone());
        let (service, enrolment) = (service.clone(), enrolment.clone());
        running.spawn(async move {
            let remote = canonical(remote);
            let opening = open(stream, remote, &half, &ways, &serving);
            let opened = match bounded(&half, opening).await {
                Ok(opened) => opened,
                Err(why) => return given_up(&serving, remote, TransportKind::Tcp, why),
            };
            drop(half);
            if let Some(opened) = opened {
                serve(opened, service, enrolment, &serving).await;
            }
        });
        // Lets what was accepted begin, so that a burst does not push itself out.
        tokio::task::yield_now().await;
    }
}

/// A connection that may be served.
struct Opened {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    enrol: bool,
    slot: Slot,
}

/// Shakes hands, admits and finds a place; why not was told where it is of use.
async fn open(
    stream: TcpStream,
    remote: SocketAddr,
    half: &Half,
    ways: &Ways,
    serving: &Serving,
) -> Option<Opened> {
    let shaken = match handshake(stream, half, ways).await {
        Ok(shaken) => shaken,
        Err(error) => {
            handshake_error(serving, remote, &error);
            return None;
        }
    };
    let Shaken { stream, enrol, rtt } = shaken;
    let tls = stream.get_ref().1;
    let group = tls.negotiated_key_exchange_group();
    let mut peer = Peer {
        identity: None,
        transport: TransportKind::Tcp,
        key_exchange: group.map_or_else(String::new, |group| group_name(group.name())),
        remote,
        since: serving.clock.instant(),
        rtt: Rtt::Handshake(rtt),
    };
    let presented = tls.peer_certificates().unwrap_or_default();
    let admitted = if enrol {
        Ok(None)
    } else {
        admit(presented, ways.roles, serving)
    };
    let connections = &serving.connections;
    match admitted {
        Ok(identity) => peer.identity = identity,
        Err(refusal) => {
            not_admitted(serving, remote, TransportKind::Tcp, &refusal);
            let refusing = h2::Refusing(refusal.to_string().into());
            let (cut, drain) = (Cut::default(), &serving.shutdown);
            h2::serve(stream, peer, refusing, connections, &cut, drain).await;
            return None;
        }
    }
    let slot = match &peer.identity {
        Some(identity) => connections.identified(&identity.spiffe),
        None => connections.anonymous(remote.ip()).await,
    };
    Some(Opened {
        stream,
        peer,
        enrol,
        slot: slot?,
    })
}

struct Shaken {
    stream: TlsStream<TcpStream>,
    enrol: bool,
    rtt: Duration,
}

async fn handshake(stream: TcpStream, half: &Half, ways: &Ways) -> io::Result<Shaken> {
    stream.set_nodelay(true)?;
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
    let start = timeout(limits::HELLO_TIMEOUT, hello)
        .await
        .map_err(|_| io::Error::other("the client said nothing"))??;
    half.spoke();
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

/// Who it is; nobody where the operators' port was shown no certificate.
fn admit(
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

/// An alert of the peer about our certificate is read as well: it has a fixed text, and comes from where it says.
fn handshake_error(serving: &Serving, remote: SocketAddr, error: &(dyn StdError + 'static)) {
    let tcp = TransportKind::Tcp;
    match refusal_of(error) {
        Some(reason) => certificate_refused(serving, remote, tcp, reason),
        None => handshake_failed(serving, remote, tcp, &chain(error)),
    }
}

async fn serve<S: CallService, E: CallService>(
    opened: Opened,
    service: S,
    enrolment: E,
    serving: &Serving,
) {
    let Opened {
        stream,
        peer,
        enrol,
        slot,
    } = opened;
    let connections = &serving.connections;
    let _open = Open::count(connections, TransportKind::Tcp);
    let (cut, drain) = (&slot.cut, &serving.shutdown);
    if peer.identity.is_some() {
        h2::serve(stream, peer, service, connections, cut, drain).await;
        return;
    }
    let serving = async {
        if enrol {
            h2::serve(stream, peer, enrolment, connections, cut, drain).await;
        } else {
            h2::serve(stream, peer, service, connections, cut, drain).await;
        }
    };
    // Its time is over either way.
    timeout(limits::ANONYMOUS_LIFE, serving).await.ok();
}
