//! The head of a shard's metrics: reports as they came, durable, until they stand in chunks.
//!
//! Table `head`: `idx` rises by one and is never used again; `time_ms` the collector's clock; `body` the
//! zstd-compressed `MetricsBatch` of one group commit; `hash` = BLAKE3 (derive-key mode) over idx, time_ms, body,
//! integers big-endian. synchronous=FULL: once a row is appended, it is durable. `meta.trimmed` is the highest row
//! that was removed.
//!
//! A report is kept in the agent's own coding, which says only what changed since the report before it. So the
//! reports of a node are a chain: each row says which report its first one continues, and whoever reads it
//! (`replay`) takes nothing that does not follow, until the next key frame.

pub(crate) mod live;
pub(crate) mod replay;
pub(crate) mod writer;

use std::path::{Path, PathBuf};

use nexus_proto::{store::v1, time::Timestamp};
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    StoreError,
    db::{self, Format},
    log,
    writer::chain,
};

const CONTEXT: &str = "nexus head of metrics v1";

pub(crate) fn format() -> Format {
    Format {
        name: "head of metrics",
        application: 0x4e58_4844,
        durable: true,
        cache_kib: 1024,
        steps: vec![
            "CREATE TABLE head (idx INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, body BLOB NOT NULL, hash BLOB NOT NULL);
             CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
                .to_owned(),
        ],
    }
}

/// The file, open for its one writer.
#[derive(Debug)]
pub(crate) struct Head {
    connection: Connection,
    path: PathBuf,
    packer: log::Packer,
    index: i64,
    /// No row has this index or a lower one from now on.
    floor: i64,
}

/// A row of it, unpacked.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) index: i64,
    pub(crate) time: Timestamp,
    pub(crate) parts: Vec<v1::MetricReports>,
}

impl Head {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut head = Self {
            connection: db::open_writer(path, &format())?,
            path: path.to_owned(),
            packer: log::Packer::new().map_err(StoreError::file("cannot compress for", path))?,
            index: 0,
            floor: 0,
        };
        head.refresh()
            .map_err(StoreError::sqlite("cannot read", path))?;
        Ok(head)
    }

    fn refresh(&mut self) -> rusqlite::Result<()> {
        self.index = self.connection.query_row(
            "SELECT max(coalesce((SELECT max(idx) FROM head), 0), coalesce((SELECT max(value) FROM meta), 0))",
            [],
            |row| row.get(0),
        )?;
        self.index = self.index.max(self.floor);
        Ok(())
    }

    /// Takes up where chunks end, rows of which may have been removed. The two files may be of different ages, when one
    /// was brought back from a copy: a row that counts as chunked already would be passed over.
    pub(crate) fn begin_after(&mut self, chunked: i64) -> Result<(), StoreError> {
        let trimmed: i64 = self
            .connection
            .query_row("SELECT coalesce(max(value), 0) FROM meta", [], |row| {
                row.get(0)
            })
            .map_err(StoreError::sqlite("cannot read", &self.path))?;
        if trimmed > chunked {
            let file = self.path.display();
            tracing::error!(%file, "metrics are lost: the chunks beside it are older than what was removed from it");
        }
        if self.index < chunked {
            let file = self.path.display();
            tracing::error!(%file, "metrics may be lost: it is older than the chunks beside it");
        }
        self.floor = chunked;
        self.index = self.index.max(chunked);
        Ok(())
    }

    /// Of the last row that was appended.
    pub(crate) fn index(&self) -> i64 {
        self.index
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends what one commit holds; durable once it returns.
    pub(crate) fn append(
        &mut self,
        parts: Vec<v1::MetricReports>,
        time: Timestamp,
    ) -> Result<i64, StoreError> {
        let body = v1::MetricsBatch { parts }.encode_to_vec();
        let body = self
            .packer
            .pack(&body)
            .map_err(StoreError::file("cannot compress for", &self.path))?;
        let index = self.index + 1;
        let inserted = self
            .connection
            .prepare_cached("INSERT INTO head (idx, time_ms, body, hash) VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut insert| {
                let hash = row_hash(index, time, &body);
                insert.execute(params![index, time.as_ms(), body, hash])
            });
        if let Err(error) = inserted {
            // A commit that failed at its very end may stand nevertheless. It is not acknowledged, so its reports
            // come again, and count once.
            self.refresh()
                .map_err(StoreError::sqlite("cannot read", &self.path))?;
            return Err(StoreError::sqlite("cannot append to", &self.path)(error));
        }
        self.index = index;
        Ok(index)
    }

    /// Removes some rows up to `to`; whether there are more.
    pub(crate) fn trim(&mut self, to: i64, rows: usize) -> Result<bool, StoreError> {
        let removed = || -> rusqlite::Result<bool> {
            let write = self.connection.unchecked_transaction()?;
            let last: Option<i64> = write
                .prepare_cached("SELECT max(idx) FROM (SELECT idx FROM head WHERE idx <= ?1 ORDER BY idx LIMIT ?2)")?
                .query_row(params![to, i64::try_from(rows).unwrap_or(i64::MAX)], |row| row.get(0))?;
            let Some(last) = last else { return Ok(false) };
            write
                .prepare_cached("DELETE FROM head WHERE idx <= ?1")?
                .execute([last])?;
            write
                .prepare_cached("INSERT INTO meta (key, value) VALUES ('trimmed', ?1) ON CONFLICT DO UPDATE SET value = ?1")?
                .execute([last])?;
            write.commit()?;
            Ok(last < to)
        };
        removed().map_err(StoreError::sqlite("cannot trim", &self.path))
    }

    pub(crate) fn close(&self) {
        db::finish(&self.connection);
    }
}

