//! The operators' service on the wire: each call finds the [`super::gate::Act`] the gate left it.

use std::sync::Arc;

use nexus_proto::{
    limits,
    operator::v1::{self as wire, operator_server},
};
use nexus_transport::Peer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::{
    Operators,
    authorize::{Caller, effects_of},
    chain, fleet,
    gate::{Gate, act, effects_to_wire},
    history,
    watch::{self, Watch},
};

/// The generated server over [`Operators`], behind the gate.
pub(crate) type Server = Gate<operator_server::OperatorServer<Service>>;

/// Messages of a stream that wait for their reader.
const MESSAGES: usize = 4;

/// [`Operators`] as tonic calls them.
#[derive(Clone)]
pub(crate) struct Service(Arc<Operators>);

impl Operators {
    /// The service.
    pub(crate) fn server(self: Arc<Self>) -> Server {
        let server = operator_server::OperatorServer::new(Service(Arc::clone(&self)));
        let for_strangers = server
            .clone()
            .max_decoding_message_size(limits::STRANGER_MESSAGE_BYTES);
        Gate {
            store: self.store.clone(),
            refusals: self.refusals.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            inner: server.max_decoding_message_size(limits::OPERATOR_MESSAGE_BYTES),
            for_strangers,
        }
    }
}

impl Service {
    /// Runs what feeds a stream, under the call's span.
    fn feed(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(name, work.in_current_span());
    }
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl operator_server::Operator for Service {
    type ListNodesStream = Stream<wire::ListNodesResponse>;
    type QueryStream = Stream<wire::QueryResponse>;
    type ReadMetricsStream = Stream<wire::ReadMetricsResponse>;
    type WatchJobStream = Stream<wire::JobUpdate>;
    type ReadAuditStream = Stream<wire::AuditRow>;

    async fn login(
        &self,
        request: Request<wire::LoginRequest>,
    ) -> Result<Response<wire::LoginResponse>, Status> {
        let act = act(&request)?;
        self.0
            .login(&act, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn renew(
        &self,
        request: Request<wire::OperatorRenewRequest>,
    ) -> Result<Response<wire::OperatorCertificate>, Status> {
        let act = act(&request)?;
        self.0
            .renew(&act, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn who_am_i(
        &self,
        request: Request<wire::WhoAmIRequest>,
    ) -> Result<Response<wire::WhoAmIResponse>, Status> {
        let act = act(&request)?;
        let peer = request.extensions().get::<Peer>();
        let name = match &act.caller {
            Caller::Operator { name, .. } => name.clone(),
            other => other.actor(),
        };
        Ok(Response::new(wire::WhoAmIResponse {
            name,
            trust_domain: self.0.authority.trust_domain().to_owned(),
            effects: effects_to_wire(effects_of(&act.caller)),
            collector_version: env!("CARGO_PKG_VERSION").to_owned(),
            time_ms: self.0.clock.now().as_ms(),
            transport: peer
                .map(|peer| peer.transport.name().to_owned())
                .unwrap_or_default(),
            key_exchange: peer
                .map(|peer| peer.key_exchange.to_string())
                .unwrap_or_default(),
        }))
    }

    async fn get_trust(
        &self,
        _request: Request<wire::GetTrustRequest>,
    ) -> Result<Response<wire::Trust>, Status> {
        Ok(Response::new(self.0.trust_to_wire()))
    }

    async fn put_trust(
        &self,
        request: Request<wire::Trust>,
    ) -> Result<Response<wire::Trust>, Status> {
        let act = act(&request)?;
        self.0
            .put_trust(&act, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_nodes(
        &self,
        request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<Self::ListNodesStream>, Status> {
        let messages = self.0.list_nodes(request.into_inner()).await?;
        let (out, stream) = mpsc::channel(MESSAGES);
        self.feed("list nodes", async move {
            for message in messages {
                if out.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn set_labels(
        &self,
        request: Request<wire::SetLabelsRequest>,
    ) -> Result<Response<wire::SetLabelsResponse>, Status> {
        let act = act(&request)?;
        let node = self.0.set_labels(&act, request.into_inner()).await?;
        Ok(Response::new(wire::SetLabelsResponse { node: Some(node) }))
    }

    async fn query(
        &self,
        request: Request<wire::QueryRequest>,
    ) -> Result<Response<Self::QueryStream>, Status> {
        let rows = self.0.query(request.into_inner()).await?;
        let (out, stream) = mpsc::channel(MESSAGES);
        let stop = self.0.tasks.token();
        self.feed("query", fleet::send_rows(rows, stop, out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn query_schema(
        &self,
        _request: Request<wire::QuerySchemaRequest>,
    ) -> Result<Response<wire::QuerySchemaResponse>, Status> {
        Ok(Response::new(self.0.schema()))
    }

    async fn read_metrics(
        &self,
        request: Request<wire::ReadMetricsRequest>,
    ) -> Result<Response<Self::ReadMetricsStream>, Status> {
        let (head, series) = self.0.read_metrics(request.into_inner()).await?;
        let (out, stream) = mpsc::channel(MESSAGES);
        self.feed("read metrics", history::send(head, series, out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn submit_job(
        &self,
        request: Request<wire::SubmitJobRequest>,
    ) -> Result<Response<wire::SubmitJobResponse>, Status> {
        let act = act(&request)?;
        self.0
            .submit(&act, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn watch_job(
        &self,
        request: Request<wire::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let (store, tasks) = (self.0.store.clone(), self.0.tasks.clone());
        let (watch, row) = Watch::new(store, tasks, request.get_ref())?;
        let (out, stream) = mpsc::channel(watch::UPDATES);
        self.feed("watch a job", watch.run(row, out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn cancel_job(
        &self,
        request: Request<wire::CancelJobRequest>,
    ) -> Result<Response<wire::CancelJobResponse>, Status> {
        let act = act(&request)?;
        self.0
            .cancel(&act, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenResponse>, Status> {
        let act = act(&request)?;
        self.0.create_token(&act, request.into_inner()).await?;
        Ok(Response::new(wire::CreateTokenResponse {}))
    }

    async fn revoke_token(
        &self,
        request: Request<wire::RevokeTokenRequest>,
    ) -> Result<Response<wire::RevokeTokenResponse>, Status> {
        let act = act(&request)?;
        self.0.revoke_token(&act, request.into_inner()).await?;
        Ok(Response::new(wire::RevokeTokenResponse {}))
    }

    async fn read_audit(
        &self,
        request: Request<wire::ReadAuditRequest>,
    ) -> Result<Response<Self::ReadAuditStream>, Status> {
        let act = act(&request)?;
        let from_seq = request.into_inner().from_seq;
        act.record("audit", serde_json::json!({ "from_seq": from_seq }))
            .await?;
        let (out, stream) = mpsc::channel(MESSAGES);
        let (store, tasks) = (self.0.store.clone(), self.0.tasks.clone());
        self.feed(
            "read the audit chain",
            chain::send_rows(store, tasks, from_seq, out),
        );
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
