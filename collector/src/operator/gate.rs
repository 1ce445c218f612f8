//! The one entry of every operator's call: name it, authorize it, write refusals and privileged acts into
//! the audit chain, count it.
//!
//! The gate stands in front of the generated service, so a call that is added later passes it like all
//! others, and one that has no effect class is refused. What a privileged act was about only its handler
//! knows: it says so through [`Act`] before it acts; for one that ended before that, the gate writes a row
//! of its own.

use std::{
    convert::Infallible,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use nexus_proto::operator::{
    EFFECTS, effect_of,
    v1::{AuditRow, Effect},
};
use nexus_runtime::clock::Clock;
use nexus_store::{Store, StoreError};
use nexus_transport::Peer;
use tonic::{Code, Status, body::Body};
use tower_service::Service;
use tracing::Instrument as _;

use super::{
    authorize::{Caller, Scope, authorize, is_privileged},
    status,
};
use crate::{
    pages::metrics::{ByRpc, Metrics},
    refusals::Refusals,
    request,
};

/// A call that was let through, as its handler finds it among the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    /// Who.
    pub(crate) caller: Caller,
    /// The request's id.
    pub(crate) request_id: String,
    action: &'static str,
    from: IpAddr,
    store: Store,
    refusals: Refusals,
    clock: Clock,
    written: Arc<AtomicBool>,
}

impl Act {
    /// Writes the act into the audit chain, before it is carried out.
    pub(crate) async fn record(
        &self,
        subject: impl Into<String>,
        detail: serde_json::Value,
    ) -> Result<(), Status> {
        self.record_as(self.caller.actor(), subject, detail).await
    }

    /// [`Act::record`] for a caller whose name only became known within the call.
    pub(crate) async fn record_as(
        &self,
        actor: String,
        subject: impl Into<String>,
        detail: serde_json::Value,
    ) -> Result<(), Status> {
        self.write(actor, subject.into(), "allowed", detail)
            .await
            .map_err(|error| status::of_store("write the audit chain", &error))
    }

    /// Writes that the answer was no: for strangers within limits, so that nobody fills the disk by asking.
    pub(crate) async fn refuse(&self, why: String) -> Result<(), Status> {
        if self.caller == Caller::Anonymous {
            self.written.store(true, Ordering::Relaxed);
            self.refusals
                .note(self.action, self.from, why, self.request_id.clone());
            return Ok(());
        }
        tracing::warn!(why, "refused a call");
        let detail = serde_json::json!({ "why": why });
        self.write(self.caller.actor(), String::new(), "refused", detail)
            .await
            .map_err(|error| status::of_store("write the audit chain", &error))
    }

    /// For an act that read only (the audit chain) or came to nothing: its answer does not depend on this.
    async fn record_outcome(&self, code: Code, why: String) {
        let outcome = format!("{code:?}");
        let recorded = match (&self.caller, code) {
            // Beyond the attempts that are allowed: as if nobody had asked.
            (Caller::Anonymous, Code::ResourceExhausted) => Ok(()),
            (Caller::Anonymous, _) => self.refuse(why).await,
            // The caller may make such calls, but this one, by its contents, was not its to make: a job that none
            // of the signers signed.
            (_, Code::PermissionDenied | Code::Unauthenticated) => self.refuse(why).await,
            _ => {
                let detail = serde_json::json!({ "outcome": outcome });
                self.record(String::new(), detail).await
            }
        };
        if let Err(status) = recorded {
            tracing::error!(error = status.message(), "an act was not recorded");
        }
    }

    async fn write(
        &self,
        actor: String,
        subject: String,
        decision: &str,
        detail: serde_json::Value,
    ) -> Result<(), StoreError> {
        self.written.store(true, Ordering::Relaxed);
        let row = AuditRow {
            time_ms: self.clock.now().as_ms(),
            actor,
            action: self.action.to_owned(),
            subject,
            decision: decision.to_owned(),
            detail: detail.to_string(),
            request_id: self.request_id.clone(),
            ..AuditRow::default()
        };
        self.store.audit(row).await.map(|_| ())
    }
}

