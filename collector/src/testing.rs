//! A whole collector in one process without ports: the tests call its services as a transport would, and
//! play the agent and the operator.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use nexus_pki::{
    admission::PeerIdentity,
    authority::Authority,
    csr, job,
    merkle::{Target, Tree},
    operator_code::OperatorCode,
    policy::SignerPolicy,
    signing::{Signer, SigningKey},
    token::{self, JoinToken},
};
use nexus_proto::{
    agent::v1::{self as wire, agent_client::AgentClient, enrolment_client::EnrolmentClient},
    ids::{Incarnation, JobId, Lane, NodeId, TokenId},
    job::{Action, Context as JobContext, Job},
    metrics::Encoder,
    operator::v1::{self as operator, operator_client::OperatorClient},
    record::Record,
};
use nexus_runtime::{
    clock::Clock,
    settings::{self, Sources, Strictness},
    tasks::Tasks,
};
use nexus_store::Store;
use nexus_transport::{Peer, TransportKind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, body::Body};
use tower_service::Service;

use crate::{
    addresses::Addresses,
    collector::Parts,
    config::{self, Config},
    folder::Folder,
    init,
    sessions::registry::Registry,
};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A service as the peer of one connection reaches it.
#[derive(Clone)]
pub(crate) struct As<S> {
    service: S,
    peer: Peer,
}

impl<S> Service<Request<Body>> for As<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> S::Future {
        request.extensions_mut().insert(self.peer.clone());
        self.service.call(request)
    }
}

pub(crate) fn peer(identity: Option<PeerIdentity>) -> Peer {
    let remote = "127.0.0.1:4711".parse().unwrap();
    Peer::played(identity, TransportKind::Quic, "X25519MLKEM768", remote)
}

/// A collector.
pub(crate) struct Collector {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) store: Store,
    pub(crate) authority: Arc<Authority>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) code: OperatorCode,
    /// Who may send inventory.
    pub(crate) turns: Arc<tokio::sync::Semaphore>,
    sessions: crate::sessions::service::Server,
    enrolment: crate::enrolment::service::Server,
    operators: crate::operator::service::Server,
    pub(crate) dir: Arc<tempfile::TempDir>,
}

