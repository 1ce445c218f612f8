//! The signer policy in force and its freshness: verified, kept in the control log, handed to agents.
//!
//! A collector cannot make either, only pass them on; what it passes on it has verified itself first.

use std::sync::{Arc, Mutex, PoisonError};

use nexus_pki::{
    policy::{PolicyError, TrustedPolicy},
    sha256,
};
use nexus_proto::{agent::v1 as wire, limits, time::Timestamp};
use nexus_store::{
    Store, StoreError,
    entry::{ControlEntry, FreshnessSet, PolicySet},
};
use tokio::sync::watch;

/// A policy or statement that is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// It does not verify.
    #[error("the signer policy is not to be believed")]
    Policy(#[from] PolicyError),
    /// No operator has logged in.
    #[error("there is no signer policy yet: an operator has to log in first")]
    None,
    /// The control log.
    #[error("the signer policy could not be kept")]
    Store(#[from] StoreError),
    /// Made by a clock that is ahead: agents take a signed time for the present one.
    #[error(
        "the {what} was made at {at}, it is {now}: set the clock that is wrong and sign it again"
    )]
    Ahead {
        what: &'static str,
        at: Timestamp,
        now: Timestamp,
    },
    /// The control log has another one already.
    #[error("the signer policy was not taken: {0}")]
    Refused(String),
}

/// Agents judge expiry by the newest time an operator signed: one far ahead would end every job before its time, and
/// no later statement with the right time would mend it.
pub(crate) fn not_ahead(
    what: &'static str,
    at: Timestamp,
    now: Timestamp,
) -> Result<(), TrustError> {
    if at > now.after(limits::CLOCK_SKEW) {
        return Err(TrustError::Ahead { what, at, now });
    }
    Ok(())
}

/// What agents are told.
#[derive(Debug, Clone, Default)]
pub(crate) struct InForce {
    /// The policy, once there is one.
    pub(crate) policy: Option<Arc<TrustedPolicy>>,
    /// The newest freshness statement about it.
    pub(crate) freshness: Option<wire::Envelope>,
    /// When that ends.
    pub(crate) fresh_until: Option<Timestamp>,
}

impl InForce {
    /// As a session sends it.
    pub(crate) fn to_update(&self) -> Option<wire::TrustUpdate> {
        Some(wire::TrustUpdate {
            policy: Some(self.policy.as_ref()?.envelope().clone()),
            freshness: self.freshness.clone(),
        })
    }
}

/// The policy in force.
#[derive(Debug)]
pub(crate) struct Trust {
    trust_domain: String,
    store: Store,
    current: watch::Sender<InForce>,
    /// Held while something is verified against the policy in force and then replaces it.
    changing: tokio::sync::Mutex<()>,
    newest_seen: Mutex<Timestamp>,
}

impl Trust {
    /// Reads what the control log holds.
    pub(crate) fn load(
        store: Store,
        trust_domain: &str,
        now: Timestamp,
    ) -> Result<Self, TrustError> {
        let mut current = InForce::default();
        let held = store.trust()?;
        if let Some(envelope) = held.policy {
            // Verified when it was taken; checked again because it comes from a file.
            let policy = TrustedPolicy::establish(
                envelope.clone(),
                &sha256(&envelope.payload),
                trust_domain,
            )?;
            if let Some(freshness) = held.freshness {
                match policy.verify_freshness(&freshness, now) {
                    Ok(statement) => {
                        current.fresh_until = Some(statement.expires);
                        current.freshness = Some(freshness);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the stored freshness statement is not current; an operator renews it by `nexusctl login`");
                        current.freshness = Some(freshness);
                    }
                }
            }
            current.policy = Some(Arc::new(policy));
        }
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            store,
            current: watch::Sender::new(current),
            changing: tokio::sync::Mutex::default(),
            newest_seen: Mutex::new(now),
        })
    }

    /// What is in force.
    pub(crate) fn current(&self) -> InForce {
        self.current.borrow().clone()
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> Result<Arc<TrustedPolicy>, TrustError> {
        self.current.borrow().policy.clone().ok_or(TrustError::None)
    }

    /// Changes with it.
    pub(crate) fn changes(&self) -> watch::Receiver<InForce> {
        self.current.subscribe()
    }

    /// Takes a policy: the first one signed by a key it lists itself, later ones by the one before.
    pub(crate) async fn take_policy(
        &self,
        envelope: wire::Envelope,
        now: Timestamp,
    ) -> Result<Arc<TrustedPolicy>, TrustError> {
        let _changing = self.changing.lock().await;
        let policy = match self.current().policy {
            Some(held) if held.envelope().payload == envelope.payload => return Ok(held),
            Some(held) => held.update(envelope)?,
            None => TrustedPolicy::first(envelope, &self.trust_domain)?,
        };
        not_ahead("signer policy", policy.policy().created, now)?;
        let entry = ControlEntry::Policy(PolicySet {
            envelope: Some(policy.envelope().clone()),
            version: policy.version(),
            time_ms: now.as_ms(),
        });
        self.write(entry).await?;
        let policy = Arc::new(policy);
        self.current.send_modify(|current| {
            // A statement about the policy before says nothing about this one.
            *current = InForce {
                policy: Some(Arc::clone(&policy)),
                ..InForce::default()
            };
        });
        Ok(policy)
    }

    /// Takes a statement that the policy in force is current, if it says so for longer than the one held.
    pub(crate) async fn take_freshness(
        &self,
        envelope: wire::Envelope,
        now: Timestamp,
    ) -> Result<(), TrustError> {
        let _changing = self.changing.lock().await;
        let policy = self.policy()?;
        let statement = policy.verify_freshness(&envelope, self.newest(now))?;
        not_ahead("freshness statement", statement.issued, now)?;
        if self
            .current()
            .fresh_until
            .is_some_and(|until| until >= statement.expires)
        {
            return Ok(());
        }
        let entry = ControlEntry::Freshness(FreshnessSet {
            envelope: Some(envelope.clone()),
            expires_ms: statement.expires.as_ms(),
            time_ms: now.as_ms(),
        });
        self.write(entry).await?;
        self.current.send_modify(|current| {
            current.freshness = Some(envelope);
            current.fresh_until = Some(statement.expires);
        });
        Ok(())
    }

    /// A clock that goes back makes no statement current again.
    fn newest(&self, now: Timestamp) -> Timestamp {
        let mut newest = self
            .newest_seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *newest = now.max(*newest);
        *newest
    }

    async fn write(&self, entry: ControlEntry) -> Result<(), TrustError> {
        let outcomes = self.store.control_append(vec![entry]).await?;
        match outcomes.iter().find_map(|outcome| outcome.refusal()) {
            Some(why) => Err(TrustError::Refused(why.to_owned())),
            None => Ok(()),
        }
    }
}
