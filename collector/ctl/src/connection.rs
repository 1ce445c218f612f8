//! The collector, as an operator reaches it.

use std::{future::Future, time::Duration};

use nexus_pki::tls::refusal_of;
use nexus_proto::{
    HINT, REQUEST_ID,
    operator::v1::{
        ListNodesRequest, Node, OperatorRenewRequest, QueryRequest, operator_client::OperatorClient,
    },
};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    dial::{Channel, operator_connect},
    fault::{Exit, Fault, Outcome, chain},
    output::Cell,
    profile::Profile,
    session::Session,
    signers, terminal,
};

/// Time for one address to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

const LOGIN_HINT: &str =
    "log in again: `nexus-collector login-code` on its host prints a code for `nexusctl login`";

/// The generated client over our transport.
pub(crate) type Client = OperatorClient<Channel>;

/// A connection with the operator's identity.
pub(crate) struct Collector {
    pub(crate) client: Client,
    pub(crate) profile: Profile,
    request_id: String,
}

/// A query's whole answer.
pub(crate) struct Answer {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

impl Collector {
    /// Connects, and renews the certificate once it is past its half-life.
    pub(crate) async fn connect(session: &Session, profile: Profile) -> Outcome<Self> {
        let mut collector = Self::plain(session, profile).await?;
        if collector.profile.wants_renewal(session.now()) {
            match collector.renew(session).await {
                Ok(renewed) => collector = renewed,
                // The present certificate is still good.
                Err(fault) => session.log(&format!("certificate not renewed: {fault}")),
            }
        }
        Ok(collector)
    }

    /// Connects with the certificate as it is.
    pub(crate) async fn plain(session: &Session, profile: Profile) -> Outcome<Self> {
        profile.check_certificate(session.now())?;
        let channel = dial(session, &profile).await?;
        Ok(Self {
            client: client(channel),
            profile,
            request_id: session.request_id.clone(),
        })
    }

    /// A new key and certificate, and the signer policy said to be current.
    async fn renew(&mut self, session: &Session) -> Outcome<Self> {
        let mut profile = self.profile.clone();
        let (key, csr_der) = profile.new_request()?;
        let request = self.request(OperatorRenewRequest {
            csr_der: csr_der.into(),
        });
        let certificate = self
            .client
            .renew(request)
            .await
            .map_err(fault)?
            .into_inner();
        profile.renewed(key, &certificate, session.now())?;
        session.log("certificate renewed");
        let signing = profile.signing_key()?;
        match signers::refresh(session, profile.clone(), &signing).await {
            Ok(refreshed) => profile = refreshed,
            Err(fault) => terminal::warn(&format!("signer policy not refreshed: {fault}")),
        }
        Self::plain(session, profile).await
    }

    /// A message with the invocation's request id.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        request(&self.request_id, message)
    }

    /// All nodes that match.
    pub(crate) async fn nodes(&mut self, request: ListNodesRequest) -> Outcome<Vec<Node>> {
        let request = self.request(request);
        let mut stream = self
            .client
            .list_nodes(request)
            .await
            .map_err(no_such_node)?
            .into_inner();
        let mut nodes = Vec::new();
        while let Some(message) = stream.message().await.map_err(fault)? {
            nodes.extend(message.nodes);
        }
        Ok(nodes)
    }

    /// A query's answer, whole.
    pub(crate) async fn rows(&mut self, sql: &str) -> Outcome<Answer> {
        let request = QueryRequest {
            sql: sql.to_owned(),
            ..QueryRequest::default()
        };
        self.answer(request).await
    }

    /// A query's answer, whole.
    pub(crate) async fn answer(&mut self, request: QueryRequest) -> Outcome<Answer> {
        let request = self.request(request);
        let mut stream = self
            .client
            .query(request)
            .await
            .map_err(fault)?
            .into_inner();
        let mut answer = Answer {
            columns: Vec::new(),
            rows: Vec::new(),
        };
        while let Some(message) = stream.message().await.map_err(fault)? {
            if answer.columns.is_empty() {
                answer.columns = message.columns;
            }
            let rows = message.rows.into_iter();
            answer.rows.extend(rows.map(|row| {
                row.values
                    .into_iter()
                    .map(|value| Cell::from_wire(value.value))
                    .collect()
            }));
        }
        Ok(answer)
    }
}

/// A message with a request id.
pub(crate) fn request<T>(request_id: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Ok(value) = MetadataValue::try_from(request_id) {
        request.metadata_mut().insert(REQUEST_ID, value);
    }
    request
}

pub(crate) fn client(channel: Channel) -> Client {
    OperatorClient::new(channel).max_decoding_message_size(nexus_proto::limits::MESSAGE_BYTES)
}

