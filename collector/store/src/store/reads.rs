//! What can be asked of a store, but for SQL.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use nexus_proto::{
    ids::{Incarnation, JobId, Lane, NodeId, TokenId},
    operator::v1::AuditRow,
    time::Timestamp,
};
use uuid::Uuid;

use super::{ShardParts, Store, reading};
use crate::{
    StoreError, audit,
    chunks::{Answer, Ask, Known, Totals},
    control,
    rows::{
        JobRow, Newest, NodeRow, OutputRow, Point, RunRow, RunState, SectionRow, TokenRow, TrustRow,
    },
    shard,
    watch::Watch,
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

    /// What nodes are called, and which life of their state folder each lives; those that there are.
    pub fn identities(
        &self,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> Result<HashMap<NodeId, (String, Incarnation)>, StoreError> {
        let mut found = HashMap::new();
        for (shard, nodes) in self.by_shard(nodes)? {
            let reader = reading(&shard.bulk);
            let _together = reader.unchecked_transaction()?;
            for node in nodes {
                if let Some(identity) = shard::reads::identity(&reader, node)? {
                    found.insert(node, identity);
                }
            }
        }
        Ok(found)
    }

    /// Nodes with their shards. Many reads of one shard are quicker in one transaction.
    fn by_shard(
        &self,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> Result<Vec<(&ShardParts, Vec<NodeId>)>, StoreError> {
        let mut shards: BTreeMap<u16, Vec<NodeId>> = BTreeMap::new();
        for node in nodes {
            shards.entry(self.shard_of(node)).or_default().push(node);
        }
        let parts = shards.into_iter();
        parts
            .map(|(number, nodes)| Ok((self.shard(number)?, nodes)))
            .collect()
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

    /// How a job ended, if it has: final state → targets.
    pub fn job_end(&self, job: JobId) -> Result<Option<BTreeMap<String, u64>>, StoreError> {
        control::reads::job_end(&reading(&self.inner.control_reader), job)
    }

    /// Where each run of a job stands.
    pub fn run_states(&self, job: JobId) -> Result<Vec<(NodeId, RunState)>, StoreError> {
        let mut states = Vec::new();
        for shard in &self.inner.shards {
            shard::reads::run_states(&reading(&shard.bulk), job, &mut states)?;
        }
        Ok(states)
    }

    /// The first run of a job that has not ended, by shard and node, from `from` on. What has ended stays so: who asks
    /// again from where the last answer was looks at each run once.
    pub fn open_run(
        &self,
        job: JobId,
        from: (u16, NodeId),
    ) -> Result<Option<(u16, NodeId)>, StoreError> {
        for (number, shard) in (0..).zip(&self.inner.shards).skip(usize::from(from.0)) {
            let first = NodeId(Uuid::nil());
            let node = if number == from.0 { from.1 } else { first };
            if let Some(node) = shard::reads::open_run(&reading(&shard.bulk), job, node)? {
                return Ok(Some((number, node)));
            }
        }
        Ok(None)
    }

    /// Every run of a job, by node id.
    pub fn runs(&self, job: JobId) -> Result<Vec<RunRow>, StoreError> {
        let mut runs = Vec::new();
        for shard in &self.inner.shards {
            runs.extend(shard::reads::runs(&reading(&shard.bulk), job)?);
        }
        runs.sort_by_key(|run| run.node);
        Ok(runs)
    }

    /// The runs of a job on some nodes.
    pub fn runs_on(
        &self,
        job: JobId,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> Result<Vec<RunRow>, StoreError> {
        let mut runs = Vec::new();
        for (shard, nodes) in self.by_shard(nodes)? {
            let reader = reading(&shard.bulk);
            let _together = reader.unchecked_transaction()?;
            for node in nodes {
                runs.extend(shard::reads::run(&reader, job, node)?);
            }
        }
        Ok(runs)
    }

    /// One run.
    pub fn run(&self, job: JobId, node: NodeId) -> Result<Option<RunRow>, StoreError> {
        shard::reads::run(&reading(&self.shard_for(node)?.reader), job, node)
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

    /// Says which runs of the job change from now on, and when the job itself does.
    #[must_use]
    pub fn watch(&self, job: JobId) -> Arc<Watch> {
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
