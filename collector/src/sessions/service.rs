//! The agents' service on the wire: the caller is who its certificate says.

use std::sync::Arc;

use nexus_proto::{
    agent::v1::{self as wire, agent_server},
    limits,
};
use nexus_runtime::errors;
use nexus_transport::Peer;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::{Sessions, control, upload};
use crate::{
    enrolment,
    request::{self, request_id},
};

/// The generated server over [`Sessions`].
pub(crate) type Server = agent_server::AgentServer<Service>;

/// [`Sessions`] as tonic calls them.
#[derive(Debug, Clone)]
pub(crate) struct Service(Arc<Sessions>);

impl Sessions {
    /// The service.
    pub(crate) fn server(self: Arc<Self>) -> Server {
        agent_server::AgentServer::new(Service(self))
            .max_decoding_message_size(limits::AGENT_MESSAGE_BYTES)
    }
}

/// The node of this connection.
fn remote_of<T>(request: &Request<T>) -> Result<control::Remote, Status> {
    let peer = request
        .extensions()
        .get::<Peer>()
        .ok_or_else(|| Status::internal("the transport does not say who this is"))?
        .clone();
    let identity = peer
        .identity
        .clone()
        .ok_or_else(|| Status::unauthenticated("no certificate was presented"))?;
    let node = identity
        .spiffe
        .node()
        .ok_or_else(|| Status::permission_denied(format!("{} is no agent", identity.spiffe)))?;
    Ok(control::Remote {
        node,
        identity,
        peer,
    })
}

#[tonic::async_trait]
impl agent_server::Agent for Service {
    type SessionStream = ReceiverStream<Result<wire::CollectorFrame, Status>>;
    type UploadStream = ReceiverStream<Result<wire::UploadAck, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::AgentFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let remote = remote_of(&request)?;
        let (out, frames) = tokio::sync::mpsc::channel(control::FRAMES);
        let work = control::run(Arc::clone(&self.0), remote, request.into_inner(), out);
        self.0.tasks.spawn("session", work);
        Ok(Response::new(ReceiverStream::new(frames)))
    }

    async fn upload(
        &self,
        request: Request<Streaming<wire::UploadFrame>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let remote = remote_of(&request)?;
        let (acks, stream) = tokio::sync::mpsc::channel(upload::ACKS);
        let work = upload::run(Arc::clone(&self.0), remote.node, request.into_inner(), acks);
        self.0.tasks.spawn("upload", work);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::Identity>, Status> {
        let remote = remote_of(&request)?;
        let id = request_id(request.metadata());
        let span = request::span("Renew", &id, request.extensions());
        let enrolment = &self.0.enrolment;
        let work = async {
            let csr = request.into_inner().csr_der;
            let result = enrolment.renew(&remote.identity, &csr).await;
            if let Err(error) = &result {
                tracing::warn!(error = %errors::chain(error), "refused to renew a certificate");
            }
            enrolment::service::answer(enrolment, result)
        };
        work.instrument(span).await
    }
}
