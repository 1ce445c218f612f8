//! Who is who, and who may sign: certificates, admission, TLS configurations, signed documents.
//!
//! Two independent chains of trust meet here. *Certificates* say who a peer is: an [`authority`]'s root
//! and its three intermediates issue short-lived leaves whose one name is a [`spiffe`] id, and
//! [`admission`] is the only function that turns a presented chain into an identity. *Signatures* say
//! what may happen: operators' Ed25519 keys, listed in a [`policy`], sign [`job`]s and join [`token`]s
//! as [`dsse`] envelopes, and what was not verified cannot be parsed. A collector holds keys of the
//! first chain only, which is why a stolen collector cannot run code on a node.
//!
//! All cryptography is aws-lc-rs'; this is the only crate that builds certificates or rustls
//! configurations. Nothing here reads a clock: time is an argument (within TLS handshakes it is
//! rustls' own).

#![forbid(unsafe_code)]

pub mod admission;
pub mod authority;
pub mod certificate;
pub mod csr;
pub mod dsse;
pub mod files;
pub mod job;
pub mod leaf;
pub mod merkle;
pub mod operator_code;
pub mod policy;
pub mod renewal;
pub mod signing;
pub mod spiffe;
pub mod tls;
pub mod token;

pub use rustls_pki_types::CertificateDer;

/// SHA-256, the digest of pins, key ids and trees.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}

/// Fills an array with random bytes from the system.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// The system gave no random bytes.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

/// Lower-case hex, as ids of keys and serial numbers are shown.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod testing;
