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
    /// Signed in another operator's name.
    #[error("the job names the operator `{named}` and was signed by {signers}")]
    Operator {
        /// Whom the job names.
        named: String,
        /// Who signed it.
        signers: String,
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
/// (`threshold` 1) but for what asks for more. The job must be for the policy's trust domain, and the operator it
/// names one of those who signed it.
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
    let signers: Vec<&str> = verified
        .signed_by()
        .iter()
        .map(|signer| signer.name.as_str())
        .collect();
    if !signers.contains(&job.operator.as_str()) {
        return Err(SignedJobError::Operator {
            named: job.operator,
            signers: signers.join(", "),
        });
    }
    Ok((job, verified))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nexus_proto::{
        ids::JobId,
        job::{Action, Context},
        time::Timestamp,
    };
    use proptest::prelude::*;
    use prost::bytes::Bytes;

    use super::*;
    use crate::{policy::SignerPolicy, signing::Signer, testing::DOMAIN};

    fn policy(keys: &[&SigningKey]) -> TrustedPolicy {
        let policy = SignerPolicy {
            version: 1,
            trust_domain: DOMAIN.to_owned(),
            threshold: 1,
            signers: keys
                .iter()
                .enumerate()
                .map(|(index, key)| Signer {
                    name: format!("operator-{index}"),
                    public_key: key.public_key(),
                })
                .collect(),
            created: Timestamp(0),
        };
        TrustedPolicy::first(policy.sign(keys[0]).unwrap(), DOMAIN).unwrap()
    }

    fn job() -> Job {
        Job {
            id: JobId::random(),
            trust_domain: DOMAIN.to_owned(),
            targets_root: [1; 32],
            target_count: 1,
            action: Action::Command {
                argv: vec!["true".to_owned()],
                context: Context::default(),
                stdin: Bytes::new(),
            },
            timeout: Duration::from_secs(1),
            kill_grace: Duration::from_secs(1),
            output_limit_bytes: 1,
            created: Timestamp(0),
            not_before: Timestamp(0),
            expires: Timestamp(1),
            policy_version: 1,
            request_id: String::new(),
            operator: "operator-0".to_owned(),
            idempotent: false,
        }
    }

    #[test]
    fn a_signed_job_is_read_again() {
        let (one, two) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let policy = policy(&[&one, &two]);
        let job = job();
        let mut envelope = sign(&one, &job).unwrap();
        let (found, verified) = verify(&envelope, &policy, 1).unwrap();
        assert_eq!(found, job);
        assert_eq!(verified.signed_by()[0].name, "operator-0");
        // What asks for two signers.
        assert!(matches!(
            verify(&envelope, &policy, 2),
            Err(SignedJobError::Signature(_))
        ));
        dsse::add_signature(&two, &mut envelope);
        assert_eq!(verify(&envelope, &policy, 2).unwrap().0, job);
    }

    #[test]
    fn nothing_is_parsed_that_was_not_signed() {
        let (one, two) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let policy = policy(&[&one]);
        // Were it parsed first, the answer would be about the payload.
        let rubbish = dsse::sign(&two, payload_type::JOB, Bytes::from_static(b"\xff"));
        assert!(matches!(
            verify(&rubbish, &policy, 1),
            Err(SignedJobError::Signature(_))
        ));
        let signed = dsse::sign(&one, payload_type::JOB, Bytes::from_static(b"\xff"));
        assert!(matches!(
            verify(&signed, &policy, 1),
            Err(SignedJobError::Job(_))
        ));
        // A verified document of another kind is no job, whatever its bytes are.
        let bytes = job().encode().unwrap();
        let other = dsse::sign(&one, payload_type::FRESHNESS, bytes);
        let verified = dsse::verify(&other, payload_type::FRESHNESS, policy.signers(), 1).unwrap();
        assert!(matches!(parse(&verified), Err(SignedJobError::Type)));
    }

    #[test]
    fn nobody_signs_in_anothers_name() {
        let (one, two) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let policy = policy(&[&one, &two]);
        let mut envelope = sign(&two, &job()).unwrap();
        let error = verify(&envelope, &policy, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the job names the operator `operator-0` and was signed by operator-1"
        );
        dsse::add_signature(&one, &mut envelope);
        assert!(verify(&envelope, &policy, 1).is_ok());
    }

    #[test]
    fn a_job_is_for_one_fleet() {
        let key = SigningKey::generate().unwrap();
        let elsewhere = Job {
            trust_domain: "example.com".to_owned(),
            ..job()
        };
        assert!(matches!(
            verify(&sign(&key, &elsewhere).unwrap(), &policy(&[&key]), 1),
            Err(SignedJobError::TrustDomain { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bit_of_an_encoded_envelope_changes_a_job(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            use prost::Message as _;
            let key = SigningKey::generate().unwrap();
            let job = job();
            let mut bytes = sign(&key, &job).unwrap().encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(envelope) = wire::Envelope::decode(bytes.as_slice())
                && let Ok((found, _)) = verify(&envelope, &policy(&[&key]), 1)
            {
                prop_assert_eq!(found, job);
            }
        }
    }
}
