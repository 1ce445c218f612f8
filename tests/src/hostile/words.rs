//! Texts that people hand over: join tokens, operator codes, selectors, ids, times, and what an HTTP client says
//! it accepts.
//!
//! Whatever is taken is within its limits, and comes back the same from its own text form.

use std::collections::BTreeMap;

use nexus_pki::{
    operator_code::OperatorCode,
    spiffe::SpiffeId,
    token::{self, Token},
};
use nexus_proto::{
    ids::NodeId,
    limits,
    selector::{FieldSelector, Selector, check_key},
    time::Timestamp,
};

use super::fixture::{NOW, ROOT, fleet};

const FIELDS: &[&str] = &["name", "state", "id"];

pub(super) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    if choice % 8 == 1 {
        token_bytes(rest);
    }
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    match choice % 8 {
        0 => {
            if let Ok(token) = Token::parse(text) {
                held(&token);
            }
        }
        2 => operator_code(text),
        3 => selector(text),
        4 => field_selector(text),
        5 => {
            let kind = nexus_collector::inside::content_type(Some(text));
            assert!(kind.contains("openmetrics") || kind.contains("0.0.4"));
        }
        6 => {
            if let Ok(time) = text.parse::<Timestamp>() {
                assert_eq!(time.to_string().parse(), Ok(time));
            }
            if let Ok(node) = text.parse::<NodeId>() {
                assert_eq!(node.to_string().parse(), Ok(node));
            }
        }
        7 => {
            if let Ok(id) = SpiffeId::parse(text) {
                assert_eq!(id.to_string(), text, "one identity, one text");
            }
        }
        _ => {}
    }
}

fn token_bytes(bytes: &[u8]) {
    if let Ok(token) = Token::from_bytes(bytes) {
        held(&token);
    }
}

fn held(token: &Token) {
    let claims = token.claims();
    assert!(claims.uses > 0 && claims.labels.len() <= limits::LABELS);
    assert!((1..=limits::ADDRESSES).contains(&claims.addresses.len()));
    let text = token.to_string();
    assert!(
        text.len() <= limits::TOKEN_BYTES,
        "a token that nobody could hand on"
    );
    assert_eq!(&Token::parse(&text).expect("its own text"), token);
    assert_eq!(
        &Token::from_bytes(&token.to_bytes()).expect("its own bytes"),
        token
    );

    let fleet = fleet();
    let verified = token::verify(token.envelope(), &fleet.policy, &ROOT, NOW);
    if let Ok(verified) = verified {
        assert_eq!(&verified, claims, "what was read before is what was signed");
        assert!(verified.expires > NOW && verified.root_sha256 == ROOT);
        token
            .check_signed_by(&fleet.policy)
            .expect("the same signature");
        super::envelope::assert_signed(token.envelope());
    }
}

fn operator_code(text: &str) {
    if let Ok(code) = OperatorCode::parse(text) {
        assert_eq!(
            OperatorCode::parse(&code.encode()).expect("its own text"),
            code
        );
        assert!(!format!("{code:?}").contains(&nexus_pki::hex(code.secret.as_slice())));
    }
}

fn selector(text: &str) {
    let Ok(selector) = Selector::parse(text) else {
        return;
    };
    let again = Selector::parse(&selector.to_string()).expect("its own normal form");
    assert_eq!(again, selector);
    assert_eq!(again.to_string(), selector.to_string());
    for requirement in selector.requirements() {
        use nexus_proto::selector::Requirement::{Absent, Exists, In, NotIn};
        let (In(key, _) | NotIn(key, _) | Exists(key) | Absent(key)) = requirement;
        check_key(key).expect("a key that a label can have");
        let some: BTreeMap<_, _> = [(key.clone(), "x".to_owned())].into();
        let opposite = match requirement {
            In(key, values) => NotIn(key.clone(), values.clone()),
            NotIn(key, values) => In(key.clone(), values.clone()),
            Exists(key) => Absent(key.clone()),
            Absent(key) => Exists(key.clone()),
        };
        for labels in [BTreeMap::new(), some] {
            assert_ne!(requirement.matches(&labels), opposite.matches(&labels));
        }
    }
}

fn field_selector(text: &str) {
    if let Ok(selector) = FieldSelector::parse(text, FIELDS) {
        let again = FieldSelector::parse(&selector.to_string(), FIELDS);
        assert_eq!(again.expect("its own text"), selector);
    }
}
