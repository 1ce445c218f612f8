//! What attempts to connect came to, and the error that they are when none came to a connection.

use std::{fmt, io, net::SocketAddr, time::Duration};

use crate::{fault::Closed, peer::TransportKind};

/// What one attempt came to.
#[derive(Debug)]
pub struct Attempt {
    /// As configured.
    pub address: String,
    /// What it resolved to, if it did.
    pub remote: Option<SocketAddr>,
    /// Over which transport, once that far.
    pub transport: Option<TransportKind>,
    /// What went wrong.
    pub fault: Fault,
}

/// What goes wrong with an attempt.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The name.
    #[error("cannot resolve the name: {0}")]
    Resolve(io::Error),
    /// No answer.
    #[error("no answer within {}s", .0.as_secs())]
    Timeout(Duration),
    /// The operating system or the machine there.
    #[error("{0}")]
    Io(io::Error),
    /// The connection was refused or broke.
    #[error("{0}")]
    Closed(Closed),
}

impl Fault {
    /// Whether nobody listens there.
    pub(super) fn is_nobody(&self) -> bool {
        matches!(self, Self::Resolve(_) | Self::Io(_))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)?;
        if let Some(remote) = self.remote
            && remote.to_string() != self.address
        {
            write!(f, " ({remote})")?;
        }
        if let Some(transport) = self.transport {
            write!(f, " over {transport}")?;
        }
        write!(f, ": {}", self.fault)
    }
}

/// No address answered.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There was none to try.
    #[error("no address to connect to")]
    NoAddress,
    /// Every attempt, in order.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Failed(Vec<Attempt>),
}

impl DialError {
    /// Whether a peer was reached and a certificate was refused, by either side.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        let Self::Failed(attempts) = self else {
            return false;
        };
        attempts.iter().any(|attempt| {
            matches!(
                attempt.fault,
                Fault::Closed(Closed::Certificate(_) | Closed::Peer(_))
            )
        })
    }
}
