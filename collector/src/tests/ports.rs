//! The collector on its real ports: the same services over QUIC and TCP, by mutual TLS.

use std::{sync::Arc, time::Duration};

use nexus_pki::{
    csr,
    leaf::Leaf,
    operator_code::OperatorCode,
    policy::SignerPolicy,
    signing::{Signer, SigningKey},
    tls::{self, Alpn, KeyExchange, LiveLeaf},
    token::{self, JoinToken},
};
use nexus_proto::{
    agent::v1::{
        self as wire, agent_client::AgentClient, collector_frame::Kind,
        enrolment_client::EnrolmentClient,
    },
    ids::{Incarnation, Lane, NodeId, TokenId},
    metrics::Encoder,
    operator::v1::{self as operator, operator_client::OperatorClient},
    record::Record,
};
use nexus_runtime::{clock::Clock, tasks::Tasks};
use nexus_store::Store;
use nexus_transport::{Channel, DialTls, Dialer, Mode, Windows, enrol_connect, operator_connect};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    collector,
    folder::{Endpoints, Folder},
    init,
    sessions::registry::Registry,
    testing::{PATIENCE, configure},
};

use super::report;

struct Running {
    clock: Clock,
    tasks: Tasks,
    store: Store,
    registry: Arc<Registry>,
    endpoints: Endpoints,
    code: OperatorCode,
    _dir: tempfile::TempDir,
}

async fn running() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let config = configure(
        dir.path(),
        &[
            ("agents.listen", "127.0.0.1:0"),
            ("operators.listen", "127.0.0.1:0"),
            ("metrics.listen", "127.0.0.1:0"),
        ],
    );
    let code = OperatorCode::parse(&init::init(&config, clock.now()).unwrap()).unwrap();
    let folder = Folder::new(&config.state_dir);
    let instance = init::instance_of(&folder, &config).unwrap();
    let tasks = Tasks::new();
    let store = Store::open(
        folder.path(),
        clock.clone(),
        nexus_store::Settings::default(),
    )
    .unwrap();
    let started = collector::start(&config, &folder, &instance, &clock, &tasks, &store).await;
    let registry = started.unwrap().registry;
    let endpoints = folder.endpoints().unwrap().unwrap();
    Running {
        clock,
        tasks,
        store,
        registry,
        endpoints,
        code,
        _dir: dir,
    }
}

/// Logs in and makes a token, over the operators' port.
async fn token(running: &Running) -> token::Token {
    let address = running
        .endpoints
        .operators
        .strip_prefix("https://")
        .unwrap()
        .to_owned();
    let code = &running.code;
    let login = tls::operator_login_client(code.root_sha256, &code.trust_domain, KeyExchange::Auto);
    let connection = operator_connect(&address, login.unwrap(), None)
        .await
        .unwrap();
    let key = SigningKey::generate().unwrap();
    let (private, csr) = csr::new_csr().unwrap();
    let policy = SignerPolicy {
        version: 1,
        trust_domain: code.trust_domain.clone(),
        threshold: 1,
        signers: vec![Signer {
            name: code.name.clone(),
            public_key: key.public_key(),
        }],
        created: running.clock.now(),
    };
    let request = operator::LoginRequest {
        code_id: code.id.to_vec().into(),
        code_secret: code.secret.to_vec().into(),
        csr_der: csr.into(),
        signing_public_key: key.public_key().0.to_vec().into(),
        policy: Some(policy.sign(&key).unwrap()),
        freshness: None,
    };
    let answer = OperatorClient::new(connection.channel.clone())
        .login(request)
        .await
        .unwrap()
        .into_inner();
    let certificate = answer.certificate.unwrap();
    let root =
        nexus_pki::certificate::Root::pinned(&certificate.root_der, &code.root_sha256).unwrap();
    let admission = nexus_pki::admission::Admission::new(&root, &code.trust_domain);
    let leaf = Leaf::from_wire(private, &certificate.chain_der).unwrap();
    let live = LiveLeaf::new(leaf, &root).unwrap();
    let tls = tls::operator_client(&live, &admission, KeyExchange::Auto).unwrap();
    let connection = operator_connect(&address, tls, None).await.unwrap();
    let mut client = OperatorClient::new(connection.channel.clone());
    let trust = client
        .get_trust(operator::GetTrustRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        trust.agent_addresses,
        std::slice::from_ref(&running.endpoints.agents)
    );
    let token = JoinToken {
        id: TokenId::random(),
        root_sha256: code.root_sha256,
        policy_digest: nexus_pki::sha256(&trust.policy.unwrap().payload),
        addresses: trust.agent_addresses,
        labels: [("role".to_owned(), "test".to_owned())].into(),
        created: running.clock.now(),
        expires: running.clock.now().after(Duration::from_secs(60)),
        uses: 1,
        trust_domain: trust.trust_domain,
    };
    let token = token::create(&key, &token).unwrap();
    let request = operator::CreateTokenRequest {
        token: Some(token.envelope().clone()),
    };
    client.create_token(request).await.unwrap();
    token
}

struct Enrolled {
    node: NodeId,
    incarnation: Incarnation,
    live: LiveLeaf,
    admission: nexus_pki::admission::Admission,
    counter: u64,
}

