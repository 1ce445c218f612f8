//! gRPC over HTTP/3 (QUIC) and over HTTP/2 (TLS 1.3 on TCP), one set of tonic services behind both.
//!
//! A collector binds an [`AgentPort`] and an [`OperatorPort`]; agents and operators dial with a
//! [`Dialer`]. Every call carries a [`Peer`] in its request extensions: the verified identity and the
//! transport as they really are. Each established connection passes `nexus_pki::admission`, resumed or
//! not, before a call of it is served.
//!
//! HTTP/3 is our own glue on the `h3` library: one QUIC stream a call, so a stalled call holds up no
//! other. What a stream carries outside of DATA is capped (`preface`).

#![forbid(unsafe_code)]

mod body;
mod connections;
mod dial;
mod fault;
mod h2;
mod h3_client;
mod h3_server;
mod h3_wire;
mod half_open;
#[doc(hidden)]
pub mod inside;
mod knocks;
mod peer;
mod port;
mod preface;
#[cfg(test)]
mod tests;
mod tune;

pub use connections::{Connections, Counters, Limits, Refused};
pub use dial::{
    Attempt, Channel, Connection, DialError, DialTls, Dialer, Judge, Mode, enrol_connect,
    operator_connect,
};
pub use fault::Closed;
pub use peer::{Peer, TransportKind};
pub use port::{AgentPort, CallService, OperatorPort, Serving, TlsSet};
pub use tune::{ResetKeys, Windows};
