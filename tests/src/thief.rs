//! A stolen collector: it has every key of the real one, agents take it for the real one, and it says what a
//! test tells it to.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nexus_pki::{
    authority::Authority,
    tls::{self, Alpn, KeyExchange, LiveLeaf},
};
use nexus_proto::{
    agent::v1::{
        self as wire,
        agent_server::{Agent, AgentServer},
        collector_frame::Kind,
        enrolment_server::{Enrolment, EnrolmentServer},
    },
    ids::{JobId, Lane, SessionId},
    metrics::Decoder,
    record::{Body, Event, Finished, Record},
};
use nexus_runtime::{clock::Clock, tasks::Tasks};
use nexus_transport::{AgentPort, Connections, Limits, ResetKeys, Serving, TlsSet};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    fault::{Fault, Outcome},
    poll,
};

type Frames = mpsc::Sender<Result<wire::CollectorFrame, Status>>;

/// How long an agent may take to come, or to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Frames and acks that wait for their stream.
const WAITING: usize = 16;
/// Bytes an agent may send without an ack.
const CREDIT: u64 = 1 << 20;

/// The thief's collector.
pub struct Thief {
    state: Arc<State>,
    tasks: Tasks,
}

#[derive(Default)]
struct State {
    session: Mutex<Option<Frames>>,
    results: Mutex<Vec<Record>>,
    tasks: Tasks,
}

impl Thief {
    /// Serves agents on `listen` with the keys in the collector's state folder, which must not be running.
    pub async fn take_over(
        collector: &Path,
        trust_domain: &str,
        listen: SocketAddr,
    ) -> Outcome<Self> {
        let clock = Clock::system();
        let tasks = Tasks::new();
        let fail = |what: &'static str| {
            move |error: &dyn std::error::Error| {
                Fault::new(format!("{what}: {}", nexus_runtime::errors::chain(error)))
            }
        };
        let ca = collector.join("pki").join("ca");
        let authority = Authority::open(&ca, trust_domain, clock.now())
            .map_err(|error| fail("open the authority")(&error))?;
        let leaf = authority
            .issue_collector("default", "thief", clock.now())
            .map_err(|error| fail("issue a certificate")(&error))?;
        let live = LiveLeaf::new(leaf, authority.root()).map_err(|error| fail("TLS")(&error))?;
        let (admission, groups) = (authority.admission(), KeyExchange::Auto);
        let config = |alpn| tls::agents_server(&live, admission, groups, alpn);
        let tls = TlsSet {
            quic: config(Alpn::H3).map_err(|error| fail("TLS")(&error))?,
            tcp: config(Alpn::H2).map_err(|error| fail("TLS")(&error))?,
            enrol: tls::enrol_server(&live, groups).map_err(|error| fail("TLS")(&error))?,
        };
        let port = AgentPort::bind(listen).await.map_err(Fault::io(listen))?;
        let state = Arc::new(State {
            tasks: tasks.clone(),
            ..State::default()
        });
        let serving = Serving {
            admission: admission.clone(),
            clock,
            connections: Connections::new(Limits::default()),
            shutdown: tasks.token(),
        };
        let (agents, enrolment) = (
            AgentServer::new(Service(Arc::clone(&state))),
            EnrolmentServer::new(Closed),
        );
        tasks.spawn("agents' port", async move {
            let keys = ResetKeys::new([1; 64], [2; 64]);
            port.serve(tls, &keys, agents, enrolment, serving).await
        });
        Ok(Self { state, tasks })
    }

    /// Says something to the agent, once there is one.
    pub async fn say(&self, kind: Kind) -> Outcome {
        let session = poll::until("an agent", PATIENCE, || {
            std::future::ready(lock(&self.state.session).clone())
        });
        let frame = wire::CollectorFrame { kind: Some(kind) };
        session
            .await?
            .send(Ok(frame))
            .await
            .map_err(|_| Fault::new("the agent is gone"))
    }

    /// What the agent reports of a job.
    pub async fn report(&self, job: JobId) -> Outcome<Finished> {
        poll::until_ok("a report", PATIENCE, || {
            let records = lock(&self.state.results);
            let found = records.iter().find_map(|record| match &record.body {
                Body::Finished(finished) if finished.run.job == job => Some(finished.clone()),
                _ => None,
            });
            std::future::ready(found.ok_or_else(|| format!("{records:?}")))
        })
        .await
    }

    /// Events the agent reported.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let records = lock(&self.state.results);
        let events = records.iter().filter_map(|record| match &record.body {
            Body::Event(event) => Some(event.clone()),
            _ => None,
        });
        events.collect()
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.tasks.begin_shutdown();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Service(Arc<State>);

#[tonic::async_trait]
impl Agent for Service {
    type SessionStream = ReceiverStream<Result<wire::CollectorFrame, Status>>;
    type UploadStream = ReceiverStream<Result<wire::UploadAck, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::AgentFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (out, frames) = mpsc::channel(WAITING);
        let state = Arc::clone(&self.0);
        let mut inbound = request.into_inner();
        self.0.tasks.spawn("session", async move {
            let Ok(Some(_hello)) = inbound.message().await else {
                return;
            };
            let welcome = wire::Welcome {
                protocol: nexus_proto::PROTOCOL.1,
                session_id: SessionId::random().to_wire(),
                ..wire::Welcome::default()
            };
            let kind = Some(Kind::Welcome(Box::new(welcome)));
            if out.send(Ok(wire::CollectorFrame { kind })).await.is_err() {
                return;
            }
            *lock(&state.session) = Some(out);
            while let Ok(Some(_)) = inbound.message().await {}
        });
        Ok(Response::new(ReceiverStream::new(frames)))
    }

    async fn upload(
        &self,
        request: Request<Streaming<wire::UploadFrame>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let (acks, stream) = mpsc::channel(WAITING);
        let state = Arc::clone(&self.0);
        let mut frames = request.into_inner();
        self.0.tasks.spawn("upload", async move {
            let ack = |seq| wire::UploadAck {
                seq,
                credit_bytes: CREDIT,
            };
            let mut results = false;
            while let Ok(Some(frame)) = frames.message().await {
                let mut seq = 0;
                match frame.kind {
                    Some(wire::upload_frame::Kind::Open(open)) => {
                        results = open.lane == i32::from(Lane::Results.to_wire());
                    }
                    Some(wire::upload_frame::Kind::Batch(batch)) if results => {
                        let records = batch.records.into_iter();
                        let records = records
                            .filter_map(|record| Record::decode(record, &mut Decoder::new()).ok());
                        for record in records {
                            seq = record.seq;
                            lock(&state.results).push(record);
                        }
                    }
                    // Of no interest, and never acknowledged.
                    _ => continue,
                }
                if acks.send(Ok(ack(seq))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew(
        &self,
        _: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::Identity>, Status> {
        Err(Status::unimplemented("a thief renews nothing"))
    }
}

struct Closed;

#[tonic::async_trait]
impl Enrolment for Closed {
    async fn enrol(
        &self,
        _: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::Identity>, Status> {
        Err(Status::unimplemented("a thief enrols nobody"))
    }

    async fn renew_expired(
        &self,
        _: Request<wire::RenewExpiredRequest>,
    ) -> Result<Response<wire::Identity>, Status> {
        Err(Status::unimplemented("a thief renews nothing"))
    }
}
