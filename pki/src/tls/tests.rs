use std::io::{Read as _, Write as _};

use nexus_proto::ids::NodeId;
use rustls::{
    ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection,
    pki_types::CertificateDer,
};

use super::*;
use crate::{
    csr::PrivateKey,
    leaf::Leaf,
    spiffe::SpiffeId,
    testing::{DOMAIN, Fleet, HOUR, now},
};

mod pinned;

/// Both sides of a finished handshake.
#[derive(Debug)]
struct Pair {
    client: ClientConnection,
    server: ServerConnection,
}

/// Which side gave up, and why.
#[derive(Debug)]
enum Failed {
    Client(rustls::Error),
    Server(rustls::Error),
}

impl Failed {
    fn text(&self) -> String {
        let (Self::Client(error) | Self::Server(error)) = self;
        refusal_of(error).unwrap_or_else(|| error.to_string())
    }
}

fn connect(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Pair, Failed> {
    let mut pair = Pair {
        client: ClientConnection::new(Arc::clone(client), server_name()).unwrap(),
        server: ServerConnection::new(Arc::clone(server)).unwrap(),
    };
    // A byte each way, so that tickets and late alerts have passed as well.
    for _ in 0..10 {
        let mut wire = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut wire).unwrap();
        }
        feed(&mut pair.server, &wire).map_err(Failed::Server)?;
        wire.clear();
        while pair.server.wants_write() {
            pair.server.write_tls(&mut wire).unwrap();
        }
        feed(&mut pair.client, &wire).map_err(Failed::Client)?;
    }
    assert!(!pair.client.is_handshaking() && !pair.server.is_handshaking());
    pair.client.writer().write_all(b"ping").unwrap();
    let mut wire = Vec::new();
    pair.client.write_tls(&mut wire).unwrap();
    feed(&mut pair.server, &wire).map_err(Failed::Server)?;
    let mut heard = [0; 4];
    pair.server.reader().read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"ping");
    Ok(pair)
}

fn feed<D>(
    connection: &mut rustls::ConnectionCommon<D>,
    mut wire: &[u8],
) -> Result<(), rustls::Error> {
    while !wire.is_empty() {
        connection.read_tls(&mut wire).unwrap();
        connection.process_new_packets()?;
    }
    Ok(())
}

fn live(fleet: &Fleet, leaf: Leaf) -> LiveLeaf {
    LiveLeaf::new(leaf, fleet.authority.root()).unwrap()
}

struct Sides {
    fleet: Fleet,
    agent: LiveLeaf,
    collector: LiveLeaf,
}

fn sides() -> Sides {
    let fleet = Fleet::new();
    Sides {
        agent: live(&fleet, fleet.agent(NodeId::random(), now())),
        collector: live(&fleet, fleet.collector(now())),
        fleet,
    }
}

impl Sides {
    fn client(&self, groups: KeyExchange) -> Arc<ClientConfig> {
        agent_client(
            &self.agent,
            self.fleet.authority.admission(),
            groups,
            Alpn::H2,
        )
        .unwrap()
    }

    fn server(&self, groups: KeyExchange) -> Arc<ServerConfig> {
        agents_server(
            &self.collector,
            self.fleet.authority.admission(),
            groups,
            Alpn::H2,
        )
        .unwrap()
    }