/// The rows `after < idx <= to` that can be read, in order. What was in a damaged one is lost: it cannot be read later
/// either, and the others are good.
pub(crate) fn rows(
    connection: &Connection,
    path: &Path,
    (after, to): (i64, i64),
    mut each: impl FnMut(Row) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let failed = || StoreError::sqlite("cannot read", path);
    let mut read = connection
        .prepare_cached(
            "SELECT idx, time_ms, body, hash FROM head WHERE idx > ?1 AND idx <= ?2 ORDER BY idx",
        )
        .map_err(failed())?;
    let mut rows = read.query([after, to]).map_err(failed())?;
    while let Some(row) = rows.next().map_err(failed())? {
        match unpacked(row, path) {
            Ok(row) => each(row)?,
            Err(error @ StoreError::Corrupt { .. }) => {
                tracing::error!(error = chain(&error), "reports are lost");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The row of that index.
pub(crate) fn row(
    connection: &Connection,
    path: &Path,
    index: i64,
) -> Result<Option<Row>, StoreError> {
    connection
        .prepare_cached("SELECT idx, time_ms, body, hash FROM head WHERE idx = ?1")
        .and_then(|mut read| {
            read.query_row([index], |row| Ok(unpacked(row, path)))
                .optional()
        })
        .map_err(StoreError::sqlite("cannot read", path))?
        .transpose()
}

fn unpacked(row: &rusqlite::Row<'_>, path: &Path) -> Result<Row, StoreError> {
    let read = || -> rusqlite::Result<_> {
        let body = row.get_ref(2)?.as_blob()?;
        Ok((row.get(0)?, Timestamp(row.get(1)?), body, row.get(3)?))
    };
    let (index, time, body, hash): (i64, _, _, [u8; 32]) =
        read().map_err(StoreError::sqlite("cannot read", path))?;
    let what = || format!("row {index} of {}", path.display());
    if row_hash(index, time, body) != hash {
        return Err(StoreError::Corrupt {
            what: what(),
            source: None,
        });
    }
    let body = log::unpack(body).map_err(|e| StoreError::corrupt(&what(), e))?;
    let batch =
        v1::MetricsBatch::decode(body.as_slice()).map_err(|e| StoreError::corrupt(&what(), e))?;
    Ok(Row {
        index,
        time,
        parts: batch.parts,
    })
}

fn row_hash(index: i64, time: Timestamp, body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&index.to_be_bytes());
    hasher.update(&time.as_ms().to_be_bytes());
    hasher.update(body);
    *hasher.finalize().as_bytes()
}
