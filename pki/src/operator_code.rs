//! Operator codes: what `nexus-collector init` prints, enough to log in once.
//!
//! The text is `nxo_` and the base64url (without padding) of an encoded `OperatorCode`: an id and a
//! secret, the name to log in as, where, and the pin of the root. It is a secret in itself and not
//! signed. The collector keeps [`OperatorCode::secret_hash`] and never the secret.

use std::{fmt, str::FromStr};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use nexus_proto::{agent::v1 as wire, limits, time::Timestamp};
use prost::Message as _;
use zeroize::Zeroizing;

use crate::{
    NoRandomness, random, sha256,
    spiffe::{self, SpiffeError},
    token::check_addresses,
};

/// What a code begins with.
pub const PREFIX: &str = "nxo_";

/// A code that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OperatorCodeError {
    /// Something else.
    #[error("an operator code begins with `{PREFIX}`")]
    Prefix,
    /// Longer than any code.
    #[error("the operator code has {0} bytes, at most {max} are allowed", max = limits::TOKEN_BYTES)]
    TooLarge(usize),
    /// Mangled on its way.
    #[error("the operator code is no base64url: part of it is missing or changed")]
    Base64,
    /// Mangled on its way.
    #[error("the operator code is no valid message: part of it is missing or changed")]
    Encoding(#[source] prost::DecodeError),
    /// A part of another length.
    #[error("the operator code's {what} has {len} bytes instead of {needed}")]
    Length {
        /// Which part.
        what: &'static str,
        /// Its length.
        len: usize,
        /// What it should have.
        needed: usize,
    },
    /// The operator's name or the trust domain.
    #[error("the operator code's {what}")]
    Name {
        /// Which.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: SpiffeError,
    },
    /// None, too many, or no `host:port`.
    #[error("the operator code has no valid addresses: {0}")]
    Addresses(String),
    /// The system gave no random bytes.
    #[error("a new operator code")]
    Random(#[from] NoRandomness),
}

/// Enough to log in once.
#[derive(Clone, PartialEq, Eq)]
pub struct OperatorCode {
    /// Which code.
    pub id: [u8; 16],
    /// What proves it.
    pub secret: Zeroizing<[u8; 32]>,
    /// SHA-256 of the root certificate's DER.
    pub root_sha256: [u8; 32],
    /// Where the operators' port answers, `host:port`.
    pub addresses: Vec<String>,
    /// Of no use at or after this.
    pub expires: Timestamp,
    /// Whom it logs in.
    pub name: String,
    /// The fleet.
    pub trust_domain: String,
}

impl OperatorCode {
    /// A new random code.
    pub fn generate(
        name: &str,
        trust_domain: &str,
        root_sha256: [u8; 32],
        addresses: Vec<String>,
        expires: Timestamp,
    ) -> Result<Self, OperatorCodeError> {
        let code = Self {
            id: random()?,
            secret: random()?.into(),
            root_sha256,
            addresses,
            expires,
            name: name.to_owned(),
            trust_domain: trust_domain.to_owned(),
        };
        code.check()?;
        Ok(code)
    }

    /// From text; white space around it does not matter.
    pub fn parse(text: &str) -> Result<Self, OperatorCodeError> {
        let text = text.trim();
        if text.len() > limits::TOKEN_BYTES {
            return Err(OperatorCodeError::TooLarge(text.len()));
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(OperatorCodeError::Prefix)?;
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| OperatorCodeError::Base64)?;
        let code =
            wire::OperatorCode::decode(bytes.as_slice()).map_err(OperatorCodeError::Encoding)?;
        let code = Self {
            id: exact("id", &code.id)?,
            secret: exact("secret", &code.secret)?.into(),
            root_sha256: exact("root pin", &code.root_sha256)?,
            addresses: code.addresses,
            expires: Timestamp(code.expires_ms),
            name: code.name,
            trust_domain: code.trust_domain,
        };
        code.check()?;
        Ok(code)
    }

    /// The text to print and to type.
    #[must_use]
    pub fn encode(&self) -> String {
        let code = wire::OperatorCode {
            id: self.id.to_vec().into(),
            secret: self.secret.to_vec().into(),
            root_sha256: self.root_sha256.to_vec().into(),
            addresses: self.addresses.clone(),
            expires_ms: self.expires.as_ms(),
            name: self.name.clone(),
            trust_domain: self.trust_domain.clone(),
        };
        format!(
            "{PREFIX}{}",
            BASE64_URL_SAFE_NO_PAD.encode(code.encode_to_vec())
        )
    }

    /// What a collector keeps to recognise the secret. 256 random bits need no slow hash.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        sha256(self.secret.as_slice())
    }

    fn check(&self) -> Result<(), OperatorCodeError> {
        spiffe::check_segment(&self.name).map_err(|source| OperatorCodeError::Name {
            what: "name",
            source,
        })?;
        spiffe::check_trust_domain(&self.trust_domain).map_err(|source| {
            OperatorCodeError::Name {
                what: "trust domain",
                source,
            }
        })?;
        check_addresses(&self.addresses).map_err(OperatorCodeError::Addresses)
    }
}

