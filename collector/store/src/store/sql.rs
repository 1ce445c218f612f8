//! SQL over a store, with what is in memory of metrics.

use std::sync::Arc;

use nexus_proto::{
    ids::{Incarnation, NodeId},
    time::Timestamp,
};

use super::{Store, shard_folder};
use crate::{
    StoreError,
    head::live::Tail,
    query::{self, NodeMetrics, Places, QueryOptions, QueryStream},
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
        let until = options.as_of.unwrap_or(Timestamp(i64::MAX));
        // Weak, so that a query that goes on does not keep a closed store's folder.
        let weak = Arc::downgrade(&self.inner);
        let history = move |id: &str, name: &str, (from, to): (Timestamp, Timestamp)| {
            let node: NodeId = id
                .parse()
                .map_err(|e: nexus_proto::ids::IdError| e.to_string())?;
            let store = Store {
                inner: weak.upgrade().ok_or("the store is closed")?,
            };
            let points = store
                .history(node, name, from, to.min(until))
                .map_err(|e| match e {
                    StoreError::TooMany(_) => format!("{name}: {e}; ask for a time: time >= …"),
                    e => e.to_string(),
                })?;
            Ok(points
                .into_iter()
                .map(|point| (point.key, point.value, point.time))
                .collect())
        };
        let weak = Arc::downgrade(&self.inner);
        let seen = options.nodes.clone();
        let tails = move |node: NodeId, of: Option<Incarnation>| {
            let permitted = seen.as_ref().is_none_or(|ids| ids.contains(&node));
            let inner = weak.upgrade().filter(|_| permitted);
            inner
                .and_then(|inner| {
                    let shard = Store { inner };
                    let shard = shard.shard_for(node).ok()?;
                    Some(match of {
                        Some(of) => shard.metrics.tail(node, of),
                        None => Tail {
                            received: shard.metrics.heard(node).unwrap_or_default(),
                            ..Tail::default()
                        },
                    })
                })
                .unwrap_or_default()
        };
        let wanted = query::names_metrics(sql);
        let permitted = options.nodes.clone();
        let weak = Arc::downgrade(&self.inner);
        let metrics = move || {
            let mut shown = Vec::new();
            if wanted {
                let store = Store {
                    inner: weak.upgrade().ok_or(StoreError::Closed)?,
                };
                let mut nodes = store.nodes(None)?;
                nodes.retain(|node| permitted.as_ref().is_none_or(|ids| ids.contains(&node.id)));
                shown.extend(nodes.into_iter().map(|node| NodeMetrics {
                    id: node.id.to_string(),
                    name: node.name,
                    newest: store.newest(node.id),
                }));
            }
            Ok(query::Metrics {
                tails: Arc::new(tails),
                nodes: Arc::new(shown),
                history: Arc::new(history),
            })
        };
        query::start(
            sql.to_owned(),
            options,
            places,
            metrics,
            inner.clock.clone(),
            permit,
        )
        .await
    }
}
