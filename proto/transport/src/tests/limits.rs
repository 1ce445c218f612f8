//! What strangers, and members that ask too much, cost everybody else.

use std::sync::atomic::Ordering;

use nexus_proto::limits as wire_limits;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

use super::*;

/// The beginning of a TLS record that never ends.
const BEGINNING: [u8; 6] = [22, 3, 1, 2, 0, 1];
/// Handshakes at the same time, of each transport.
const HANDSHAKES: usize = 64;

fn small() -> Limits {
    Limits {
        handshakes: HANDSHAKES,
        ..Limits::default()
    }
}

/// An agent gets in, and is answered.
async fn gets_in(fleet: &Fleet, server: &Server, mode: Mode) -> crate::Connection {
    let leaf = fleet.agent(NodeId::random());
    let dialer = fleet.dialer(&leaf, server.at, mode, KeyExchange::Auto);
    let connection = dialer.connect().await.unwrap();
    let mut client = AgentClient::new(connection.channel.clone());
    let request = RenewRequest {
        csr_der: vec![1].into(),
    };
    client.renew(request).await.unwrap();
    connection
}

#[tokio::test]
async fn many_more_silent_strangers_than_places_keep_nobody_out() {
    let fleet = Fleet::new();
    let server = serve_within(&fleet, LOOPBACK, KeyExchange::Auto, small(), None).await;
    let mut strangers = Vec::new();
    for number in 0..10 * HANDSHAKES {
        let mut stranger = TcpStream::connect(server.at).await.unwrap();
        if number % 2 == 0 {
            stranger.write_all(&BEGINNING).await.unwrap();
        }
        strangers.push(stranger);
        if number % HANDSHAKES == 0 {
            gets_in(&fleet, &server, Mode::Tcp).await;
            gets_in(&fleet, &server, Mode::Quic).await;
        }
    }
    gets_in(&fleet, &server, Mode::Tcp).await;
    let overload = &server.connections.counters().overload;
    let ended = strangers.len() - HANDSHAKES;
    assert!(overload.load(Ordering::Relaxed) >= ended as u64);
}

/// A UDP port that passes on to `to` what comes in, and nothing back.
async fn one_way(to: SocketAddr, from: &str) -> SocketAddr {
    let inside = UdpSocket::bind(LOOPBACK).await.unwrap();
    let outside = UdpSocket::bind(from).await.unwrap();
    let at = inside.local_addr().unwrap();
    spawn_detached("one way", async move {
        let mut packet = vec![0; 2000];
        while let Ok(length) = inside.recv(&mut packet).await {
            outside.send_to(&packet[..length], to).await.ok();
        }
    });
    at
}

#[tokio::test]
async fn packets_under_addresses_of_others_keep_nobody_out() {
    let fleet = Fleet::new();
    let server = serve_within(&fleet, LOOPBACK, KeyExchange::Auto, small(), None).await;
    let leaf = fleet.agent(NodeId::random());
    let tls = fleet.dial_tls(&leaf, KeyExchange::Auto).quic;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let endpoint = quinn::Endpoint::client(LOOPBACK.parse().unwrap()).unwrap();
    let mut strangers = Vec::new();
    // Of several addresses, and of the agent's own.
    for last in 1..=20 {
        let at = one_way(server.at, &format!("127.0.0.{last}:0")).await;
        for _ in 0..HANDSHAKES / 4 {
            let connecting = endpoint.connect_with(config.clone(), at, tls::SERVER_NAME);
            strangers.push(connecting.unwrap());
        }
        gets_in(&fleet, &server, Mode::Quic).await;
        gets_in(&fleet, &server, Mode::Tcp).await;
    }
    // Once it is crowded they have to prove their addresses first, and hold no place.
    let overload = &server.connections.counters().overload;
    assert_eq!(overload.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn those_without_a_certificate_have_few_places_and_wait_for_them() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    let root = fleet.authority.root().sha256();
    let tls = tls::enrol_client(root, DOMAIN, KeyExchange::Auto).unwrap();
    let at = server.at.to_string();
    let enrol = || enrol_connect(&at, tls.clone());
    let mut strangers = Vec::new();
    for _ in 0..wire_limits::ANONYMOUS_CONNECTIONS {
        strangers.push(enrol().await.unwrap());
    }
    let oldest = strangers[0].closed();
    let patience = wire_limits::ANONYMOUS_PATIENCE;
    assert!(timeout(patience / 10, enrol()).await.is_err());
    gets_in(&fleet, &server, Mode::Tcp).await;
    // Whoever is done makes room at once.
    strangers.pop();
    strangers.push(timeout(patience / 2, enrol()).await.unwrap().unwrap());
    // Whoever takes long has to.
    let more = timeout(LONG, enrol()).await.unwrap().unwrap();
    timeout(LONG, oldest).await.unwrap();
    let mut client = EnrolmentClient::new(more.channel.clone());
    client.enrol(EnrolRequest::default()).await.unwrap();
}

#[tokio::test]
async fn an_identity_has_so_many_connections_and_a_newer_one_ends_the_oldest() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    let leaf = fleet.agent(NodeId::random());
    let other = gets_in(&fleet, &server, Mode::Quic).await;
    let mut connections = Vec::new();
    for number in 0..3 * wire_limits::CONNECTIONS_PER_AGENT {
        let mode = [Mode::Quic, Mode::Tcp][number % 2];
        let dialer = fleet.dialer(&leaf, server.at, mode, KeyExchange::Auto);
        connections.push(dialer.connect().await.unwrap());
        if let Some(ended) = number.checked_sub(wire_limits::CONNECTIONS_PER_AGENT) {
            timeout(LONG, connections[ended].closed()).await.unwrap();
        }
    }
    let open = connections.len() - wire_limits::CONNECTIONS_PER_AGENT;
    for connection in connections[open..].iter().chain([&other]) {
        let mut client = AgentClient::new(connection.channel.clone());
        let request = RenewRequest {
            csr_der: vec![1].into(),
        };
        client.renew(request).await.unwrap();
    }
    let cut = &server.connections.counters().cut;
    assert_eq!(cut.load(Ordering::Relaxed), open as u64);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_given_up_soon() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    let mut stranger = TcpStream::connect(server.at).await.unwrap();
    let half = wire_limits::HANDSHAKE_TIMEOUT / 2;
    let read = timeout(half, stranger.read(&mut [0; 16])).await.unwrap();
    assert_eq!(read.unwrap_or_default(), 0);
}
