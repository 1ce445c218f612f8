//! Whether a dispatch may run here: one decision, in one place, for every job.
//!
//! In order: the envelope is verified against the pinned signers; only then is the job parsed; then its
//! trust domain, its policy's version, the policy's freshness, the proof that this very node (id, name and
//! incarnation as at enrolment) is among the targets, its window of time, whether it was taken before, and
//! whether there is room. A collector can withhold a job or offer it late; it cannot make one.
//!
//! Nothing here does I/O or asks a clock.

use nexus_pki::{
    job::{self, SignedJobError},
    merkle::{self, MerkleError, Target},
    policy::{Freshness, PolicyError, TrustedPolicy},
};
use nexus_proto::{
    agent::v1 as wire,
    ids::{JobId, RunKey},
    job::Job,
    limits,
    time::Timestamp,
};
use prost::Message as _;

/// What a dispatch is judged by.
#[derive(Debug)]
pub struct View<'a> {
    /// This node as the collector enrolled it.
    pub own: &'a Target,
    /// The signers this node trusts.
    pub policy: &'a TrustedPolicy,
    /// The newest statement that they are still the ones.
    pub freshness: Option<&'a Freshness>,
    /// The later of the wall clock and the newest time an operator has signed.
    pub now: Timestamp,
    /// Jobs that expire no later than this are expired, whatever the clock says.
    pub horizon: Timestamp,
    /// Of jobs signed no later than this it is not known whether they ran here.
    pub since: Timestamp,
    /// Executions that are held or run.
    pub active: usize,
    /// How many there may be.
    pub most: usize,
    /// Whether the spool has room for results.
    pub room: bool,
}

/// A dispatch that may run.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Which execution.
    pub key: RunKey,
    /// Of what.
    pub job: Job,
}

/// Why a dispatch may not run.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It holds no job.
    #[error("the dispatch has no job")]
    NoJob,
    /// Not signed by whom this node trusts, not a job, or of another fleet.
    #[error("the job is not acceptable")]
    Job(#[from] SignedJobError),
    /// Signed under a policy this node does not have yet.
    #[error("the job was signed under policy {found}, this node holds {held}")]
    PolicyVersion {
        /// The job's.
        found: u64,
        /// Ours.
        held: u64,
    },
    /// Nobody has lately said that the policy is current.
    #[error("the signer policy is not known to be current")]
    Stale(#[source] PolicyError),
    /// There never was such a statement.
    #[error("this node has no statement that its signer policy is current")]
    NoFreshness,
    /// This node is not among the targets.
    #[error("this node is not among the job's targets")]
    Target(#[from] MerkleError),
    /// Nobody signed that it may run more than once.
    #[error("the dispatch is for another execution than the one that was signed")]
    Again,
    /// There is no proof.
    #[error("the dispatch has no proof that this node is among the job's targets")]
    NoProof,
    /// Its time is over.
    #[error("the job expired at {expires}, it is {now}")]
    Expired {
        /// When it did.
        expires: Timestamp,
        /// What counts as now.
        now: Timestamp,
    },
    /// It may have been taken before.
    #[error(
        "the job was signed at {created}, and what this node ran before {since} is no longer known"
    )]
    Forgotten {
        /// When it was signed.
        created: Timestamp,
        /// When the ledger was lost.
        since: Timestamp,
    },
    /// It was taken before.
    #[error("the run was taken before")]
    Replay,
    /// As many as may be are held or run.
    #[error("{0} runs are held or going on, which is as many as may be")]
    Busy(usize),
    /// There may be nowhere to keep its results.
    #[error("the spool has no room for results")]
    Full,
}

/// A refusal with what is known of the run it is about.
#[derive(Debug)]
pub struct Refused {
    /// The run to report as rejected. For an envelope that cannot be trusted it is what the envelope claims:
    /// good for a report, for nothing else.
    pub key: Option<RunKey>,
    /// The job's request id, once the job is trusted.
    pub request_id: String,
    /// When the job expires, once it is trusted and the run is the one that was signed.
    pub expires: Option<Timestamp>,
    /// Why.
    pub refusal: Refusal,
}

/// Decides. `taken`: whether the ledger knows that the run was begun, or it is held right now.
pub fn admit(
    dispatch: &wire::Dispatch,
    view: &View<'_>,
    taken: impl FnOnce(&RunKey) -> bool,
) -> Result<Admitted, Box<Refused>> {
    let key = |job| RunKey {
        job,
        occurrence: dispatch.occurrence,
        step: dispatch.step,
        attempt: dispatch.attempt,
    };
    let Some(envelope) = &dispatch.job else {
        return Err(Box::new(Refused {
            key: None,
            request_id: String::new(),
            expires: None,
            refusal: Refusal::NoJob,
        }));
    };
    let job = match job::verify(envelope, view.policy, 1) {
        Ok((job, _)) => job,
        Err(error) => {
            return Err(Box::new(Refused {
                key: claimed_job(envelope).map(key),
                request_id: String::new(),
                expires: None,
                refusal: error.into(),
            }));
        }
    };
    let key = key(job.id);
    match judge(&job, dispatch, view, || taken(&key)) {
        Ok(()) => Ok(Admitted { key, job }),
        Err(refusal) => Err(Box::new(Refused {
            key: Some(key),
            request_id: job.request_id,
            expires: (!matches!(refusal, Refusal::Again)).then_some(job.expires),
            refusal,
        })),
    }
}

fn judge(
    job: &Job,
    dispatch: &wire::Dispatch,
    view: &View<'_>,
    taken: impl FnOnce() -> bool,
) -> Result<(), Refusal> {
    // What of a dispatch is not signed must not make one signed job many executions.
    if (dispatch.occurrence, dispatch.step, dispatch.attempt) != (0, 0, 0) {
        return Err(Refusal::Again);
    }
    // Signers were checked against the policy held now, so an older version is no way around a change.
    let held = view.policy.version();
    if job.policy_version > held {
        return Err(Refusal::PolicyVersion {
            found: job.policy_version,
            held,
        });
    }
    view.freshness
        .ok_or(Refusal::NoFreshness)?
        .check(view.now)
        .map_err(Refusal::Stale)?;
    let proof = dispatch.proof.as_ref().ok_or(Refusal::NoProof)?;
    merkle::verify(&job.targets_root, job.target_count, view.own, proof)?;
    let now = view.now;
    if now >= job.expires || job.expires <= view.horizon {
        return Err(Refusal::Expired {
            expires: job.expires,
            now: now.max(view.horizon),
        });
    }
    if taken() {
        return Err(Refusal::Replay);
    }
    // The clock that dated the job may be ahead of this one.
    if job.created <= view.since.after(limits::CLOCK_SKEW) {
        return Err(Refusal::Forgotten {
            created: job.created,
            since: view.since,
        });
    }
    if view.active >= view.most {
        return Err(Refusal::Busy(view.active));
    }
    if !view.room {
        return Err(Refusal::Full);
    }
    Ok(())
}

fn claimed_job(envelope: &wire::Envelope) -> Option<JobId> {
    let job = wire::Job::decode(envelope.payload.clone()).ok()?;
    JobId::from_wire(&job.job_id).ok()
}

#[cfg(test)]
pub(crate) mod tests;
