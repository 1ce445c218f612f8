use std::time::Duration;

use nexus_proto::ids::NodeId;
use proptest::prelude::*;
use rcgen::{ExtendedKeyUsagePurpose, SanType};

use super::*;
use crate::{
    csr::PrivateKey,
    testing::{DOMAIN, Fleet, HOUR, now},
};

const NODE: &str = "spiffe://example.org/agent/3f1c2d4e-5a6b-4c7d-8e9f-0a1b2c3d4e5f";

fn key() -> PrivateKey {
    PrivateKey::generate().unwrap()
}

fn refusal(fleet: &Fleet, chain: &[CertificateDer<'static>], allowed: &[Role]) -> Refusal {
    fleet
        .authority
        .admission()
        .admit(chain, allowed, now())
        .unwrap_err()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn admits_each_role_where_it_may_speak() {
    let fleet = Fleet::new();
    let node = NodeId::random();
    for (leaf, role) in [
        (fleet.agent(node, now()), Role::Agent),
        (fleet.collector(now()), Role::Collector),
        (fleet.operator("alice", now()), Role::Operator),
    ] {
        let peer = fleet
            .authority
            .admission()
            .admit(leaf.chain(), &[role], now())
            .unwrap();
        assert_eq!(&peer.spiffe, leaf.spiffe());
        assert_eq!((peer.role, &peer.serial), (role, leaf.serial()));
        assert_eq!(peer.not_after, leaf.not_after());
        let others: Vec<Role> = Role::ALL.into_iter().filter(|one| *one != role).collect();
        assert_eq!(
            refusal(&fleet, leaf.chain(), &others),
            Refusal::WrongRole {
                spiffe: leaf.spiffe().clone(),
                allowed: others
            }
        );
        // With the root appended, as servers present it.
        let mut longer = leaf.chain().to_vec();
        longer.push(fleet.authority.root().der().clone());
        assert!(
            fleet
                .authority
                .admission()
                .admit(&longer, &[role], now())
                .is_ok()
        );
    }
}

#[test]
fn dates_name_both_clocks() {
    let fleet = Fleet::new();
    let leaf = fleet.agent(NodeId::random(), now());
    let admit = |at| {
        fleet
            .authority
            .admission()
            .admit(leaf.chain(), &[Role::Agent], at)
    };
    assert!(admit(leaf.not_before()).is_ok());
    assert!(admit(leaf.not_after()).is_ok());
    let late = leaf.not_after().after(HOUR);
    let expired = admit(late).unwrap_err();
    assert_eq!(
        expired,
        Refusal::Expired {
            spiffe: leaf.spiffe().clone(),
            not_after: leaf.not_after(),
            now: late
        }
    );
    let text = expired.to_string();
    assert!(text.contains(&leaf.not_after().to_string()), "{text}");
    assert!(text.contains(&late.to_string()), "{text}");
    assert!(text.contains("(1 h 0 min later)"), "{text}");

    let early = leaf.not_before().before(Duration::from_millis(1));
    let text = admit(early).unwrap_err().to_string();
    assert!(text.contains(&leaf.not_before().to_string()), "{text}");
    assert!(text.contains(&early.to_string()), "{text}");
}

#[test]
fn an_intermediate_that_expired_is_named() {
    let fleet = Fleet::new();
    let chain = fleet.authority.forge(Role::Agent, &key(), NODE, |params| {
        params.not_after = rcgen::date_time_ymd(2400, 1, 1);
    });
    let late = crate::testing::born()
        .after(crate::authority::INTERMEDIATE_LIFE)
        .after(HOUR);
    assert!(matches!(
        fleet
            .authority
            .admission()
            .admit(&chain, &[Role::Agent], late),
        Err(Refusal::Expired { not_after, now, .. }) if now == late && not_after < late
    ));
}

#[test]
fn refuses_a_foreign_ca_even_when_all_names_agree() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let leaf = foreign.agent(NodeId::random(), now());
    assert!(matches!(
        refusal(&fleet, leaf.chain(), &[Role::Agent]),
        Refusal::ForeignCa { .. }
    ));
    // Nor with our intermediate, or our root, put behind their leaf.
    let ours = fleet.agent(NodeId::random(), now());
    for behind in [&ours.chain()[1], fleet.authority.root().der()] {
        let mixed = vec![leaf.chain()[0].clone(), behind.clone()];
        assert!(matches!(
            refusal(&fleet, &mixed, &[Role::Agent]),
            Refusal::ForeignCa { .. }
        ));
    }
    // Foreign comes before old, since renewing would not help.
    let old = now().after(48 * HOUR);
    assert!(matches!(
        fleet
            .authority
            .admission()
            .admit(leaf.chain(), &[Role::Agent], old),
        Err(Refusal::ForeignCa { .. })
    ));
}

#[test]
fn refuses_another_trust_domain_under_our_own_root() {
    let fleet = Fleet::new();
    let chain = fleet.authority.forge(
        Role::Operator,
        &key(),
        "spiffe://example.com/operator/alice",
        |_| (),
    );
    assert!(matches!(
        refusal(&fleet, &chain, &[Role::Operator]),
        Refusal::TrustDomain { expected, .. } if expected == DOMAIN
    ));
}

#[test]
fn a_role_is_its_intermediates_too() {
    let fleet = Fleet::new();
    let names = [
        (Role::Agent, NODE),
        (Role::Collector, "spiffe://example.org/collector/eu/c1"),
        (Role::Operator, "spiffe://example.org/operator/alice"),
    ];
    for by in Role::ALL {
        for (role, name) in names {
            if role == by {
                continue;
            }
            // With the purposes of the issuer, and with those of the role that is claimed.
            let plain = fleet.authority.forge(by, &key(), name, |_| ());
            let claimed = fleet.authority.forge(by, &key(), name, |params| {
                params.extended_key_usages = crate::authority::purposes(role);
            });
            for chain in [plain, claimed] {
                assert!(
                    matches!(
                        refusal(&fleet, &chain, &Role::ALL),
                        Refusal::WrongIssuer { .. } | Refusal::WrongUsage { .. }
                    ),
                    "a {role} by the {by}s' intermediate"
                );
            }
        }
    }
}

#[test]
fn refuses_every_name_but_one_spiffe_id() {
    let fleet = Fleet::new();
    let forge = |names: Vec<SanType>| {
        let chain = fleet.authority.forge(Role::Agent, &key(), NODE, |params| {
            params.subject_alt_names = names;
        });
        refusal(&fleet, &chain, &[Role::Agent])
    };
    let dns = || SanType::DnsName("example.org".try_into().unwrap());
    assert_eq!(forge(vec![]), Refusal::NoName);
    assert_eq!(forge(vec![uri(NODE), uri(NODE)]), Refusal::SeveralNames(2));
    assert_eq!(
        forge(vec![uri(NODE), uri("spiffe://example.org/operator/alice")]),
        Refusal::SeveralNames(2)
    );
    assert_eq!(forge(vec![uri(NODE), dns()]), Refusal::SeveralNames(2));
    assert_eq!(forge(vec![dns()]), Refusal::OtherName);
    for other in [
        NODE.to_uppercase(),
        NODE.replace("spiffe", "SPIFFE"),
        NODE.replace("example", "Example"),
        NODE.replace("agent", "Agent"),
        NODE.replace("3f1c", "3F1C"),
        format!("{NODE}/"),
        format!("{NODE}?a"),
    ] {
        assert!(
            matches!(forge(vec![uri(&other)]), Refusal::BadName { .. }),
            "{other}"
        );
    }
}

#[test]
fn refuses_wrong_usages() {
    let fleet = Fleet::new();
    for usages in [
        vec![],
        vec![ExtendedKeyUsagePurpose::ClientAuth],
        vec![ExtendedKeyUsagePurpose::ServerAuth],
        vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
        vec![ExtendedKeyUsagePurpose::Any],
    ] {
        let chain = fleet.authority.forge(Role::Agent, &key(), NODE, |params| {
            params.extended_key_usages = usages.clone();
        });
        assert!(
            matches!(
                refusal(&fleet, &chain, &[Role::Agent]),
                Refusal::WrongUsage { .. }
            ),
            "{usages:?}"
        );
    }
    // An agent that also asks to be a server is still no server.
    let agent = fleet.agent(NodeId::random(), now());
    assert!(matches!(
        refusal(&fleet, agent.chain(), &[Role::Collector]),
        Refusal::WrongRole { .. }
    ));
}

#[test]
fn refuses_other_depths() {
    let fleet = Fleet::new();
    let key = key();
    let direct = fleet
        .authority
        .forge_depth(fleet.dir.path(), Role::Agent, &key, NODE, false);
    assert!(matches!(
        refusal(&fleet, &direct, &[Role::Agent]),
        Refusal::Depth { found: 0, .. }
    ));
    let deep = fleet
        .authority
        .forge_depth(fleet.dir.path(), Role::Agent, &key, NODE, true);
    let text = refusal(&fleet, &deep, &[Role::Agent]).to_string();
    assert!(text.contains("PathLenConstraintViolated"), "{text}");
    // A certificate authority is nobody's identity.
    let ca = fleet.authority.forge(Role::Agent, &key, NODE, |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    });
    assert!(matches!(
        refusal(&fleet, &ca, &[Role::Agent]),
        Refusal::Chain { .. }
    ));
}

