//! How an operator gets in: a one-time code becomes a certificate; certificates are renewed by use; the
//! signer policy and its freshness are handed in.
//!
//! The keys are made on the operator's machine. This side certifies one of them, and lists neither: the
//! signing key's public half stands in a policy that operators sign.

use nexus_pki::{
    authority::Issued, csr, policy::TrustedPolicy, signing::PublicKey, spiffe::SpiffeId,
};
use nexus_proto::{
    operator::v1::{
        LoginRequest, LoginResponse, OperatorCertificate, OperatorRenewRequest, Trust as WireTrust,
    },
    time::Timestamp,
};
use nexus_store::entry::{ControlEntry, OperatorLoggedIn, SerialIssued};
use tonic::{Code, Status};

use super::{
    Operators,
    authorize::Caller,
    gate::Act,
    status::{failed, hinted, of_store},
};
use crate::{
    codes::CodeError,
    trust::{TrustError, not_ahead},
};

const LOGIN_HINT: &str = "`nexus-collector login-code` on the collector's host prints a new code";

impl Operators {
    /// A code becomes a certificate, and for the first operator of a fleet the signer policy.
    pub(crate) async fn login(
        &self,
        act: &Act,
        request: LoginRequest,
    ) -> Result<LoginResponse, Status> {
        let now = self.clock.now();
        // Whatever can be wrong with the request is found before the code is spent.
        csr::check(&request.csr_der)
            .map_err(|error| failed(Code::InvalidArgument, "login", &error))?;
        let key = PublicKey::from_wire(&request.signing_public_key)
            .map_err(|error| failed(Code::InvalidArgument, "login", &error))?;
        let first = match (self.trust.current().policy, &request.policy) {
            (Some(_), _) => None,
            (None, None) => {
                return Err(Status::invalid_argument(
                    "login: this fleet has no signer policy yet, and the request brings none",
                ));
            }
            (None, Some(envelope)) => Some(self.first_policy(envelope, key, now)?),
        };
        let name = self.spend(act, &request, now).await?;
        if let Some(policy) = &first
            && policy.signers().iter().any(|signer| signer.name != name)
        {
            return Err(Status::invalid_argument(format!(
                "login: the policy names another signer than `{name}`, whose code this is"
            )));
        }
        let spiffe = SpiffeId::operator(self.authority.trust_domain(), &name)
            .map_err(|error| failed(Code::Internal, "login", &error))?;
        let detail = serde_json::json!({
            "name": name,
            "signing_key": key.key_id(),
            "first_policy": first.is_some(),
        });
        act.record_as(spiffe.to_string(), format!("operators/{name}"), detail)
            .await?;
        if let Some(policy) = first {
            self.trust
                .take_policy(policy.envelope().clone(), now)
                .await
                .map_err(|error| of_trust("login", &error))?;
        }
        let issued = self
            .authority
            .issue_operator(&request.csr_der, &name, now)
            .map_err(|error| failed(Code::Internal, "login", &error))?;
        let entries = vec![
            ControlEntry::Operator(OperatorLoggedIn {
                name: name.clone(),
                signing_key: request.signing_public_key.clone(),
                time_ms: now.as_ms(),
            }),
            serial(&issued, now),
        ];
        self.store
            .control_append(entries)
            .await
            .map_err(|error| of_store("login", &error))?;
        let policy = self
            .trust
            .policy()
            .map_err(|error| of_trust("login", &error))?;
        let signer = policy
            .signers()
            .iter()
            .any(|signer| signer.public_key == key);
        if signer && let Some(freshness) = request.freshness {
            // A returning operator states this about the policy it knew; if that is an older one, it states
            // it again once it has the present one.
            match self.trust.take_freshness(freshness, now).await {
                Ok(()) => {}
                Err(error @ TrustError::Ahead { .. }) => {
                    tracing::warn!(%error, name, "a freshness statement was not taken at login");
                }
                Err(error) => {
                    tracing::debug!(%error, "a freshness statement was not taken at login");
                }
            }
        }
        tracing::info!(name, signer, "logged in");
        Ok(LoginResponse {
            certificate: Some(self.certificate(&issued, &name)),
            policy: Some(policy.envelope().clone()),
            signer,
        })
    }

    fn first_policy(
        &self,
        envelope: &nexus_proto::agent::v1::Envelope,
        key: PublicKey,
        now: Timestamp,
    ) -> Result<TrustedPolicy, Status> {
        let policy = TrustedPolicy::first(envelope.clone(), self.authority.trust_domain())
            .map_err(|error| failed(Code::InvalidArgument, "login", &error))?;
        not_ahead("signer policy", policy.policy().created, now)
            .map_err(|error| of_trust("login", &error))?;
        let [signer] = policy.signers() else {
            return Err(Status::invalid_argument(
                "login: the first signer policy lists its one operator and nobody else",
            ));
        };
        if signer.public_key != key {
            return Err(Status::invalid_argument(
                "login: the first signer policy does not list the key that logs in",
            ));
        }
        Ok(policy)
    }

