//! How a machine becomes a node, and stays one: join tokens, certificates, renewal.
//!
//! Every certificate issued stands in the control log (its serial) and in the node's shard (its expiry)
//! before it leaves the collector.

pub(crate) mod service;

use std::{collections::HashMap, sync::Arc};

use nexus_pki::{
    admission::{Admission, PeerIdentity},
    authority::{Authority, AuthorityError, Issued},
    csr::{self, CsrError},
    renewal::{self, RenewalError},
    token::{Token, TokenError},
};
use nexus_proto::{
    agent::v1 as wire,
    ids::{IdError, Incarnation, NodeId},
    limits,
    operator::v1::AuditRow,
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_store::{
    Store, StoreError,
    entry::{
        CertificateIssued, ControlEntry, Entry, NodeEnrolled, NodeHeld, SerialIssued, TokenUsed,
    },
};

use crate::{
    addresses::Addresses,
    pages::metrics::{ByReason, Metrics},
    refusals::Refusals,
    sessions::hello::{self, HelloError},
    trust::{Trust, TrustError},
};

/// Nobody gets in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolmentError {
    /// The token.
    #[error("the join token is not accepted")]
    Token(#[from] TokenError),
    /// The token's count, revocation or absence.
    #[error("the join token is not accepted: {0}")]
    Spent(String),
    /// No policy yet.
    #[error("the join token cannot be checked")]
    Trust(#[from] TrustError),
    /// The requested key.
    #[error("the certificate signing request is not accepted")]
    Csr(#[from] CsrError),
    /// The name or facts.
    #[error("the node's description is not accepted")]
    Description(#[from] HelloError),
    /// The incarnation.
    #[error("the node's incarnation is not accepted")]
    Incarnation(#[from] IdError),
    /// The old key.
    #[error("the renewal is not accepted")]
    Renewal(#[from] RenewalError),
    /// Not a node, or no longer.
    #[error("{0} is not enrolled here: enrol it again with a new token")]
    Unknown(NodeId),
    /// Held.
    #[error("{node} is {state}: {reason}")]
    Held {
        node: NodeId,
        state: String,
        reason: String,
    },
    /// No agent.
    #[error("only agents renew here")]
    NoAgent,
    /// The authority.
    #[error("the certificate could not be issued")]
    Authority(#[from] AuthorityError),
    /// The store.
    #[error("the enrolment could not be kept")]
    Store(#[from] StoreError),
}

/// Issues identities to agents.
#[derive(Debug)]
pub(crate) struct Enrolment {
    pub(crate) refusals: Refusals,
    pub(crate) store: Store,
    pub(crate) authority: Arc<Authority>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) addresses: Addresses,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

impl Enrolment {
    fn admission(&self) -> &Admission {
        self.authority.admission()
    }

    /// A token and a request for a certificate become a node.
    pub(crate) async fn enrol(
        &self,
        request: wire::EnrolRequest,
        request_id: &str,
    ) -> Result<wire::Identity, EnrolmentError> {
        let now = self.clock.now();
        let token = Token::from_bytes(&request.token)?;
        let policy = self.trust.policy()?;
        let root = self.authority.root().sha256();
        let claims = nexus_pki::token::verify(token.envelope(), &policy, &root, now)?;
        hello::check_name(&request.name)?;
        let facts = request.facts.unwrap_or_default();
        hello::check_facts(&facts)?;
        let incarnation = Incarnation::from_wire(&request.incarnation)?;
        csr::check(&request.csr_der)?;

        // The use is spent before the node exists: a crash in between costs a use, never gives one.
        let node = NodeId::random();
        let used = ControlEntry::TokenUsed(TokenUsed {
            token: claims.id.to_wire(),
            node: node.to_wire(),
            name: request.name.clone(),
            time_ms: now.as_ms(),
        });
        let outcomes = self.store.control_append(vec![used]).await?;
        if let Some(why) = outcomes.iter().find_map(|outcome| outcome.refusal()) {
            return Err(EnrolmentError::Spent(why.to_owned()));
        }
        let issued = self.authority.issue_agent(&request.csr_der, node, now)?;
        let labels: HashMap<String, String> = claims.labels.clone().into_iter().collect();
        let enrolled = NodeEnrolled {
            node: node.to_wire(),
            name: request.name.clone(),
            incarnation: incarnation.to_wire(),
            labels: labels.clone(),
            facts: Some(facts),
            certificate_expires_ms: issued.not_after.as_ms(),
            time_ms: now.as_ms(),
        };
        self.record(
            &issued,
            vec![enrolled.into(), certificate(node, &issued, now)],
            node,
            now,
        )
        .await?;
        self.audit(
            &issued,
            "enrol",
            node,
            serde_json::json!({"token": claims.id.to_string(), "name": request.name}),
            request_id,
            now,
        )
        .await?;
        tracing::info!(%node, name = request.name, token = %claims.id, "enrolled");
        Ok(self.identity(node, &issued, labels, now))
    }

    /// A new key for the node whose connection this is.
    pub(crate) async fn renew(
        &self,
        peer: &PeerIdentity,
        csr_der: &[u8],
    ) -> Result<wire::Identity, EnrolmentError> {
        let now = self.clock.now();
        let node = peer.spiffe.node().ok_or(EnrolmentError::NoAgent)?;
        let labels = self.labels_of_free_node(node, false)?;
        let issued = self.authority.issue_agent(csr_der, node, now)?;
        self.record(&issued, vec![certificate(node, &issued, now)], node, now)
            .await?;
        tracing::info!(%node, expires = %issued.not_after, "renewed a certificate");
        Ok(self.identity(node, &issued, labels, now))
    }

    /// A new key for a node whose certificate expired: it stays quarantined until its Hello shows that it
    /// is still the same.
    pub(crate) async fn renew_expired(
        &self,
        request: wire::RenewExpiredRequest,
        request_id: &str,
    ) -> Result<wire::Identity, EnrolmentError> {
        let now = self.clock.now();
        let peer = renewal::verify(&request, self.admission(), now)?;
        let node = peer.spiffe.node().ok_or(EnrolmentError::NoAgent)?;
        let labels = self.labels_of_free_node(node, true)?;
        let issued = self.authority.issue_agent(&request.csr_der, node, now)?;
        let reason = format!(
            "{}: its certificate expired at {}",
            hello::LATE_RENEWAL,
            peer.not_after
        );
        let held = NodeHeld {
            node: node.to_wire(),
            state: "quarantined".to_owned(),
            reason: reason.clone(),
            time_ms: now.as_ms(),
        };
        self.record(
            &issued,
            vec![held.into(), certificate(node, &issued, now)],
            node,
            now,
        )
        .await?;
        self.audit(
            &issued,
            "renew-expired",
            node,
            serde_json::json!({"reason": reason}),
            request_id,
            now,
        )
        .await?;
        tracing::info!(%node, reason, "renewed an expired certificate; quarantined until its next hello");
        Ok(self.identity(node, &issued, labels, now))
    }

    fn labels_of_free_node(
        &self,
        node: NodeId,
        late_allowed: bool,
    ) -> Result<HashMap<String, String>, EnrolmentError> {
        let row = self
            .store
            .node(node)?
            .ok_or(EnrolmentError::Unknown(node))?;
        let late = late_allowed && row.state_reason.starts_with(hello::LATE_RENEWAL);
        if hello::is_held(&row.state) && !late {
            return Err(EnrolmentError::Held {
                node,
                state: row.state,
                reason: row.state_reason,
            });
        }
        Ok(row.labels.into_iter().collect())
    }

    async fn record(
        &self,
        issued: &Issued,
        entries: Vec<Entry>,
        node: NodeId,
        now: Timestamp,
    ) -> Result<(), EnrolmentError> {
        let serial = ControlEntry::Serial(SerialIssued {
            serial: issued.serial.to_string(),
            identity: issued.spiffe.to_string(),
            role: issued.spiffe.role().name().to_owned(),
            issued_ms: now.as_ms(),
            expires_ms: issued.not_after.as_ms(),
        });
        let shard = self.store.shard_of(node);
        tokio::try_join!(
            self.store.control_append(vec![serial]),
            self.store.append(shard, entries)
        )?;
        Ok(())
    }

    async fn audit(
        &self,
        issued: &Issued,
        action: &str,
        node: NodeId,
        detail: serde_json::Value,
        request_id: &str,
        now: Timestamp,
    ) -> Result<(), EnrolmentError> {
        let event = AuditRow {
            time_ms: now.as_ms(),
            actor: issued.spiffe.to_string(),
            action: action.to_owned(),
            subject: format!("nodes/{node}"),
            decision: "allowed".to_owned(),
            detail: detail.to_string(),
            request_id: request_id.to_owned(),
            ..AuditRow::default()
        };
        self.store.audit(event).await?;
        Ok(())
    }

    fn identity(
        &self,
        node: NodeId,
        issued: &Issued,
        labels: HashMap<String, String>,
        now: Timestamp,
    ) -> wire::Identity {
        let trust = self.trust.current();
        wire::Identity {
            node_id: node.to_wire(),
            chain_der: issued.chain_to_wire(),
            root_der: self.authority.root().der().to_vec().into(),
            policy: trust.policy.map(|policy| policy.envelope().clone()),
            freshness: trust.freshness,
            addresses: self.addresses.agents(),
            labels,
            time_ms: now.as_ms(),
        }
    }

    fn count(&self, reason: &'static str) {
        self.metrics
            .enrolments
            .get_or_create(&ByReason { reason })
            .inc();
    }
}

fn certificate(node: NodeId, issued: &Issued, now: Timestamp) -> Entry {
    CertificateIssued {
        node: node.to_wire(),
        serial: issued.serial.to_string(),
        expires_ms: issued.not_after.as_ms(),
        time_ms: now.as_ms(),
    }
    .into()
}

/// Bytes of a request to enrol beyond which nothing of it is looked at.
pub(crate) const REQUEST_BYTES: usize = limits::TOKEN_BYTES + limits::CSR_BYTES + 64 * 1024;
