//! What the targets share: one fleet whose operator's keys never change, so that inputs stay signed, and a
//! reader of input.

use std::sync::OnceLock;

use nexus_pki::{
    merkle::Target,
    policy::{SignerPolicy, TrustedPolicy},
    signing::{Signer, SigningKey},
};
use nexus_proto::{
    ids::{Incarnation, NodeId},
    time::Timestamp,
};

pub(super) const DOMAIN: &str = "fleet.test";
/// The present, for all that is judged by a clock.
pub(super) const NOW: Timestamp = Timestamp(1_800_000_000_000);
/// What stands for the root certificate's digest.
pub(super) const ROOT: [u8; 32] = [7; 32];

/// PKCS #8 (RFC 8410) of an Ed25519 key, without its 32 bytes of seed.
const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
];

pub(super) struct Fleet {
    /// The one listed signer's.
    pub(super) key: SigningKey,
    /// Nobody's.
    pub(super) stranger: SigningKey,
    pub(super) policy: TrustedPolicy,
    /// The node that judges.
    pub(super) own: Target,
}

pub(super) fn signing_key(seed: u8) -> SigningKey {
    let pkcs8 = [ED25519_PKCS8.as_slice(), &[seed; 32]].concat();
    SigningKey::from_pkcs8(&pkcs8).expect("a key of 32 bytes")
}

pub(super) fn fleet() -> &'static Fleet {
    static FLEET: OnceLock<Fleet> = OnceLock::new();
    FLEET.get_or_init(|| {
        let key = signing_key(1);
        let policy = SignerPolicy {
            version: 3,
            trust_domain: DOMAIN.to_owned(),
            threshold: 1,
            signers: vec![Signer {
                name: "ann".to_owned(),
                public_key: key.public_key(),
            }],
            created: NOW,
        };
        let envelope = policy.sign(&key).expect("a valid policy");
        let pin = nexus_pki::sha256(&envelope.payload);
        Fleet {
            policy: TrustedPolicy::establish(envelope, &pin, DOMAIN).expect("a pinned policy"),
            stranger: signing_key(2),
            own: Target {
                node: NodeId::from_wire(&[5; 16]).expect("16 bytes"),
                name: "web-1".to_owned(),
                incarnation: Incarnation::from_wire(&[6; 16]).expect("16 bytes"),
            },
            key,
        }
    })
}

/// Reads an input part by part; what is missing is zero or empty.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    pub(super) fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub(super) fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A part with its length, two bytes, before it.
    pub(super) fn part(&mut self) -> &'a [u8] {
        let length = usize::from(self.word());
        self.take(length)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
