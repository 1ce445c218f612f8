//! What a collector that was taken over says instead of the truth.

use std::sync::Arc;

use nexus_pki::authority::Authority;
use nexus_proto::{
    agent::v1::Envelope,
    operator::v1::{self as wire, job_update::Kind},
};

/// Nothing, unless a test says so.
#[derive(Default)]
pub(crate) struct Lies {
    /// The answer to every question for nodes.
    pub(crate) nodes: Option<Vec<wire::Node>>,
    /// The signer policy in force.
    pub(crate) policy: Option<Envelope>,
    /// What its clock is ahead of ours.
    pub(crate) clock_ms: i64,
    /// Whose name operators' certificates have.
    pub(crate) operator: Option<String>,
    /// Who issues operators' certificates.
    pub(crate) authority: Option<Arc<Authority>>,
    /// Where agents shall connect.
    pub(crate) addresses: Option<Vec<String>>,
    /// Logins are heard and not answered.
    pub(crate) silent_login: bool,
    /// Why it lists no nodes.
    pub(crate) refusal: Option<String>,
    /// The answer to every query.
    pub(crate) answer: Option<wire::QueryResponse>,
    /// What it says of a job besides what is true.
    pub(crate) updates: Vec<Kind>,
}
