//! The tables of `metrics.db`. Times are INTEGER milliseconds since the epoch; `stored_ms` is the collector's clock,
//! the others are the nodes'.
//!
//! Each resolution has a table, so that the order of `id` is the order of age. `due` says which windows of a node must be
//! rolled up, into which resolution, and when. `keysets.uses` counts the chunks that name one.

use crate::db::Format;

const FIRST: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE nodes (
  id INTEGER PRIMARY KEY, node BLOB NOT NULL UNIQUE, received_ms INTEGER NOT NULL, resume BLOB NOT NULL
);
CREATE TABLE cursors (
  node INTEGER, incarnation BLOB, seq INTEGER NOT NULL, records INTEGER NOT NULL, PRIMARY KEY (node, incarnation)
) WITHOUT ROWID;
CREATE TABLE keysets (
  id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, series INTEGER NOT NULL, uses INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE TABLE due (
  node INTEGER, resolution INTEGER, window_ms INTEGER, due_ms INTEGER NOT NULL,
  PRIMARY KEY (node, resolution, window_ms)
) WITHOUT ROWID;
CREATE INDEX due_by_time ON due (due_ms);
CREATE TABLE totals (
  resolution INTEGER PRIMARY KEY, chunks INTEGER NOT NULL, samples INTEGER NOT NULL, bytes INTEGER NOT NULL
);
INSERT INTO totals VALUES (0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0);
";

/// How far apart points are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resolution {
    /// As they were sampled.
    Raw,
    /// A point a minute.
    Minute,
    /// A point an hour.
    Hour,
}

impl Resolution {
    pub(crate) const ALL: [Self; 3] = [Self::Raw, Self::Minute, Self::Hour];

    /// How many milliseconds its points are apart; 0: they are samples.
    #[must_use]
    pub fn apart_ms(self) -> i64 {
        match self {
            Self::Raw => 0,
            Self::Minute | Self::Hour => self.length(),
        }
    }

    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Minute => "minutes",
            Self::Hour => "hours",
        }
    }

    pub(super) fn number(self) -> i64 {
        match self {
            Self::Raw => 0,
            Self::Minute => 1,
            Self::Hour => 2,
        }
    }
}

pub(crate) fn format() -> Format {
    let mut first = FIRST.to_owned();
    for resolution in Resolution::ALL {
        let table = resolution.table();
        first.push_str(&format!(
            "CREATE TABLE {table} (
               id INTEGER PRIMARY KEY, node INTEGER NOT NULL, from_ms INTEGER NOT NULL, to_ms INTEGER NOT NULL,
               stored_ms INTEGER NOT NULL, samples INTEGER NOT NULL, keyset INTEGER NOT NULL, body BLOB NOT NULL
             );
             CREATE INDEX {table}_by_node ON {table} (node, to_ms, from_ms);"
        ));
    }
    Format {
        name: "file of compacted metrics of a shard",
        application: 0x4e58_4d44,
        durable: true,
        cache_kib: 4096,
        steps: vec![first],
    }
}
