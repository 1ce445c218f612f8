//! Who is at the other end of a call, and how it got here.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use nexus_pki::admission::PeerIdentity;
use nexus_runtime::clock::Clock;
use rustls::NamedGroup;

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// gRPC over HTTP/3.
    Quic,
    /// gRPC over HTTP/2 on TLS 1.3.
    Tcp,
}

impl TransportKind {
    /// As operators see it: `quic`, `tcp`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The peer of a call, in its request extensions.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Who its certificate says it is; none where no certificate was asked for or shown.
    pub identity: Option<PeerIdentity>,
    /// What carries the connection.
    pub transport: TransportKind,
    /// The negotiated group, by its IANA name.
    pub key_exchange: String,
    /// Where it comes from; on QUIC, where it came from first.
    pub remote: SocketAddr,
    /// When the connection was taken in.
    pub since: Instant,
    pub(crate) rtt: Rtt,
}

#[derive(Debug, Clone)]
pub(crate) enum Rtt {
    Live(quinn::Connection),
    Handshake(Duration),
}

impl Peer {
    /// Where it is now: on QUIC it may have moved since it came.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match &self.rtt {
            Rtt::Live(connection) => canonical(connection.remote_address()),
            Rtt::Handshake(_) => self.remote,
        }
    }

    /// The round trip: of now on QUIC, as estimated from the handshake on TCP.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match &self.rtt {
            Rtt::Live(connection) => Some(connection.rtt()),
            Rtt::Handshake(rtt) => Some(*rtt),
        }
    }

    /// The same in microseconds, as it is shown.
    #[must_use]
    pub fn rtt_us(&self) -> Option<u64> {
        self.rtt()
            .and_then(|rtt| u64::try_from(rtt.as_micros()).ok())
    }

    /// A peer as a caller in the same process plays it, without a connection; its round trip is zero.
    #[must_use]
    pub fn played(
        identity: Option<PeerIdentity>,
        transport: TransportKind,
        key_exchange: &str,
        remote: SocketAddr,
    ) -> Self {
        Self {
            identity,
            transport,
            key_exchange: key_exchange.to_owned(),
            remote,
            since: Clock::system().instant(),
            rtt: Rtt::Handshake(Duration::ZERO),
        }
    }
}

/// An IPv4 address as such, also where a socket for both families saw it.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub(crate) fn group_name(group: NamedGroup) -> String {
    group
        .as_str()
        .map_or_else(|| format!("{group:?}"), str::to_owned)
}

/// The group a QUIC handshake agreed on.
pub(crate) fn quic_group(connection: &quinn::Connection) -> String {
    connection
        .handshake_data()
        .and_then(|data| {
            data.downcast::<quinn_proto::crypto::rustls::HandshakeData>()
                .ok()
        })
        .map_or_else(String::new, |data| {
            group_name(data.negotiated_key_exchange_group)
        })
}

/// The chain a QUIC peer presented.
pub(crate) fn quic_chain(
    connection: &quinn::Connection,
) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|chain| {
            chain
                .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
                .ok()
        })
        .map_or_else(Vec::new, |chain| *chain)
}