#[test]
fn bounds_what_it_looks_at() {
    let fleet = Fleet::new();
    assert_eq!(refusal(&fleet, &[], &[Role::Agent]), Refusal::NoCertificate);
    let leaf = fleet.agent(NodeId::random(), now());
    let five = vec![leaf.chain()[0].clone(); 5];
    assert_eq!(
        refusal(&fleet, &five, &[Role::Agent]),
        Refusal::TooManyCertificates(5)
    );
    assert!(matches!(
        refusal(&fleet, &[CertificateDer::from(vec![1, 2])], &[Role::Agent]),
        Refusal::Unreadable(_)
    ));
    let alone = &leaf.chain()[..1];
    assert!(matches!(
        refusal(&fleet, alone, &[Role::Agent]),
        Refusal::ForeignCa { .. }
    ));
}

#[test]
fn the_denied_stay_out_of_every_clone() {
    let fleet = Fleet::new();
    let admission = fleet.authority.admission().clone();
    let (one, other) = (
        fleet.agent(NodeId::random(), now()),
        fleet.agent(NodeId::random(), now()),
    );
    admission.deny(one.spiffe().clone());
    assert_eq!(
        refusal(&fleet, one.chain(), &[Role::Agent]),
        Refusal::Revoked {
            spiffe: one.spiffe().clone(),
            serial: one.serial().clone()
        }
    );
    assert!(
        admission
            .admit(other.chain(), &[Role::Agent], now())
            .is_ok()
    );
    admission.set_denied(Denied {
        serials: BTreeSet::from([other.serial().clone()]),
        ..Denied::default()
    });
    assert!(admission.admit(one.chain(), &[Role::Agent], now()).is_ok());
    assert!(matches!(
        admission.admit(other.chain(), &[Role::Agent], now()),
        Err(Refusal::Revoked { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn one_altered_bit_of_a_leaf_keeps_it_out(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let fleet = Fleet::new();
        let leaf = fleet.agent(NodeId::random(), now());
        let mut der = leaf.chain()[0].to_vec();
        let at = at.index(der.len());
        der[at] ^= 1 << bit;
        let chain = [CertificateDer::from(der), leaf.chain()[1].clone()];
        prop_assert!(fleet.authority.admission().admit(&chain, &[Role::Agent], now()).is_err());
    }
}
