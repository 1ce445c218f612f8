//! Private keys for certificates, and requests (PKCS #10, RFC 2986) for them.
//!
//! Keys are P-256. A request proves possession of its key and nothing else: the names in it are
//! discarded, since an identity is decided by whoever issues. So a request is made without names, and
//! [`check`] returns the key alone.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use nexus_proto::limits;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};
use zeroize::Zeroizing;

/// 1.2.840.10045.4.3.2
const ECDSA_WITH_SHA256: &str = "1.2.840.10045.4.3.2";
/// 1.2.840.10045.2.1
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
/// 1.2.840.10045.3.1.7
const P256: &str = "1.2.840.10045.3.1.7";
/// Bytes of an uncompressed P-256 point.
const POINT_BYTES: usize = 65;

/// A key that cannot be made, or a request that proves nothing.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CsrError {
    /// The library refused to make a key or a request.
    #[error("cannot make a key or a certificate signing request: {0}")]
    Generate(String),
    /// The bytes are no private key of ours.
    #[error("no P-256 private key in PKCS #8: {0}")]
    Key(String),
    /// Too long to be looked at.
    #[error("the certificate signing request has {0} bytes, at most {max} are allowed", max = limits::CSR_BYTES)]
    TooLarge(usize),
    /// No PKCS #10 request.
    #[error("not a certificate signing request: {0}")]
    Encoding(String),
    /// A key or signature of another kind.
    #[error("the certificate signing request is not for a P-256 key, signed with SHA-256")]
    Algorithm,
    /// Signed by another key than the one in it.
    #[error("the certificate signing request is not signed by its own key")]
    Signature,
}

/// A P-256 private key in PKCS #8, wiped when it is dropped.
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// A new random key.
    pub fn generate() -> Result<Self, CsrError> {
        Ok(Self {
            pkcs8: KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(generate)?
                .serialize_der()
                .into(),
        })
    }

    /// From PKCS #8.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, CsrError> {
        let key = Self {
            pkcs8: pkcs8.to_vec().into(),
        };
        key.pair().map(|_| key)
    }

    /// As PKCS #8.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The uncompressed point of its public half.
    pub fn public_key(&self) -> Result<Vec<u8>, CsrError> {
        Ok(self.pair()?.public_key_raw().to_vec())
    }

    /// A request without names, signed by this key.
    pub fn csr(&self) -> Result<Vec<u8>, CsrError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.pair()?).map_err(generate)?;
        Ok(request.der().to_vec())
    }

    /// ECDSA with SHA-256 over `message`, in ASN.1.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CsrError> {
        use rcgen::SigningKey as _;
        self.pair()?.sign(message).map_err(generate)
    }

    pub(crate) fn pair(&self) -> Result<KeyPair, CsrError> {
        KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(self.pkcs8.as_slice()),
            &rcgen::PKCS_ECDSA_P256_SHA256,
        )
        .map_err(|error| CsrError::Key(error.to_string()))
    }

    pub(crate) fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }
}

impl Clone for PrivateKey {
    fn clone(&self) -> Self {
        Self {
            pkcs8: self.pkcs8.clone(),
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A new key with its request.
pub fn new_csr() -> Result<(PrivateKey, Vec<u8>), CsrError> {
    let key = PrivateKey::generate()?;
    let csr = key.csr()?;
    Ok((key, csr))
}

/// The key of a request that proved its possession.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedKey {
    point: Vec<u8>,
}

impl RequestedKey {
    /// The uncompressed P-256 point.
    #[must_use]
    pub fn point(&self) -> &[u8] {
        &self.point
    }
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// Checks a request's form, size and signature; whatever names it asks for are discarded.
pub fn check(csr_der: &[u8]) -> Result<RequestedKey, CsrError> {
    if csr_der.len() > limits::CSR_BYTES {
        return Err(CsrError::TooLarge(csr_der.len()));
    }
    let (rest, request) = X509CertificationRequest::from_der(csr_der)
        .map_err(|error| CsrError::Encoding(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CsrError::Encoding(format!(
            "{} bytes follow it",
            rest.len()
        )));
    }
    let info = &request.certification_request_info;
    let key = &info.subject_pki;
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    let point = key.subject_public_key.data.as_ref();
    if request.signature_algorithm.algorithm.to_id_string() != ECDSA_WITH_SHA256
        || key.algorithm.algorithm.to_id_string() != EC_PUBLIC_KEY
        || curve.map(|oid| oid.to_id_string()).as_deref() != Some(P256)
        || point.len() != POINT_BYTES
    {
        return Err(CsrError::Algorithm);
    }
    if !verifies(point, info.raw, &request.signature_value.data) {
        return Err(CsrError::Signature);
    }
    Ok(RequestedKey {
        point: point.to_vec(),
    })
}

/// Whether `signature` is that of the P-256 key `point` over `message`.
pub(crate) fn verifies(point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(message, signature)
        .is_ok()
}

fn generate(error: rcgen::Error) -> CsrError {
    CsrError::Generate(error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::SanType;

    use super::*;

    #[test]
    fn a_request_yields_its_key_and_no_names() {
        let (key, csr) = new_csr().unwrap();
        assert_eq!(check(&csr).unwrap().point(), key.public_key().unwrap());

        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(
            "spiffe://example.org/operator/root".try_into().unwrap(),
        )];
        let named = params.serialize_request(&key.pair().unwrap()).unwrap();
        assert_eq!(
            check(named.der()).unwrap().point(),
            key.public_key().unwrap()
        );
    }

    #[test]
    fn refuses_other_keys_and_sizes() {
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&other)
            .unwrap();
        assert_eq!(check(csr.der()), Err(CsrError::Algorithm));
        assert_eq!(
            check(&vec![0x30; limits::CSR_BYTES + 1]),
            Err(CsrError::TooLarge(limits::CSR_BYTES + 1))
        );
        let (_, mut csr) = new_csr().unwrap();
        csr.push(0);
        assert!(matches!(check(&csr), Err(CsrError::Encoding(_))));
        assert!(PrivateKey::from_pkcs8(b"rubbish").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_altered_request_yields_another_key(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let (key, mut csr) = new_csr().unwrap();
            let at = at.index(csr.len());
            csr[at] ^= 1 << bit;
            if let Ok(found) = check(&csr) {
                prop_assert_eq!(found.point(), key.public_key().unwrap());
            }
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ignored = check(&bytes);
        }
    }
}
