//! SQL over a store, with what is in memory of metrics.

use std::sync::{Arc, Weak};

use nexus_proto::{
    ids::{Incarnation, NodeId},
    time::Timestamp,
};

use super::{Inner, Store, shard_folder};
use crate::{
    StoreError,
    head::live::Tail,
    query::{self, Metrics, NamedNode, Places, QueryOptions, QueryStream, Shown, Span, Whose},
    rows::{Newest, NodeRow},
};

impl Store {
    /// Runs one read-only statement over the documented views.
    pub async fn query(&self, sql: &str, options: QueryOptions) -> Result<QueryStream, StoreError> {
        let inner = &self.inner;
        let permit = Arc::clone(&inner.queries)
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let state = |number: u16| shard_folder(&inner.dir, number).join("state.db");
        let places = Places {
            shards: (0..self.shards()).map(state).collect(),
            control: inner.dir.join("control").join("state.db"),
            audit: inner.dir.join("audit.db"),
        };
        let seen = Seen {
            inner: Arc::downgrade(&self.inner),
            nodes: options.nodes.clone(),
            until: options.as_of.unwrap_or(Timestamp(i64::MAX)),
        };
        query::start(
            sql.to_owned(),
            options,
            places,
            Arc::new(seen),
            inner.clock.clone(),
            Arc::clone(&inner.pool),
            permit,
        )
        .await
    }
}

/// What the caller of a query may see of metrics.
struct Seen {
    /// Weak, so that a query that goes on does not keep a closed store's folder.
    inner: Weak<Inner>,
    /// `None`: of all nodes.
    nodes: Option<Vec<NodeId>>,
    until: Timestamp,
}

impl Seen {
    fn permits(&self, node: NodeId) -> bool {
        self.nodes.as_ref().is_none_or(|ids| ids.contains(&node))
    }

    /// The store, if it is still open and may be asked about that node.
    fn store_for(&self, node: NodeId) -> Option<Store> {
        self.inner
            .upgrade()
            .filter(|_| self.permits(node))
            .map(|inner| Store { inner })
    }
}

impl Metrics for Seen {
    fn nodes(&self, whose: Whose<'_>) -> Result<Vec<NamedNode>, StoreError> {
        let inner = self.inner.upgrade().ok_or(StoreError::Closed)?;
        let store = Store { inner };
        let rows: Vec<NodeRow> = match whose {
            Whose::All => store.nodes(None)?,
            Whose::Id(id) => store.node(id)?.into_iter().collect(),
            Whose::Name(name) => store.nodes_named(name)?,
        };
        let rows = rows.into_iter().filter(|row| self.permits(row.id));
        Ok(rows
            .map(|row| NamedNode {
                node: row.id,
                id: row.id.to_string(),
                name: row.name,
            })
            .collect())
    }

    fn newest(&self, node: NodeId) -> Option<Newest> {
        self.store_for(node)?.newest(node)
    }

    fn history(&self, node: NodeId, name: &str, (from, to): Span) -> Result<Vec<Shown>, String> {
        let store = self.store_for(node).ok_or("the store is closed")?;
        let points = store
            .history(node, name, from, to.min(self.until))
            .map_err(|e| match e {
                StoreError::TooMany(_) => format!("{name}: {e}; ask for a time: time >= …"),
                e => e.to_string(),
            })?;
        Ok(points
            .into_iter()
            .map(|point| (point.key, point.value, point.time))
            .collect())
    }

    fn tail(&self, node: NodeId, of: Option<Incarnation>) -> Tail {
        let tail = || {
            let store = self.store_for(node)?;
            let metrics = &store.shard_for(node).ok()?.metrics;
            Some(match of {
                Some(of) => metrics.tail(node, of),
                None => Tail {
                    received: metrics.heard(node).unwrap_or_default(),
                    ..Tail::default()
                },
            })
        };
        tail().unwrap_or_default()
    }
}
