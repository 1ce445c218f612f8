//! rustls verifiers that ask admission.

use std::{error::Error as StdError, sync::Arc};

use nexus_proto::time::Timestamp;
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, PeerIncompatible, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::{
    admission::{Admission, Refusal},
    certificate::Root,
    spiffe::Role,
};

/// Every key in a fleet's chains is P-256.
const SCHEMES: [SignatureScheme; 1] = [SignatureScheme::ECDSA_NISTP256_SHA256];

/// A client's view of a collector.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    admission: Admission,
}

impl ServerVerifier {
    pub(super) fn new(admission: &Admission) -> Self {
        Self {
            admission: admission.clone(),
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        admit(&self.admission, leaf, others, &[Role::Collector], now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

/// The view of a client that knows a fleet only by its name and the SHA-256 of its root.
#[derive(Debug)]
pub(super) struct PinnedVerifier {
    root_sha256: [u8; 32],
    trust_domain: String,
}

impl PinnedVerifier {
    pub(super) fn new(root_sha256: [u8; 32], trust_domain: &str) -> Self {
        Self {
            root_sha256,
            trust_domain: trust_domain.to_owned(),
        }
    }

    /// The pinned root, found among what the server presents.
    fn root(&self, presented: &[CertificateDer<'_>]) -> Result<Root, Refusal> {
        let der = presented
            .iter()
            .take(nexus_proto::limits::CHAIN_CERTIFICATES)
            .find(|certificate| crate::sha256(certificate) == self.root_sha256)
            .ok_or_else(|| Refusal::Pin {
                pinned: crate::hex(&self.root_sha256),
            })?;
        Root::from_der(der).map_err(Refusal::BadRoot)
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = self.root(others).map_err(|refusal| to_rustls(&refusal))?;
        let admission = Admission::new(&root, &self.trust_domain);
        admit(&admission, leaf, others, &[Role::Collector], now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

/// A collector's view of who connects.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    admission: Admission,
    allowed: &'static [Role],
    required: bool,
}

impl ClientVerifier {
    pub(super) fn required(admission: &Admission, allowed: &'static [Role]) -> Self {
        Self {
            admission: admission.clone(),
            allowed,
            required: true,
        }
    }

    pub(super) fn optional(admission: &Admission, allowed: &'static [Role]) -> Self {
        Self {
            required: false,
            ..Self::required(admission, allowed)
        }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Clients have one leaf and need no hint; names of roots would only tell strangers who we are.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        admit(&self.admission, leaf, others, self.allowed, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

fn admit(
    admission: &Admission,
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    allowed: &[Role],
    now: UnixTime,
) -> Result<(), Error> {
    let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf)
        .chain(others)
        .map(|certificate| CertificateDer::from(certificate.as_ref()))
        .collect();
    let now = Timestamp(0).after(std::time::Duration::from_secs(now.as_secs()));
    admission
        .admit(&chain, allowed, now)
        .map(|_| ())
        .map_err(|refusal| to_rustls(&refusal))
}

fn verify_signature(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if !SCHEMES.contains(&signed.scheme) {
        return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
    }
    verify_tls13_signature(
        message,
        leaf,
        signed,
        &aws_lc_rs::default_provider().signature_verification_algorithms,
    )
}

fn no_tls12() -> Error {
    PeerIncompatible::Tls12NotOffered.into()
}

/// As rustls reports it. The peer learns of it by an alert, so that an agent whose certificate expired
/// knows that it did; the rest is for the log of the side that refused.
pub(super) fn to_rustls(refusal: &Refusal) -> Error {
    match refusal {
        Refusal::Expired { not_after, now, .. } => CertificateError::ExpiredContext {
            time: unix(*now),
            not_after: unix(*not_after),
        }
        .into(),
        Refusal::NotYetValid {
            not_before, now, ..
        } => CertificateError::NotValidYetContext {
            time: unix(*now),
            not_before: unix(*not_before),
        }
        .into(),
        Refusal::Revoked { .. } => CertificateError::Revoked.into(),
        Refusal::ForeignCa { .. } => CertificateError::UnknownIssuer.into(),
        other => CertificateError::Other(OtherError(Arc::new(other.clone()))).into(),
    }
}

fn unix(time: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(time.since(Timestamp(0)))
}

/// Why a handshake failed, in words for a user, when it was a certificate that was refused: by us (from
/// the error and its sources), or by the peer as far as its alert says.
#[must_use]
pub fn refusal_of(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return Some(refusal.to_string());
        }
        if let Some(found) = error.downcast_ref::<Error>().and_then(explain) {
            return Some(found);
        }
        next = match error.downcast_ref::<std::io::Error>() {
            // An io::Error's source is the source of what it wraps, not what it wraps.
            Some(io) => io
                .get_ref()
                .map(|inner| -> &(dyn StdError + 'static) { inner }),
            None => error.source(),
        };
    }
    None
}

/// The same from the TLS library's own words, which are all that QUIC hands on. `None` when they are about
/// something else than a certificate.
#[must_use]
pub fn refusal_in(words: &str) -> Option<String> {
    if words.contains("peer sent no certificates") {
        return explain(&Error::NoCertificatesPresented);
    }
    let (_, why) = words.split_once("invalid peer certificate: ")?;
    let mut seconds = why
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .map(|seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)));
    let error = if why.starts_with("certificate expired") {
        CertificateError::ExpiredContext {
            time: seconds.next()?,
            not_after: seconds.next()?,
        }
    } else if why.starts_with("certificate not valid yet") {
        CertificateError::NotValidYetContext {
            time: seconds.next()?,
            not_before: seconds.next()?,
        }
    } else if why.starts_with("UnknownIssuer") {
        CertificateError::UnknownIssuer
    } else if why.starts_with("Revoked") {
        CertificateError::Revoked
    } else {
        let ours = why.strip_prefix("Other(OtherError(");
        let ours = ours.and_then(|rest| rest.strip_suffix("))"));
        return Some(ours.unwrap_or(why).to_owned());
    };
    explain(&error.into())
}

fn explain(error: &Error) -> Option<String> {
    let time = |time: &UnixTime| Timestamp(0).after(std::time::Duration::from_secs(time.as_secs()));
    let text = match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref::<Refusal>()?.to_string()
        }
        Error::InvalidCertificate(CertificateError::ExpiredContext {
            time: now,
            not_after,
        }) => format!(
            "the peer's certificate expired at {}, and this machine's clock says {}: it must be renewed, or one of the clocks is wrong",
            time(not_after),
            time(now)
        ),
        Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time: now,
            not_before,
        }) => format!(
            "the peer's certificate is valid from {}, but this machine's clock says {}: one of the clocks is wrong",
            time(not_before),
            time(now)
        ),
        Error::InvalidCertificate(CertificateError::Revoked) => {
            "the peer's certificate was revoked".to_owned()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the peer's certificate was not issued under this fleet's root".to_owned()
        }
        Error::NoCertificatesPresented => "the peer showed no certificate".to_owned(),
        Error::AlertReceived(alert) => reason_of_alert(u8::from(*alert))?.to_owned(),
        _ => return None,
    };
    Some(text)
}

/// What a TLS alert of the peer says about our certificate, if it is about that. QUIC carries the alert in
/// its error code: 0x100 plus the alert (RFC 9001, 4.8).
#[must_use]
pub fn reason_of_alert(alert: u8) -> Option<&'static str> {
    match AlertDescription::from(alert) {
        AlertDescription::CertificateExpired => {
            Some("the peer says that our certificate is expired or not yet valid by its clock")
        }
        AlertDescription::CertificateRevoked => {
            Some("the peer says that our certificate was revoked")
        }
        AlertDescription::UnknownCA => {
            Some("the peer says that our certificate is of another fleet")
        }
        AlertDescription::CertificateUnknown => {
            Some("the peer refused our certificate; its log says why")
        }
        AlertDescription::CertificateRequired => {
            Some("the peer wants a certificate and we have none")
        }
        _ => None,
    }
}
