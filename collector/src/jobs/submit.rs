//! Taking a signed job in: what it says must hold before the intent becomes a row. The agents check the
//! signature and their own inclusion again; what is refused here only spares them the trouble, and the
//! operator the wait.

use std::{collections::BTreeMap, sync::Arc};

use nexus_pki::{
    job::{self, SignedJobError},
    merkle::{MerkleError, Tree},
};
use nexus_proto::{
    agent::v1 as wire,
    ids::{JobId, NodeId},
    job::{Action, Job},
    limits,
    time::Timestamp,
};
use nexus_store::{
    Store, StoreError,
    entry::{ControlEntry, JobCreated, RunsPlanned},
};

use super::hints::Hints;
use crate::trust::{Trust, TrustError};

/// A job that is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubmitError {
    /// No envelope.
    #[error("there is no job in the request")]
    Missing,
    /// No policy.
    #[error("the job's signature cannot be checked")]
    Trust(#[from] TrustError),
    /// Its signature or content.
    #[error("the job is not valid")]
    Job(#[from] SignedJobError),
    /// Its targets.
    #[error("the job's targets are not valid")]
    Targets(#[from] MerkleError),
    /// Other targets than the signed ones.
    #[error("the targets sent are not the ones that were signed")]
    Root,
    /// Handed in by another operator than the one who signed it.
    #[error("`{named}` signed the job, and `{caller}` handed it in")]
    Caller { named: String, caller: String },
    /// Signed under another policy.
    #[error(
        "the job was signed under version {signed} of the signer policy, version {held} is in force: log in again and sign it anew"
    )]
    PolicyVersion { signed: u64, held: u64 },
    /// Too late.
    #[error(
        "the job expired at {expires}, it is {now}: sign it again, or set the clock that is wrong"
    )]
    Expired { expires: Timestamp, now: Timestamp },
    /// Not a node.
    #[error("there is no node {0}")]
    Unknown(NodeId),
    /// Not the node that was signed for.
    #[error("the node {node} is {found} now, the job was signed for {signed}: sign it again")]
    Changed {
        node: NodeId,
        found: String,
        signed: String,
    },
    /// A selector too long to keep.
    #[error("the selector has {0} bytes, at most {max} are allowed", max = limits::SQL_BYTES)]
    Selector(usize),
    /// It is there already.
    #[error("the job was not taken: {0}")]
    Refused(String),
    /// The store.
    #[error("the job could not be kept")]
    Store(#[from] StoreError),
}

/// What was asked for.
pub(crate) struct Submission {
    pub(crate) envelope: wire::Envelope,
    pub(crate) targets: Vec<wire::Target>,
    pub(crate) selector: String,
    pub(crate) request_id: String,
    pub(crate) operator: String,
}

/// A job that may be taken.
pub(crate) struct Checked {
    pub(crate) job: Job,
    pub(crate) tree: Tree,
    submission: Submission,
}

impl Checked {
    /// What it does, in a line.
    pub(crate) fn summary(&self) -> String {
        summary(&self.job.action)
    }
}

/// Takes jobs.
#[derive(Debug, Clone)]
pub(crate) struct Jobs {
    pub(crate) store: Store,
    pub(crate) trust: Arc<Trust>,
    pub(crate) hints: Arc<Hints>,
}

