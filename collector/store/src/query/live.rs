//! Functions that our views ask for what of a node stands in memory and in no table: how far its metrics came.

use nexus_proto::ids::{Incarnation, NodeId};
use rusqlite::{Connection, Error, functions::FunctionFlags};

use super::current::Current;
use crate::head::live::Tail;

/// When a node's metrics last came, in milliseconds; 0: never.
pub(super) const HEARD: &str = "nexus_heard";
/// The highest seq of a life's metrics.
pub(super) const SEQ: &str = "nexus_metrics_seq";
/// How many reports a life made.
pub(super) const RECORDS: &str = "nexus_metrics_records";

pub(super) fn register(connection: &Connection, current: &Current) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let asking = current.clone();
    connection.create_scalar_function(HEARD, 1, flags, move |context| {
        let tail = tail(&asking, context.get_raw(0).as_blob()?, None)?;
        Ok(tail.received.as_ms())
    })?;
    for name in [SEQ, RECORDS] {
        let asking = current.clone();
        connection.create_scalar_function(name, 2, flags, move |context| {
            let life = Incarnation::from_wire(context.get_raw(1).as_blob()?).map_err(failure)?;
            let tail = tail(&asking, context.get_raw(0).as_blob()?, Some(life))?;
            let figure = if name == SEQ { tail.seq } else { tail.records };
            Ok(i64::try_from(figure).unwrap_or(i64::MAX))
        })?;
    }
    Ok(())
}

fn tail(current: &Current, node: &[u8], of: Option<Incarnation>) -> rusqlite::Result<Tail> {
    let node = NodeId::from_wire(node).map_err(failure)?;
    let asking = current.get();
    Ok(asking.map_or_else(Tail::default, |asking| asking.tail(node, of)))
}

fn failure(error: nexus_proto::ids::IdError) -> Error {
    Error::UserFunctionError(Box::new(error))
}