    async fn spend(
        &self,
        act: &Act,
        request: &LoginRequest,
        now: Timestamp,
    ) -> Result<String, Status> {
        let instant = self.clock.instant();
        let spent = self
            .codes
            .spend(&request.code_id, &request.code_secret, now, instant);
        let error = match spent {
            Ok(name) => return Ok(name),
            Err(error) => error,
        };
        let why = match &error {
            CodeError::Invalid(why) => (*why).to_owned(),
            other => other.to_string(),
        };
        // Attempts beyond the limit leave no trace of their own: the limit is there to keep chain and log short.
        if !matches!(error, CodeError::TooMany) {
            act.refuse(why).await?;
        }
        let code = match &error {
            CodeError::Invalid(_) => Code::Unauthenticated,
            CodeError::TooMany => Code::ResourceExhausted,
            CodeError::File(_) | CodeError::Io { .. } | CodeError::Json(_) => Code::Internal,
        };
        Err(hinted(failed(code, "login", &error), LOGIN_HINT))
    }

    /// A new certificate for the operator whose connection this is.
    pub(crate) async fn renew(
        &self,
        act: &Act,
        request: OperatorRenewRequest,
    ) -> Result<OperatorCertificate, Status> {
        let now = self.clock.now();
        let Caller::Operator { name, .. } = &act.caller else {
            return Err(Status::permission_denied(
                "renew: the caller is no operator",
            ));
        };
        csr::check(&request.csr_der)
            .map_err(|error| failed(Code::InvalidArgument, "renew", &error))?;
        let issued = self
            .authority
            .issue_operator(&request.csr_der, name, now)
            .map_err(|error| failed(Code::Internal, "renew", &error))?;
        self.store
            .control_append(vec![serial(&issued, now)])
            .await
            .map_err(|error| of_store("renew", &error))?;
        Ok(self.certificate(&issued, name))
    }

    /// What a client needs to make tokens and jobs.
    pub(crate) fn trust_to_wire(&self) -> WireTrust {
        let current = self.trust.current();
        WireTrust {
            policy: current.policy.map(|policy| policy.envelope().clone()),
            freshness: current.freshness,
            root_der: self.authority.root().der().to_vec().into(),
            trust_domain: self.authority.trust_domain().to_owned(),
            agent_addresses: self.addresses.agents(),
        }
    }

    /// Takes a new policy, a freshness statement, or both.
    pub(crate) async fn put_trust(&self, act: &Act, trust: WireTrust) -> Result<WireTrust, Status> {
        let now = self.clock.now();
        let detail = serde_json::json!({
            "policy": trust.policy.is_some(),
            "freshness": trust.freshness.is_some(),
        });
        act.record("trust", detail).await?;
        if let Some(policy) = trust.policy {
            self.trust
                .take_policy(policy, now)
                .await
                .map_err(|error| of_trust("put the signer policy", &error))?;
        }
        if let Some(freshness) = trust.freshness {
            self.trust
                .take_freshness(freshness, now)
                .await
                .map_err(|error| of_trust("put the freshness statement", &error))?;
        }
        Ok(self.trust_to_wire())
    }

    fn certificate(&self, issued: &Issued, name: &str) -> OperatorCertificate {
        OperatorCertificate {
            chain_der: issued.chain_to_wire(),
            root_der: self.authority.root().der().to_vec().into(),
            name: name.to_owned(),
            trust_domain: self.authority.trust_domain().to_owned(),
        }
    }
}

fn serial(issued: &Issued, now: Timestamp) -> ControlEntry {
    ControlEntry::Serial(SerialIssued {
        serial: issued.serial.to_string(),
        identity: issued.spiffe.to_string(),
        role: issued.spiffe.role().name().to_owned(),
        issued_ms: now.as_ms(),
        expires_ms: issued.not_after.as_ms(),
    })
}

/// What a failure of the policy means to a caller.
pub(crate) fn of_trust(what: &str, error: &TrustError) -> Status {
    let code = match error {
        TrustError::Policy(_) => Code::InvalidArgument,
        TrustError::None | TrustError::Refused(_) | TrustError::Ahead { .. } => {
            Code::FailedPrecondition
        }
        TrustError::Store(_) => Code::Unavailable,
    };
    failed(code, what, error)
}