    fn peer_of(&self, chain: Option<&[CertificateDer<'_>]>, role: Role) -> String {
        self.fleet
            .authority
            .admission()
            .admit(chain.unwrap(), &[role], now())
            .unwrap()
            .spiffe
            .to_string()
    }
}

fn group(pair: &Pair) -> NamedGroup {
    let group = pair.client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(
        pair.server.negotiated_key_exchange_group().unwrap().name(),
        group
    );
    group
}

#[test]
fn an_agent_and_a_collector_know_each_other() {
    let sides = sides();
    for alpn in [Alpn::H2, Alpn::H3] {
        let admission = sides.fleet.authority.admission();
        let client = agent_client(&sides.agent, admission, KeyExchange::Auto, alpn).unwrap();
        let server = agents_server(&sides.collector, admission, KeyExchange::Auto, alpn).unwrap();
        let pair = connect(&client, &server).unwrap();
        assert_eq!(
            pair.client.protocol_version(),
            Some(ProtocolVersion::TLSv1_3)
        );
        assert_eq!(pair.client.alpn_protocol(), Some(alpn.id()));
        assert_eq!(group(&pair), NamedGroup::X25519MLKEM768);
        assert_eq!(
            sides.peer_of(pair.client.peer_certificates(), Role::Collector),
            "spiffe://example.org/collector/eu/c1"
        );
        assert_eq!(
            sides.peer_of(pair.server.peer_certificates(), Role::Agent),
            sides.agent.current().spiffe().to_string()
        );
    }
}

#[test]
fn groups_can_be_restricted_on_either_side() {
    use KeyExchange::{Auto, Classical, PostQuantum};
    let sides = sides();
    for (client, server, expected) in [
        (Auto, Auto, Some(NamedGroup::X25519MLKEM768)),
        (Auto, Classical, Some(NamedGroup::X25519)),
        (Classical, Auto, Some(NamedGroup::X25519)),
        (PostQuantum, Auto, Some(NamedGroup::X25519MLKEM768)),
        (Auto, PostQuantum, Some(NamedGroup::X25519MLKEM768)),
        (Classical, PostQuantum, None),
        (PostQuantum, Classical, None),
    ] {
        let pair = connect(&sides.client(client), &sides.server(server));
        match expected {
            Some(expected) => assert_eq!(group(&pair.unwrap()), expected, "{client} {server}"),
            None => assert!(
                matches!(
                    pair,
                    Err(Failed::Server(rustls::Error::PeerIncompatible(
                        rustls::PeerIncompatible::NoKxGroupsInCommon
                    )))
                ),
                "{client} {server}"
            ),
        }
    }
    for groups in [Auto, Classical, PostQuantum] {
        assert_eq!(groups.to_string().parse(), Ok(groups));
    }
    assert!("quantum".parse::<KeyExchange>().is_err());
}

#[test]
fn other_protocols_are_refused() {
    let sides = sides();
    let admission = sides.fleet.authority.admission();
    let h3 = agent_client(&sides.agent, admission, KeyExchange::Auto, Alpn::H3).unwrap();
    assert!(connect(&h3, &sides.server(KeyExchange::Auto)).is_err());
}

#[test]
fn only_agents_speak_on_the_agents_port() {
    let sides = sides();
    let admission = sides.fleet.authority.admission();
    let server = sides.server(KeyExchange::Auto);
    for (other, what) in [
        (sides.fleet.operator("alice", now()), "operator"),
        (sides.fleet.collector(now()), "collector"),
    ] {
        let client = agent_client(
            &live(&sides.fleet, other),
            admission,
            KeyExchange::Auto,
            Alpn::H2,
        )
        .unwrap();
        let failed = connect(&client, &server).unwrap_err();
        assert!(matches!(failed, Failed::Server(_)));
        assert!(
            failed.text().contains("only agents may speak here"),
            "{what}: {}",
            failed.text()
        );
    }
    // Nobody without a certificate.
    let mut bare = (*enrol_client(
        sides.fleet.authority.root().sha256(),
        DOMAIN,
        KeyExchange::Auto,
    )
    .unwrap())
    .clone();
    bare.alpn_protocols = vec![ALPN_H2.to_vec()];
    assert!(matches!(
        connect(&Arc::new(bare), &server),
        Err(Failed::Server(rustls::Error::NoCertificatesPresented))
    ));
}

#[test]
fn only_collectors_are_believed_by_clients() {
    let sides = sides();
    let admission = sides.fleet.authority.admission();
    for other in [
        sides.fleet.agent(NodeId::random(), now()),
        sides.fleet.operator("alice", now()),
    ] {
        let server = agents_server(
            &live(&sides.fleet, other),
            admission,
            KeyExchange::Auto,
            Alpn::H2,
        )
        .unwrap();
        let failed = connect(&sides.client(KeyExchange::Auto), &server).unwrap_err();
        assert!(matches!(failed, Failed::Client(_)));
        assert!(failed.text().contains("only collectors may speak here"));
    }
}

#[test]
fn another_fleet_is_refused_in_both_directions() {
    let (ours, theirs) = (sides(), sides());
    let failed = connect(
        &ours.client(KeyExchange::Auto),
        &theirs.server(KeyExchange::Auto),
    )
    .unwrap_err();
    assert!(matches!(
        failed,
        Failed::Client(rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer
        ))
    ));
    // A client that trusts their root but has our leaf.
    let stranger = agent_client(
        &ours.agent,
        theirs.fleet.authority.admission(),
        KeyExchange::Auto,
        Alpn::H2,
    )
    .unwrap();
    let failed = connect(&stranger, &theirs.server(KeyExchange::Auto)).unwrap_err();
    assert!(matches!(failed, Failed::Server(_)));
    assert!(failed.text().contains("not issued under this fleet's root"));
}

