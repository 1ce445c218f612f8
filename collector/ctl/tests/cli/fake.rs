//! A collector that answers what a test needs, behind real mutual TLS and HTTP/2.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, StreamExt as _, stream};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nexus_pki::{
    authority::{Authority, Lives},
    merkle::Tree,
    operator_code::OperatorCode,
    policy::TrustedPolicy,
    tls::{KeyExchange, LiveLeaf, operators_server},
    token,
};
use nexus_proto::{
    REQUEST_ID,
    agent::v1::{Envelope, OutputStream},
    audit,
    ids::{Incarnation, NodeId, TokenId},
    job::Action,
    operator::v1::{self as wire, job_update::Kind, operator_server::*, sql_value::Value},
    selector::Selector,
    time::Timestamp,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};

use crate::lies::Lies;

type Answer<T> = Result<Response<T>, Status>;
type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) fn now() -> Timestamp {
    #[expect(
        clippy::disallowed_methods,
        reason = "certificates are judged by the real clock"
    )]
    SystemTime::now().into()
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) policy: Option<TrustedPolicy>,
    pub(crate) freshness: u32,
    /// The first policy that the last login brought.
    pub(crate) offered: Option<Envelope>,
    pub(crate) renewals: u32,
    pub(crate) request_ids: Vec<String>,
    pub(crate) job: Option<(nexus_proto::job::Job, Tree)>,
    pub(crate) tokens: Vec<token::JoinToken>,
    pub(crate) revoked: Vec<TokenId>,
    /// SQL.
    pub(crate) statements: Vec<String>,
    pub(crate) cancelled: u32,
    pub(crate) watches: u32,
    pub(crate) audit: Vec<wire::AuditRow>,
    /// What `ReadMetrics` answers, and what it was last asked.
    pub(crate) metrics: Vec<wire::ReadMetricsResponse>,
    pub(crate) metrics_asked: Option<wire::ReadMetricsRequest>,
    pub(crate) lies: Lies,
}

/// The collector's state, shared with the test.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) authority: Arc<Authority>,
    pub(crate) nodes: Arc<Vec<wire::Node>>,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) address: SocketAddr,
}

impl Fake {
    /// Binds and serves. `operator_life` is how long operators' certificates live.
    pub(crate) async fn start(dir: &Path, operator_life: Duration) -> Self {
        Self::start_at(now(), dir, operator_life).await
    }

