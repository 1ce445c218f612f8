//! The tables of a shard's projections. Times are INTEGER milliseconds since the epoch, ids 16-byte BLOBs.
//!
//! A row with `valid_to_ms` NULL holds now; the others say what was true from `valid_from_ms` up to before
//! `valid_to_ms`, by the collector's clock at commit.

use nexus_proto::inventory::{ColumnType, Kind, SCHEMA};

use crate::db::Format;

const FIRST: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE nodes (
  node BLOB PRIMARY KEY, name TEXT NOT NULL, held TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
  labels TEXT NOT NULL DEFAULT '{}', os TEXT NOT NULL DEFAULT '', kernel TEXT NOT NULL DEFAULT '',
  arch TEXT NOT NULL DEFAULT '', agent_version TEXT NOT NULL DEFAULT '', transport TEXT NOT NULL DEFAULT '',
  key_exchange TEXT NOT NULL DEFAULT '', address TEXT NOT NULL DEFAULT '', boot_id TEXT NOT NULL DEFAULT '',
  rtt_us INTEGER, last_seen_ms INTEGER, enrolled_at_ms INTEGER NOT NULL, incarnation BLOB NOT NULL,
  session BLOB, session_counter INTEGER NOT NULL DEFAULT 0, certificate_serial TEXT NOT NULL DEFAULT '',
  certificate_expires_ms INTEGER, slot INTEGER NOT NULL
);
CREATE INDEX nodes_by_name ON nodes (name);
CREATE TABLE node_history (
  id INTEGER PRIMARY KEY, node BLOB NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
  labels TEXT NOT NULL, os TEXT NOT NULL, kernel TEXT NOT NULL, arch TEXT NOT NULL, agent_version TEXT NOT NULL,
  transport TEXT NOT NULL, key_exchange TEXT NOT NULL, address TEXT NOT NULL,
  valid_from_ms INTEGER NOT NULL, valid_to_ms INTEGER
);
CREATE INDEX node_history_by_node ON node_history (node, valid_to_ms);
CREATE TABLE cursors (
  node BLOB, incarnation BLOB, lane INTEGER, seq INTEGER NOT NULL, PRIMARY KEY (node, incarnation, lane)
) WITHOUT ROWID;
CREATE TABLE gaps (
  id INTEGER PRIMARY KEY, node BLOB NOT NULL, incarnation BLOB NOT NULL, lane INTEGER NOT NULL,
  first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, reason TEXT NOT NULL, time_ms INTEGER NOT NULL
);
CREATE TABLE sections (
  node BLOB, kind TEXT, hash BLOB NOT NULL, since_ms INTEGER NOT NULL, error TEXT, PRIMARY KEY (node, kind)
) WITHOUT ROWID;
CREATE TABLE runs (
  job BLOB, node BLOB, name TEXT NOT NULL, incarnation BLOB NOT NULL, state TEXT NOT NULL, session BLOB,
  planned_ms INTEGER NOT NULL, dispatched_ms INTEGER, started_ms INTEGER, finished_ms INTEGER,
  exit_code INTEGER, signal INTEGER, reason TEXT NOT NULL DEFAULT '',
  stdout_bytes INTEGER NOT NULL DEFAULT 0, stderr_bytes INTEGER NOT NULL DEFAULT 0,
  stdout_dropped_bytes INTEGER NOT NULL DEFAULT 0, stderr_dropped_bytes INTEGER NOT NULL DEFAULT 0,
  late_state TEXT NOT NULL DEFAULT '', PRIMARY KEY (job, node)
);
CREATE TABLE run_outputs (
  id INTEGER PRIMARY KEY, job BLOB NOT NULL, node BLOB NOT NULL, stream TEXT NOT NULL,
  offset INTEGER NOT NULL, data BLOB NOT NULL, UNIQUE (job, node, stream, offset)
);
CREATE INDEX run_outputs_by_arrival ON run_outputs (job, id);
CREATE TABLE events (
  id INTEGER PRIMARY KEY, node BLOB NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL, time_ms INTEGER NOT NULL
);
CREATE INDEX events_by_time ON events (time_ms);
CREATE TABLE dead_letters (
  id INTEGER PRIMARY KEY, node BLOB NOT NULL, incarnation BLOB NOT NULL, lane INTEGER NOT NULL,
  seq INTEGER NOT NULL, reason TEXT NOT NULL, data BLOB NOT NULL, time_ms INTEGER NOT NULL
);
CREATE TABLE chunks (
  id INTEGER PRIMARY KEY, node BLOB NOT NULL, from_ms INTEGER NOT NULL, to_ms INTEGER NOT NULL,
  reports INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX chunks_by_node ON chunks (node, to_ms);
";

/// What counts records was not there from the beginning.
fn second() -> String {
    let empty = emptied();
    format!("ALTER TABLE cursors ADD COLUMN records INTEGER NOT NULL DEFAULT 0;{empty}")
}

/// Emptied projections are made anew from the log. This is a step of its own where what is applied has changed and
/// the tables have not: third, gaps end where records begin.
fn emptied() -> String {
    let tables = [
        "meta",
        "nodes",
        "node_history",
        "cursors",
        "gaps",
        "sections",
        "runs",
        "run_outputs",
        "events",
        "dead_letters",
        "chunks",
    ];
    let tables = tables.map(str::to_owned);
    let tables = tables.into_iter().chain(SCHEMA.iter().map(table_of));
    tables
        .map(|table| format!("DELETE FROM {table};"))
        .collect()
}

/// How many nodes have a version of a package, counted as rows come and go. (An index of packages by name would cost
/// more than all else that is done with a row.)
const FOURTH: &str = "
CREATE TABLE package_versions (
  name TEXT, version TEXT, nodes INTEGER NOT NULL, PRIMARY KEY (name, version)
) WITHOUT ROWID;
INSERT INTO package_versions SELECT name, version, count(DISTINCT node) FROM inventory_packages
  WHERE valid_to_ms IS NULL AND name IS NOT NULL AND version IS NOT NULL GROUP BY name, version;
CREATE INDEX node_history_by_name ON node_history (name) WHERE valid_to_ms IS NULL;
";
/// From this format on, metrics stand in files of their own.
pub(crate) const METRICS_APART: i64 = 5;

/// Metrics stand in files of their own, and every life has a cursor of each lane.
fn fifth() -> String {
    let empty = emptied();
    format!("{empty} DELETE FROM package_versions; DROP TABLE chunks;")
}

/// The table of a kind of inventory.
pub(crate) fn table_of(kind: &Kind) -> String {
    format!("inventory_{}", kind.name)
}

pub(super) fn format() -> Format {
    let mut first = FIRST.to_owned();
    for kind in SCHEMA {
        let table = table_of(kind);
        let columns: String = kind
            .columns
            .iter()
            .map(|column| match column.kind {
                ColumnType::Text => format!("\"{}\" TEXT, ", column.name),
                ColumnType::Integer => format!("\"{}\" INTEGER, ", column.name),
            })
            .collect();
        first.push_str(&format!(
            "CREATE TABLE {table} (row INTEGER PRIMARY KEY, node BLOB NOT NULL, {columns}
             valid_from_ms INTEGER NOT NULL, valid_to_ms INTEGER);
             CREATE INDEX {table}_by_node ON {table} (node, valid_to_ms);"
        ));
    }
    Format {
        name: "file of projections of a shard",
        application: 0x4e58_5348,
        durable: false,
        cache_kib: 8192,
        steps: vec![first, second(), emptied(), FOURTH.to_owned(), fifth()],
    }
}
