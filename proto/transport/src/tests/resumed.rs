//! Sessions that resume: a ticket is no admission.

use super::*;

#[tokio::test]
async fn who_was_denied_since_is_refused_on_a_resumed_session_too() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    for mode in [Mode::Quic, Mode::Tcp] {
        let node = NodeId::random();
        let dialer = fleet.dialer(&fleet.agent(node), server.at, mode, KeyExchange::Auto);
        let first = dialer.connect().await.unwrap();
        let mut client = AgentClient::new(first.channel.clone());
        let request = RenewRequest {
            csr_der: vec![1].into(),
        };
        client.renew(request.clone()).await.unwrap();
        let spiffe = format!("spiffe://{DOMAIN}/agent/{node}");
        fleet.admission.deny(spiffe.parse().unwrap());
        let said = match dialer.connect().await {
            Err(error) => error.to_string(),
            Ok(told) => {
                let mut client = AgentClient::new(told.channel.clone());
                let refused = client.renew(request).await.unwrap_err();
                assert_eq!(refused.code(), Code::Unauthenticated);
                refused.message().to_owned()
            }
        };
        assert!(said.contains("revoked"), "{said}");
    }
    let counters = server.connections.counters();
    assert_eq!(
        counters
            .not_admitted
            .load(std::sync::atomic::Ordering::Relaxed),
        2
    );
}

#[tokio::test]
async fn a_collector_that_was_denied_since_is_refused_on_a_resumed_session_too() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    for mode in [Mode::Quic, Mode::Tcp] {
        let tls = fleet.dial_tls(&fleet.agent(NodeId::random()), KeyExchange::Auto);
        let at = vec![server.at.to_string()];
        let dialer = Dialer::new(at, tls.clone(), mode, Windows::agent());
        let first = dialer.connect().await.unwrap();
        let mut client = AgentClient::new(first.channel.clone());
        let request = RenewRequest {
            csr_der: vec![1].into(),
        };
        // After an answer the ticket is there.
        client.renew(request).await.unwrap();
        let collector = format!("spiffe://{DOMAIN}/collector/eu/c1")
            .parse()
            .unwrap();
        tls.judge.unwrap().admission.deny(collector);
        let error = dialer.connect().await.err().expect("denied");
        assert!(error.is_refusal(), "{error}");
        assert!(error.to_string().contains("revoked"), "{error}");
    }
}