impl Collector {
    /// A new one, its scheduler running.
    pub(crate) fn start() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let clock = Clock::system();
        let config = configure(dir.path(), &[]);
        let code = init::init(&config, clock.now()).unwrap();
        Self::resume(dir, config, clock, OperatorCode::parse(&code).unwrap())
    }

    /// The same state folder after a restart.
    pub(crate) async fn restart(self) -> Self {
        let left = self.tasks.shutdown(PATIENCE).await;
        assert!(left.is_empty(), "{left:?}");
        self.store.close();
        let Self {
            dir,
            config,
            clock,
            code,
            store,
            sessions,
            enrolment,
            operators,
            registry,
            ..
        } = self;
        drop((store, sessions, enrolment, operators, registry));
        Self::resume(dir, config, clock, code)
    }

    fn resume(
        dir: Arc<tempfile::TempDir>,
        config: Config,
        clock: Clock,
        code: OperatorCode,
    ) -> Self {
        let folder = Folder::new(&config.state_dir);
        let instance = init::instance_of(&folder, &config).unwrap();
        let tasks = Tasks::new();
        let store = Store::open(
            folder.path(),
            clock.clone(),
            nexus_store::Settings::default(),
        )
        .unwrap();
        let authority =
            Authority::open(&folder.authority(), &instance.trust_domain, clock.now()).unwrap();
        let authority = Arc::new(authority);
        let addresses = Addresses::default();
        addresses.set(vec!["localhost:7460".to_owned()]);
        let parts = Parts::assemble(
            &config, &folder, &clock, &tasks, &store, &authority, &addresses,
        )
        .unwrap();
        tasks.spawn_essential("scheduler", parts.scheduler.run());
        Self {
            config,
            clock,
            tasks,
            store,
            authority,
            registry: parts.registry,
            code,
            turns: Arc::clone(&parts.sessions.inventory.sending),
            sessions: parts.sessions.server(),
            enrolment: parts.enrolment.server(),
            operators: parts.operators.server(),
            dir,
        }
    }

    pub(crate) fn operators_as(
        &self,
        identity: Option<PeerIdentity>,
    ) -> OperatorClient<As<crate::operator::service::Server>> {
        OperatorClient::new(As {
            service: self.operators.clone(),
            peer: peer(identity),
        })
    }

    fn identity(&self, chain: &[prost::bytes::Bytes]) -> PeerIdentity {
        let chain = nexus_pki::leaf::chain_from_wire(chain);
        let roles = nexus_pki::spiffe::Role::ALL;
        self.authority
            .admission()
            .admit(&chain, &roles, self.clock.now())
            .unwrap()
    }

    /// Another operator, as a certificate says it.
    pub(crate) fn operator(&self, name: &str) -> PeerIdentity {
        let (_, csr) = csr::new_csr().unwrap();
        let issued = self
            .authority
            .issue_operator(&csr, name, self.clock.now())
            .unwrap();
        self.identity(&issued.chain_to_wire())
    }

    /// Logs the first operator in.
    pub(crate) async fn log_in(&self) -> Admin<'_> {
        let key = SigningKey::generate().unwrap();
        let (_, csr) = csr::new_csr().unwrap();
        let policy = SignerPolicy {
            version: 1,
            trust_domain: self.authority.trust_domain().to_owned(),
            threshold: 1,
            signers: vec![Signer {
                name: self.code.name.clone(),
                public_key: key.public_key(),
            }],
            created: self.clock.now(),
        };
        let request = operator::LoginRequest {
            code_id: self.code.id.to_vec().into(),
            code_secret: self.code.secret.to_vec().into(),
            csr_der: csr.into(),
            signing_public_key: key.public_key().0.to_vec().into(),
            policy: Some(policy.sign(&key).unwrap()),
            freshness: None,
        };
        let answer = self
            .operators_as(None)
            .login(request)
            .await
            .unwrap()
            .into_inner();
        assert!(answer.signer);
        let identity = self.identity(&answer.certificate.unwrap().chain_der);
        Admin {
            collector: self,
            client: self.operators_as(Some(identity.clone())),
            identity,
            key,
        }
    }

    /// Enrols a machine.
    pub(crate) async fn enrol(
        &self,
        token: &token::Token,
        name: &str,
    ) -> Result<Agent, tonic::Status> {
        let (_, csr) = csr::new_csr().unwrap();
        let incarnation = Incarnation::random();
        let request = wire::EnrolRequest {
            token: token.to_bytes(),
            csr_der: csr.into(),
            incarnation: incarnation.to_wire(),
            name: name.to_owned(),
            facts: Some(wire::NodeFacts {
                agent_version: "0.1.0".to_owned(),
                ..Default::default()
            }),
        };
        let service = As {
            service: self.enrolment.clone(),
            peer: peer(None),
        };
        let identity = EnrolmentClient::new(service)
            .enrol(request)
            .await?
            .into_inner();
        Ok(Agent {
            node: NodeId::from_wire(&identity.node_id).unwrap(),
            incarnation,
            name: name.to_owned(),
            identity: self.identity(&identity.chain_der),
            counter: 0,
            seq: HashMap::new(),
        })
    }

    pub(crate) async fn renew_expired(
        &self,
        request: wire::RenewExpiredRequest,
    ) -> Result<wire::Identity, tonic::Status> {
        let service = As {
            service: self.enrolment.clone(),
            peer: peer(None),
        };
        let answer = EnrolmentClient::new(service).renew_expired(request).await?;
        Ok(answer.into_inner())
    }

    pub(crate) fn agents_as(
        &self,
        agent: &Agent,
    ) -> AgentClient<As<crate::sessions::service::Server>> {
        AgentClient::new(As {
            service: self.sessions.clone(),
            peer: peer(Some(agent.identity.clone())),
        })
    }
}

