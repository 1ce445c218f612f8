//! What operators make happen: jobs and join tokens.

use nexus_pki::token::{self, TokenError};
use nexus_proto::{
    agent::v1::Envelope,
    ids::{JobId, TokenId},
    operator::v1::{
        CancelJobRequest, CancelJobResponse, CreateTokenRequest, RevokeTokenRequest,
        SubmitJobRequest, SubmitJobResponse,
    },
};
use nexus_store::{
    RunState,
    entry::{ControlEntry, JobCancelled, TokenCreated, TokenRevoked},
};
use tonic::{Code, Status};

use super::{
    Operators,
    authorize::Caller,
    gate::Act,
    login::of_trust,
    status::{failed, hinted, of_store},
};
use crate::jobs::submit::{Submission, SubmitError};

/// Bytes of the reason of a cancellation.
const REASON_BYTES: usize = 1024;

impl Operators {
    /// Takes a signed job.
    pub(crate) async fn submit(
        &self,
        act: &Act,
        request: SubmitJobRequest,
    ) -> Result<SubmitJobResponse, Status> {
        const WHAT: &str = "submit the job";
        let now = self.clock.now();
        let envelope = request
            .job
            .ok_or_else(|| failed(Code::InvalidArgument, WHAT, &SubmitError::Missing))?;
        let submission = Submission {
            envelope,
            targets: request.targets,
            selector: request.selector,
            request_id: act.request_id.clone(),
            operator: name_of(&act.caller),
        };
        let jobs = self.jobs.clone();
        let checked = self
            .tasks
            .spawn_blocking("check a job", move || jobs.check(submission, now))
            .await
            .map_err(|_| Status::unavailable(format!("{WHAT}: the collector is shutting down")))?
            .map_err(|error| of_submit(WHAT, &error))?;
        let detail = serde_json::json!({
            "targets": checked.tree.count(),
            "action": checked.summary(),
            "expires": checked.job.expires.to_string(),
        });
        act.record(format!("jobs/{}", checked.job.id), detail)
            .await?;
        let targets = checked.tree.count();
        let id = self
            .jobs
            .create(checked, now)
            .await
            .map_err(|error| of_submit(WHAT, &error))?;
        self.metrics.jobs_submitted.inc();
        tracing::info!(job = %id, targets, "took a job");
        Ok(SubmitJobResponse {
            job_id: id.to_wire(),
        })
    }

    /// Stops what has not ended.
    pub(crate) async fn cancel(
        &self,
        act: &Act,
        request: CancelJobRequest,
    ) -> Result<CancelJobResponse, Status> {
        const WHAT: &str = "cancel the job";
        let id = JobId::from_wire(&request.job_id)
            .map_err(|error| failed(Code::InvalidArgument, WHAT, &error))?;
        if request.reason.len() > REASON_BYTES {
            return Err(Status::invalid_argument(format!(
                "{WHAT}: the reason has more than {REASON_BYTES} bytes"
            )));
        }
        let job = self
            .store
            .job(id)
            .map_err(|error| of_store(WHAT, &error))?
            .ok_or_else(|| Status::not_found(format!("{WHAT}: there is no job {id}")))?;
        if job.ended.is_some() {
            return Ok(CancelJobResponse::default());
        }
        let counts = self
            .store
            .run_counts(id)
            .map_err(|error| of_store(WHAT, &error))?;
        let count = |state| counts.get(&state).copied().unwrap_or_default();
        act.record(
            format!("jobs/{id}"),
            serde_json::json!({ "reason": request.reason }),
        )
        .await?;
        let operator = name_of(&act.caller);
        let reason = if request.reason.is_empty() {
            format!("cancelled by {operator}")
        } else {
            request.reason
        };
        let entry = ControlEntry::JobCancelled(JobCancelled {
            job: id.to_wire(),
            reason,
            operator,
            time_ms: self.clock.now().as_ms(),
        });
        self.store
            .control_append(vec![entry])
            .await
            .map_err(|error| of_store(WHAT, &error))?;
        self.jobs.hints.changed(id);
        tracing::info!(job = %id, "cancelled a job");
        Ok(CancelJobResponse {
            cancelled: count(RunState::Pending),
            stopping: count(RunState::Dispatched) + count(RunState::Running),
        })
    }