    /// The same with a certificate made by a clock that shows `at`.
    pub(crate) async fn start_at(at: Timestamp, dir: &Path, operator_life: Duration) -> Self {
        let lives = Lives {
            operator: operator_life,
            ..Lives::default()
        };
        let authority = Authority::create(dir, "test.example", at.min(now()))
            .unwrap()
            .with_lives(lives);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = |name: &str, state: &str, role: &str| wire::Node {
            id: NodeId::random().to_wire(),
            name: name.into(),
            state: state.into(),
            labels: HashMap::from([("role".into(), role.into())]),
            os: "Debian GNU/Linux 13".into(),
            incarnation: Incarnation::random().to_wire(),
            last_seen_ms: Some(now().as_ms()),
            enrolled_at_ms: now().as_ms(),
            transport: "quic".into(),
            ..wire::Node::default()
        };
        let nodes = vec![
            node("web-1", "connected", "web"),
            node("db-1", "connected", "db"),
        ];
        let fake = Self {
            authority: Arc::new(authority),
            nodes: Arc::new(nodes),
            seen: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        let leaf = fake.authority.issue_collector("local", "one", at).unwrap();
        let leaf = LiveLeaf::new(leaf, fake.authority.root()).unwrap();
        let admission = fake.authority.admission();
        let tls = operators_server(&leaf, admission, KeyExchange::Auto).unwrap();
        let service = OperatorServer::new(fake.clone());
        let task = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(tls.clone());
                let service = service.clone();
                nexus_runtime::tasks::spawn_detached("connection", async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = hyper::service::service_fn(move |request| {
                        tower_service::Service::call(&mut service.clone(), request)
                    });
                    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        };
        nexus_runtime::tasks::spawn_detached("fake collector", task);
        fake
    }

    pub(crate) fn code(&self) -> String {
        OperatorCode::generate(
            "admin",
            "test.example",
            self.authority.root().sha256(),
            vec![self.address.to_string()],
            now().after(Duration::from_secs(600)),
        )
        .unwrap()
        .encode()
    }

    fn heard<T>(&self, request: Request<T>) -> T {
        let id = request
            .metadata()
            .get(REQUEST_ID)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        self.seen.lock().unwrap().request_ids.push(id);
        request.into_inner()
    }

    fn certificate(&self, csr: &[u8], lies: &Lies) -> wire::OperatorCertificate {
        let authority = lies.authority.as_ref().unwrap_or(&self.authority);
        let name = lies.operator.as_deref().unwrap_or("admin");
        let issued = authority.issue_operator(csr, name, now()).unwrap();
        wire::OperatorCertificate {
            chain_der: issued.chain_to_wire(),
            root_der: self.authority.root().der().to_vec().into(),
            name: "admin".into(),
            trust_domain: "test.example".into(),
        }
    }
}

fn is_meant(node: &wire::Node, word: &str) -> bool {
    node.name == word || NodeId::from_wire(&node.id).unwrap().to_string() == word
}

fn run_update(node: &wire::Node, state: &str, exit_code: Option<i32>) -> Kind {
    Kind::Run(wire::RunUpdate {
        node_id: node.id.clone(),
        node: node.name.clone(),
        state: state.into(),
        r#final: state != "running",
        exit_code,
        ..wire::RunUpdate::default()
    })
}

fn piece(node: &wire::Node, stream: OutputStream, offset: u64, data: &'static [u8]) -> Kind {
    Kind::Output(wire::RunOutputPiece {
        node_id: node.id.clone(),
        node: node.name.clone(),
        stream: stream.into(),
        offset,
        data: data.into(),
    })
}

fn texts(cells: &[Option<&str>]) -> wire::QueryRow {
    let values = cells.iter().map(|cell| wire::SqlValue {
        value: cell.map(|text| Value::Text(text.to_owned())),
    });
    wire::QueryRow {
        values: values.collect(),
    }
}

#[tonic::async_trait]
impl Operator for Fake {
    async fn login(&self, request: Request<wire::LoginRequest>) -> Answer<wire::LoginResponse> {
        let request = self.heard(request);
        let mut seen = self.seen.lock().unwrap();
        seen.offered.clone_from(&request.policy);
        if seen.policy.is_none() {
            let first = TrustedPolicy::first(request.policy.unwrap(), "test.example").unwrap();
            seen.policy = Some(first);
        }
        if seen.lies.silent_login {
            return Err(Status::unavailable("login: the collector is shutting down"));
        }
        let policy = seen.policy.as_ref().unwrap();
        let envelope = policy.envelope().clone();
        let own = request.signing_public_key.as_ref();
        Ok(Response::new(wire::LoginResponse {
            certificate: Some(self.certificate(&request.csr_der, &seen.lies)),
            policy: Some(seen.lies.policy.clone().unwrap_or(envelope)),
            signer: policy
                .signers()
                .iter()
                .any(|signer| signer.public_key.0 == own),
        }))
    }

    async fn renew(
        &self,
        request: Request<wire::OperatorRenewRequest>,
    ) -> Answer<wire::OperatorCertificate> {
        let request = self.heard(request);
        let mut seen = self.seen.lock().unwrap();
        seen.renewals += 1;
        Ok(Response::new(
            self.certificate(&request.csr_der, &seen.lies),
        ))
    }

    async fn who_am_i(
        &self,
        request: Request<wire::WhoAmIRequest>,
    ) -> Answer<wire::WhoAmIResponse> {
        self.heard(request);
        let time_ms = now().as_ms() + self.seen.lock().unwrap().lies.clock_ms;
        Ok(Response::new(wire::WhoAmIResponse {
            time_ms,
            ..Default::default()
        }))
    }

    async fn get_trust(&self, request: Request<wire::GetTrustRequest>) -> Answer<wire::Trust> {
        self.heard(request);
        let seen = self.seen.lock().unwrap();
        let honest = || vec!["collector.example:7460".to_owned()];
        let own = seen.policy.as_ref().map(|policy| policy.envelope().clone());
        Ok(Response::new(wire::Trust {
            policy: seen.lies.policy.clone().or(own),
            agent_addresses: seen.lies.addresses.clone().unwrap_or_else(honest),
            ..Default::default()
        }))
    }

    async fn put_trust(&self, request: Request<wire::Trust>) -> Answer<wire::Trust> {
        let trust = self.heard(request);
        let mut seen = self.seen.lock().unwrap();
        let policy = seen.policy.as_ref().unwrap();
        policy
            .verify_freshness(trust.freshness.as_ref().unwrap(), now())
            .unwrap();
        seen.freshness += 1;
        Ok(Response::new(trust))
    }

    type ListNodesStream = Boxed<wire::ListNodesResponse>;

