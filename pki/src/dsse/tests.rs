use proptest::prelude::*;

use super::{payload_type::*, *};

fn signer(name: &str, key: &SigningKey) -> Signer {
    Signer {
        name: name.to_owned(),
        public_key: key.public_key(),
    }
}

fn key() -> SigningKey {
    SigningKey::generate().unwrap()
}

#[test]
fn pae_is_that_of_the_specification() {
    // protocol.md of the DSSE specification, "Signature Definition", its test vector.
    assert_eq!(
        pae("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
}

#[test]
fn a_signed_payload_comes_out() {
    let key = key();
    let envelope = sign(&key, JOB, Bytes::from_static(b"payload"));
    let verified = verify(&envelope, JOB, &[signer("alice", &key)], 1).unwrap();
    assert_eq!(verified.payload().as_ref(), b"payload");
    assert_eq!(verified.payload_type(), JOB);
    assert_eq!(verified.signed_by(), [signer("alice", &key)]);
}

#[test]
fn only_listed_signers_count() {
    let envelope = sign(&key(), JOB, Bytes::from_static(b"payload"));
    assert_eq!(
        verify(&envelope, JOB, &[signer("alice", &key())], 1),
        Err(DsseError::Threshold {
            found: 0,
            needed: 1
        })
    );
    assert!(verify(&envelope, JOB, &[], 1).is_err());
}

#[test]
fn no_threshold_is_no_check() {
    let envelope = sign(&key(), JOB, Bytes::new());
    assert_eq!(verify(&envelope, JOB, &[], 0), Err(DsseError::NoThreshold));
}

#[test]
fn a_signature_is_for_one_type() {
    let key = key();
    let signers = [signer("alice", &key)];
    let mut envelope = sign(&key, FRESHNESS, Bytes::from_static(b"payload"));
    assert!(matches!(
        verify(&envelope, JOB, &signers, 1),
        Err(DsseError::Type { .. })
    ));
    envelope.payload_type = JOB.to_owned();
    assert!(matches!(
        verify(&envelope, JOB, &signers, 1),
        Err(DsseError::Threshold { .. })
    ));
}

#[test]
fn a_threshold_counts_distinct_keys() {
    let (one, two) = (key(), key());
    let mut envelope = sign(&one, POLICY, Bytes::from_static(b"payload"));
    add_signature(&one, &mut envelope);
    // The same key signing twice, listed twice, under two names: still one.
    let signers = [
        signer("alice", &one),
        signer("alias", &one),
        signer("bob", &two),
    ];
    assert_eq!(
        verify(&envelope, POLICY, &signers, 2),
        Err(DsseError::Threshold {
            found: 1,
            needed: 2
        })
    );
    // A copied key id does not make a signature.
    envelope.signatures.push(wire::Signature {
        key_id: two.key_id(),
        ..envelope.signatures[0].clone()
    });
    assert!(verify(&envelope, POLICY, &signers, 2).is_err());
    add_signature(&two, &mut envelope);
    let verified = verify(&envelope, POLICY, &signers, 2).unwrap();
    assert_eq!(
        verified.signed_by(),
        [signer("alice", &one), signer("bob", &two)]
    );
}

#[test]
fn bounds_its_work() {
    let key = key();
    let mut envelope = sign(&key, JOB, Bytes::from_static(b"payload"));
    for _ in 0..limits::SIGNATURES {
        add_signature(&key, &mut envelope);
    }
    assert_eq!(
        verify(&envelope, JOB, &[signer("a", &key)], 1),
        Err(DsseError::TooManySignatures(limits::SIGNATURES + 1))
    );
    let good = sign(&key, JOB, Bytes::from_static(b"payload"));
    let mut with = good.clone();
    with.signatures.push(wire::Signature {
        key_id: String::new(),
        sig: vec![0; limits::SIGNATURE_BYTES].into(),
    });
    verify(&with, JOB, &[signer("a", &key)], 1).unwrap();
    for (key_id, sig) in [(1, 0), (0, 1)].map(|(a, b)| {
        let bytes = limits::SIGNATURE_BYTES + 1;
        ("x".repeat(a * bytes), vec![0; b * bytes])
    }) {
        let mut with = good.clone();
        with.signatures.push(wire::Signature {
            key_id,
            sig: sig.into(),
        });
        assert_eq!(
            verify(&with, JOB, &[signer("a", &key)], 1),
            Err(DsseError::SignatureTooLarge(limits::SIGNATURE_BYTES + 1))
        );
    }
    let large = sign(&key, JOB, vec![0; limits::JOB_BYTES + 1].into());
    assert!(matches!(
        verify(&large, JOB, &[signer("a", &key)], 1),
        Err(DsseError::TooLarge(_))
    ));
}

proptest! {
    #[test]
    fn one_altered_bit_of_the_payload_breaks_it(payload in proptest::collection::vec(any::<u8>(), 1..64), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let key = key();
        let mut envelope = sign(&key, JOB, payload.clone().into());
        let mut altered = payload;
        let at = at.index(altered.len());
        altered[at] ^= 1 << bit;
        envelope.payload = altered.into();
        prop_assert!(verify(&envelope, JOB, &[signer("a", &key)], 1).is_err());
    }

    #[test]
    fn one_altered_bit_of_the_signature_breaks_it(at in 0..64_usize, bit in 0..8_u8) {
        let key = key();
        let mut envelope = sign(&key, JOB, Bytes::from_static(b"payload"));
        let mut sig = envelope.signatures[0].sig.to_vec();
        sig[at] ^= 1 << bit;
        envelope.signatures[0].sig = sig.into();
        prop_assert!(verify(&envelope, JOB, &[signer("a", &key)], 1).is_err());
    }
}