    /// Lets nodes in by a token an operator signed.
    pub(crate) async fn create_token(
        &self,
        act: &Act,
        request: CreateTokenRequest,
    ) -> Result<(), Status> {
        const WHAT: &str = "create the token";
        let envelope: Envelope = request.token.ok_or_else(|| {
            Status::invalid_argument(format!("{WHAT}: there is none in the request"))
        })?;
        let policy = self
            .trust
            .policy()
            .map_err(|error| of_trust(WHAT, &error))?;
        let root = self.authority.root().sha256();
        let token = token::verify(&envelope, &policy, &root, self.clock.now())
            .map_err(|error| of_token(WHAT, &error))?;
        if token.policy_digest != policy.digest() {
            let status = Status::failed_precondition(format!(
                "{WHAT}: it pins another signer policy than the one in force"
            ));
            return Err(hinted(status, "log in again and make it anew"));
        }
        let detail = serde_json::json!({
            "uses": token.uses, "expires": token.expires.to_string(), "labels": token.labels,
        });
        act.record(format!("tokens/{}", token.id), detail).await?;
        let entry = ControlEntry::Token(TokenCreated {
            token: token.id.to_wire(),
            envelope: Some(envelope),
            labels: token.labels.into_iter().collect(),
            uses: token.uses,
            created_ms: token.created.as_ms(),
            expires_ms: token.expires.as_ms(),
            operator: name_of(&act.caller),
        });
        self.control(WHAT, entry).await
    }

    /// Lets nobody in by a token any more.
    pub(crate) async fn revoke_token(
        &self,
        act: &Act,
        request: RevokeTokenRequest,
    ) -> Result<(), Status> {
        const WHAT: &str = "revoke the token";
        let id = TokenId::from_wire(&request.token_id)
            .map_err(|error| failed(Code::InvalidArgument, WHAT, &error))?;
        if self
            .store
            .token(id)
            .map_err(|error| of_store(WHAT, &error))?
            .is_none()
        {
            return Err(Status::not_found(format!("{WHAT}: there is no token {id}")));
        }
        act.record(format!("tokens/{id}"), serde_json::json!({}))
            .await?;
        let entry = ControlEntry::TokenRevoked(TokenRevoked {
            token: id.to_wire(),
            operator: name_of(&act.caller),
            time_ms: self.clock.now().as_ms(),
        });
        self.control(WHAT, entry).await
    }

    async fn control(&self, what: &str, entry: ControlEntry) -> Result<(), Status> {
        let outcomes = self
            .store
            .control_append(vec![entry])
            .await
            .map_err(|error| of_store(what, &error))?;
        match outcomes.iter().find_map(|outcome| outcome.refusal()) {
            Some(why) => Err(Status::failed_precondition(format!("{what}: {why}"))),
            None => Ok(()),
        }
    }
}

fn name_of(caller: &Caller) -> String {
    match caller {
        Caller::Operator { name, .. } => name.clone(),
        Caller::Anonymous | Caller::Other(_) => caller.actor(),
    }
}

fn of_token(what: &str, error: &TokenError) -> Status {
    let code = match error {
        TokenError::Signature(_) => Code::PermissionDenied,
        _ => Code::InvalidArgument,
    };
    failed(code, what, error)
}

fn of_submit(what: &str, error: &SubmitError) -> Status {
    match error {
        SubmitError::Trust(error) => of_trust(what, error),
        SubmitError::Store(error) => of_store(what, error),
        SubmitError::Caller { .. }
        | SubmitError::Job(nexus_pki::job::SignedJobError::Operator { .. }) => hinted(
            failed(Code::PermissionDenied, what, error),
            "sign and submit a job as one operator; log in again if the signing key is another's",
        ),
        SubmitError::Job(nexus_pki::job::SignedJobError::Signature(_)) => hinted(
            failed(Code::PermissionDenied, what, error),
            "only keys listed in the signer policy may sign jobs",
        ),
        SubmitError::Refused(_) => failed(Code::AlreadyExists, what, error),
        SubmitError::Unknown(_) => failed(Code::NotFound, what, error),
        SubmitError::PolicyVersion { .. }
        | SubmitError::Expired { .. }
        | SubmitError::Changed { .. } => failed(Code::FailedPrecondition, what, error),
        SubmitError::Missing
        | SubmitError::Job(_)
        | SubmitError::Targets(_)
        | SubmitError::Root
        | SubmitError::Selector(_) => failed(Code::InvalidArgument, what, error),
    }
}