impl Jobs {
    /// Checks everything that can be known before the job is there. Blocks for short reads.
    pub(crate) fn check(
        &self,
        submission: Submission,
        now: Timestamp,
    ) -> Result<Checked, SubmitError> {
        let policy = self.trust.policy()?;
        let (job, _) = job::verify(&submission.envelope, &policy, 1)?;
        if job.operator != submission.operator {
            return Err(SubmitError::Caller {
                named: job.operator,
                caller: submission.operator,
            });
        }
        if job.policy_version != policy.version() {
            return Err(SubmitError::PolicyVersion {
                signed: job.policy_version,
                held: policy.version(),
            });
        }
        if submission.selector.len() > limits::SQL_BYTES {
            return Err(SubmitError::Selector(submission.selector.len()));
        }
        let tree = Tree::from_wire(&submission.targets)?;
        if tree.root() != job.targets_root || tree.count() != job.target_count {
            return Err(SubmitError::Root);
        }
        if now >= job.expires {
            return Err(SubmitError::Expired {
                expires: job.expires,
                now,
            });
        }
        let nodes = tree.targets().iter().map(|target| target.node);
        let known = self.store.identities(nodes)?;
        for target in tree.targets() {
            let (name, incarnation) = known
                .get(&target.node)
                .ok_or(SubmitError::Unknown(target.node))?;
            if *name != target.name || *incarnation != target.incarnation {
                return Err(SubmitError::Changed {
                    node: target.node,
                    found: format!("{name} ({incarnation})"),
                    signed: format!("{} ({})", target.name, target.incarnation),
                });
            }
        }
        Ok(Checked {
            job,
            tree,
            submission,
        })
    }

    /// Makes the job's row, durably: from here on it will end. Then its runs, which the scheduler makes
    /// as well if this is cut short.
    pub(crate) async fn create(
        &self,
        checked: Checked,
        now: Timestamp,
    ) -> Result<JobId, SubmitError> {
        let Checked {
            job,
            tree,
            submission,
        } = checked;
        let created = ControlEntry::Job(JobCreated {
            job: job.id.to_wire(),
            envelope: Some(submission.envelope),
            targets: submission.targets.clone(),
            selector: submission.selector,
            request_id: submission.request_id,
            operator: submission.operator,
            summary: summary(&job.action),
            created_ms: job.created.as_ms(),
            not_before_ms: job.not_before.as_ms(),
            expires_ms: job.expires.as_ms(),
            time_ms: now.as_ms(),
        });
        let outcomes = self.store.control_append(vec![created]).await?;
        if let Some(why) = outcomes.iter().find_map(|outcome| outcome.refusal()) {
            return Err(SubmitError::Refused(why.to_owned()));
        }
        let nodes: Vec<NodeId> = tree.targets().iter().map(|target| target.node).collect();
        let planned = plan(&self.store, job.id, &nodes, &submission.targets, now).await;
        // The scheduler finds out which runs are missing.
        self.hints.changed(job.id);
        if let Err(error) = planned {
            tracing::error!(job = %job.id, %error, "the job's runs could not be planned yet");
        }
        Ok(job.id)
    }
}

/// Makes a pending run for each target, in the targets' shards; those that exist stay as they are.
/// `nodes` are the targets' ids.
pub(crate) async fn plan(
    store: &Store,
    job: JobId,
    nodes: &[NodeId],
    targets: &[wire::Target],
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut shards: BTreeMap<u16, Vec<wire::Target>> = BTreeMap::new();
    for (node, target) in nodes.iter().zip(targets) {
        shards
            .entry(store.shard_of(*node))
            .or_default()
            .push(target.clone());
    }
    let appends = shards.into_iter().map(|(shard, targets)| {
        let planned = RunsPlanned {
            job: job.to_wire(),
            targets,
            time_ms: now.as_ms(),
        };
        store.append(shard, vec![planned.into()])
    });
    futures_util::future::try_join_all(appends).await?;
    Ok(())
}

/// The command line, or the script's first line, for tables.
fn summary(action: &Action) -> String {
    const CHARS: usize = 200;
    let text = match action {
        Action::Command { argv, .. } => argv.join(" "),
        Action::Script { content, .. } => {
            let text = String::from_utf8_lossy(content);
            format!("script: {}", text.lines().next().unwrap_or_default())
        }
    };
    let shown: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(CHARS)
        .collect();
    if shown.len() < text.len() {
        format!("{shown}…")
    } else {
        shown
    }
}