async fn dial(session: &Session, profile: &Profile) -> Outcome<Channel> {
    let tls = profile.tls()?;
    first_of(session, &profile.addresses, |address| {
        let tls = tls.clone();
        async move { operator_connect(&address, tls).await }
    })
    .await
}

/// The first address that answers; when none does, why not, of each.
pub(crate) async fn first_of<T, E, F>(
    session: &Session,
    addresses: &[String],
    connect: impl Fn(String) -> F,
) -> Outcome<T>
where
    F: Future<Output = Result<T, E>>,
    E: std::error::Error + 'static,
{
    let mut refusals = Vec::new();
    let mut somebody = false;
    for address in addresses {
        session.log(&format!("connects to {address}"));
        let tried = tokio::time::timeout(DIAL_TIMEOUT, connect(address.clone())).await;
        refusals.push(match tried {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => match refusal_of(&error) {
                Some(refusal) => {
                    somebody = true;
                    refusal
                }
                None => chain(&error),
            },
            Err(_) => format!("no answer within {}s", DIAL_TIMEOUT.as_secs()),
        });
    }
    let what = format!("connect to the collector at {}", addresses.join(", "));
    let fault = Fault::new(what, refusals.join("; ")).exits(Exit::Unreachable);
    // Who was refused answered; the refusal says what to do.
    if somebody {
        return Err(fault);
    }
    Err(fault
        .hint("is `nexus-collector serve` running there, and is its operators' port open to you?"))
}

/// What the collector answered, as the user reads it.
pub(crate) fn fault(status: Status) -> Fault {
    if let Some(source) = std::error::Error::source(&status) {
        return broken(source);
    }
    let (exit, default_hint) = match status.code() {
        Code::Unavailable => (
            Exit::Unreachable,
            Some("the collector went away or is overloaded; try again"),
        ),
        Code::PermissionDenied => (Exit::Denied, None),
        Code::Unauthenticated => (Exit::Denied, Some(LOGIN_HINT)),
        Code::DeadlineExceeded => (Exit::TimedOut, None),
        Code::Unimplemented => (
            Exit::Error,
            Some("the collector may be older than this nexusctl"),
        ),
        _ => (Exit::Error, None),
    };
    let message = status.message();
    let (what, why) = match message.split_once(": ") {
        Some((what, why)) if !why.is_empty() => (what, why.to_owned()),
        _ if message.is_empty() => ("ask the collector", code_words(status.code()).to_owned()),
        _ => ("ask the collector", message.to_owned()),
    };
    let mut fault = Fault::new(what, why).exits(exit);
    let hint = status
        .metadata()
        .get(HINT)
        .and_then(|hint| hint.to_str().ok());
    if let Some(hint) = hint.or(default_hint) {
        fault = fault.hint(hint);
    }
    fault
}

/// Of a call that names nodes.
pub(crate) fn no_such_node(status: Status) -> Fault {
    let missing = status.code() == Code::NotFound;
    let fault = fault(status);
    if missing && fault.hint.is_none() {
        return fault.hint("`nexusctl get nodes` lists them");
    }
    fault
}

/// No answer at all: the connection ended under the call.
fn broken(error: &(dyn std::error::Error + 'static)) -> Fault {
    let what = "ask the collector";
    // In TLS 1.3 a refused certificate shows only after the handshake.
    if let Some(refusal) = refusal_of(error) {
        return Fault::new(what, refusal)
            .hint(LOGIN_HINT)
            .exits(Exit::Denied);
    }
    let why = chain(error);
    if why.contains("alert") {
        return Fault::new(what, why).hint(LOGIN_HINT).exits(Exit::Denied);
    }
    Fault::new(what, why)
        .hint("the collector went away; try again")
        .exits(Exit::Unreachable)
}

fn code_words(code: Code) -> &'static str {
    match code {
        Code::Unavailable => "the connection broke",
        Code::PermissionDenied => "you may not do this",
        Code::Unauthenticated => "it does not know you",
        Code::DeadlineExceeded => "it took too long",
        Code::Unimplemented => "it does not know this call",
        Code::Cancelled => "the call was cancelled",
        _ => "it failed without saying why",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_faults() {
        let mut status = Status::permission_denied("run on web-1: role `reader` may only read");
        status
            .metadata_mut()
            .insert(HINT, MetadataValue::from_static("ask an admin"));
        let fault = fault(status);
        assert_eq!(
            fault.to_string(),
            "run on web-1: role `reader` may only read"
        );
        assert_eq!(fault.exit, Exit::Denied);
        assert_eq!(fault.hint.as_deref(), Some("ask an admin"));
    }

    #[test]
    fn a_status_without_words_still_says_something() {
        let fault = fault(Status::new(Code::Unavailable, ""));
        assert_eq!(fault.to_string(), "ask the collector: the connection broke");
        assert_eq!(fault.exit, Exit::Unreachable);
    }
}
