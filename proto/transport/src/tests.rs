//! Both ports on loopback, with real certificates and real tonic services.

use std::{collections::HashMap, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use crate::{
    AgentPort, Closed, Connections, DialTls, Dialer, Judge, Limits, Mode, Peer, Refused, ResetKeys,
    Serving, TlsSet, TransportKind, Windows, enrol_connect,
};
use nexus_pki::{
    admission::Admission,
    authority::Authority,
    csr::new_csr,
    leaf::Leaf,
    tls::{self, Alpn, KeyExchange, LiveLeaf},
};
use nexus_proto::{
    agent::v1::{
        AgentFrame, CollectorFrame, EnrolRequest, Identity, RecordBatch, RenewExpiredRequest,
        RenewRequest, UploadAck, UploadFrame,
        agent_client::AgentClient,
        agent_server::{Agent, AgentServer},
        enrolment_client::EnrolmentClient,
        enrolment_server::{Enrolment, EnrolmentServer},
        upload_frame,
    },
    ids::NodeId,
};
use nexus_runtime::{clock::Clock, tasks::spawn_detached};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

mod hostile;
mod limits;
mod panics;
mod resumed;

const LONG: Duration = Duration::from_secs(20);
const DOMAIN: &str = "example.org";

#[derive(Clone)]
struct Echo;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Echo {
    type SessionStream = Replies<CollectorFrame>;
    type UploadStream = Replies<UploadAck>;

    /// Takes nothing and says nothing: a call that is stalled.
    async fn session(
        &self,
        request: Request<Streaming<AgentFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let held = request.into_inner();
        let first = tokio_stream::once(Ok(CollectorFrame::default()));
        let (keep, never) = mpsc::channel(1);
        let never = ReceiverStream::new(never).map(move |frame| {
            let _both = (&keep, &held);
            frame
        });
        Ok(Response::new(Box::pin(first.chain(never))))
    }

    /// Acknowledges with the bytes of each batch.
    async fn upload(
        &self,
        request: Request<Streaming<UploadFrame>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let acks = request.into_inner().map(|frame| {
            let bytes = match frame?.kind {
                Some(upload_frame::Kind::Batch(batch)) => {
                    batch.records.iter().map(|record| record.len() as u64).sum()
                }
                _ => return Err(Status::failed_precondition("upload: only batches here")),
            };
            Ok(UploadAck {
                seq: bytes,
                credit_bytes: 1,
            })
        });
        Ok(Response::new(Box::pin(acks)))
    }

    /// Says who calls, and gives back what was sent.
    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Identity>, Status> {
        let peer = request.extensions().get::<Peer>().expect("a peer").clone();
        assert!(peer.rtt().is_some());
        let identity = peer.identity.as_ref().expect("an identity");
        let csr = request.get_ref().csr_der.clone();
        if csr.is_empty() {
            return Err(Status::invalid_argument("renew: no request"));
        }
        let said = [
            ("spiffe", identity.spiffe.to_string()),
            ("transport", peer.transport.name().to_owned()),
            ("key_exchange", peer.key_exchange.clone()),
        ];
        let labels: HashMap<_, _> = said
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        Ok(Response::new(Identity {
            root_der: csr,
            labels,
            ..Identity::default()
        }))
    }
}

#[tonic::async_trait]
impl Enrolment for Echo {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Identity>, Status> {
        assert!(
            request
                .extensions()
                .get::<Peer>()
                .expect("a peer")
                .identity
                .is_none()
        );
        Ok(Response::new(Identity {
            time_ms: 7,
            ..Identity::default()
        }))
    }

    async fn renew_expired(
        &self,
        _: Request<RenewExpiredRequest>,
    ) -> Result<Response<Identity>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

struct Fleet {
    authority: Authority,
    admission: Admission,
    _dir: tempfile::TempDir,
}

impl Fleet {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), DOMAIN, Clock::system().now()).unwrap();
        let admission = Admission::new(authority.root(), DOMAIN);
        Self {
            authority,
            admission,
            _dir: dir,
        }
    }

    fn live(&self, leaf: Leaf) -> LiveLeaf {
        LiveLeaf::new(leaf, self.authority.root()).unwrap()
    }

    fn tls(&self, groups: KeyExchange) -> TlsSet {
        let leaf = self
            .authority
            .issue_collector("eu", "c1", Clock::system().now())
            .unwrap();
        let leaf = self.live(leaf);
        TlsSet {
            quic: tls::agents_server(&leaf, &self.admission, groups, Alpn::H3).unwrap(),
            tcp: tls::agents_server(&leaf, &self.admission, groups, Alpn::H2).unwrap(),
            enrol: tls::enrol_server(&leaf, groups).unwrap(),
        }
    }

    fn agent(&self, node: NodeId) -> LiveLeaf {
        let (key, csr) = new_csr().unwrap();
        let issued = self
            .authority
            .issue_agent(&csr, node, Clock::system().now())
            .unwrap();
        self.live(Leaf::new(key, issued.chain).unwrap())
    }

    fn operator(&self) -> LiveLeaf {
        let (key, csr) = new_csr().unwrap();
        let issued = self
            .authority
            .issue_operator(&csr, "ann", Clock::system().now())
            .unwrap();
        self.live(Leaf::new(key, issued.chain).unwrap())
    }

    fn dialer(&self, leaf: &LiveLeaf, at: SocketAddr, mode: Mode, groups: KeyExchange) -> Dialer {
        let tls = self.dial_tls(leaf, groups);
        Dialer::new(vec![at.to_string()], tls, mode, Windows::agent())
    }

    fn dial_tls(&self, leaf: &LiveLeaf, groups: KeyExchange) -> DialTls {
        let admission = Admission::new(self.authority.root(), DOMAIN);
        let client = |alpn| tls::agent_client(leaf, &admission, groups, alpn).unwrap();
        DialTls {
            quic: client(Alpn::H3),
            tcp: client(Alpn::H2),
            judge: Some(Judge {
                clock: Clock::system(),
                admission,
            }),
        }
    }
}

