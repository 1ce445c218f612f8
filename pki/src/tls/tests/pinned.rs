//! Handshakes without a client certificate: enrolment, and operators' logins.

use super::*;

#[test]
fn enrolment_knows_the_fleet_by_the_roots_digest() {
    let (sides, others) = (sides(), sides_of("example.com"));
    let server = enrol_server(&sides.collector, KeyExchange::Auto).unwrap();
    let pin = sides.fleet.authority.root().sha256();
    let client = enrol_client(pin, DOMAIN, KeyExchange::Auto).unwrap();
    for _ in 0..2 {
        let pair = connect(&client, &server).unwrap();
        assert_eq!(pair.client.alpn_protocol(), Some(ALPN_ENROL));
        assert!(pair.server.peer_certificates().is_none());
        // Nothing to resume: each enrolment is judged by itself.
        assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
        // The root came along and is the pinned one.
        let presented = pair.client.peer_certificates().unwrap();
        assert_eq!(presented.len(), 3);
        crate::certificate::Root::pinned(&presented[2], &pin).unwrap();
    }

    // Another fleet's collector, another pin, another trust domain under the right pin.
    let foreign = enrol_server(&others.collector, KeyExchange::Auto).unwrap();
    let failed = connect(&client, &foreign).unwrap_err();
    assert!(
        failed.text().contains(&crate::hex(&pin)),
        "{}",
        failed.text()
    );
    let wrong_pin = enrol_client([0; 32], DOMAIN, KeyExchange::Auto).unwrap();
    assert!(matches!(
        connect(&wrong_pin, &server),
        Err(Failed::Client(_))
    ));
    let wrong_domain = enrol_client(pin, "example.com", KeyExchange::Auto).unwrap();
    let failed = connect(&wrong_domain, &server).unwrap_err();
    assert!(
        failed
            .text()
            .contains("not of the trust domain `example.com`"),
        "{}",
        failed.text()
    );
}

#[test]
fn showing_the_pinned_root_is_not_enough() {
    let (sides, others) = (sides(), sides());
    let pin = sides.fleet.authority.root().sha256();
    // Someone in between presents their own leaf with our public root behind it.
    let theirs = others.collector.current();
    let mixed = LiveLeaf::new((*theirs).clone(), sides.fleet.authority.root()).unwrap();
    let server = enrol_server(&mixed, KeyExchange::Auto).unwrap();
    let client = enrol_client(pin, DOMAIN, KeyExchange::Auto).unwrap();
    let failed = connect(&client, &server).unwrap_err();
    assert!(matches!(
        failed,
        Failed::Client(rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer
        ))
    ));
    // An agent of the fleet cannot play its collector either.
    let agent = live(&sides.fleet, sides.fleet.agent(NodeId::random(), now()));
    let server = enrol_server(&agent, KeyExchange::Auto).unwrap();
    let failed = connect(&client, &server).unwrap_err();
    assert!(failed.text().contains("only collectors may speak here"));
}

#[test]
fn an_operator_may_come_without_a_certificate_but_not_with_a_wrong_one() {
    let sides = sides();
    let admission = sides.fleet.authority.admission();
    let server = operators_server(&sides.collector, admission, KeyExchange::Auto).unwrap();

    let pin = sides.fleet.authority.root().sha256();
    let login = operator_login_client(pin, DOMAIN, KeyExchange::Auto).unwrap();
    let pair = connect(&login, &server).unwrap();
    assert!(pair.server.peer_certificates().is_none());

    let alice = live(&sides.fleet, sides.fleet.operator("alice", now()));
    let client = operator_client(&alice, admission, KeyExchange::Auto).unwrap();
    let pair = connect(&client, &server).unwrap();
    assert_eq!(
        sides.peer_of(pair.server.peer_certificates(), Role::Operator),
        "spiffe://example.org/operator/alice"
    );

    let failed = connect(&sides.client(KeyExchange::Auto), &server).unwrap_err();
    assert!(matches!(failed, Failed::Server(_)));
    assert!(failed.text().contains("only operators may speak here"));
    let expired = live(
        &sides.fleet,
        sides.fleet.operator("alice", now().before(24 * HOUR)),
    );
    let client = operator_client(&expired, admission, KeyExchange::Auto).unwrap();
    assert!(connect(&client, &server).is_err());
}