#[test]
fn expiry_names_both_clocks_and_reaches_the_peer() {
    let sides = sides();
    let admission = sides.fleet.authority.admission();
    let old = sides.fleet.agent(NodeId::random(), now().before(48 * HOUR));
    let end = old.not_after();
    let client = agent_client(
        &live(&sides.fleet, old),
        admission,
        KeyExchange::Auto,
        Alpn::H2,
    )
    .unwrap();
    let failed = connect(&client, &sides.server(KeyExchange::Auto)).unwrap_err();
    assert!(matches!(failed, Failed::Server(_)));
    let text = failed.text();
    assert!(text.contains(&end.to_string()), "{text}");
    assert!(text.contains("this machine's clock says 20"), "{text}");
    // What the agent hears is precise enough to know that it must renew.
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
    assert!(refusal_of(&alert).unwrap().contains("expired"));

    let early = sides.fleet.collector(now().after(HOUR));
    let begin = early.not_before();
    let server = agents_server(
        &live(&sides.fleet, early),
        admission,
        KeyExchange::Auto,
        Alpn::H2,
    )
    .unwrap();
    let failed = connect(&sides.client(KeyExchange::Auto), &server).unwrap_err();
    assert!(matches!(failed, Failed::Client(_)));
    assert!(failed.text().contains(&begin.to_string()));
}

#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let sides = sides();
    let key = PrivateKey::generate().unwrap();
    let key = aws_lc_rs::sign::any_ecdsa_type(&key.to_rustls()).unwrap();
    let stolen = |leaf: &LiveLeaf, root: bool| {
        let mut chain = leaf.current().chain().to_vec();
        if root {
            chain.push(sides.fleet.authority.root().der().clone());
        }
        let certified = rustls::sign::CertifiedKey::new(chain, Arc::clone(&key));
        Arc::new(rustls::sign::SingleCertAndKey::from(certified))
    };
    let mut client = (*sides.client(KeyExchange::Auto)).clone();
    client.client_auth_cert_resolver = stolen(&sides.agent, false);
    assert!(matches!(
        connect(&Arc::new(client), &sides.server(KeyExchange::Auto)),
        Err(Failed::Server(rustls::Error::InvalidCertificate(
            rustls::CertificateError::BadSignature
        )))
    ));
    let mut server = (*enrol_server(&sides.collector, KeyExchange::Auto).unwrap()).clone();
    server.cert_resolver = stolen(&sides.collector, true);
    let pin = sides.fleet.authority.root().sha256();
    assert!(matches!(
        connect(
            &enrol_client(pin, DOMAIN, KeyExchange::Auto).unwrap(),
            &Arc::new(server)
        ),
        Err(Failed::Client(rustls::Error::InvalidCertificate(
            rustls::CertificateError::BadSignature
        )))
    ));
}

#[test]
fn the_denied_get_no_connection() {
    let sides = sides();
    let admission = sides.fleet.authority.admission();
    let server = sides.server(KeyExchange::Auto);
    connect(&sides.client(KeyExchange::Auto), &server).unwrap();
    admission.deny(sides.agent.current().spiffe().clone());
    let failed = connect(&sides.client(KeyExchange::Auto), &server).unwrap_err();
    assert!(failed.text().contains("revoked"), "{}", failed.text());
}

#[test]
fn sessions_resume_without_early_data_until_the_leaf_changes() {
    let sides = sides();
    let client = sides.client(KeyExchange::Auto);
    let server = sides.server(KeyExchange::Auto);
    let kinds = |pair: &Pair| (pair.client.handshake_kind(), pair.server.handshake_kind());
    let full = Some(HandshakeKind::Full);
    let resumed = Some(HandshakeKind::Resumed);

    let first = connect(&client, &server).unwrap();
    assert_eq!(kinds(&first), (full, full));
    let second = connect(&client, &server).unwrap();
    assert_eq!(kinds(&second), (resumed, resumed));
    assert_eq!(group(&second), NamedGroup::X25519MLKEM768);
    assert!(!second.client.is_early_data_accepted());
    // A resumed session shows the chains of the first.
    let agent = sides.agent.current().spiffe().to_string();
    assert_eq!(
        sides.peer_of(second.server.peer_certificates(), Role::Agent),
        agent
    );
    sides.peer_of(second.client.peer_certificates(), Role::Collector);

    let node = sides.agent.current().spiffe().node().unwrap();
    let renewed = sides.fleet.agent(node, now());
    let serial = renewed.serial().clone();
    sides.agent.replace(renewed).unwrap();
    let third = connect(&client, &server).unwrap();
    assert_eq!(kinds(&third), (full, full));
    let seen = sides
        .fleet
        .authority
        .admission()
        .admit(
            third.server.peer_certificates().unwrap(),
            &[Role::Agent],
            now(),
        )
        .unwrap();
    assert_eq!(seen.serial, serial);
}

