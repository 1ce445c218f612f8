//! Certificate signing requests and certificate chains, as strangers send them.
//!
//! A request yields the key that signed it and never a name; a chain that differs from an issued one in any bit
//! is nobody's.

use std::sync::OnceLock;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use nexus_pki::{
    CertificateDer,
    authority::Authority,
    csr,
    leaf::Leaf,
    spiffe::{Role, SpiffeId},
};
use nexus_proto::{ids::NodeId, limits};

use super::fixture::{DOMAIN, Input, NOW};

/// SEQUENCE { ecPublicKey, prime256v1 }
const P256: [u8; 21] = [
    0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1,
    7,
];
/// SEQUENCE { ecdsa-with-SHA256 }
const ECDSA_SHA256: [u8; 12] = [0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// A P-256 key, made for these inputs alone: its number and its uncompressed point.
const NUMBER: [u8; 32] = [
    0xfb, 0x53, 0xf7, 0x84, 0xa1, 0xea, 0xc5, 0xd7, 0x4b, 0xa8, 0xab, 0x79, 0x53, 0x5b, 0xf6, 0xac,
    0xe2, 0x86, 0x7d, 0x51, 0xd4, 0x75, 0xed, 0x6d, 0x5c, 0xe7, 0x54, 0x16, 0x38, 0x95, 0x2e, 0xbc,
];
const POINT: [u8; 65] = [
    0x04, 0x9f, 0x96, 0xd2, 0x4d, 0xd3, 0x16, 0x40, 0xa1, 0x81, 0x1a, 0x8a, 0x52, 0xff, 0xf7, 0x62,
    0x54, 0x9d, 0x0f, 0x37, 0xa2, 0x04, 0x10, 0xce, 0x8c, 0xa4, 0xc1, 0xfb, 0xd1, 0x20, 0x36, 0x24,
    0xe5, 0x85, 0xdc, 0xf2, 0x2f, 0x77, 0x1b, 0x2f, 0x7c, 0x4a, 0xaa, 0xf6, 0xeb, 0x7f, 0xea, 0x6c,
    0x3f, 0x02, 0x4f, 0x42, 0xc6, 0xaa, 0x03, 0x36, 0x9d, 0xec, 0x9c, 0x53, 0x49, 0xb0, 0x10, 0xc7,
    0x97,
];

/// The key as PKCS #8.
pub(super) fn pkcs8() -> Vec<u8> {
    let point = der(0xa1, &der(3, &[&[0], POINT.as_slice()].concat()));
    let key = [&[2, 1, 1], der(4, &NUMBER).as_slice(), &point].concat();
    let key = der(4, &der(0x30, &key));
    der(0x30, &[&[2, 1, 0], P256.as_slice(), &key].concat())
}

struct World {
    authority: Authority,
    key: EcdsaKeyPair,
    leaf: Leaf,
    _dir: tempfile::TempDir,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let authority = Authority::create(dir.path(), DOMAIN, NOW).expect("an authority");
        let (private, request) = csr::new_csr().expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8());
        let issued = authority
            .issue_agent(&request, node(), NOW)
            .expect("a certificate");
        World {
            authority,
            key: key.expect("a key"),
            leaf: Leaf::new(private, issued.chain).expect("a leaf"),
            _dir: dir,
        }
    })
}

fn node() -> NodeId {
    NodeId::from_wire(&[5; 16]).expect("16 bytes")
}

pub(super) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    match choice % 4 {
        0 => request(rest),
        // Subject and attributes of a request that is properly signed.
        1 => {
            let mut parts = Input(rest);
            let subject = parts.part();
            let point = der(3, &[&[0], world().key.public_key().as_ref()].concat());
            let key = der(0x30, &[P256.as_slice(), &point].concat());
            let attributes = der(0xa0, parts.0);
            let info = [&[2, 1, 0], subject, &key, &attributes].concat();
            signed(&der(0x30, &info));
        }
        2 => signed(rest),
        _ => chain(rest),
    }
}

/// A request over these bytes with a signature that holds for our key.
fn signed(info: &[u8]) {
    let signature = world()
        .key
        .sign(&SystemRandom::new(), info)
        .expect("a signature");
    let signature = der(3, &[&[0], signature.as_ref()].concat());
    request(&der(0x30, &[info, &ECDSA_SHA256, &signature].concat()));
}

fn request(csr_der: &[u8]) {
    let world = world();
    let checked = csr::check(csr_der);
    let issued = world.authority.issue_agent(csr_der, node(), NOW);
    match (checked, issued) {
        (Ok(key), Ok(issued)) => {
            assert!(csr_der.len() <= limits::CSR_BYTES);
            assert!(
                csr_der
                    .windows(key.point().len())
                    .any(|window| window == key.point()),
                "a key that nobody asked for"
            );
            let admission = world.authority.admission();
            let peer = admission.admit(&issued.chain, &[Role::Agent], NOW);
            let expected = SpiffeId::agent(DOMAIN, node()).expect("an agent's name");
            assert_eq!(peer.expect("what was issued").spiffe, expected);
        }
        (Err(_), Err(_)) => {}
        // A point that is not on the curve would fail later only.
        (checked, issued) => panic_differs(&checked.is_ok(), &issued.is_ok()),
    }
}

fn panic_differs(checked: &bool, issued: &bool) {
    assert_eq!(checked, issued, "what is checked is what is issued");
}

/// Each four bytes: which certificate, where (two bytes), which bits to turn over.
fn chain(edits: &[u8]) {
    let world = world();
    let original = world.leaf.chain();
    let mut altered: Vec<Vec<u8>> = original.iter().map(|der| der.to_vec()).collect();
    for edit in edits.chunks_exact(4).take(64) {
        let mut edit = Input(edit);
        let (which, at, bits) = (edit.byte(), edit.word(), edit.byte());
        let which = usize::from(which) % altered.len().max(1);
        let Some(der) = altered.get_mut(which) else {
            return;
        };
        let at = usize::from(at) % der.len().max(1);
        if let Some(byte) = der.get_mut(at) {
            *byte ^= bits;
        }
    }
    let same = altered
        .iter()
        .zip(original)
        .all(|(one, other)| one.as_slice() == other.as_ref());
    let presented: Vec<_> = altered.into_iter().map(CertificateDer::from).collect();
    let admitted = world
        .authority
        .admission()
        .admit(&presented, &[Role::Agent], NOW);
    assert_eq!(admitted.is_ok(), same, "{admitted:?}");
}

/// Tag, length, value (X.690).
pub(super) fn der(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![tag];
    match value.len() {
        0..=0x7f => bytes.extend_from_slice(&length[3..]),
        0x80..=0xff => {
            bytes.push(0x81);
            bytes.extend_from_slice(&length[3..]);
        }
        0x100..=0xffff => {
            bytes.push(0x82);
            bytes.extend_from_slice(&length[2..]);
        }
        _ => {
            bytes.push(0x84);
            bytes.extend_from_slice(&length);
        }
    }
    bytes.extend_from_slice(value);
    bytes
}
