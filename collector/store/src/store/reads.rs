//! What can be asked of a store, but for SQL.

use std::collections::BTreeMap;

use nexus_proto::{
    ids::{Incarnation, JobId, Lane, NodeId, TokenId},
    operator::v1::AuditRow,
    time::Timestamp,
};

use super::{Store, reading};
use crate::{
    StoreError, audit,
    chunks::{Answer, Ask, Known, Totals},
    control,
    rows::{
        JobRow, Newest, NodeRow, OutputRow, Point, RunRow, RunState, SectionRow, TokenRow, TrustRow,
    },
    shard,
};

impl Store {
    /// Up to `limit` rows of the audit chain from `from_seq` on.
    pub fn audit_rows(&self, from_seq: u64, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        audit::rows(&reading(&self.inner.audit_reader), from_seq, limit)
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> Result<Option<NodeRow>, StoreError> {
        let shard = self.shard_for(id)?;
        let mut row = shard::reads::node(&reading(&shard.reader), self.shard_of(id), id)?;
        if let Some(row) = &mut row {
            row.last_seen = row.last_seen.max(shard.metrics.heard(id));
        }
        Ok(row)
    }

    /// The nodes that a name or an id means: none, one, or those that share the name.
    pub fn nodes_called(&self, name: &str) -> Result<Vec<NodeRow>, StoreError> {
        if let Ok(id) = name.parse::<NodeId>() {
            return Ok(self.node(id)?.into_iter().collect());
        }
        self.nodes_named(name)
    }

    /// The nodes of this name.
    pub(super) fn nodes_named(&self, name: &str) -> Result<Vec<NodeRow>, StoreError> {
        let mut nodes = Vec::new();
        for (number, shard) in (0..).zip(&self.inner.shards) {
            nodes.extend(shard::reads::nodes_named(
                &reading(&shard.reader),
                number,
                name,
            )?);
        }
        Ok(nodes)
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> Result<u64, StoreError> {
        let shards = self.inner.shards.iter();
        shards
            .map(|shard| shard::reads::node_count(&reading(&shard.reader)))
            .sum()
    }

    /// Every node, by name; as it was at `as_of`, if given.
    pub fn nodes(&self, as_of: Option<Timestamp>) -> Result<Vec<NodeRow>, StoreError> {
        let mut nodes = Vec::new();
        for (number, shard) in (0..).zip(&self.inner.shards) {
            let mut rows = shard::reads::nodes(&reading(&shard.bulk), number, as_of)?;
            for row in &mut rows {
                let heard = shard.metrics.heard(row.id);
                let heard = heard.filter(|heard| as_of.is_none_or(|then| *heard <= then));
                row.last_seen = row.last_seen.max(heard);
            }
            nodes.extend(rows);
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
        Ok(nodes)
    }

    /// The highest committed seq of each lane of an incarnation; 0 where there is none.
    pub fn cursors(&self, node: NodeId, of: Incarnation) -> Result<[(Lane, u64); 3], StoreError> {
        let shard = self.shard_for(node)?;
        let mut cursors = shard::reads::cursors(&reading(&shard.reader), node, of)?;
        let reports = shard.metrics.tail(node, of).seq;
        for (_, seq) in cursors
            .iter_mut()
            .filter(|(lane, _)| *lane == Lane::Metrics)
        {
            // Whichever is higher: each holds what came before it.
            *seq = reports.max(*seq);
        }
        Ok(cursors)
    }

    /// The sections held of a node.
    pub fn sections(&self, node: NodeId) -> Result<Vec<SectionRow>, StoreError> {
        shard::reads::sections(&reading(&self.shard_for(node)?.reader), node)
    }

    /// A job.
    pub fn job(&self, job: JobId) -> Result<Option<JobRow>, StoreError> {
        control::reads::job(&reading(&self.inner.control_reader), job)
    }

    /// Jobs that have not ended.
    pub fn active_jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        control::reads::active_jobs(&reading(&self.inner.control_reader))
    }

    /// Every run of a job, by node id.
    pub fn runs(&self, job: JobId) -> Result<Vec<RunRow>, StoreError> {
        let mut runs = Vec::new();
        for shard in &self.inner.shards {
            runs.extend(shard::reads::runs(&reading(&shard.bulk), job, None)?);
        }
        runs.sort_by_key(|run| run.node);
        Ok(runs)
    }

    /// One run.
    pub fn run(&self, job: JobId, node: NodeId) -> Result<Option<RunRow>, StoreError> {
        let runs = shard::reads::runs(&reading(&self.shard_for(node)?.reader), job, Some(node))?;
        Ok(runs.into_iter().next())
    }

    /// Runs of a job by state.
    pub fn run_counts(&self, job: JobId) -> Result<BTreeMap<RunState, u64>, StoreError> {
        let mut counts = BTreeMap::new();
        for shard in &self.inner.shards {
            shard::reads::run_counts(&reading(&shard.bulk), job, &mut counts)?;
        }
        Ok(counts)
    }

    /// Output of a job's runs on one shard that arrived after row `after` (0: from the first), at most
    /// `limit` pieces.
    pub fn run_outputs(
        &self,
        job: JobId,
        shard: u16,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OutputRow>, StoreError> {
        shard::reads::run_outputs(&reading(&self.shard(shard)?.bulk), job, after, limit)
    }

    /// A version that rises whenever a run of the job, its output or the job itself changed.
    #[must_use]
    pub fn watch(&self, job: JobId) -> tokio::sync::watch::Receiver<u64> {
        self.inner.watches.watch(job)
    }

    /// A token.
    pub fn token(&self, id: TokenId) -> Result<Option<TokenRow>, StoreError> {
        control::reads::token(&reading(&self.inner.control_reader), id)
    }

    /// The signer policy in force.
    pub fn trust(&self) -> Result<TrustRow, StoreError> {
        control::reads::trust(&reading(&self.inner.control_reader))
    }

    /// The signing key of an operator's newest login.
    pub fn signing_key(&self, operator: &str) -> Result<Option<Vec<u8>>, StoreError> {
        control::reads::signing_key(&reading(&self.inner.control_reader), operator)
    }

    /// The newest report of a node.
    #[must_use]
    pub fn newest(&self, node: NodeId) -> Option<Newest> {
        self.shard_for(node).ok()?.metrics.newest(node)
    }

    /// Points of series of a node, both ends included.
    pub fn points(&self, ask: &Ask<'_>) -> Result<Answer, StoreError> {
        self.shard_for(ask.node)?.metrics.points(ask)
    }

    /// Which series there are of a node, and between which times, whatever the time that is asked for.
    pub fn known_series(&self, ask: &Ask<'_>) -> Result<Known, StoreError> {
        self.shard_for(ask.node)?.metrics.known(ask)
    }

    /// What the chunks of metrics hold, a shard each.
    #[must_use]
    pub fn metrics_held(&self) -> Vec<Totals> {
        let shards = self.inner.shards.iter();
        shards.map(|shard| shard.metrics.totals()).collect()
    }

    /// Values of a metric of a node, in order of time, both ends included.
    pub fn history(
        &self,
        node: NodeId,
        name: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Point>, StoreError> {
        self.shard_for(node)?.metrics.history(node, name, from, to)
    }

    /// BLAKE3 over the logical rows of a shard's projections: equal logs give equal digests.
    pub fn digest(&self, shard: u16) -> Result<[u8; 32], StoreError> {
        shard::reads::digest(&reading(&self.shard(shard)?.bulk))
    }
}