pub(crate) fn configure(dir: &std::path::Path, more: &[(&str, &str)]) -> Config {
    let state = dir.join("state").to_string_lossy().into_owned();
    let flags = [
        ("state_dir", state.as_str()),
        ("agents.listen", "127.0.0.1:7460"),
        ("operators.listen", "127.0.0.1:7461"),
        ("jobs.grace", "1s"),
    ];
    let sources = Sources {
        flags: flags
            .iter()
            .chain(more)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..Sources::default()
    };
    let loaded = settings::load(config::KEYS, &sources, Strictness::Refuse).unwrap();
    Config::from_settings(&loaded.settings).unwrap()
}

/// The first operator.
pub(crate) struct Admin<'a> {
    collector: &'a Collector,
    pub(crate) client: OperatorClient<As<crate::operator::service::Server>>,
    pub(crate) identity: PeerIdentity,
    pub(crate) key: SigningKey,
}

impl Admin<'_> {
    /// A token for so many nodes, known to the collector.
    pub(crate) async fn token(&mut self, uses: u32) -> token::Token {
        let now = self.collector.clock.now();
        let trust = self
            .client
            .get_trust(operator::GetTrustRequest {})
            .await
            .unwrap()
            .into_inner();
        let token = JoinToken {
            id: TokenId::random(),
            root_sha256: self.collector.authority.root().sha256(),
            policy_digest: nexus_pki::sha256(&trust.policy.unwrap().payload),
            addresses: trust.agent_addresses,
            labels: [("role".to_owned(), "test".to_owned())].into(),
            created: now,
            expires: now.after(Duration::from_secs(3600)),
            uses,
            trust_domain: trust.trust_domain,
        };
        let token = token::create(&self.key, &token).unwrap();
        let request = operator::CreateTokenRequest {
            token: Some(token.envelope().clone()),
        };
        self.client.create_token(request).await.unwrap();
        token
    }

    /// A signed job for these agents.
    pub(crate) fn job(
        &self,
        agents: &[&Agent],
        expires_in: Duration,
    ) -> operator::SubmitJobRequest {
        let now = self.collector.clock.now();
        let targets = agents.iter().map(|agent| Target {
            node: agent.node,
            name: agent.name.clone(),
            incarnation: agent.incarnation,
        });
        let tree = Tree::sorted(targets.collect()).unwrap();
        let job = Job {
            id: JobId::random(),
            trust_domain: self.collector.authority.trust_domain().to_owned(),
            targets_root: tree.root(),
            target_count: tree.count(),
            action: Action::Command {
                argv: vec!["true".to_owned()],
                stdin: Vec::new().into(),
                context: JobContext::default(),
            },
            timeout: Duration::from_secs(1),
            kill_grace: Duration::from_secs(1),
            output_limit_bytes: 1 << 20,
            created: now,
            not_before: now.before(Duration::from_secs(1)),
            expires: now.after(expires_in),
            policy_version: 1,
            request_id: "test".to_owned(),
            operator: self.collector.code.name.clone(),
            idempotent: false,
        };
        operator::SubmitJobRequest {
            job: Some(job::sign(&self.key, &job).unwrap()),
            targets: tree.targets().iter().map(Target::to_wire).collect(),
            selector: String::new(),
        }
    }

    pub(crate) async fn watch(
        &mut self,
        job_id: prost::bytes::Bytes,
    ) -> Streaming<operator::JobUpdate> {
        let request = operator::WatchJobRequest {
            job_id,
            follow: true,
            output: true,
            node: String::new(),
        };
        self.client.watch_job(request).await.unwrap().into_inner()
    }
}

/// A played agent.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) name: String,
    pub(crate) identity: PeerIdentity,
    pub(crate) counter: u64,
    seq: HashMap<Lane, u64>,
}

/// Its session.
pub(crate) struct Link {
    /// Held so that the session stays open.
    _to: mpsc::Sender<wire::AgentFrame>,
    pub(crate) from: Streaming<wire::CollectorFrame>,
}