/// Whether a presented secret is the one whose hash was kept, in constant time.
#[must_use]
pub fn secret_matches(secret: &[u8], kept_hash: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(&sha256(secret), kept_hash).is_ok()
}

/// Without the secret, since errors and logs print what they have.
impl fmt::Debug for OperatorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorCode")
            .field("id", &crate::hex(&self.id))
            .field("name", &self.name)
            .field("trust_domain", &self.trust_domain)
            .field("addresses", &self.addresses)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl FromStr for OperatorCode {
    type Err = OperatorCodeError;

    fn from_str(text: &str) -> Result<Self, OperatorCodeError> {
        Self::parse(text)
    }
}

fn exact<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], OperatorCodeError> {
    bytes.try_into().map_err(|_| OperatorCodeError::Length {
        what,
        len: bytes.len(),
        needed: N,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code() -> OperatorCode {
        OperatorCode::generate(
            "admin",
            "example.org",
            [3; 32],
            vec!["[::1]:7461".to_owned(), "collector.example:7461".to_owned()],
            Timestamp(1_800_000_000_000),
        )
        .unwrap()
    }

    #[test]
    fn comes_back_from_text() {
        let code = code();
        let text = code.encode();
        assert!(text.starts_with("nxo_"));
        assert_eq!(OperatorCode::parse(&format!(" {text}\n")).unwrap(), code);
    }

    #[test]
    fn only_the_secret_matches_its_hash() {
        let (code, other) = (code(), code());
        assert!(secret_matches(code.secret.as_slice(), &code.secret_hash()));
        assert!(!secret_matches(
            other.secret.as_slice(),
            &code.secret_hash()
        ));
        assert!(!secret_matches(code.secret.as_slice(), &[]));
        assert_ne!(code.id, other.id);
    }

    #[test]
    fn the_secret_is_not_shown() {
        let code = code();
        let shown = format!("{code:?}");
        assert!(!shown.contains(&crate::hex(code.secret.as_slice())));
        assert!(!shown.contains(&format!("{:?}", *code.secret)));
    }

    #[test]
    fn refuses_what_is_no_code() {
        let text = code().encode();
        for (bad, message) in [
            ("nxt_AAAA".to_owned(), "an operator code begins with `nxo_`"),
            (
                format!("{text}="),
                "the operator code is no base64url: part of it is missing or changed",
            ),
            (
                "nxo_".to_owned(),
                "the operator code's id has 0 bytes instead of 16",
            ),
        ] {
            assert_eq!(OperatorCode::parse(&bad).unwrap_err().to_string(), message);
        }
        for addresses in [
            vec![],
            vec!["host".to_owned()],
            vec!["host:0".to_owned()],
            vec!["host:+1".to_owned()],
            vec![":1".to_owned()],
            vec!["a b:1".to_owned()],
            vec!["host:70000".to_owned()],
            vec!["host:1".to_owned(); 17],
        ] {
            let made = OperatorCode::generate("a", "example.org", [0; 32], addresses, Timestamp(0));
            assert!(matches!(made, Err(OperatorCodeError::Addresses(_))));
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "nxo_[A-Za-z0-9_-]{0,80}") {
            let _ignored = OperatorCode::parse(&text);
        }
    }
}
