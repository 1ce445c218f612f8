//! Join tokens: what a machine needs to become a node, signed by an operator.
//!
//! The text is `nxt_` and the base64url (RFC 4648, section 5, without padding) of an encoded
//! [`wire::Envelope`] over `JoinToken`. It travels from an operator to a machine by whatever way the
//! operator trusts, and so it is itself the machine's first trust: the agent reads the pins of the
//! unverified [`Token`], checks server and policy against them, and then the token's signature against
//! that policy. The collector takes only tokens that [`verify`] accepts.

use std::{collections::BTreeMap, fmt, str::FromStr};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use nexus_proto::{
    agent::v1 as wire,
    ids::{IdError, TokenId},
    limits::{self, ADDRESS_BYTES, ADDRESSES},
    selector::{self, LabelError},
    time::Timestamp,
};
use prost::{Message as _, bytes::Bytes};

use crate::{
    dsse::{self, DsseError, payload_type},
    policy::TrustedPolicy,
    signing::SigningKey,
    spiffe::{self, SpiffeError},
};

/// What a token begins with.
pub const PREFIX: &str = "nxt_";

/// A token that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("a join token begins with `{PREFIX}`")]
    Prefix,
    /// Longer than any token.
    #[error("the join token has {0} bytes, at most {max} are allowed", max = limits::TOKEN_BYTES)]
    TooLarge(usize),
    /// Mangled on its way.
    #[error("the join token is no base64url: part of it is missing or changed")]
    Base64,
    /// Mangled on its way.
    #[error("the join token is no valid message: part of it is missing or changed")]
    Encoding(#[source] prost::DecodeError),
    /// A document of another kind.
    #[error("the envelope holds `{0}` instead of a join token")]
    Type(String),
    /// Not signed by someone who may.
    #[error("the join token's signature")]
    Signature(#[from] DsseError),
    /// Its id is none.
    #[error("the join token has no valid id")]
    Id(#[source] IdError),
    /// A pin of another length.
    #[error("the join token's {what} has {len} bytes instead of 32")]
    Pin {
        /// Which.
        what: &'static str,
        /// Its length.
        len: usize,
    },
    /// Of another fleet.
    #[error("the join token is of the trust domain `{found}`, this is `{expected}`")]
    OtherTrustDomain {
        /// The token's.
        found: String,
        /// Ours.
        expected: String,
    },
    /// Under another root.
    #[error("the join token pins another root certificate than this fleet's")]
    OtherRoot,
    /// Its trust domain is none.
    #[error("the join token's trust domain")]
    TrustDomain(#[source] SpiffeError),
    /// None, too many, or no `host:port`.
    #[error("the join token has no valid addresses: {0}")]
    Addresses(String),
    /// A label that is none.
    #[error("a label of the join token")]
    Label(#[source] LabelError),
    /// Too many labels.
    #[error("the join token has {0} labels, at most {max} are allowed", max = limits::LABELS)]
    Labels(usize),
    /// For nobody.
    #[error("the join token allows no use")]
    Uses,
    /// Too late.
    #[error(
        "the join token expired at {expires}, it is {now}: ask an operator for a new one, or set the clock"
    )]
    Expired {
        /// Its end.
        expires: Timestamp,
        /// The present.
        now: Timestamp,
    },
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Its name, by which it is counted and revoked.
    pub id: TokenId,
    /// SHA-256 of the root certificate's DER.
    pub root_sha256: [u8; 32],
    /// SHA-256 of the signer policy's payload.
    pub policy_digest: [u8; 32],
    /// Where collectors answer, `host:port`.
    pub addresses: Vec<String>,
    /// Labels of the nodes it lets in.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created: Timestamp,
    /// Nobody joins by it at or after this.
    pub expires: Timestamp,
    /// How many nodes may join by it.
    pub uses: u32,
    /// The fleet.
    pub trust_domain: String,
}

/// A token as text carries it: signed by someone, which is not checked yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    envelope: wire::Envelope,
    claims: JoinToken,
}

/// Signs a token.
pub fn create(key: &SigningKey, token: &JoinToken) -> Result<Token, TokenError> {
    token.check()?;
    let payload = token.to_wire().encode_to_vec();
    let token = Token {
        envelope: dsse::sign(key, payload_type::JOIN_TOKEN, payload.into()),
        claims: token.clone(),
    };
    let len = token.to_string().len();
    if len > limits::TOKEN_BYTES {
        return Err(TokenError::TooLarge(len));
    }
    Ok(token)
}

/// Checks a token against the signers of the policy in force (one signature is enough), the fleet's
/// root, and the clock. Whether its uses are spent, or it is revoked, only the collector's log knows.
pub fn verify(
    envelope: &wire::Envelope,
    policy: &TrustedPolicy,
    root_sha256: &[u8; 32],
    now: Timestamp,
) -> Result<JoinToken, TokenError> {
    let token = verify_signature(envelope, policy)?;
    if token.root_sha256 != *root_sha256 {
        return Err(TokenError::OtherRoot);
    }
    if now >= token.expires {
        return Err(TokenError::Expired {
            expires: token.expires,
            now,
        });
    }
    Ok(token)
}

fn verify_signature(
    envelope: &wire::Envelope,
    policy: &TrustedPolicy,
) -> Result<JoinToken, TokenError> {
    let verified = dsse::verify(envelope, payload_type::JOIN_TOKEN, policy.signers(), 1)?;
    let token = JoinToken::decode(verified.payload())?;
    if token.trust_domain != policy.trust_domain() {
        return Err(TokenError::OtherTrustDomain {
            found: token.trust_domain,
            expected: policy.trust_domain().to_owned(),
        });
    }
    Ok(token)
}

impl Token {
    /// From text; white space around it does not matter.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > limits::TOKEN_BYTES {
            return Err(TokenError::TooLarge(text.len()));
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| TokenError::Base64)?;
        Self::from_bytes(&bytes)
    }

    /// From the encoded envelope, as [`wire::EnrolRequest`] carries it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenError> {
        if bytes.len() > limits::TOKEN_BYTES {
            return Err(TokenError::TooLarge(bytes.len()));
        }
        Self::from_envelope(wire::Envelope::decode(bytes).map_err(TokenError::Encoding)?)
    }

    /// From an envelope.
    pub fn from_envelope(envelope: wire::Envelope) -> Result<Self, TokenError> {
        if envelope.payload_type != payload_type::JOIN_TOKEN {
            return Err(TokenError::Type(
                envelope.payload_type.escape_debug().take(80).collect(),
            ));
        }
        Ok(Self {
            claims: JoinToken::decode(&envelope.payload)?,
            envelope,
        })
    }

    /// What it says: to be believed as far as the way it came by, until [`verify`].
    #[must_use]
    pub fn claims(&self) -> &JoinToken {
        &self.claims
    }

    /// The signed document.
    #[must_use]
    pub fn envelope(&self) -> &wire::Envelope {
        &self.envelope
    }

    /// The encoded envelope, as [`wire::EnrolRequest`] carries it.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.envelope.encode_to_vec().into()
    }

    /// The agent's last check: that a signer of the policy which this token pins signed this token.
    pub fn check_signed_by(&self, policy: &TrustedPolicy) -> Result<(), TokenError> {
        verify_signature(&self.envelope, policy).map(|_| ())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}{}",
            BASE64_URL_SAFE_NO_PAD.encode(self.to_bytes())
        )
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::parse(text)
    }
}

