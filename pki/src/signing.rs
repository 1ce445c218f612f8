//! Operators' Ed25519 signing keys (RFC 8032). They are made and kept on the operator's machine.

use std::{fmt, path::Path};

use aws_lc_rs::{
    encoding::AsDer as _,
    signature::{self, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use nexus_proto::agent::v1 as wire;
use zeroize::Zeroizing;

use crate::{
    files::{self, FileError},
    sha256,
    spiffe::{self, SpiffeError},
};

/// The file of [`SigningKey::save`].
const FILE: &str = "signing.key";
/// Bytes of an Ed25519 public key.
pub const PUBLIC_KEY_BYTES: usize = 32;

/// A signing key that cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The library refused to make or encode a key.
    #[error("cannot make a signing key")]
    Generate,
    /// The bytes are no PKCS #8 Ed25519 key.
    #[error("no Ed25519 key in PKCS #8: {0}")]
    Key(String),
    /// Its file.
    #[error("the signing key's file")]
    File(#[from] FileError),
    /// A public key of another length.
    #[error("a public key has {0} bytes instead of 32")]
    PublicKey(usize),
    /// A signer's name that is no name.
    #[error("the signer's name")]
    Name(#[source] SpiffeError),
}

/// The private half.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// A new random key.
    pub fn generate() -> Result<Self, SigningError> {
        Ed25519KeyPair::generate()
            .map(Self)
            .map_err(|_| SigningError::Generate)
    }

    /// From PKCS #8 (RFC 8410).
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, SigningError> {
        Ed25519KeyPair::from_pkcs8(der)
            .map(Self)
            .map_err(|error| SigningError::Key(error.to_string()))
    }

    /// Keeps it in `dir`, mode 0600, replacing an older one.
    pub fn save(&self, dir: &Path) -> Result<(), SigningError> {
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'static> =
            self.0.as_der().map_err(|_| SigningError::Generate)?;
        files::create_folder(dir)?;
        Ok(files::write_private(dir, FILE, der.as_ref())?)
    }

    /// Reads it from `dir`.
    pub fn load(dir: &Path) -> Result<Self, SigningError> {
        Self::from_pkcs8(&Zeroizing::new(files::read_private(&dir.join(FILE))?))
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        let mut key = [0; PUBLIC_KEY_BYTES];
        key.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(key)
    }

    /// See [`PublicKey::key_id`].
    #[must_use]
    pub fn key_id(&self) -> String {
        self.public_key().key_id()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.key_id())
    }
}

/// The public half.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; PUBLIC_KEY_BYTES]);

impl PublicKey {
    /// From 32 bytes.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, SigningError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| SigningError::PublicKey(bytes.len()))
    }

    /// Hex of the first 16 bytes of the key's SHA-256: finds the key, proves nothing.
    #[must_use]
    pub fn key_id(&self) -> String {
        let digest = sha256(&self.0);
        crate::hex(digest.first_chunk::<16>().map_or(&digest, |half| half))
    }

    /// Whether `signature` is this key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&signature::ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.key_id())
    }
}

/// Someone whose signature counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// An operator's name.
    pub name: String,
    /// Their key.
    pub public_key: PublicKey,
}

impl Signer {
    /// From the wire.
    pub fn from_wire(signer: &wire::Signer) -> Result<Self, SigningError> {
        spiffe::check_segment(&signer.name).map_err(SigningError::Name)?;
        Ok(Self {
            name: signer.name.clone(),
            public_key: PublicKey::from_wire(&signer.public_key)?,
        })
    }

    /// To the wire.
    #[must_use]
    pub fn to_wire(&self) -> wire::Signer {
        wire::Signer {
            name: self.name.clone(),
            public_key: self.public_key.0.to_vec().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_saved_key_signs_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        key.save(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let again = SigningKey::load(dir.path()).unwrap();
        assert_eq!(again.public_key(), key.public_key());
        assert!(key.public_key().verifies(b"m", &again.sign(b"m")));
        assert!(!key.public_key().verifies(b"n", &again.sign(b"m")));

        std::fs::write(&path, b"rubbish").unwrap();
        assert!(matches!(
            SigningKey::load(dir.path()),
            Err(SigningError::Key(_))
        ));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            SigningKey::load(dir.path()),
            Err(SigningError::File(FileError::Exposed { .. }))
        ));
    }

    #[test]
    fn rfc_8032_test_1() {
        // RFC 8032, 7.1, TEST 1: the empty message.
        let public = [
            0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64,
            0x07, 0x3a, 0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68,
            0xf7, 0x07, 0x51, 0x1a,
        ];
        let signature = [
            0xe5, 0x56, 0x43, 0x00, 0xc3, 0x60, 0xac, 0x72, 0x90, 0x86, 0xe2, 0xcc, 0x80, 0x6e,
            0x82, 0x8a, 0x84, 0x87, 0x7f, 0x1e, 0xb8, 0xe5, 0xd9, 0x74, 0xd8, 0x73, 0xe0, 0x65,
            0x22, 0x49, 0x01, 0x55, 0x5f, 0xb8, 0x82, 0x15, 0x90, 0xa3, 0x3b, 0xac, 0xc6, 0x1e,
            0x39, 0x70, 0x1c, 0xf9, 0xb4, 0x6b, 0xd2, 0x5b, 0xf5, 0xf0, 0x59, 0x5b, 0xbe, 0x24,
            0x65, 0x51, 0x41, 0x43, 0x8e, 0x7a, 0x10, 0x0b,
        ];
        assert!(PublicKey(public).verifies(b"", &signature));
        assert!(!PublicKey(public).verifies(b"x", &signature));
    }
}