async fn enrol(running: &Running, token: &token::Token) -> Enrolled {
    let code = &running.code;
    let pinned =
        tls::enrol_client(code.root_sha256, &code.trust_domain, KeyExchange::Auto).unwrap();
    let connection = enrol_connect(&running.endpoints.agents, pinned)
        .await
        .unwrap();
    let (private, csr) = csr::new_csr().unwrap();
    let incarnation = Incarnation::random();
    let request = wire::EnrolRequest {
        token: token.to_bytes(),
        csr_der: csr.into(),
        incarnation: incarnation.to_wire(),
        name: "web-1".to_owned(),
        facts: None,
    };
    let identity = EnrolmentClient::new(connection.channel.clone())
        .enrol(request)
        .await
        .unwrap()
        .into_inner();
    let root = nexus_pki::certificate::Root::pinned(&identity.root_der, &code.root_sha256).unwrap();
    let leaf = Leaf::from_wire(private, &identity.chain_der).unwrap();
    Enrolled {
        node: NodeId::from_wire(&identity.node_id).unwrap(),
        incarnation,
        live: LiveLeaf::new(leaf, &root).unwrap(),
        admission: nexus_pki::admission::Admission::new(&root, &code.trust_domain),
        counter: 0,
    }
}

impl Enrolled {
    async fn dial(
        &self,
        running: &Running,
        mode: Mode,
        groups: KeyExchange,
    ) -> nexus_transport::Connection {
        let tls = |alpn| tls::agent_client(&self.live, &self.admission, groups, alpn).unwrap();
        let tls = DialTls {
            quic: tls(Alpn::H3),
            tcp: tls(Alpn::H2),
            judge: None,
        };
        let dialer = Dialer::new(
            vec![running.endpoints.agents.clone()],
            tls,
            mode,
            Windows::agent(),
        );
        dialer.connect().await.unwrap()
    }

    async fn open(
        &mut self,
        channel: &Channel,
    ) -> (
        wire::Welcome,
        mpsc::Sender<wire::AgentFrame>,
        tonic::Streaming<wire::CollectorFrame>,
    ) {
        self.counter += 1;
        let hello = wire::Hello {
            protocol_min: 1,
            protocol_max: 1,
            incarnation: self.incarnation.to_wire(),
            session_counter: self.counter,
            name: "web-1".to_owned(),
            dispatch_credit: 1,
            ..wire::Hello::default()
        };
        let (to, frames) = mpsc::channel(4);
        to.send(wire::AgentFrame {
            kind: Some(wire::agent_frame::Kind::Hello(Box::new(hello))),
        })
        .await
        .unwrap();
        let mut client = AgentClient::new(channel.clone());
        let mut from = client
            .session(ReceiverStream::new(frames))
            .await
            .unwrap()
            .into_inner();
        match next(&mut from).await {
            Some(Kind::Welcome(welcome)) => (*welcome, to, from),
            other => panic!("no Welcome but {other:?}"),
        }
    }
}

async fn next(from: &mut tonic::Streaming<wire::CollectorFrame>) -> Option<Kind> {
    let frame = tokio::time::timeout(PATIENCE, from.message())
        .await
        .expect("a frame in time");
    frame.unwrap().and_then(|frame| frame.kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_reports_over_quic_and_tcp_and_is_told_of_the_shutdown() {
    let running = running().await;
    let token = token(&running).await;
    let mut agent = enrol(&running, &token).await;
    let ways = [
        (Mode::Quic, KeyExchange::Auto, "quic", "X25519MLKEM768"),
        (Mode::Tcp, KeyExchange::Classical, "tcp", "X25519"),
    ];
    let mut seq = 0;
    for (mode, groups, transport, key_exchange) in ways {
        let connection = agent.dial(&running, mode, groups).await;
        let (welcome, _to, mut from) = agent.open(&connection.channel).await;
        assert_eq!(
            (welcome.transport.as_str(), welcome.key_exchange.as_str()),
            (transport, key_exchange)
        );
        seq += 1;
        let record = Record {
            seq,
            time: running.clock.now(),
            body: report(0.5),
        };
        let record = record.encode(&mut Encoder::new());
        let open = wire::UploadOpen {
            session_id: welcome.session_id,
            lane: Lane::Metrics.to_wire().into(),
        };
        let (up, frames) = mpsc::channel(4);
        for kind in [
            wire::upload_frame::Kind::Open(open),
            wire::upload_frame::Kind::Batch(wire::RecordBatch {
                records: vec![record],
            }),
        ] {
            up.send(wire::UploadFrame { kind: Some(kind) })
                .await
                .unwrap();
        }
        let mut client = AgentClient::new(connection.channel.clone());
        let mut acks = client
            .upload(ReceiverStream::new(frames))
            .await
            .unwrap()
            .into_inner();
        while acks.message().await.unwrap().expect("an ack").seq < seq {}
        let row = running.store.node(agent.node).unwrap().unwrap();
        assert_eq!(
            (row.state.as_str(), row.transport.as_str()),
            ("connected", transport)
        );
        assert!(row.rtt_us.is_some());
        if mode == Mode::Tcp {
            let end = crate::collector::shutdown_end();
            running.registry.end_all(&end);
            let left = running.tasks.shutdown(PATIENCE);
            let told = async {
                loop {
                    match next(&mut from).await {
                        Some(Kind::Goodbye(goodbye)) => break goodbye.reason(),
                        Some(_) => {}
                        None => panic!("ended without a word"),
                    }
                }
            };
            let gone = async {
                let told = told.await;
                connection.close("told to");
                told
            };
            let (left, told) = tokio::join!(left, gone);
            assert_eq!(told, wire::GoodbyeReason::Shutdown);
            assert!(left.is_empty(), "{left:?}");
        }
    }
    let row = running.store.node(agent.node).unwrap().unwrap();
    assert_eq!(row.state, "disconnected");
    running.store.close();
}
