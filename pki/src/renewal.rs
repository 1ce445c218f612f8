//! Renewal with an expired certificate: a signature of the old key over the request for the new one.
//!
//! An agent that was away for longer than its certificate lives cannot make a mutually authenticated
//! connection. For [`limits::RENEW_EXPIRED`] it may instead show its old chain and prove the old key:
//! the statement is a domain prefix, SHA-256 of the old leaf, SHA-256 of the request and the time in
//! milliseconds (8 bytes, big-endian), signed with ECDSA P-256 and SHA-256. The chain passes admission
//! in everything but the leaf's expiry. Binding the request makes a replay worthless: it could only
//! certify the same new key once more.

use std::time::Duration;

use nexus_proto::{agent::v1 as wire, limits, time::Timestamp};

use crate::{
    admission::{Admission, PeerIdentity, Refusal},
    certificate::{CertificateError, Claims},
    csr::{self, CsrError},
    leaf::{self, Leaf},
    sha256,
    spiffe::Role,
};

/// So that no other signature of a leaf's key can be taken for this statement.
const PREFIX: &[u8] = b"nexus renew-expired v1\0";
/// How far the clocks of the two machines may be apart.
pub const CLOCK_DIFFERENCE: Duration = Duration::from_secs(24 * 3600);

/// A renewal that proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The old chain.
    #[error("the old certificate")]
    Refused(#[from] Refusal),
    /// The old leaf cannot be read.
    #[error("the old certificate")]
    Certificate(#[from] CertificateError),
    /// The new request, or the old key.
    #[error("the new key")]
    Csr(#[from] CsrError),
    /// Not signed with the old key.
    #[error("the renewal is not signed with the old certificate's key")]
    Proof,
    /// Made at another time.
    #[error(
        "the renewal was made at {made} by the agent's clock, here it is {now}: set the clock that is wrong"
    )]
    Time {
        /// By the agent's clock.
        made: Timestamp,
        /// By ours.
        now: Timestamp,
    },
}

/// The bytes that the old key signs.
#[must_use]
pub fn statement(old_leaf_der: &[u8], csr_der: &[u8], time: Timestamp) -> Vec<u8> {
    let mut bytes = PREFIX.to_vec();
    bytes.extend_from_slice(&sha256(old_leaf_der));
    bytes.extend_from_slice(&sha256(csr_der));
    bytes.extend_from_slice(&time.as_ms().to_be_bytes());
    bytes
}

/// The request of an agent whose leaf has expired, for the key in `csr_der`.
pub fn sign(
    old: &Leaf,
    csr_der: &[u8],
    now: Timestamp,
) -> Result<wire::RenewExpiredRequest, RenewalError> {
    let old_leaf = old.chain().first().ok_or(Refusal::NoCertificate)?;
    Ok(wire::RenewExpiredRequest {
        old_chain_der: old.chain_to_wire(),
        csr_der: csr_der.to_vec().into(),
        time_ms: now.as_ms(),
        proof: old.key().sign(&statement(old_leaf, csr_der, now))?.into(),
    })
}

/// Whose old key signed the request. The request's own signature is checked when it is certified.
pub fn verify(
    request: &wire::RenewExpiredRequest,
    admission: &Admission,
    now: Timestamp,
) -> Result<PeerIdentity, RenewalError> {
    let chain = leaf::chain_from_wire(
        request
            .old_chain_der
            .get(..limits::CHAIN_CERTIFICATES + 1)
            .unwrap_or(&request.old_chain_der),
    );
    let peer = admission.admit_late(&chain, &[Role::Agent], now, limits::RENEW_EXPIRED)?;
    csr::check(&request.csr_der)?;
    let old_leaf = chain.first().ok_or(Refusal::NoCertificate)?;
    let made = Timestamp(request.time_ms);
    let message = statement(old_leaf, &request.csr_der, made);
    if !csr::verifies(&Claims::of(old_leaf)?.public_key, &message, &request.proof) {
        return Err(RenewalError::Proof);
    }
    if made > now.after(CLOCK_DIFFERENCE) || made < now.before(CLOCK_DIFFERENCE) {
        return Err(RenewalError::Time { made, now });
    }
    Ok(peer)
}

#[cfg(test)]
mod tests;
