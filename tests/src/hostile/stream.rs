//! Streams of an admitted QUIC connection, over a real port.
//!
//! Whatever an agent sends on a stream of its own, the port goes on: nothing panics, the stream ends, and
//! another call is answered. What stands outside of DATA is counted alike however the bytes arrive.

use std::{
    net::{Ipv4Addr, SocketAddr},
    panic,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nexus_pki::{
    authority::Authority,
    csr::new_csr,
    leaf::Leaf,
    tls::{self, Alpn, KeyExchange, LiveLeaf},
};
use nexus_proto::{
    agent::v1::{
        AgentFrame, CollectorFrame, Identity, RenewRequest, UploadAck, UploadFrame,
        agent_server::{Agent, AgentServer},
    },
    ids::NodeId,
    limits,
};
use nexus_runtime::{clock::Clock, tasks::Tasks};
use nexus_transport::{AgentPort, Connections, Limits, ResetKeys, Serving, TlsSet};
use quinn::{Connection, Endpoint, crypto::rustls::QuicClientConfig};
use tokio::{runtime::Runtime, time::timeout};
use tokio_stream::{Empty, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::fixture::{DOMAIN, Input};

/// By when a stream must have ended, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// RFC 9204: POST, https, /nexus.agent.v1.Agent/…, an authority, application/grpc, te: trailers.
const HEADERS_BEFORE: &[u8] =
    b"\0\0\xd4\xd7\x50\x0afleet.test\x5f\x1d\x10application/grpc\x22te\x08trailers\x51";

struct World {
    runtime: Runtime,
    endpoint: Endpoint,
    port: SocketAddr,
    connection: Mutex<Option<Connection>>,
    _tasks: Tasks,
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        // A call is a task of its own: its panic would go unnoticed.
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (endpoint, port, tasks) = runtime.block_on(serve());
        World {
            runtime,
            endpoint,
            port,
            connection: Mutex::new(None),
            _tasks: tasks,
        }
    })
}

async fn serve() -> (Endpoint, SocketAddr, Tasks) {
    let clock = Clock::system();
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::create(dir.path(), DOMAIN, clock.now()).expect("an authority");
    let live = |leaf| LiveLeaf::new(leaf, authority.root()).expect("a leaf");
    let admission = authority.admission().clone();
    let groups = KeyExchange::Classical;
    let leaf = authority
        .issue_collector("eu", "c1", clock.now())
        .expect("a certificate");
    let leaf = live(leaf);
    let server = |alpn| tls::agents_server(&leaf, &admission, groups, alpn).expect("TLS");
    let tls = TlsSet {
        quic: server(Alpn::H3),
        tcp: server(Alpn::H2),
        enrol: tls::enrol_server(&leaf, groups).expect("TLS"),
    };
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let port = AgentPort::bind(loopback).await.expect("a port");
    let at = port.local_addr().expect("its address");
    let tasks = Tasks::new();
    let serving = Serving {
        admission: admission.clone(),
        clock: clock.clone(),
        connections: Connections::new(Limits::default()),
        shutdown: tasks.token(),
    };
    tasks.spawn("port", async move {
        let keys = ResetKeys::new([7; 64], [9; 64]);
        let agents = AgentServer::new(Service);
        port.serve(tls, &keys, agents.clone(), agents, serving)
            .await
    });

    let (key, csr) = new_csr().expect("a key");
    let issued = authority
        .issue_agent(&csr, NodeId::random(), clock.now())
        .expect("a certificate");
    let leaf = live(Leaf::new(key, issued.chain).expect("a leaf"));
    let client = tls::agent_client(&leaf, &admission, groups, Alpn::H3).expect("TLS");
    let client = QuicClientConfig::try_from(client).expect("TLS 1.3");
    let mut endpoint = Endpoint::client(loopback).expect("a socket");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(client)));
    (endpoint, at, tasks)
}

/// Takes everything, answers little.
#[derive(Clone)]
struct Service;

#[tonic::async_trait]
impl Agent for Service {
    type SessionStream = Empty<Result<CollectorFrame, Status>>;
    type UploadStream = ReceiverStream<Result<UploadAck, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut frames = request.into_inner();
        while frames.message().await?.is_some() {}
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn upload(
        &self,
        request: Request<Streaming<UploadFrame>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let (acks, stream) = tokio::sync::mpsc::channel(1);
        let mut frames = request.into_inner();
        let mut seq = 0;
        while let Some(frame) = frames.next().await {
            frame?;
            seq += 1;
        }
        let ack = UploadAck {
            seq,
            credit_bytes: 1,
        };
        acks.try_send(Ok(ack)).ok();
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Identity>, Status> {
        Ok(Response::new(Identity {
            root_der: request.into_inner().csr_der,
            ..Identity::default()
        }))
    }
}

pub(super) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    let panics = PANICS.load(Ordering::SeqCst);
    match choice % 8 {
        0 => counted_alike(rest),
        1 => on_a_stream(&[rest], true),
        2 => {
            let pieces: Vec<_> = rest.chunks(7).take(64).collect();
            on_a_stream(&pieces, true);
        }
        // Never finished.
        3 => on_a_stream(&[rest], false),
        4 => world().runtime.block_on(one_way(rest)),
        // A call whose headers are good, and then anything.
        5 => on_a_stream(&[&headers("Renew"), rest], true),
        // A call with one message in one frame of data.
        6 => on_a_stream(&[&headers("Upload"), &frame(0, rest)], true),
        // Other headers.
        _ => on_a_stream(&[&frame(1, rest)], true),
    }
    if choice % 8 != 0 {
        world().runtime.block_on(still_answers());
    }
    assert_eq!(PANICS.load(Ordering::SeqCst), panics, "a task panicked");
}

