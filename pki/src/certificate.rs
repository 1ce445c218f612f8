//! What we read from certificates: names, serials, dates, keys. And PEM, the form they have on disk.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use nexus_proto::time::Timestamp;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

use crate::sha256;

/// A certificate that cannot be read, or is not what it should be.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CertificateError {
    /// No X.509 certificate.
    #[error("not an X.509 certificate in DER: {0}")]
    Encoding(String),
    /// Bytes after the certificate.
    #[error("{0} bytes follow the certificate")]
    Trailing(usize),
    /// Usable only by itself, not as a trust anchor.
    #[error("not a usable root certificate: {0}")]
    Root(String),
    /// Another root than the one that was pinned.
    #[error("the root certificate's SHA-256 is {found}, but {pinned} was pinned")]
    Pin {
        /// Of this certificate.
        found: String,
        /// What was asked for.
        pinned: String,
    },
    /// No text, or a text without certificates.
    #[error("no certificate in PEM")]
    Pem,
}

/// A certificate's serial number, as its DER content bytes. Shown in lower-case hex.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(pub Vec<u8>);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// The certificate everything else in a fleet chains to.
#[derive(Clone, PartialEq, Eq)]
pub struct Root(CertificateDer<'static>);

impl Root {
    /// From DER. Checks that it can serve as a trust anchor, not whose it is.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let der = CertificateDer::from(der.to_vec());
        webpki::anchor_from_trusted_cert(&der)
            .map_err(|error| CertificateError::Root(error.to_string()))?;
        let parsed = parse(&der)?;
        if !parsed.is_ca() {
            return Err(CertificateError::Root("it is no CA certificate".to_owned()));
        }
        Ok(Self(der))
    }

    /// From DER that came over the wire, believed only because its SHA-256 is the pinned one.
    pub fn pinned(der: &[u8], pin: &[u8; 32]) -> Result<Self, CertificateError> {
        let found = sha256(der);
        if found != *pin {
            return Err(CertificateError::Pin {
                found: crate::hex(&found),
                pinned: crate::hex(pin),
            });
        }
        Self::from_der(der)
    }

    /// From PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        use rustls_pki_types::pem::PemObject as _;
        let der = CertificateDer::from_pem_slice(pem).map_err(|_| CertificateError::Pem)?;
        Self::from_der(&der)
    }

    /// As PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem("CERTIFICATE", &self.0)
    }

    /// As DER.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0
    }

    pub(crate) fn anchor(&self) -> TrustAnchor<'static> {
        webpki::anchor_from_trusted_cert(&self.0)
            .expect("from_der has made this anchor before")
            .to_owned()
    }

    /// What join tokens and operator codes pin.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.0)
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({})", crate::hex(&self.sha256()))
    }
}

/// What a certificate says of itself; none of it is believed before its chain was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) serial: Serial,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    pub(crate) names: Vec<Name>,
    /// Extended key usages outside RFC 5280's, as DER content bytes of their OIDs.
    pub(crate) purposes: Vec<Vec<u8>>,
    /// The uncompressed point of a P-256 key.
    pub(crate) public_key: Vec<u8>,
}

/// One subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Uri(String),
    Other,
}

impl Claims {
    pub(crate) fn of(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let mut names = Vec::new();
        let mut purposes = Vec::new();
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    names.extend(san.general_names.iter().map(|name| match name {
                        GeneralName::URI(uri) => Name::Uri((*uri).to_owned()),
                        _ => Name::Other,
                    }));
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    purposes.extend(usage.other.iter().map(|oid| oid.as_bytes().to_vec()));
                }
                _ => {}
            }
        }
        let validity = certificate.validity();
        Ok(Self {
            serial: Serial(certificate.raw_serial().to_vec()),
            not_before: seconds(validity.not_before.timestamp()),
            not_after: seconds(validity.not_after.timestamp()),
            names,
            purposes,
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let (rest, certificate) = X509Certificate::from_der(der)
        .map_err(|error| CertificateError::Encoding(error.to_string()))?;
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(CertificateError::Trailing(rest.len()))
    }
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1000))
}

/// RFC 7468.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let encoded = BASE64_STANDARD.encode(der);
    for (index, character) in encoded.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}