struct Server {
    at: SocketAddr,
    connections: Connections,
    shutdown: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

async fn serve(fleet: &Fleet, at: &str, groups: KeyExchange) -> Server {
    serve_within(fleet, at, groups, Limits::default(), None).await
}

async fn serve_within(
    fleet: &Fleet,
    at: &str,
    groups: KeyExchange,
    limits: Limits,
    refused: Option<mpsc::Sender<Refused>>,
) -> Server {
    let port = AgentPort::bind(at.parse().unwrap()).await.unwrap();
    let at = port.local_addr().unwrap();
    let limits = Limits {
        drain: Duration::from_secs(1),
        ..limits
    };
    let connections = Connections::telling(limits, refused);
    let shutdown = CancellationToken::new();
    let serving = Serving {
        admission: fleet.admission.clone(),
        clock: Clock::system(),
        connections: connections.clone(),
        shutdown: shutdown.clone(),
    };
    let tls = fleet.tls(groups);
    let task = spawn_detached("server", async move {
        let keys = ResetKeys::new([7; 64], [9; 64]);
        let limit = 8 << 20;
        let agents = AgentServer::new(Echo).max_decoding_message_size(limit);
        port.serve(tls, &keys, agents, EnrolmentServer::new(Echo), serving)
            .await
    });
    Server {
        at,
        connections,
        shutdown,
        task,
    }
}

const LOOPBACK: &str = "127.0.0.1:0";

async fn calls_of_every_kind(mode: Mode, transport: &str) {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    let node = NodeId::random();
    let dialer = fleet.dialer(&fleet.agent(node), server.at, mode, KeyExchange::Auto);
    let connection = dialer.connect().await.unwrap();
    assert_eq!(connection.transport.name(), transport);
    assert_eq!(connection.key_exchange, "X25519MLKEM768");
    let mut client =
        AgentClient::new(connection.channel.clone()).max_decoding_message_size(8 << 20);

    // A stalled call holds up none of the others.
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let session = client.session(tokio_stream::pending()).await.unwrap();
        let mut frames = session.into_inner();
        frames.message().await.unwrap().unwrap();
        stalled.push(frames);
    }

