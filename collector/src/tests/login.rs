//! Who gets in and what operators say they trust; and what strangers cannot do.

use std::time::Duration;

use nexus_pki::{
    csr,
    policy::{SignerPolicy, TrustedPolicy},
};
use nexus_proto::{limits, operator::v1 as operator};
use tonic::Code;

use crate::testing::{Collector, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_without_a_certificate_and_every_refusal_is_audited() {
    let collector = Collector::start();
    let refused = collector
        .operators_as(None)
        .list_nodes(operator::ListNodesRequest::default())
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let mut admin = collector.log_in().await;
    let who = admin
        .client
        .who_am_i(operator::WhoAmIRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(who.name, "admin");
    assert_eq!(who.transport, "quic");
    let agent = {
        let token = admin.token(1).await;
        collector.enrol(&token, "web-1").await.unwrap()
    };
    // An agent's certificate opens nothing here.
    let mut as_agent = collector.operators_as(Some(agent.identity.clone()));
    let refused = as_agent.get_trust(operator::GetTrustRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let acts = || {
        let rows = collector.store.audit_rows(1, 100).unwrap();
        let mut acts: Vec<_> = rows
            .into_iter()
            .map(|row| (row.action, row.decision))
            .collect();
        acts.sort();
        acts
    };
    // Strangers' rows are written by and by.
    until("the stranger's row", || acts().len() == 5).await;
    let expected = [
        ("CreateToken", "allowed"),
        ("GetTrust", "refused"),
        ("ListNodes", "refused"),
        ("Login", "allowed"),
        ("enrol", "allowed"),
    ];
    assert_eq!(
        acts(),
        expected.map(|(action, decision)| (action.to_owned(), decision.to_owned()))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_fill_the_audit_chain_by_asking() {
    let collector = Collector::start();
    let mut stranger = collector.operators_as(None);
    let (_, csr) = csr::new_csr().unwrap();
    for round in 0..100_u8 {
        let refused = stranger
            .list_nodes(operator::ListNodesRequest::default())
            .await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
        // One that is wrong at first sight, and one that has a code nobody made.
        let login = operator::LoginRequest::default();
        assert!(stranger.login(login).await.is_err());
        let login = operator::LoginRequest {
            code_id: vec![round; 16].into(),
            code_secret: vec![round; 32].into(),
            csr_der: csr.clone().into(),
            signing_public_key: vec![1; 32].into(),
            ..Default::default()
        };
        assert!(stranger.login(login).await.is_err());
    }
    // The chain takes a row of an operator after them, and has few of theirs.
    let mut admin = collector.log_in().await;
    admin.token(1).await;
    let rows = || collector.store.audit_rows(1, 1000).unwrap();
    let is_theirs = |row: &operator::AuditRow| row.actor == "anonymous:127.0.0.1";
    // Strangers' rows are written by and by.
    until("the stranger's row", || rows().iter().any(is_theirs)).await;
    assert!(rows().len() < 12, "{} rows", rows().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_sends_small_messages_only() {
    let collector = Collector::start();
    let (_, csr) = csr::new_csr().unwrap();
    let large = operator::LoginRequest {
        code_id: vec![1; 100_000].into(),
        csr_der: csr.into(),
        signing_public_key: vec![1; 32].into(),
        ..Default::default()
    };
    let refused = collector.operators_as(None).login(large).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_code_logs_in_once() {
    let collector = Collector::start();
    let _admin = collector.log_in().await;
    let (_, csr) = csr::new_csr().unwrap();
    let again = operator::LoginRequest {
        code_id: collector.code.id.to_vec().into(),
        code_secret: collector.code.secret.to_vec().into(),
        csr_der: csr.into(),
        signing_public_key: vec![1; 32].into(),
        ..Default::default()
    };
    let refused = collector.operators_as(None).login(again).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_ahead_signs_nothing_in_force() {
    let collector = Collector::start();
    let (now, ahead) = {
        let now = collector.clock.now();
        (now, now.after(limits::CLOCK_SKEW * 2))
    };
    // Found before the code is spent: logging in works afterwards.
    let key = nexus_pki::signing::SigningKey::generate().unwrap();
    let mut policy = SignerPolicy {
        version: 1,
        trust_domain: collector.authority.trust_domain().to_owned(),
        threshold: 1,
        signers: vec![nexus_pki::signing::Signer {
            name: collector.code.name.clone(),
            public_key: key.public_key(),
        }],
        created: ahead,
    };
    let (_, request) = csr::new_csr().unwrap();
    let login = operator::LoginRequest {
        code_id: collector.code.id.to_vec().into(),
        code_secret: collector.code.secret.to_vec().into(),
        csr_der: request.into(),
        signing_public_key: key.public_key().0.to_vec().into(),
        policy: Some(policy.sign(&key).unwrap()),
        freshness: None,
    };
    let refused = collector.operators_as(None).login(login).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(
        refused.message().contains("set the clock that is wrong"),
        "{refused:?}"
    );

    let mut admin = collector.log_in().await;
    let trust = admin.client.get_trust(operator::GetTrustRequest {}).await;
    let held = trust.unwrap().into_inner().policy.unwrap();
    let held = TrustedPolicy::first(held, collector.authority.trust_domain()).unwrap();
    let put = |trust| operator::Trust {
        freshness: Some(trust),
        ..Default::default()
    };
    let statement = held.sign_freshness(&admin.key, ahead);
    let refused = admin.client.put_trust(put(statement)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    policy.version = 2;
    policy.signers[0].public_key = admin.key.public_key();
    let next = operator::Trust {
        policy: Some(policy.sign(&admin.key).unwrap()),
        ..Default::default()
    };
    let refused = admin.client.put_trust(next).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");

    // A little is what clocks are apart.
    let statement = held.sign_freshness(&admin.key, now.after(Duration::from_secs(60)));
    let taken = admin.client.put_trust(put(statement)).await.unwrap();
    assert!(taken.into_inner().freshness.is_some());
}
