//! DSSE envelopes: signatures over the exact bytes of a payload and its type.
//!
//! The protocol is that of github.com/secure-systems-lab/dsse, version 1: what is signed is
//! `PAE(type, payload) = "DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload`. Nothing of a payload
//! is parsed before its signatures hold: a [`VerifiedPayload`] comes from [`verify`] alone, and the
//! modules that parse signed documents take nothing else.

use std::collections::BTreeSet;

use nexus_proto::{agent::v1 as wire, limits};
use prost::bytes::Bytes;

use crate::signing::{PublicKey, Signer, SigningKey};

/// Payload types, one for each kind of document: a signature for one kind never counts for another.
pub mod payload_type {
    /// Over `agent.v1.Job`.
    pub const JOB: &str = "application/vnd.nexus.job.v1";
    /// Over `agent.v1.SignerPolicy`.
    pub const POLICY: &str = "application/vnd.nexus.policy.v1";
    /// Over `agent.v1.PolicyFreshness`.
    pub const FRESHNESS: &str = "application/vnd.nexus.freshness.v1";
    /// Over `agent.v1.JoinToken`.
    pub const JOIN_TOKEN: &str = "application/vnd.nexus.join-token.v1";
}

/// An envelope whose payload must not be believed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum DsseError {
    /// Signed, if at all, as something else.
    #[error("the envelope holds `{found}` instead of `{expected}`")]
    Type {
        /// What it says it holds.
        found: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// Too few signatures of signers that count.
    #[error("the envelope has {found} valid signature(s) of listed signers, {needed} needed")]
    Threshold {
        /// Distinct signers whose signature holds.
        found: usize,
        /// How many it takes.
        needed: u32,
    },
    /// A verifier that would accept anything.
    #[error("a threshold of 0 signatures verifies nothing")]
    NoThreshold,
    /// More signatures than anyone has to look at.
    #[error("the envelope has {0} signatures, at most {max} are looked at", max = limits::SIGNATURES)]
    TooManySignatures(usize),
    /// A signature, or the name of its key, larger than any.
    #[error("a signature of the envelope has {0} bytes, at most {max} are looked at", max = limits::SIGNATURE_BYTES)]
    SignatureTooLarge(usize),
    /// A payload larger than any of ours.
    #[error("the envelope's payload has {0} bytes, at most {max} are allowed", max = limits::JOB_BYTES)]
    TooLarge(usize),
}

/// Bytes that enough listed signers signed as `payload_type`. Only [`verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPayload {
    payload_type: &'static str,
    payload: Bytes,
    signed_by: Vec<Signer>,
}

impl VerifiedPayload {
    /// One of [`payload_type`].
    #[must_use]
    pub fn payload_type(&self) -> &'static str {
        self.payload_type
    }

    /// The signed bytes.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The distinct signers whose signatures hold, in the order of the policy.
    #[must_use]
    pub fn signed_by(&self) -> &[Signer] {
        &self.signed_by
    }
}

/// An envelope with one signature.
#[must_use]
pub fn sign(key: &SigningKey, payload_type: &'static str, payload: Bytes) -> wire::Envelope {
    let mut envelope = wire::Envelope {
        payload_type: payload_type.to_owned(),
        payload,
        signatures: Vec::new(),
    };
    add_signature(key, &mut envelope);
    envelope
}

/// Adds a further signer's signature. Whoever signs must have verified or made the payload.
pub fn add_signature(key: &SigningKey, envelope: &mut wire::Envelope) {
    let sig = key.sign(&pae(&envelope.payload_type, &envelope.payload));
    envelope.signatures.push(wire::Signature {
        key_id: key.key_id(),
        sig: sig.into(),
    });
}

/// Checks that at least `threshold` distinct keys of `signers` signed the payload as `payload_type`.
///
/// Signatures of unknown keys and invalid ones count for nothing but do no harm, as DSSE asks: an
/// envelope may be signed for several audiences. A key counts once however often it signed or is listed.
pub fn verify(
    envelope: &wire::Envelope,
    payload_type: &'static str,
    signers: &[Signer],
    threshold: u32,
) -> Result<VerifiedPayload, DsseError> {
    if envelope.payload_type != payload_type {
        return Err(DsseError::Type {
            found: envelope.payload_type.escape_debug().take(80).collect(),
            expected: payload_type,
        });
    }
    if threshold == 0 {
        return Err(DsseError::NoThreshold);
    }
    if envelope.signatures.len() > limits::SIGNATURES {
        return Err(DsseError::TooManySignatures(envelope.signatures.len()));
    }
    // What is not looked at is kept along with the rest, so it is bounded too.
    let sizes = envelope.signatures.iter();
    let largest = sizes.map(|one| one.sig.len().max(one.key_id.len())).max();
    if let Some(bytes) = largest.filter(|bytes| *bytes > limits::SIGNATURE_BYTES) {
        return Err(DsseError::SignatureTooLarge(bytes));
    }
    if envelope.payload.len() > limits::JOB_BYTES {
        return Err(DsseError::TooLarge(envelope.payload.len()));
    }
    let message = pae(payload_type, &envelope.payload);
    let mut seen: BTreeSet<PublicKey> = BTreeSet::new();
    let mut signed_by = Vec::new();
    for signer in signers {
        let key = signer.public_key;
        // The id only saves work: it narrows which signatures are tried with which key.
        let key_id = key.key_id();
        let signed = !seen.contains(&key)
            && envelope
                .signatures
                .iter()
                .any(|one| one.key_id == key_id && key.verifies(&message, &one.sig));
        if signed {
            seen.insert(key);
            signed_by.push(signer.clone());
        }
    }
    if u32::try_from(seen.len()).is_ok_and(|found| found < threshold) {
        return Err(DsseError::Threshold {
            found: seen.len(),
            needed: threshold,
        });
    }
    Ok(VerifiedPayload {
        payload_type,
        payload: envelope.payload.clone(),
        signed_by,
    })
}

/// Pre-authentication encoding: unambiguous, since both parts are preceded by their lengths.
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests;
