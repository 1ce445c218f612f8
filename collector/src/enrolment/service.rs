//! The enrolment service on the wire. What a stranger is told is why the request was refused, and nothing
//! about anybody else.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use nexus_proto::agent::v1::{self as wire, enrolment_server};
use nexus_runtime::errors;
use nexus_transport::Peer;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::{Enrolment, EnrolmentError, REQUEST_BYTES};
use crate::request::{self, request_id};

/// The generated server over an [`Enrolment`].
pub(crate) type Server = enrolment_server::EnrolmentServer<Service>;

/// [`Enrolment`] as tonic calls it.
#[derive(Debug, Clone)]
pub(crate) struct Service(Arc<Enrolment>);

impl Enrolment {
    /// The service.
    pub(crate) fn server(self: Arc<Self>) -> Server {
        enrolment_server::EnrolmentServer::new(Service(self))
            .max_decoding_message_size(REQUEST_BYTES)
    }
}

#[tonic::async_trait]
impl enrolment_server::Enrolment for Service {
    async fn enrol(
        &self,
        request: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::Identity>, Status> {
        let request_id = request_id(request.metadata());
        let span = request::span("Enrol", &request_id, request.extensions());
        let from = from(&request);
        let work = async {
            let result = self.0.enrol(request.into_inner(), &request_id).await;
            note(&self.0, "enrol", from, &result, request_id);
            answer(&self.0, result)
        };
        work.instrument(span).await
    }

    async fn renew_expired(
        &self,
        request: Request<wire::RenewExpiredRequest>,
    ) -> Result<Response<wire::Identity>, Status> {
        let request_id = request_id(request.metadata());
        let span = request::span("RenewExpired", &request_id, request.extensions());
        let from = from(&request);
        let work = async {
            let result = self
                .0
                .renew_expired(request.into_inner(), &request_id)
                .await;
            note(&self.0, "renew-expired", from, &result, request_id);
            answer(&self.0, result)
        };
        work.instrument(span).await
    }
}

fn from<T>(request: &Request<T>) -> IpAddr {
    let peer = request.extensions().get::<Peer>();
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.remote.ip())
}

/// A refusal is a row of the audit chain; one for want of a working store is none.
fn note(
    enrolment: &Enrolment,
    action: &'static str,
    from: IpAddr,
    result: &Result<wire::Identity, EnrolmentError>,
    request_id: String,
) {
    if let Err(error) = result
        && !matches!(
            error,
            EnrolmentError::Store(_) | EnrolmentError::Authority(_)
        )
    {
        let reason = errors::chain(error).to_string();
        enrolment.refusals.note(action, from, reason, request_id);
    }
}

/// Counts, logs and turns an ending into an answer.
pub(crate) fn answer(
    enrolment: &Enrolment,
    result: Result<wire::Identity, EnrolmentError>,
) -> Result<Response<wire::Identity>, Status> {
    match result {
        Ok(identity) => {
            enrolment.count("granted");
            Ok(Response::new(identity))
        }
        Err(error) => {
            enrolment.count("refused");
            let text = errors::chain(&error).to_string();
            match error {
                EnrolmentError::Store(_) | EnrolmentError::Authority(_) => {
                    tracing::error!(error = text, "could not issue an identity");
                }
                // Strangers' refusals have their lines in the log as refusals, within limits.
                _ => tracing::debug!(error = text, "refused an identity"),
            }
            Err(status(&error, text))
        }
    }
}

fn status(error: &EnrolmentError, text: String) -> Status {
    match error {
        EnrolmentError::Token(_)
        | EnrolmentError::Spent(_)
        | EnrolmentError::Renewal(_)
        | EnrolmentError::Unknown(_)
        | EnrolmentError::NoAgent
        | EnrolmentError::Held { .. } => Status::permission_denied(text),
        EnrolmentError::Csr(_)
        | EnrolmentError::Description(_)
        | EnrolmentError::Incarnation(_) => Status::invalid_argument(text),
        EnrolmentError::Trust(_) => Status::failed_precondition(text),
        EnrolmentError::Authority(_) => Status::internal(text),
        EnrolmentError::Store(_) => Status::unavailable(text),
    }
}
