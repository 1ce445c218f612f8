//! Streams that keep to no rule, on connections that were admitted.

use std::sync::{Arc, atomic::Ordering};

use nexus_proto::limits;

use super::*;

/// An agent's connection on which anything can be sent.
struct Raw {
    server: Server,
    connection: quinn::Connection,
}

impl Raw {
    async fn connect() -> Self {
        let fleet = Fleet::new();
        let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
        let connection = raw(&fleet, server.at).await;
        Self { server, connection }
    }

    /// Sends `pieces` on a stream of their own, each once the one before is acknowledged; the end comes with the last.
    async fn send(&self, pieces: &[&[u8]]) -> quinn::RecvStream {
        let (mut send, answer) = self.connection.open_bi().await.unwrap();
        let acks = || self.connection.stats().frame_rx.acks;
        let mut before = None;
        for piece in pieces {
            if let Some(before) = before {
                until(|| acks() > before).await;
            }
            before = Some(acks());
            send.write_all(piece).await.unwrap();
        }
        send.finish().unwrap();
        answer
    }

    /// A stream that is refused for `bytes` before any DATA.
    async fn flood(&self, bytes: &[u8]) {
        let (mut send, _recv) = self.connection.open_bi().await.unwrap();
        // Fails once the collector has had enough, unless all of it was under way by then.
        send.write_all(bytes).await.ok();
        let stopped = timeout(LONG, send.stopped()).await.unwrap().unwrap();
        assert_eq!(stopped.map(quinn::VarInt::into_inner), Some(0x107));
    }

    /// The code and reason with which the collector ends the connection.
    async fn ended(&self) -> (u64, String) {
        match timeout(LONG, self.connection.closed()).await.unwrap() {
            quinn::ConnectionError::ApplicationClosed(close) => (
                close.error_code.into_inner(),
                String::from_utf8(close.reason.to_vec()).unwrap(),
            ),
            other => panic!("{other}"),
        }
    }
}

pub(super) async fn raw(fleet: &Fleet, at: SocketAddr) -> quinn::Connection {
    let leaf = fleet.agent(NodeId::random());
    let tls = tls::agent_client(&leaf, &fleet.admission, KeyExchange::Auto, Alpn::H3).unwrap();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client(LOOPBACK.parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(config, at, tls::SERVER_NAME).unwrap();
    connecting.await.unwrap()
}

/// A collector that can answer anything.
pub(super) fn raw_collector(fleet: &Fleet) -> quinn::Endpoint {
    let tls = fleet.tls(KeyExchange::Auto).quic;
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    quinn::Endpoint::server(config, LOOPBACK.parse().unwrap()).unwrap()
}

async fn until(met: impl Fn() -> bool) {
    let wait = async {
        while !met() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, wait).await.unwrap();
}

/// A HEADERS frame (RFC 9114, section 7.2.2) of `fields` (RFC 9204, section 4.5), without the dynamic table.
pub(super) fn headers(fields: &[&[u8]]) -> Vec<u8> {
    let section = [&[0, 0], fields.concat().as_slice()].concat();
    let length = u16::try_from(section.len()).unwrap() | 0x4000;
    [&[1], length.to_be_bytes().as_slice(), section.as_slice()].concat()
}

/// DATA that announces 100 bytes, a message of 95, and has `sent` of them.
fn data(sent: usize) -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0, 95];
    message.resize(100, 7);
    [&[0, 0x40, 100], &message[..sent]].concat()
}

/// An upload as it begins: POST, https, path, authority, content type.
pub(super) fn upload() -> Vec<u8> {
    let literal = |name: &[u8], value: &str| {
        let length = u8::try_from(value.len()).unwrap();
        [name, &[length], value.as_bytes()].concat()
    };
    headers(&[
        &[0xd4, 0xd7],
        &literal(&[0x51], "/nexus.agent.v1.Agent/Upload"),
        &literal(&[0x50], "collector"),
        &literal(&[0x5f, 29], "application/grpc"),
    ])
}

