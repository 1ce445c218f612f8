use nexus_proto::ids::NodeId;

use super::*;
use crate::{
    csr::{PrivateKey, new_csr},
    testing::{Fleet, HOUR, now},
};

#[test]
fn the_old_key_speaks_for_thirty_days() {
    let fleet = Fleet::new();
    let admission = fleet.authority.admission();
    let node = NodeId::random();
    let old = fleet.agent(node, now());
    let (_, csr) = new_csr().unwrap();
    let ask = |at: Timestamp| verify(&sign(&old, &csr, at).unwrap(), admission, at);
    assert_eq!(ask(now()).unwrap().spiffe.node(), Some(node));
    let last = old.not_after().after(limits::RENEW_EXPIRED);
    assert_eq!(ask(last).unwrap().spiffe.node(), Some(node));
    assert!(matches!(
        ask(last.after(HOUR)),
        Err(RenewalError::Refused(Refusal::Expired { .. }))
    ));
    admission.deny(old.spiffe().clone());
    assert!(matches!(
        ask(last),
        Err(RenewalError::Refused(Refusal::Revoked { .. }))
    ));
}

#[test]
fn everything_signed_counts() {
    let (fleet, foreign) = (Fleet::new(), Fleet::new());
    let admission = fleet.authority.admission();
    let old = fleet.agent(NodeId::random(), now());
    let (_, csr) = new_csr().unwrap();
    let (_, other_csr) = new_csr().unwrap();
    let now = now();
    let good = sign(&old, &csr, now).unwrap();
    let check = |request: &wire::RenewExpiredRequest| verify(request, admission, now);
    check(&good).unwrap();
    for bad in [
        wire::RenewExpiredRequest {
            csr_der: other_csr.into(),
            ..good.clone()
        },
        wire::RenewExpiredRequest {
            time_ms: good.time_ms + 1,
            ..good.clone()
        },
        wire::RenewExpiredRequest {
            proof: prost::bytes::Bytes::new(),
            ..good.clone()
        },
        // Another node's certificate, whose key the asker does not have.
        wire::RenewExpiredRequest {
            old_chain_der: fleet.agent(NodeId::random(), now).chain_to_wire(),
            ..good.clone()
        },
    ] {
        assert!(matches!(check(&bad), Err(RenewalError::Proof)));
    }
    assert!(matches!(
        check(&wire::RenewExpiredRequest {
            csr_der: prost::bytes::Bytes::from_static(b"x"),
            ..good.clone()
        }),
        Err(RenewalError::Csr(_))
    ));
    assert!(matches!(
        check(&wire::RenewExpiredRequest {
            old_chain_der: vec![prost::bytes::Bytes::new(); 100],
            ..good
        }),
        Err(RenewalError::Refused(Refusal::TooManyCertificates(_)))
    ));
    let stranger = foreign.agent(NodeId::random(), now);
    assert!(matches!(
        check(&sign(&stranger, &csr, now).unwrap()),
        Err(RenewalError::Refused(Refusal::ForeignCa { .. }))
    ));
    let operator = fleet.operator("alice", now);
    assert!(matches!(
        check(&sign(&operator, &csr, now).unwrap()),
        Err(RenewalError::Refused(Refusal::WrongRole { .. }))
    ));
    let far = now.after(CLOCK_DIFFERENCE).after(HOUR);
    assert!(matches!(
        check(&sign(&old, &csr, far).unwrap()),
        Err(RenewalError::Time { .. })
    ));
}

#[test]
fn a_key_that_is_not_in_the_certificate_makes_no_leaf() {
    let fleet = Fleet::new();
    let old = fleet.agent(NodeId::random(), now());
    assert!(Leaf::new(PrivateKey::generate().unwrap(), old.chain().to_vec()).is_err());
}