impl JoinToken {
    fn decode(payload: &Bytes) -> Result<Self, TokenError> {
        let token = wire::JoinToken::decode(payload.clone()).map_err(TokenError::Encoding)?;
        let token = Self {
            id: TokenId::from_wire(&token.id).map_err(TokenError::Id)?,
            root_sha256: pin("root pin", &token.root_sha256)?,
            policy_digest: pin("policy pin", &token.policy_digest)?,
            addresses: token.addresses,
            labels: token.labels.into_iter().collect(),
            created: Timestamp(token.created_ms),
            expires: Timestamp(token.expires_ms),
            uses: token.uses,
            trust_domain: token.trust_domain,
        };
        token.check()?;
        Ok(token)
    }

    fn to_wire(&self) -> wire::JoinToken {
        wire::JoinToken {
            id: self.id.to_wire(),
            root_sha256: self.root_sha256.to_vec().into(),
            policy_digest: self.policy_digest.to_vec().into(),
            addresses: self.addresses.clone(),
            labels: self.labels.clone().into_iter().collect(),
            created_ms: self.created.as_ms(),
            expires_ms: self.expires.as_ms(),
            uses: self.uses,
            trust_domain: self.trust_domain.clone(),
        }
    }

    fn check(&self) -> Result<(), TokenError> {
        spiffe::check_trust_domain(&self.trust_domain).map_err(TokenError::TrustDomain)?;
        check_addresses(&self.addresses).map_err(TokenError::Addresses)?;
        if self.labels.len() > limits::LABELS {
            return Err(TokenError::Labels(self.labels.len()));
        }
        for (key, value) in &self.labels {
            selector::check_key(key).map_err(TokenError::Label)?;
            selector::check_value(value).map_err(TokenError::Label)?;
        }
        if self.uses == 0 {
            return Err(TokenError::Uses);
        }
        Ok(())
    }
}

/// One to [`ADDRESSES`] texts `host:port`. The host is not resolved here.
pub fn check_addresses(addresses: &[String]) -> Result<(), String> {
    if !(1..=ADDRESSES).contains(&addresses.len()) {
        return Err(format!(
            "there are {}, 1 to {ADDRESSES} are allowed",
            addresses.len()
        ));
    }
    for address in addresses {
        let valid = address.len() <= ADDRESS_BYTES
            && address.bytes().all(|byte| byte.is_ascii_graphic())
            && address.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && port.bytes().all(|byte| byte.is_ascii_digit())
                    && port.parse::<u16>().is_ok_and(|port| port != 0)
            });
        if !valid {
            let shown: String = address.escape_debug().take(100).collect();
            return Err(format!("`{shown}` is no host:port"));
        }
    }
    Ok(())
}

fn pin(what: &'static str, bytes: &[u8]) -> Result<[u8; 32], TokenError> {
    bytes.try_into().map_err(|_| TokenError::Pin {
        what,
        len: bytes.len(),
    })
}

#[cfg(test)]
mod tests;