#[tokio::test]
async fn a_flood_of_frames_before_data_is_refused() {
    let raw = Raw::connect().await;
    let frame = [&[0x21, 30][..], &[0; 30]].concat();
    raw.flood(&frame.repeat(1000)).await;
    raw.connection.close(0_u32.into(), b"");
    raw.server.shutdown.cancel();
    timeout(LONG, raw.server.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let refused = &raw.server.connections.counters().streams_refused;
    assert_eq!(refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_header_frame_that_claims_too_much_is_refused_at_once_and_only_so_often() {
    let raw = Raw::connect().await;
    let claims = [1, 0x80, 0x10, 0, 0];
    for _ in 1..limits::REFUSED_STREAMS {
        raw.flood(&claims).await;
    }
    assert_eq!(raw.connection.close_reason(), None);
    let _answer = raw.send(&[&claims]).await;
    let (code, reason) = raw.ended().await;
    assert_eq!(
        (code, reason.as_str()),
        (0x107, "too many streams were refused")
    );
}

#[tokio::test]
async fn a_stream_that_ends_within_a_frame_ends_its_connection() {
    let announced = [upload(), data(0)].concat();
    let half = [upload(), data(50)].concat();
    let header = [upload(), vec![0, 0x40]].concat();
    let trailers = [upload(), vec![1, 9, 0]].concat();
    for pieces in [
        &[announced.as_slice()][..],
        &[&half],
        &[&half, &[]],
        &[&upload(), &data(40), &[7; 59]],
        &[&header],
        &[&trailers],
    ] {
        let raw = Raw::connect().await;
        let _answer = raw.send(pieces).await;
        let (code, reason) = raw.ended().await;
        assert_eq!(
            (code, reason.as_str()),
            (0x106, "a stream ended within a frame")
        );
    }
}

#[tokio::test]
async fn an_answer_that_ends_within_a_frame_fails_the_call_and_nothing_more() {
    let fleet = Fleet::new();
    let collector = raw_collector(&fleet);
    let at = collector.local_addr().unwrap();
    spawn_detached("a hostile collector", async move {
        let connection = collector.accept().await.unwrap().await.unwrap();
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[0, 4, 0]).await.unwrap();
        let (mut answer, _question) = connection.accept_bi().await.unwrap();
        let head = headers(&[&[0xd9]]);
        let half = [head, data(50)].concat();
        let acks = || connection.stats().frame_rx.acks;
        let before = acks();
        answer.write_all(&half).await.unwrap();
        until(|| acks() > before).await;
        answer.finish().unwrap();
        connection.closed().await;
    });
    let leaf = fleet.agent(NodeId::random());
    let dialer = fleet.dialer(&leaf, at, Mode::Quic, KeyExchange::Auto);
    let connection = dialer.connect().await.unwrap();
    let mut client = AgentClient::new(connection.channel.clone());
    let upload = client.upload(tokio_stream::pending()).await.unwrap();
    timeout(LONG, upload.into_inner().message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        timeout(LONG, connection.closed()).await.unwrap(),
        Closed::Local
    );
}

/// Refuses whatever the collector shows, in words that are a refusal of the collector's own.
#[derive(Debug)]
struct Forger;

impl rustls::client::danger::ServerCertVerifier for Forger {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Err(rustls::Error::General(
            "invalid peer certificate: Other(OtherError(spiffe://example.org/operator/ann was revoked))"
                .to_owned(),
        ))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 alone is spoken")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("the certificate was refused")
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[tokio::test]
async fn the_words_of_a_peer_are_no_refusal_of_ours() {
    let fleet = Fleet::new();
    let (tell, mut refused) = mpsc::channel(4);
    let limits = Limits::default();
    let server = serve_within(&fleet, LOOPBACK, KeyExchange::Auto, limits, Some(tell)).await;
    let leaf = fleet.agent(NodeId::random());
    let mut tls = (*fleet.dial_tls(&leaf, KeyExchange::Auto).quic).clone();
    tls.dangerous().set_certificate_verifier(Arc::new(Forger));
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client(LOOPBACK.parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint
        .connect_with(config, server.at, tls::SERVER_NAME)
        .unwrap();
    connecting.await.unwrap_err();
    let failed = &server.connections.counters().handshakes_failed;
    until(|| failed.load(Ordering::Relaxed) == 1).await;
    // What this side refuses is told, in its own words.
    let dialer = fleet.dialer(&fleet.operator(), server.at, Mode::Quic, KeyExchange::Auto);
    assert!(dialer.connect().await.is_err());
    let first = timeout(LONG, refused.recv()).await.unwrap().unwrap();
    assert!(
        first.reason.contains("only agents may speak here"),
        "{first:?}"
    );
}
