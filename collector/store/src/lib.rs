//! What a collector knows, on disk: shards of nodes, the control log, the audit chain, and SQL over all of it.
//!
//! Every change is an entry appended to a log, committed, then applied to projections (`shard`,
//! `control`) by that log's one writer thread; only then does the caller hear of it. Projections can
//! always be rebuilt from their log. Reads are short and block; the calls that write are async.
//!
//! `DIR/shards/N/{log,state}.db`, `DIR/control/{log,state}.db`, `DIR/audit.db`, `DIR/lock`.

mod audit;
#[allow(
    dead_code,
    unused_imports,
    reason = "the compactor that drives it is not there yet"
)]
mod chunks;
mod control;
mod db;
pub mod entry;
mod error;
mod health;
#[doc(hidden)]
pub mod inside;
mod log;
mod query;
mod rows;
mod shard;
mod store;
mod watch;
mod writer;

pub use error::{SqliteFault, StoreError};
pub use query::{QueryOptions, QueryStream};
pub use rows::{
    ColumnInfo, JobRow, Newest, NodeRow, OutputRow, Point, RunRow, RunState, SectionRow, TokenRow,
    TrustRow, Value, ViewInfo,
};
pub use store::{Layout, Store};
pub use writer::QueueDepth;