    let large = vec![5; 3 << 20];
    let answer = client
        .renew(RenewRequest {
            csr_der: large.clone().into(),
        })
        .await
        .unwrap();
    let answer = answer.into_inner();
    assert_eq!(answer.root_der, large);
    assert_eq!(
        answer.labels["spiffe"],
        format!("spiffe://{DOMAIN}/agent/{node}")
    );
    assert_eq!(answer.labels["transport"], transport);
    assert_eq!(answer.labels["key_exchange"], "X25519MLKEM768");

    let error = client.renew(RenewRequest::default()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::InvalidArgument, "renew: no request")
    );

    let (send, frames) = mpsc::channel(1);
    let upload = client.upload(ReceiverStream::new(frames)).await.unwrap();
    let mut acks = upload.into_inner();
    for bytes in [1_usize, 70_000, 2_000_000] {
        let records = vec![vec![1; bytes].into()];
        let kind = Some(upload_frame::Kind::Batch(RecordBatch { records }));
        send.send(UploadFrame { kind }).await.unwrap();
        assert_eq!(acks.message().await.unwrap().unwrap().seq, bytes as u64);
    }
    drop(send);
    assert!(acks.message().await.unwrap().is_none());

    // An oversized header section costs that call alone.
    let mut request = Request::new(RenewRequest {
        csr_der: vec![1].into(),
    });
    request
        .metadata_mut()
        .insert("big", "x".repeat(20_000).parse().unwrap());
    client.renew(request).await.unwrap_err();
    client
        .renew(RenewRequest {
            csr_der: vec![1].into(),
        })
        .await
        .unwrap();

    server.shutdown.cancel();
    timeout(LONG, server.task).await.unwrap().unwrap().unwrap();
    timeout(LONG, connection.closed()).await.unwrap();
}

#[tokio::test]
async fn calls_of_every_kind_over_quic() {
    timeout(LONG, calls_of_every_kind(Mode::Quic, "quic"))
        .await
        .unwrap();
}

#[tokio::test]
async fn calls_of_every_kind_over_tcp() {
    timeout(LONG, calls_of_every_kind(Mode::Tcp, "tcp"))
        .await
        .unwrap();
}

#[tokio::test]
async fn restricted_groups_are_seen_on_both_sides() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    for mode in [Mode::Quic, Mode::Tcp] {
        let leaf = fleet.agent(NodeId::random());
        let dialer = fleet.dialer(&leaf, server.at, mode, KeyExchange::Classical);
        let connection = dialer.connect().await.unwrap();
        assert_eq!(connection.key_exchange, "X25519");
        let mut client = AgentClient::new(connection.channel.clone());
        let request = RenewRequest {
            csr_der: vec![1].into(),
        };
        let answer = client.renew(request).await.unwrap().into_inner();
        assert_eq!(answer.labels["key_exchange"], "X25519");
    }
}

