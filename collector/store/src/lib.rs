//! What a collector knows, on disk: shards of nodes, the control log, the audit chain, and SQL over all of it.
//!
//! Every change is an entry appended to a log, committed, then applied to projections (`shard`,
//! `control`) by that log's one writer thread; only then does the caller hear of it. Projections can
//! always be rebuilt from their log. Reads are short and block; the calls that write are async.
//!
//! Metric reports have a way of their own (`metrics`): they are durable in the head, and shown from memory.
//!
//! `DIR/shards/N/{log,state,head,metrics}.db`, `DIR/control/{log,state}.db`, `DIR/audit.db`, `DIR/lock`.

mod audit;
mod chunks;
mod compact;
mod control;
mod db;
pub mod entry;
mod error;
mod head;
mod health;
#[doc(hidden)]
pub mod inside;
mod log;
mod metrics;
mod query;
mod rows;
mod shard;
mod store;
mod watch;
mod writer;

pub use chunks::{Answer, Ask, Held, Known, Line, Point as RangePoint, Resolution, Totals};
pub use error::{SqliteFault, StoreError};
pub use metrics::Settings;
pub use query::{QueryOptions, QueryStream};
pub use rows::{
    ColumnInfo, JobRow, Newest, NodeRow, OutputRow, Point, RunRow, RunState, SectionRow, TokenRow,
    TrustRow, Value, ViewInfo,
};
pub use store::{Layout, Store};
pub use watch::Watch;
pub use writer::QueueDepth;
