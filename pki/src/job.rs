//! Jobs as signed documents: [`sign`] makes an envelope, [`parse`] reads only what was verified.

use nexus_proto::{
    agent::v1 as wire,
    job::{Job, JobError},
};

use crate::{
    dsse::{self, DsseError, VerifiedPayload, payload_type},
    policy::TrustedPolicy,
    signing::SigningKey,
};

/// An envelope that holds no job to believe.
#[derive(Debug, thiserror::Error)]
pub enum SignedJobError {
    /// Its signatures do not hold.
    #[error("the job's signature")]
    Signature(#[from] DsseError),
    /// Signed by someone who may, but no valid job.
    #[error("the signed job")]
    Job(#[from] JobError),
    /// A verified document of another kind.
    #[error("the verified document is no job")]
    Type,
    /// For another fleet.
    #[error("the job is for the trust domain `{found}`, this is `{expected}`")]
    TrustDomain {
        /// The job's.
        found: String,
        /// Ours.
        expected: String,
    },
}

/// Signs a job; one that breaks a limit is refused.
pub fn sign(key: &SigningKey, job: &Job) -> Result<wire::Envelope, JobError> {
    Ok(dsse::sign(key, payload_type::JOB, job.encode()?))
}

/// Reads a verified job.
pub fn parse(payload: &VerifiedPayload) -> Result<Job, SignedJobError> {
    if payload.payload_type() != payload_type::JOB {
        return Err(SignedJobError::Type);
    }
    Ok(Job::decode(payload.payload())?)
}

/// Verifies an envelope against the signers of a policy, then reads its job: one signature is enough
/// (`threshold` 1) but for what asks for more. The job must be for the policy's trust domain.
pub fn verify(
    envelope: &wire::Envelope,
    policy: &TrustedPolicy,
    threshold: u32,
) -> Result<(Job, VerifiedPayload), SignedJobError> {
    let verified = dsse::verify(envelope, payload_type::JOB, policy.signers(), threshold)?;
    let job = parse(&verified)?;
    if job.trust_domain != policy.trust_domain() {
        return Err(SignedJobError::TrustDomain {
            found: job.trust_domain,
            expected: policy.trust_domain().to_owned(),
        });
    }
    Ok((job, verified))
}
