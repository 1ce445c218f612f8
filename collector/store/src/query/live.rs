//! Functions that our views ask for what of a node stands in memory and in no table: how far its metrics came.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use nexus_proto::ids::{Incarnation, NodeId};
use rusqlite::{Connection, Error, functions::FunctionFlags};

use crate::head::live::Tail;

/// What is known of a node, or of one life of it.
pub(crate) type Ask = dyn Fn(NodeId, Option<Incarnation>) -> Tail + Send + Sync;

/// When a node's metrics last came, in milliseconds; 0: never.
pub(super) const HEARD: &str = "nexus_heard";
/// The highest seq of a life's metrics.
pub(super) const SEQ: &str = "nexus_metrics_seq";
/// How many reports a life made.
pub(super) const RECORDS: &str = "nexus_metrics_records";

pub(super) fn register(connection: &Connection, ask: &Arc<Ask>) -> rusqlite::Result<()> {
    let ask = &asked_once(ask);
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let heard = Arc::clone(ask);
    connection.create_scalar_function(HEARD, 1, flags, move |context| {
        let tail = heard(node(context.get_raw(0).as_blob()?)?, None);
        Ok(tail.received.as_ms())
    })?;
    for name in [SEQ, RECORDS] {
        let ask = Arc::clone(ask);
        connection.create_scalar_function(name, 2, flags, move |context| {
            let life = Incarnation::from_wire(context.get_raw(1).as_blob()?);
            let life = life.map_err(|error| Error::UserFunctionError(Box::new(error)))?;
            let tail = ask(node(context.get_raw(0).as_blob()?)?, Some(life));
            let figure = if name == SEQ { tail.seq } else { tail.records };
            Ok(i64::try_from(figure).unwrap_or(i64::MAX))
        })?;
    }
    Ok(())
}

/// More comes while a query runs: what it was told of a life once, it is told again, so that figures agree.
fn asked_once(ask: &Arc<Ask>) -> Arc<Ask> {
    let (ask, told) = (Arc::clone(ask), Mutex::new(HashMap::new()));
    Arc::new(move |node, of| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        *told.entry((node, of)).or_insert_with(|| ask(node, of))
    })
}

fn node(bytes: &[u8]) -> rusqlite::Result<NodeId> {
    NodeId::from_wire(bytes).map_err(|error| Error::UserFunctionError(Box::new(error)))
}