    async fn list_nodes(
        &self,
        request: Request<wire::ListNodesRequest>,
    ) -> Answer<Self::ListNodesStream> {
        let request = self.heard(request);
        if let Some(why) = self.seen.lock().unwrap().lies.refusal.clone() {
            return Err(Status::internal(why));
        }
        if let Some(nodes) = self.seen.lock().unwrap().lies.nodes.clone() {
            let answer = wire::ListNodesResponse { nodes };
            return Ok(Response::new(stream::iter([Ok(answer)]).boxed()));
        }
        let selector = Selector::parse(&request.selector).unwrap();
        if let Some(name) = request
            .names
            .iter()
            .find(|n| !self.nodes.iter().any(|x| is_meant(x, n)))
        {
            return Err(Status::not_found(format!(
                "node {name}: there is no such node"
            )));
        }
        let nodes = self.nodes.iter().filter(|node| {
            let names = &request.names;
            let named = names.is_empty() || names.iter().any(|name| is_meant(node, name));
            named && selector.matches(&node.labels.clone().into_iter().collect())
        });
        // One message a node, to see that all are read.
        let nodes: Vec<_> = nodes
            .map(|node| {
                Ok(wire::ListNodesResponse {
                    nodes: vec![node.clone()],
                })
            })
            .collect();
        Ok(Response::new(stream::iter(nodes).boxed()))
    }

    async fn set_labels(
        &self,
        request: Request<wire::SetLabelsRequest>,
    ) -> Answer<wire::SetLabelsResponse> {
        let request = self.heard(request);
        if !request.overwrite {
            return Err(Status::failed_precondition(
                "label node web-1: role is web already",
            ));
        }
        Ok(Response::new(wire::SetLabelsResponse {
            node: self.nodes.first().cloned(),
        }))
    }

    type QueryStream = Boxed<wire::QueryResponse>;

    async fn query(&self, request: Request<wire::QueryRequest>) -> Answer<Self::QueryStream> {
        let request = self.heard(request);
        let sql = request.sql.clone();
        self.seen.lock().unwrap().statements.push(sql);
        if let Some(answer) = self.seen.lock().unwrap().lies.answer.clone() {
            return Ok(Response::new(stream::iter([Ok(answer)]).boxed()));
        }
        if request.sql.contains("DROP") {
            let mut status = Status::permission_denied("query: only reading is allowed");
            status
                .metadata_mut()
                .insert("nexus-hint", "see --schema".parse().unwrap());
            return Err(status);
        }
        let (columns, rows) = if request.sql.replace('"', "").contains("FROM jobs") {
            let job = self
                .seen
                .lock()
                .unwrap()
                .job
                .as_ref()
                .map(|(job, _)| job.id.to_string());
            (
                vec!["id"],
                job.iter().map(|id| texts(&[Some(id)])).collect::<Vec<_>>(),
            )
        } else if request.sql.contains("\"events\"") {
            let row = texts(&[Some("web-1"), Some("2026-01-01T00:00:00.000Z"), Some("odd")]);
            (vec!["node", "time", "extra"], vec![row])
        } else {
            (
                vec!["name", "value"],
                vec![texts(&[Some("a,b"), None]), texts(&[Some("c"), Some("d")])],
            )
        };
        let columns = columns.into_iter().map(str::to_owned).collect();
        let mut messages = vec![Ok(wire::QueryResponse {
            columns,
            ..Default::default()
        })];
        messages.extend(rows.into_iter().map(|row| {
            Ok(wire::QueryResponse {
                rows: vec![row],
                ..Default::default()
            })
        }));
        Ok(Response::new(stream::iter(messages).boxed()))
    }

    async fn query_schema(
        &self,
        request: Request<wire::QuerySchemaRequest>,
    ) -> Answer<wire::QuerySchemaResponse> {
        self.heard(request);
        let view = |name: &str, columns: &[&str]| wire::View {
            name: name.into(),
            columns: columns
                .iter()
                .map(|name| wire::Column {
                    name: (*name).into(),
                    r#type: "TEXT".into(),
                    about: String::new(),
                })
                .collect(),
            ..Default::default()
        };
        let views = vec![
            view("events", &["node", "time", "extra"]),
            view("jobs", &["id"]),
        ];
        Ok(Response::new(wire::QuerySchemaResponse { views }))
    }

    async fn submit_job(
        &self,
        request: Request<wire::SubmitJobRequest>,
    ) -> Answer<wire::SubmitJobResponse> {
        let request = self.heard(request);
        let mut seen = self.seen.lock().unwrap();
        let policy = seen.policy.as_ref().unwrap();
        let (job, _) = nexus_pki::job::verify(&request.job.unwrap(), policy, 1).unwrap();
        let tree = Tree::from_wire(&request.targets).unwrap();
        assert_eq!(
            (job.targets_root, job.target_count),
            (tree.root(), tree.count())
        );
        let job_id = job.id.to_wire();
        seen.job = Some((job, tree));
        Ok(Response::new(wire::SubmitJobResponse { job_id }))
    }

    type WatchJobStream = Boxed<wire::JobUpdate>;