#[tokio::test]
async fn without_an_agents_certificate_only_enrolment_is_served() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    for mode in [Mode::Quic, Mode::Tcp] {
        let dialer = fleet.dialer(&fleet.operator(), server.at, mode, KeyExchange::Auto);
        let error = dialer
            .connect()
            .await
            .err()
            .expect("an operator is no agent");
        assert!(error.is_refusal(), "{error}");
    }
    let root = Arc::new(fleet.authority.root().clone());
    let tls = tls::enrol_client(root.sha256(), DOMAIN, KeyExchange::Auto).unwrap();
    let connection = enrol_connect(&server.at.to_string(), tls).await.unwrap();
    let mut client = EnrolmentClient::new(connection.channel.clone());
    let answer = client.enrol(EnrolRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().time_ms, 7);
    let mut agents = AgentClient::new(connection.channel.clone());
    let error = agents.renew(RenewRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_denied_identity_is_cut_and_told_why() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    let leaf = fleet.agent(NodeId::random());
    let dialer = fleet.dialer(&leaf, server.at, Mode::Quic, KeyExchange::Auto);
    let connection = dialer.connect().await.unwrap();
    let mut client = AgentClient::new(connection.channel.clone());
    let request = RenewRequest {
        csr_der: vec![1].into(),
    };
    let answer = client.renew(request).await.unwrap().into_inner();
    let spiffe = answer.labels["spiffe"].parse().unwrap();
    assert_eq!(server.connections.cut(&spiffe, "quarantined"), 1);
    let closed = timeout(LONG, connection.closed()).await.unwrap();
    assert_eq!(closed, Closed::Peer("quarantined".to_owned()));
}

#[tokio::test]
async fn blocked_udp_costs_seconds() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    // The same TCP port on an address whose UDP port swallows everything.
    let mut pair = None;
    for _ in 0..20 {
        let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = relay.local_addr().unwrap();
        // Another program may have the number for UDP.
        if let Ok(black_hole) = UdpSocket::bind(at).await {
            pair = Some((relay, at, black_hole));
            break;
        }
    }
    let (relay, at, _black_hole) = pair.expect("a number that is free for both");
    let to = server.at;
    spawn_detached("relay", async move {
        while let Ok((mut from, _)) = relay.accept().await {
            spawn_detached("relayed", async move {
                let mut to = tokio::net::TcpStream::connect(to).await.unwrap();
                tokio::io::copy_bidirectional(&mut from, &mut to).await.ok();
            });
        }
    });
    let dialer = fleet.dialer(
        &fleet.agent(NodeId::random()),
        at,
        Mode::Auto,
        KeyExchange::Auto,
    );
    let connection = timeout(Duration::from_secs(5), dialer.connect())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(connection.transport, TransportKind::Tcp);
    assert!(dialer.udp_blocked());
}

#[tokio::test]
async fn an_answer_over_quic_is_waited_for_while_tcp_has_no_place() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    let black_hole = UdpSocket::bind(LOOPBACK).await.unwrap();
    let (turn, to) = watch::channel(black_hole.local_addr().unwrap());
    // Another program may have the number for TCP.
    let mut both = None;
    for _ in 0..20 {
        let at = path(to.clone()).await;
        if let Ok(full) = tokio::net::TcpListener::bind(at).await {
            both = Some((at, full));
            break;
        }
    }
    let (at, full) = both.expect("a number that is free for both");
    let leaf = fleet.agent(NodeId::random());
    let dialer = fleet.dialer(&leaf, at, Mode::Auto, KeyExchange::Auto);
    spawn_detached("turned away", async move {
        let (stream, _) = full.accept().await.unwrap();
        drop(stream);
        // Later than whom nobody answers over TCP would wait.
        tokio::time::sleep(Duration::from_secs(3)).await;
        turn.send(server.at).unwrap();
        std::future::pending::<()>().await;
    });
    let connection = timeout(LONG, dialer.connect()).await.unwrap().unwrap();
    assert_eq!(connection.transport, TransportKind::Quic);
}

#[tokio::test]
async fn nobody_there_is_said_of_each_transport() {
    let fleet = Fleet::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let dialer = fleet.dialer(
        &fleet.agent(NodeId::random()),
        free,
        Mode::Auto,
        KeyExchange::Auto,
    );
    let error = timeout(LONG, dialer.connect())
        .await
        .unwrap()
        .err()
        .expect("nobody there");
    let text = error.to_string();
    assert!(text.contains("over tcp: Connection refused"), "{text}");
    assert!(text.contains("over quic: no answer within"), "{text}");
}