/// The gate in front of a service.
#[derive(Clone)]
pub(crate) struct Gate<S> {
    pub(crate) inner: S,
    /// The same for callers without a certificate; it reads small messages only.
    pub(crate) for_strangers: S,
    pub(crate) refusals: Refusals,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let gate = self.clone();
        let metadata = tonic::metadata::MetadataMap::from_headers(request.headers().clone());
        let request_id = request::request_id(&metadata);
        let rpc = rpc_name(request.uri().path());
        let span = request::span(rpc, &request_id, request.extensions());
        Box::pin(gate.pass(request, rpc, request_id).instrument(span))
    }
}

impl<S> Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send,
{
    async fn pass(
        mut self,
        mut request: Request<Body>,
        rpc: &'static str,
        request_id: String,
    ) -> Result<Response<Body>, Infallible> {
        let effect = effect_of(request.uri().path());
        let peer = request.extensions().get::<Peer>();
        let identity = peer.and_then(|peer| peer.identity.clone());
        let act = Act {
            caller: Caller::of(identity.as_ref()),
            request_id,
            action: rpc,
            from: peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.remote.ip()),
            store: self.store.clone(),
            refusals: self.refusals.clone(),
            clock: self.clock.clone(),
            written: Arc::default(),
        };
        if let Err(denied) = authorize(&act.caller, effect, Scope::Fleet) {
            if let Err(status) = act.refuse(denied.to_string()).await {
                tracing::error!(error = status.message(), "a refusal was not recorded");
            }
            self.count(rpc, Code::PermissionDenied);
            let status = Status::permission_denied(format!("{rpc}: {denied}"));
            return Ok(status::hinted(status, "log in with `nexusctl login CODE`").into_http());
        }
        let stranger = act.caller == Caller::Anonymous;
        request.extensions_mut().insert(act.clone());
        let response = if stranger {
            self.for_strangers.call(request).await?
        } else {
            self.inner.call(request).await?
        };
        let code = code_of(&response);
        if effect.is_some_and(is_privileged) && !act.written.load(Ordering::Relaxed) {
            act.record_outcome(code, message_of(&response)).await;
        }
        if stranger && code != Code::Ok {
            // What is worth a line stands with the refusals, within their limits.
            tracing::debug!(?code, "answered");
        } else {
            tracing::info!(?code, "answered");
        }
        self.count(rpc, code);
        Ok(response)
    }

    fn count(&self, rpc: &'static str, code: Code) {
        let label = ByRpc {
            rpc,
            code: code_name(code),
        };
        self.metrics.operator_calls.get_or_create(&label).inc();
    }
}

/// The call's name; of a fixed set, since it becomes a label.
fn rpc_name(path: &str) -> &'static str {
    EFFECTS
        .iter()
        .find(|(known, _)| *known == path)
        .and_then(|(known, _)| known.rsplit('/').next())
        .unwrap_or("unknown")
}

/// An error's code is in the headers; that of an answer that began is OK so far.
fn code_of(response: &Response<Body>) -> Code {
    response
        .headers()
        .get("grpc-status")
        .map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}

/// What an error says.
fn message_of(response: &Response<Body>) -> String {
    Status::from_header_map(response.headers())
        .map(|status| status.message().to_owned())
        .unwrap_or_default()
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::InvalidArgument => "invalid_argument",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::Unauthenticated => "unauthenticated",
        Code::FailedPrecondition => "failed_precondition",
        Code::ResourceExhausted => "resource_exhausted",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::Unavailable => "unavailable",
        Code::Unimplemented => "unimplemented",
        _ => "other",
    }
}

/// The act of a request that came through the gate.
pub(crate) fn act<T>(request: &tonic::Request<T>) -> Result<Act, Status> {
    request
        .extensions()
        .get::<Act>()
        .cloned()
        .ok_or_else(|| Status::internal("a call did not pass the gate"))
}

/// The effect classes as the wire numbers them.
pub(crate) fn effects_to_wire(effects: Vec<Effect>) -> Vec<i32> {
    effects.into_iter().map(i32::from).collect()
}