    async fn watch_job(
        &self,
        request: Request<wire::WatchJobRequest>,
    ) -> Answer<Self::WatchJobStream> {
        let request = self.heard(request);
        let mut seen = self.seen.lock().unwrap();
        seen.watches += 1;
        let Some((job, tree)) = &seen.job else {
            return Err(Status::not_found("job: there is no such job"));
        };
        let Action::Command { argv, .. } = &job.action else {
            panic!("no command")
        };
        let first = seen.watches == 1;
        let targets = tree.targets().to_vec();
        let targets = self
            .nodes
            .iter()
            .filter(|node| targets.iter().any(|t| t.name == node.name));
        let targets: Vec<_> = targets
            .filter(|node| request.node.is_empty() || request.node == node.name)
            .cloned()
            .collect();
        let mut updates = seen.lies.updates.clone();
        for node in &targets {
            updates.push(run_update(node, "running", None));
            updates.push(piece(node, OutputStream::Stdout, 0, b"hel"));
        }
        let word = argv.last().unwrap().as_str();
        let stops = word == "break" && first;
        if word != "hang" && !stops {
            for node in &targets {
                updates.push(piece(node, OutputStream::Stdout, 3, b"lo\nworld"));
                updates.push(piece(node, OutputStream::Stderr, 0, b"oops\n"));
                let fails = word == "fail" && node.name == "db-1";
                let (state, code) = if fails {
                    ("failed", 7)
                } else {
                    ("succeeded", 0)
                };
                updates.push(run_update(node, state, Some(code)));
            }
            updates.push(Kind::Ended(wire::JobEnded::default()));
        }
        let updates: Vec<_> = updates
            .into_iter()
            .map(|kind| Ok(wire::JobUpdate { kind: Some(kind) }))
            .collect();
        let updates = stream::iter(updates);
        Ok(Response::new(if word == "hang" {
            let (keep, never) = mpsc::channel::<()>(1);
            let rest = stream::once(async move {
                let (_keep, mut never) = (keep, never);
                never.recv().await;
                Err(Status::internal("never"))
            });
            updates.chain(rest).boxed()
        } else {
            updates.boxed()
        }))
    }

    async fn cancel_job(
        &self,
        request: Request<wire::CancelJobRequest>,
    ) -> Answer<wire::CancelJobResponse> {
        self.heard(request);
        self.seen.lock().unwrap().cancelled += 1;
        Ok(Response::new(wire::CancelJobResponse {
            cancelled: 1,
            stopping: 1,
        }))
    }

    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Answer<wire::CreateTokenResponse> {
        let request = self.heard(request);
        let mut seen = self.seen.lock().unwrap();
        let root = self.authority.root().sha256();
        let policy = seen.policy.as_ref().unwrap();
        let token = token::verify(&request.token.unwrap(), policy, &root, now()).unwrap();
        seen.tokens.push(token);
        Ok(Response::new(wire::CreateTokenResponse {}))
    }

    async fn revoke_token(
        &self,
        request: Request<wire::RevokeTokenRequest>,
    ) -> Answer<wire::RevokeTokenResponse> {
        let id = TokenId::from_wire(&self.heard(request).token_id).unwrap();
        self.seen.lock().unwrap().revoked.push(id);
        Ok(Response::new(wire::RevokeTokenResponse {}))
    }

    type ReadMetricsStream = Boxed<wire::ReadMetricsResponse>;

    async fn read_metrics(
        &self,
        request: Request<wire::ReadMetricsRequest>,
    ) -> Answer<Self::ReadMetricsStream> {
        let request = self.heard(request);
        let mut seen = self.seen.lock().unwrap();
        let answer = seen.metrics.clone();
        seen.metrics_asked = Some(request);
        Ok(Response::new(
            stream::iter(answer.into_iter().map(Ok)).boxed(),
        ))
    }

    type ReadAuditStream = Boxed<wire::AuditRow>;

    async fn read_audit(
        &self,
        request: Request<wire::ReadAuditRequest>,
    ) -> Answer<Self::ReadAuditStream> {
        self.heard(request);
        let rows: Vec<_> = self
            .seen
            .lock()
            .unwrap()
            .audit
            .iter()
            .cloned()
            .map(Ok)
            .collect();
        Ok(Response::new(stream::iter(rows).boxed()))
    }
}

/// A chain of rows with these actions.
pub(crate) fn audit_rows(actions: &[&str]) -> Vec<wire::AuditRow> {
    let mut hash = audit::GENESIS;
    let rows = (1..).zip(actions).map(|(seq, action)| {
        let prev_hash = hash.to_vec().into();
        let mut row = wire::AuditRow {
            seq,
            action: (*action).into(),
            prev_hash,
            ..Default::default()
        };
        hash = audit::row_hash(&hash, &row);
        row.hash = hash.to_vec().into();
        row
    });
    rows.collect()
}