/// Passes datagrams between the one client that sends to the address given back and the server that `to` holds; what
/// other servers send is dropped, as though they had died without a word.
async fn path(to: watch::Receiver<SocketAddr>) -> SocketAddr {
    let near = UdpSocket::bind(LOOPBACK).await.unwrap();
    let far = UdpSocket::bind(LOOPBACK).await.unwrap();
    let at = near.local_addr().unwrap();
    spawn_detached("path", async move {
        let mut client = None;
        let (mut up, mut down) = ([0; 2048], [0; 2048]);
        loop {
            tokio::select! {
                Ok((length, from)) = near.recv_from(&mut up) => {
                    client = Some(from);
                    let server = *to.borrow();
                    far.send_to(&up[..length], server).await.unwrap();
                }
                Ok((length, from)) = far.recv_from(&mut down) => {
                    let server = *to.borrow();
                    if let (true, Some(client)) = (from == server, client) {
                        near.send_to(&down[..length], client).await.unwrap();
                    }
                }
            }
        }
    });
    at
}

#[tokio::test]
async fn a_restart_is_noticed_at_the_next_packet() {
    let fleet = Fleet::new();
    let first = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    let second = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    let (turn, to) = watch::channel(first.at);
    let leaf = fleet.agent(NodeId::random());
    let dialer = fleet.dialer(&leaf, path(to).await, Mode::Quic, KeyExchange::Auto);
    let connection = dialer.connect().await.unwrap();
    turn.send(second.at).unwrap();
    let mut client = AgentClient::new(connection.channel.clone());
    let request = RenewRequest {
        csr_der: vec![1; 2000].into(),
    };
    let _failed = timeout(LONG, client.renew(request))
        .await
        .unwrap()
        .unwrap_err();
    let closed = timeout(LONG, connection.closed()).await.unwrap();
    assert_eq!(closed, Closed::Restarted);
}

#[tokio::test]
async fn a_call_under_way_is_let_finish_before_the_end() {
    for mode in [Mode::Quic, Mode::Tcp] {
        let fleet = Fleet::new();
        let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
        let leaf = fleet.agent(NodeId::random());
        let dialer = fleet.dialer(&leaf, server.at, mode, KeyExchange::Auto);
        let connection = dialer.connect().await.unwrap();
        let mut client = AgentClient::new(connection.channel.clone());
        let (send, frames) = mpsc::channel(1);
        let upload = client.upload(ReceiverStream::new(frames)).await.unwrap();
        let mut acks = upload.into_inner();
        server.shutdown.cancel();
        let records = vec![vec![1; 10].into()];
        let kind = Some(upload_frame::Kind::Batch(RecordBatch { records }));
        send.send(UploadFrame { kind }).await.unwrap();
        assert_eq!(acks.message().await.unwrap().unwrap().seq, 10);
        drop(send);
        assert!(acks.message().await.unwrap().is_none());
        timeout(LONG, connection.closed()).await.unwrap();
        timeout(LONG, server.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_answer_outlives_the_client_that_asked_and_nothing_outlives_the_answer() {
    let fleet = Fleet::new();
    let server = serve(&fleet, LOOPBACK, KeyExchange::Auto).await;
    for mode in [Mode::Quic, Mode::Tcp] {
        let leaf = fleet.agent(NodeId::random());
        let dialer = fleet.dialer(&leaf, server.at, mode, KeyExchange::Auto);
        let connection = dialer.connect().await.unwrap();
        let closed = connection.closed();
        let (send, frames) = mpsc::channel(1);
        let mut client = AgentClient::new(connection.channel.clone());
        let upload = client.upload(ReceiverStream::new(frames)).await.unwrap();
        let mut acks = upload.into_inner();
        drop((client, connection));
        let records = vec![vec![1; 10].into()];
        let kind = Some(upload_frame::Kind::Batch(RecordBatch { records }));
        send.send(UploadFrame { kind }).await.unwrap();
        assert_eq!(acks.message().await.unwrap().unwrap().seq, 10);
        drop((send, acks));
        timeout(LONG, closed).await.unwrap();
    }
}
