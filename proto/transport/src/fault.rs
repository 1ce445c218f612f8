//! Why connections and calls end, in words.

use std::error::Error as StdError;

use h3::error::{Code, StreamError};
use quinn::{ConnectionError, TransportErrorCode};
use tonic::Status;

/// The application error code of a connection that was refused or cut; its reason says why.
pub(crate) const REFUSED: u32 = 0x4e58;

/// TLS's alert `handshake_failure` (RFC 8446, section 6.2).
const HANDSHAKE_FAILURE: u8 = 40;

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// By this side.
    #[error("closed by this side")]
    Local,
    /// By the peer, with its reason.
    #[error("the peer closed the connection: {0}")]
    Peer(String),
    /// A stateless reset came.
    #[error("the peer no longer knows the connection, as after a restart")]
    Restarted,
    /// Nothing came for too long.
    #[error("the peer no longer answers")]
    Silent,
    /// A certificate was refused, by either side.
    #[error("{0}")]
    Certificate(String),
    /// The peer accepts no TLS parameters of ours. Every program speaks the same version and ciphers: what can
    /// differ is the setting.
    #[error(
        "the peer accepts none of our TLS key exchanges: compare `tls.key_exchange` on both sides"
    )]
    KeyExchange,
    /// Anything else.
    #[error("the connection broke: {0}")]
    Broken(String),
}

impl Closed {
    pub(crate) fn of_quic(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::LocallyClosed => Self::Local,
            ConnectionError::Reset => Self::Restarted,
            ConnectionError::TimedOut => Self::Silent,
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                if reason.is_empty() {
                    Self::Peer(format!("code {:#x}", close.error_code.into_inner()))
                } else {
                    Self::Peer(reason)
                }
            }
            ConnectionError::TransportError(error) => {
                refusal_of(error).map_or_else(|| Self::Broken(error.to_string()), Self::Certificate)
            }
            ConnectionError::ConnectionClosed(close)
                if close.error_code == TransportErrorCode::crypto(HANDSHAKE_FAILURE) =>
            {
                Self::KeyExchange
            }
            ConnectionError::ConnectionClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                if let Some(refusal) = nexus_pki::tls::refusal_in(&reason) {
                    Self::Certificate(format!("the peer refused our certificate: {refusal}"))
                } else if let Some(words) = words_of(close.error_code) {
                    Self::Certificate(words.to_owned())
                } else if reason.is_empty() {
                    Self::Peer(close.to_string())
                } else {
                    Self::Peer(reason)
                }
            }
            other => Self::Broken(other.to_string()),
        }
    }

    pub(crate) fn of_error(error: &(dyn StdError + 'static)) -> Self {
        if let Some(refusal) = refusal_of(error) {
            return Self::Certificate(refusal);
        }
        let words = chain(error);
        if words.contains("received fatal alert: HandshakeFailure") {
            return Self::KeyExchange;
        }
        Self::Broken(words)
    }
}

/// What the TLS alert in an error code of QUIC (0x100 plus the alert; RFC 9001, section 4.8) says of our certificate.
fn words_of(code: TransportErrorCode) -> Option<&'static str> {
    let alert = u64::from(code).checked_sub(0x100)?;
    nexus_pki::tls::reason_of_alert(alert.try_into().ok()?)
}

/// Why a certificate was refused, if that is what an error is about.
pub(crate) fn refusal_of(error: &(dyn StdError + 'static)) -> Option<String> {
    nexus_pki::tls::refusal_of(error).or_else(|| nexus_pki::tls::refusal_in(&chain(error)))
}

/// An error with its sources, in one line.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let said = source.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = source.source();
    }
    text
}

/// gRPC's status for what became of a call's HTTP/3 stream.
pub(crate) fn status_of(error: &StreamError, connection: &quinn::Connection) -> Status {
    if let Some(closed) = connection.close_reason() {
        return Status::unavailable(Closed::of_quic(&closed).to_string());
    }
    match error {
        StreamError::HeaderTooBig {
            actual_size,
            max_size,
            ..
        } => Status::resource_exhausted(format!(
            "headers of {actual_size} bytes are more than the {max_size} allowed"
        )),
        StreamError::RemoteTerminate { code, .. } if *code == Code::H3_EXCESSIVE_LOAD => {
            Status::resource_exhausted("the peer refused the call: too many bytes before its data")
        }
        StreamError::RemoteTerminate { code, .. } if *code == Code::H3_REQUEST_REJECTED => {
            Status::unavailable("the peer takes no more calls on this connection")
        }
        StreamError::RemoteTerminate { code, .. } => {
            Status::cancelled(format!("the peer ended the call: {code}"))
        }
        StreamError::StreamError { reason, .. } => Status::internal(reason.clone()),
        // What the library tells of the connection: it closes, or it has ended.
        other => Status::unavailable(chain(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_without_words_is_put_into_words() {
        let closed = |alert, reason: &'static str| {
            let error = ConnectionError::ConnectionClosed(quinn::ConnectionClose {
                error_code: TransportErrorCode::crypto(alert),
                frame_type: None,
                reason: reason.into(),
            });
            Closed::of_quic(&error)
        };
        let Closed::Certificate(words) = closed(45, "") else {
            panic!("certificate_expired is about the certificate")
        };
        assert!(words.contains("our certificate is expired"), "{words}");
        assert!(matches!(closed(80, ""), Closed::Peer(_)));
        assert_eq!(closed(80, "no"), Closed::Peer("no".to_owned()));
    }
}
