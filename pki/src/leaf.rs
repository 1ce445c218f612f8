//! A certificate with its private key, in memory and on disk.
//!
//! On disk it is one PEM file (`identity.pem`, 0600): the key, the leaf, the intermediate. One file, so
//! that no crash can leave a key with the certificate of another.

use std::path::Path;

use nexus_proto::{limits, time::Timestamp};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};

use zeroize::Zeroizing;

use crate::{
    certificate::{CertificateError, Claims, Name, Serial, pem},
    csr::{CsrError, PrivateKey},
    files::{self, FileError},
    spiffe::SpiffeId,
};

/// The file of [`Leaf::save`].
pub const FILE: &str = "identity.pem";

/// A key and chain that do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The file.
    #[error("the identity's file")]
    File(#[from] FileError),
    /// The file holds no key, or no certificate.
    #[error("the identity's file holds no {0} in PEM")]
    Pem(&'static str),
    /// The key.
    #[error("the identity's key")]
    Key(#[from] CsrError),
    /// The certificate.
    #[error("the identity's certificate")]
    Certificate(#[from] CertificateError),
    /// No certificate, or more than a chain has.
    #[error("a chain has 1 to {max} certificates, not {0}", max = limits::CHAIN_CERTIFICATES)]
    Length(usize),
    /// The certificate is for another key.
    #[error("the certificate is not for this key")]
    Mismatch,
    /// Its one name is no SPIFFE id.
    #[error("the certificate does not have one SPIFFE id as its name")]
    Name,
}

/// An identity that can be presented: the key, and the chain from the leaf to the intermediate.
#[derive(Debug, Clone)]
pub struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    spiffe: SpiffeId,
    serial: Serial,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Leaf {
    /// Joins a key with the chain that was issued for it.
    pub fn new(key: PrivateKey, chain: Vec<CertificateDer<'static>>) -> Result<Self, LeafError> {
        if chain.len() > limits::CHAIN_CERTIFICATES {
            return Err(LeafError::Length(chain.len()));
        }
        let first = chain.first().ok_or(LeafError::Length(0))?;
        let claims = Claims::of(first)?;
        if claims.public_key != key.public_key()? {
            return Err(LeafError::Mismatch);
        }
        let [Name::Uri(uri)] = claims.names.as_slice() else {
            return Err(LeafError::Name);
        };
        Ok(Self {
            spiffe: SpiffeId::parse(uri).map_err(|_| LeafError::Name)?,
            serial: claims.serial,
            not_before: claims.not_before,
            not_after: claims.not_after,
            chain,
            key,
        })
    }

    /// From a chain as messages carry it.
    pub fn from_wire<B: AsRef<[u8]>>(key: PrivateKey, chain_der: &[B]) -> Result<Self, LeafError> {
        Self::new(key, chain_from_wire(chain_der))
    }

    /// Writes it to `dir/identity.pem`, mode 0600; after a crash the old or the new one is there, whole.
    pub fn save(&self, dir: &Path) -> Result<(), LeafError> {
        self.save_as(dir, FILE)
    }

    /// Like [`Leaf::save`] under another name.
    pub fn save_as(&self, dir: &Path, name: &str) -> Result<(), LeafError> {
        let mut text = Zeroizing::new(pem("PRIVATE KEY", self.key.pkcs8()));
        for certificate in &self.chain {
            text.push_str(&pem("CERTIFICATE", certificate));
        }
        files::create_folder(dir)?;
        Ok(files::write_private(dir, name, text.as_bytes())?)
    }

    /// Reads `dir/identity.pem`.
    pub fn load(dir: &Path) -> Result<Self, LeafError> {
        Self::load_as(dir, FILE)
    }

    /// Like [`Leaf::load`] under another name.
    pub fn load_as(dir: &Path, name: &str) -> Result<Self, LeafError> {
        let (key, chain) = read_pem(dir, name)?;
        Self::new(key, chain)
    }

    /// The leaf first, then the intermediate; without the root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// As messages carry it.
    #[must_use]
    pub fn chain_to_wire(&self) -> Vec<prost::bytes::Bytes> {
        chain_to_wire(&self.chain)
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Who it says it is.
    #[must_use]
    pub fn spiffe(&self) -> &SpiffeId {
        &self.spiffe
    }

    /// The leaf's serial number.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Valid from then.
    #[must_use]
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Valid until then.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// The key and certificates of a private PEM file.
pub(crate) fn read_pem(
    dir: &Path,
    name: &str,
) -> Result<(PrivateKey, Vec<CertificateDer<'static>>), LeafError> {
    parse_pem(Zeroizing::new(files::read_private(&dir.join(name))?))
}

/// Takes a key and a chain apart.
pub(crate) fn parse_pem(
    text: Zeroizing<Vec<u8>>,
) -> Result<(PrivateKey, Vec<CertificateDer<'static>>), LeafError> {
    let key =
        PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| LeafError::Pem("private key"))?;
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| LeafError::Pem("certificate"))?;
    Ok((PrivateKey::from_pkcs8(key.secret_pkcs8_der())?, chain))
}

/// A chain as messages carry it.
#[must_use]
pub fn chain_to_wire(chain: &[CertificateDer<'_>]) -> Vec<prost::bytes::Bytes> {
    chain
        .iter()
        .map(|certificate| prost::bytes::Bytes::copy_from_slice(certificate))
        .collect()
}

/// A chain from a message; nothing in it is believed yet.
#[must_use]
pub fn chain_from_wire<B: AsRef<[u8]>>(chain: &[B]) -> Vec<CertificateDer<'static>> {
    chain
        .iter()
        .map(|certificate| CertificateDer::from(certificate.as_ref().to_vec()))
        .collect()
}
