//! TLS configurations: 1.3 only, aws-lc-rs, X25519MLKEM768 preferred, our own admission on both sides.
//!
//! A peer's certificate is judged by [`crate::admission`] alone; the name in a ClientHello decides
//! nothing, since collectors are known by role and trust domain ([`SERVER_NAME`] is sent because TLS
//! wants one). Certificates come from a [`LiveLeaf`], so a renewal takes effect at the next handshake
//! without rebinding a port. Servers present leaf, intermediate and root, so that a client which knows
//! only the root's SHA-256 can check it.
//!
//! Sessions with client certificates resume by tickets, never with early data. A resumed handshake
//! shows the chain of the first one, so whoever accepts or opens a connection admits its
//! `peer_certificates()` once more; a client forgets its tickets when its leaf is replaced. Servers
//! that authenticate by a token or code give no tickets.
//!
//! For QUIC convert with `quinn::crypto::rustls::QuicServerConfig::try_from` and its client twin.

mod live;
mod verify;

use std::{fmt, str::FromStr, sync::Arc};

use nexus_proto::{ALPN_ENROL, ALPN_H2, ALPN_H3};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs},
    pki_types::ServerName,
    version::TLS13,
};

use crate::{
    admission::{Admission, Refusal},
    csr::CsrError,
    spiffe::Role,
};
use live::LeafSessions;
pub use live::{LiveLeaf, Present};
use verify::{ClientVerifier, PinnedVerifier, ServerVerifier};
pub use verify::{reason_of_alert, refusal_in, refusal_of};

/// The name clients send. It is fixed, decides nothing, and tells an eavesdropper nothing.
pub const SERVER_NAME: &str = "collector.nexus.invalid";

/// Tickets a client keeps.
const CLIENT_TICKETS: usize = 4;

/// A configuration that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refused.
    #[error("cannot make a TLS configuration")]
    Rustls(#[from] rustls::Error),
    /// The leaf's key.
    #[error("cannot use the identity's key for TLS")]
    Key(#[from] CsrError),
}

/// Which key-exchange groups a side offers and accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyExchange {
    /// X25519MLKEM768 first, then X25519 and P-256.
    #[default]
    Auto,
    /// X25519 and P-256 only.
    Classical,
    /// X25519MLKEM768 only: no connection rather than one that a quantum computer could read.
    PostQuantum,
}

impl KeyExchange {
    /// As in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Classical => "classical",
            Self::PostQuantum => "post-quantum",
        }
    }

    fn groups(self) -> Vec<&'static dyn SupportedKxGroup> {
        use aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
        match self {
            Self::Auto => vec![X25519MLKEM768, X25519, SECP256R1],
            Self::Classical => vec![X25519, SECP256R1],
            Self::PostQuantum => vec![X25519MLKEM768],
        }
    }
}

impl fmt::Display for KeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KeyExchange {
    type Err = UnknownKeyExchange;

    fn from_str(text: &str) -> Result<Self, UnknownKeyExchange> {
        [Self::Auto, Self::Classical, Self::PostQuantum]
            .into_iter()
            .find(|one| one.name() == text)
            .ok_or_else(|| UnknownKeyExchange(text.to_owned()))
    }
}

/// A text that names no [`KeyExchange`].
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is none of auto, classical, post-quantum")]
pub struct UnknownKeyExchange(String);

/// What a connection is for, as the handshake says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// gRPC over HTTP/3.
    H3,
    /// gRPC over HTTP/2.
    H2,
    /// Enrolment, without a client certificate.
    Enrol,
}

impl Alpn {
    /// The protocol's id.
    #[must_use]
    pub fn id(self) -> &'static [u8] {
        match self {
            Self::H3 => ALPN_H3,
            Self::H2 => ALPN_H2,
            Self::Enrol => ALPN_ENROL,
        }
    }
}

/// [`SERVER_NAME`] as rustls wants it.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("a constant that is a DNS name")
}

/// An agent's side of a session: its leaf, and only collectors of its fleet.
pub fn agent_client(
    leaf: &LiveLeaf,
    admission: &Admission,
    groups: KeyExchange,
    alpn: Alpn,
) -> Result<Arc<ClientConfig>, TlsError> {
    client(leaf, admission, groups, alpn)
}

/// An operator's side: its leaf, and only collectors of its fleet.
pub fn operator_client(
    leaf: &LiveLeaf,
    admission: &Admission,
    groups: KeyExchange,
) -> Result<Arc<ClientConfig>, TlsError> {
    client(leaf, admission, groups, Alpn::H2)
}

fn client(
    leaf: &LiveLeaf,
    admission: &Admission,
    groups: KeyExchange,
    alpn: Alpn,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider(groups))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(admission)))
        .with_client_cert_resolver(Arc::new(leaf.clone()));
    config.alpn_protocols = vec![alpn.id().to_vec()];
    config.resumption = Resumption::store(Arc::new(LeafSessions::new(leaf, CLIENT_TICKETS)));
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// Before enrolment: no leaf, and only a collector of `trust_domain` under the root with this SHA-256.
pub fn enrol_client(
    root_sha256: [u8; 32],
    trust_domain: &str,
    groups: KeyExchange,
) -> Result<Arc<ClientConfig>, TlsError> {
    pinned_client(root_sha256, trust_domain, groups, Alpn::Enrol)
}

/// Before login: as [`enrol_client`], on the operators' port.
pub fn operator_login_client(
    root_sha256: [u8; 32],
    trust_domain: &str,
    groups: KeyExchange,
) -> Result<Arc<ClientConfig>, TlsError> {
    pinned_client(root_sha256, trust_domain, groups, Alpn::H2)
}

fn pinned_client(
    root_sha256: [u8; 32],
    trust_domain: &str,
    groups: KeyExchange,
    alpn: Alpn,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider(groups))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier::new(root_sha256, trust_domain)))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.id().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// The agents' port: a client certificate of an agent of this fleet is required.
pub fn agents_server(
    leaf: &LiveLeaf,
    admission: &Admission,
    groups: KeyExchange,
    alpn: Alpn,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = ClientVerifier::required(admission, &[Role::Agent]);
    server(leaf, verifier, groups, alpn)
}

/// The operators' port: a client certificate, if one is shown, must be an operator's of this fleet.
/// Without one only what proves itself otherwise (login by code) may be served.
pub fn operators_server(
    leaf: &LiveLeaf,
    admission: &Admission,
    groups: KeyExchange,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = ClientVerifier::optional(admission, &[Role::Operator]);
    server(leaf, verifier, groups, Alpn::H2)
}

fn server(
    leaf: &LiveLeaf,
    verifier: ClientVerifier,
    groups: KeyExchange,
    alpn: Alpn,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider(groups))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(leaf.with_root()));
    config.alpn_protocols = vec![alpn.id().to_vec()];
    // Keys of this configuration's own: a ticket of one port or role is rubbish at another.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Enrolment on the agents' TCP port: the server alone is authenticated.
pub fn enrol_server(leaf: &LiveLeaf, groups: KeyExchange) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider(groups))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(leaf.with_root()));
    config.alpn_protocols = vec![Alpn::Enrol.id().to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Never the process-wide default provider: what a side accepts is decided here.
fn provider(groups: KeyExchange) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: groups.groups(),
        ..aws_lc_rs::default_provider()
    })
}

impl From<&Refusal> for rustls::Error {
    fn from(refusal: &Refusal) -> Self {
        verify::to_rustls(refusal)
    }
}

#[cfg(test)]
mod tests;