#[test]
fn tickets_of_one_port_are_rubbish_at_another() {
    let sides = sides();
    let client = sides.client(KeyExchange::Auto);
    connect(&client, &sides.server(KeyExchange::Auto)).unwrap();
    let elsewhere = connect(&client, &sides.server(KeyExchange::Auto)).unwrap();
    assert_eq!(elsewhere.server.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn a_server_presents_a_replaced_leaf_at_the_next_handshake() {
    let sides = sides();
    let server = sides.server(KeyExchange::Auto);
    let serial = |pair: &Pair| {
        sides
            .fleet
            .authority
            .admission()
            .admit(
                pair.client.peer_certificates().unwrap(),
                &[Role::Collector],
                now(),
            )
            .unwrap()
            .serial
    };
    let before = serial(&connect(&sides.client(KeyExchange::Auto), &server).unwrap());
    assert_eq!(&before, sides.collector.current().serial());
    sides
        .collector
        .replace(sides.fleet.collector(now()))
        .unwrap();
    let after = serial(&connect(&sides.client(KeyExchange::Auto), &server).unwrap());
    assert_eq!(&after, sides.collector.current().serial());
    assert_ne!(before, after);
}

#[test]
fn older_tls_is_not_spoken() {
    let sides = sides();
    let client = sides.client(KeyExchange::Auto);
    assert!(
        client
            .crypto_provider()
            .cipher_suites
            .iter()
            .all(|suite| { suite.version().version == ProtocolVersion::TLSv1_3 })
    );
    assert!(!client.enable_early_data);
    let server = sides.server(KeyExchange::Auto);
    assert_eq!(server.max_early_data_size, 0);
}

#[test]
fn configurations_serve_quic() {
    use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
    let sides = sides();
    let admission = sides.fleet.authority.admission();
    for groups in [
        KeyExchange::Auto,
        KeyExchange::Classical,
        KeyExchange::PostQuantum,
    ] {
        let client = agent_client(&sides.agent, admission, groups, Alpn::H3).unwrap();
        QuicClientConfig::try_from(client).unwrap();
        let server = agents_server(&sides.collector, admission, groups, Alpn::H3).unwrap();
        QuicServerConfig::try_from(server).unwrap();
    }
}

#[test]
fn reasons_are_found_within_io_errors() {
    let refusal = Refusal::NoCertificate;
    let tls = rustls::Error::from(&refusal);
    let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
    assert_eq!(refusal_of(&io), Some(refusal.to_string()));
    let other = std::io::Error::other("nothing to do with it");
    assert_eq!(refusal_of(&other), None);
}

fn sides_of(trust_domain: &str) -> Sides {
    let fleet = Fleet::named(trust_domain);
    Sides {
        agent: live(&fleet, fleet.agent(NodeId::random(), now())),
        collector: live(&fleet, fleet.collector(now())),
        fleet,
    }
}

#[test]
fn the_librarys_words_become_ours() {
    let spiffe = SpiffeId::agent(DOMAIN, NodeId::random()).unwrap();
    let refusals = [
        Refusal::Expired {
            spiffe: spiffe.clone(),
            not_after: now(),
            now: now().after(24 * HOUR),
        },
        Refusal::NotYetValid {
            spiffe: spiffe.clone(),
            not_before: now().after(24 * HOUR),
            now: now(),
        },
        Refusal::ForeignCa { spiffe },
        Refusal::NoCertificate,
    ];
    for refusal in refusals {
        let error = rustls::Error::from(&refusal);
        // The library's Display says it all, which is what QUIC hands on.
        let expected = refusal_of(&error).unwrap();
        assert_eq!(refusal_in(&error.to_string()), Some(expected));
    }
    assert_eq!(refusal_in("connection lost"), None);
}
