use proptest::prelude::*;

use super::*;
use crate::{
    policy::SignerPolicy,
    signing::Signer,
    testing::{DOMAIN, HOUR},
};

const NOW: Timestamp = Timestamp(1_790_000_000_000);
const ROOT: [u8; 32] = [5; 32];

fn setting() -> (SigningKey, TrustedPolicy, JoinToken) {
    let key = SigningKey::generate().unwrap();
    let policy = SignerPolicy {
        version: 1,
        trust_domain: DOMAIN.to_owned(),
        threshold: 1,
        signers: vec![Signer {
            name: "alice".to_owned(),
            public_key: key.public_key(),
        }],
        created: NOW,
    };
    let policy = TrustedPolicy::first(policy.sign(&key).unwrap(), DOMAIN).unwrap();
    let token = JoinToken {
        id: TokenId::random(),
        root_sha256: ROOT,
        policy_digest: policy.digest(),
        addresses: vec!["collector.example:7460".to_owned(), "[::1]:7460".to_owned()],
        labels: BTreeMap::from([("role".to_owned(), "web".to_owned())]),
        created: NOW,
        expires: NOW.after(HOUR),
        uses: 3,
        trust_domain: DOMAIN.to_owned(),
    };
    (key, policy, token)
}

#[test]
fn a_token_goes_round() {
    let (key, policy, token) = setting();
    let signed = create(&key, &token).unwrap();
    let text = signed.to_string();
    assert!(text.starts_with("nxt_") && !text.contains(['=', '+', '/', '\n']));
    // The agent's side.
    let parsed = Token::parse(&format!("{text}\n")).unwrap();
    assert_eq!(parsed, signed);
    assert_eq!(parsed.claims(), &token);
    parsed.check_signed_by(&policy).unwrap();
    // The collector's side.
    let received = Token::from_bytes(&parsed.to_bytes()).unwrap();
    assert_eq!(
        verify(received.envelope(), &policy, &ROOT, NOW).unwrap(),
        token
    );
}

#[test]
fn the_collector_takes_only_signed_ones_of_its_fleet_in_time() {
    let (key, policy, token) = setting();
    let check = |token: &Token, now| verify(token.envelope(), &policy, &ROOT, now);
    let stranger = create(&SigningKey::generate().unwrap(), &token).unwrap();
    assert!(matches!(
        check(&stranger, NOW),
        Err(TokenError::Signature(_))
    ));
    assert!(stranger.check_signed_by(&policy).is_err());
    let good = create(&key, &token).unwrap();
    assert!(matches!(
        check(&good, token.expires),
        Err(TokenError::Expired { .. })
    ));
    let other_root = JoinToken {
        root_sha256: [6; 32],
        ..token.clone()
    };
    assert!(matches!(
        check(&create(&key, &other_root).unwrap(), NOW),
        Err(TokenError::OtherRoot)
    ));
    let other_fleet = JoinToken {
        trust_domain: "example.com".to_owned(),
        ..token
    };
    assert!(matches!(
        check(&create(&key, &other_fleet).unwrap(), NOW),
        Err(TokenError::OtherTrustDomain { .. })
    ));
}

#[test]
fn refuses_tokens_beyond_their_limits() {
    let (key, _, token) = setting();
    type Break = fn(&mut JoinToken);
    let breaks: &[Break] = &[
        |token| token.uses = 0,
        |token| token.addresses.clear(),
        |token| token.addresses.push("nowhere".to_owned()),
        |token| token.trust_domain.clear(),
        |token| {
            token.labels.insert("a b".to_owned(), String::new());
        },
        |token| {
            token.labels.insert("a".to_owned(), "v".repeat(64));
        },
        |token| {
            for index in 0..=limits::LABELS {
                token.labels.insert(format!("l{index}"), String::new());
            }
        },
    ];
    for (index, change) in breaks.iter().enumerate() {
        let mut bad = token.clone();
        change(&mut bad);
        assert!(create(&key, &bad).is_err(), "{index}");
        // Nor when someone signed it nevertheless.
        let payload = bad.to_wire().encode_to_vec().into();
        let envelope = dsse::sign(&key, payload_type::JOIN_TOKEN, payload);
        assert!(Token::from_envelope(envelope).is_err(), "{index}");
    }
}

#[test]
fn says_when_a_token_was_mangled() {
    let (key, _, token) = setting();
    let text = create(&key, &token).unwrap().to_string();
    assert!(matches!(Token::parse("nxo_AAAA"), Err(TokenError::Prefix)));
    assert!(matches!(Token::parse(""), Err(TokenError::Prefix)));
    assert!(matches!(
        Token::parse(&text.replace("nxt_", "nxt_!")),
        Err(TokenError::Base64)
    ));
    let half: String = text.chars().take(text.len() / 2).collect();
    assert!(Token::parse(&half).is_err());
    assert!(matches!(
        Token::parse(&format!("nxt_{}", "A".repeat(limits::TOKEN_BYTES))),
        Err(TokenError::TooLarge(_))
    ));
}

proptest! {
    #[test]
    fn one_altered_bit_is_found(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let (key, policy, token) = setting();
        let mut bytes = create(&key, &token).unwrap().to_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // Whatever still parses must not verify as anything but the token that was signed (an altered
        // key id or unknown field may leave the signed bytes as they were).
        if let Ok(parsed) = Token::from_bytes(&bytes)
            && let Ok(found) = verify(parsed.envelope(), &policy, &ROOT, NOW)
        {
            prop_assert_eq!(found, token);
        }
    }

    #[test]
    fn never_panics(text in "nxt_[A-Za-z0-9_-]{0,80}") {
        let _ignored = Token::parse(&text);
    }
}