impl Link {
    pub(crate) async fn next(&mut self) -> Option<wire::collector_frame::Kind> {
        let frame = tokio::time::timeout(PATIENCE, self.from.message())
            .await
            .expect("a frame in time");
        frame.unwrap().and_then(|frame| frame.kind)
    }

    /// The next dispatch, whatever else comes before.
    pub(crate) async fn dispatch(&mut self) -> wire::Dispatch {
        loop {
            match self.next().await {
                Some(wire::collector_frame::Kind::Dispatch(dispatch)) => return *dispatch,
                Some(_) => {}
                None => panic!("the session ended"),
            }
        }
    }
}

impl Agent {
    pub(crate) async fn connect(&mut self, collector: &Collector) -> Link {
        self.counter += 1;
        self.connect_as(collector, self.counter).await
    }

    pub(crate) async fn connect_as(&self, collector: &Collector, counter: u64) -> Link {
        self.connect_by(collector.agents_as(self), counter).await
    }

    /// By a connection that stands already.
    pub(crate) async fn connect_by(
        &self,
        mut client: AgentClient<As<crate::sessions::service::Server>>,
        counter: u64,
    ) -> Link {
        let (to, frames) = mpsc::channel(16);
        let hello = wire::Hello {
            protocol_min: 1,
            protocol_max: 1,
            incarnation: self.incarnation.to_wire(),
            session_counter: counter,
            name: self.name.clone(),
            dispatch_credit: 4,
            ..wire::Hello::default()
        };
        to.send(wire::AgentFrame {
            kind: Some(wire::agent_frame::Kind::Hello(Box::new(hello))),
        })
        .await
        .unwrap();
        let stream = client.session(ReceiverStream::new(frames)).await;
        Link {
            _to: to,
            from: stream.unwrap().into_inner(),
        }
    }

    /// Begins an upload; the sender keeps it open.
    pub(crate) async fn open_upload(
        &self,
        collector: &Collector,
        session_id: &prost::bytes::Bytes,
        lane: Lane,
    ) -> (mpsc::Sender<wire::UploadFrame>, Streaming<wire::UploadAck>) {
        let (to, frames) = mpsc::channel(16);
        let open = wire::UploadOpen {
            session_id: session_id.clone(),
            lane: lane.to_wire().into(),
        };
        let frame = wire::UploadFrame {
            kind: Some(wire::upload_frame::Kind::Open(open)),
        };
        to.send(frame).await.unwrap();
        let mut client = collector.agents_as(self);
        let acks = client.upload(ReceiverStream::new(frames)).await;
        (to, acks.unwrap().into_inner())
    }

    /// Sends records on a lane and waits until they are acknowledged.
    pub(crate) async fn upload(
        &mut self,
        collector: &Collector,
        session_id: &prost::bytes::Bytes,
        lane: Lane,
        bodies: Vec<nexus_proto::record::Body>,
    ) {
        let mut encoder = Encoder::new();
        let next = self.seq.entry(lane).or_default();
        let mut records = Vec::new();
        for body in bodies {
            *next += 1;
            let record = Record {
                seq: *next,
                time: collector.clock.now(),
                body,
            };
            records.push(record.encode(&mut encoder));
        }
        let last = *next;
        let (to, mut acks) = self.open_upload(collector, session_id, lane).await;
        let kind = wire::upload_frame::Kind::Batch(wire::RecordBatch { records });
        to.send(wire::UploadFrame { kind: Some(kind) })
            .await
            .unwrap();
        loop {
            let ack = tokio::time::timeout(PATIENCE, acks.message())
                .await
                .expect("an ack in time");
            if ack.unwrap().expect("an ack").seq >= last {
                return;
            }
        }
    }
}

/// The session id of a Welcome.
pub(crate) async fn welcomed(link: &mut Link) -> prost::bytes::Bytes {
    match link.next().await {
        Some(wire::collector_frame::Kind::Welcome(welcome)) => welcome.session_id,
        other => panic!("no Welcome but {other:?}"),
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what} did not happen"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