fn counted_alike(bytes: &[u8]) {
    let mut parts = Input(bytes);
    let (limit, piece) = (usize::from(parts.byte()) * 4, usize::from(parts.byte()) + 1);
    let whole = nexus_transport::inside::within(limit, [parts.0]);
    let pieces = nexus_transport::inside::within(limit, parts.0.chunks(piece));
    assert_eq!(whole, pieces, "in pieces of {piece}");
    assert_eq!(whole, expected(limit, parts.0), "by the letter of RFC 9114");
}

/// The same rule, written down for bytes that are all there: frames are type, length, payload; what is no DATA,
/// or empty DATA, counts whole as soon as its header is in; the first DATA begins the count anew.
fn expected(limit: usize, bytes: &[u8]) -> bool {
    let limit = u128::try_from(limit).unwrap_or(u128::MAX);
    let (mut rest, mut spent, mut data) = (bytes, 0_u128, false);
    loop {
        let before = rest.len();
        let (Some(kind), Some(length)) = (varint(&mut rest), varint(&mut rest)) else {
            return true;
        };
        let header = u128::try_from(before - rest.len()).unwrap_or(u128::MAX);
        if kind == 0 && length > 0 {
            spent = if data { spent } else { 0 };
            data = true;
        } else {
            spent += header + u128::from(length);
            if spent > limit {
                return false;
            }
        }
        let Some(behind) = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(length..))
        else {
            return true;
        };
        rest = behind;
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let first = *rest.first()?;
    let (number, behind) = rest.split_at_checked(1 << (first >> 6))?;
    *rest = behind;
    let value = number
        .iter()
        .fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    let bits = 8 * u32::try_from(number.len()).ok()? - 2;
    Some(value & ((1_u64 << bits) - 1))
}

pub(super) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0) | 0x8000_0000;
    [&[kind], length.to_be_bytes().as_slice(), payload].concat()
}

pub(super) fn headers(method: &str) -> Vec<u8> {
    let path = format!("/nexus.agent.v1.Agent/{method}");
    let length = u8::try_from(path.len()).unwrap_or_default();
    frame(1, &[HEADERS_BEFORE, &[length], path.as_bytes()].concat())
}

fn on_a_stream(pieces: &[&[u8]], finish: bool) {
    let world = world();
    world.runtime.block_on(async {
        let talk = async {
            let connection = connected().await;
            // Errors say that the stream or the connection was refused, which is an answer.
            let Ok((mut send, mut recv)) = connection.open_bi().await else {
                return;
            };
            for piece in pieces {
                if send.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            if finish {
                send.finish().ok();
                recv.read_to_end(limits::MESSAGE_BYTES).await.ok();
            } else {
                drop((send, recv));
            }
        };
        timeout(PATIENCE, talk).await.expect("the stream ends");
    });
}

async fn one_way(bytes: &[u8]) {
    let connection = connected().await;
    let talk = async {
        if let Ok(mut send) = connection.open_uni().await {
            send.write_all(bytes).await.ok();
            send.finish().ok();
            send.stopped().await.ok();
        }
    };
    timeout(PATIENCE, talk).await.expect("the stream ends");
}

/// The connection, or another one when it was ended.
async fn connected() -> Connection {
    let world = world();
    let held = || {
        world
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    if let Some(connection) = held().clone()
        && connection.close_reason().is_none()
    {
        return connection;
    }
    let connecting = world
        .endpoint
        .connect(world.port, DOMAIN)
        .expect("a connection");
    let connection = timeout(PATIENCE, connecting)
        .await
        .expect("an answer")
        .expect("a connection");
    *held() = Some(connection.clone());
    connection
}

/// A whole call, on this connection or the next.
async fn still_answers() {
    let request = [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'b', b'c'];
    for _ in 0..4 {
        let connection = connected().await;
        let call = async {
            let (mut send, mut recv) = connection.open_bi().await.ok()?;
            send.write_all(&headers("Renew")).await.ok()?;
            send.write_all(&frame(0, &request)).await.ok()?;
            send.finish().ok()?;
            recv.read_to_end(limits::MESSAGE_BYTES).await.ok()
        };
        if let Some(answer) = timeout(PATIENCE, call).await.expect("an answer") {
            assert!(
                answer.windows(3).any(|window| window == b"abc"),
                "{answer:?}"
            );
            return;
        }
        // The stream before may have cost the connection, and the news of it only come now.
        connection.closed().await;
    }
    unreachable!("the port no longer answers");
}
