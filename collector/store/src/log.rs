//! A record log: the truth of a shard, or of the control data, from which its projections follow.
//!
//! Table `log`: `idx` rises by one from 1; `epoch` is the ownership epoch (1 while one collector owns all);
//! `prev` is the hash of the row before, zeros before the first; `time_ms` the collector's clock; `body`
//! the zstd-compressed batch; `hash` = BLAKE3 (derive-key mode) over idx, epoch, prev, time_ms, body, integers
//! big-endian. A row is appended in one transaction with synchronous=FULL: once it returns, it is durable.

use std::{
    fmt,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use nexus_proto::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    StoreError,
    db::{self, Format},
    entry::Facts,
};

const CONTEXT: &str = "nexus record log v1";
const EPOCH: i64 = 1;
/// Enough for metric batches; the log is read rarely.
pub(crate) const ZSTD_LEVEL: i32 = 1;
/// No batch is larger: one that cannot be read again is not written.
const BATCH_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Rows checked when a log is opened. Older ones are checked when they are read.
const TAIL: i64 = 64;

pub(crate) fn format() -> Format {
    Format {
        name: "record log",
        application: 0x4e58_4c47,
        durable: true,
        cache_kib: 1024,
        steps: vec![
            "CREATE TABLE log (
                idx INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, prev BLOB NOT NULL,
                time_ms INTEGER NOT NULL, body BLOB NOT NULL, hash BLOB NOT NULL
             );"
            .to_owned(),
        ],
    }
}

/// A log, open for its one writer.
#[derive(Debug)]
pub(crate) struct Log {
    connection: Connection,
    path: PathBuf,
    packer: Packer,
    index: i64,
    hash: [u8; 32],
}

/// A row of it, unpacked.
#[derive(Debug)]
pub(crate) struct LogRow<F> {
    pub(crate) index: i64,
    pub(crate) time: Timestamp,
    pub(crate) facts: Vec<F>,
}

impl Log {
    /// Opens the log and checks the end of its chain.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = db::open_writer(path, &format())?;
        let index: i64 = connection
            .query_row("SELECT coalesce(max(idx), 0) FROM log", [], |row| {
                row.get(0)
            })
            .map_err(StoreError::sqlite("cannot read", path))?;
        let mut log = Self {
            connection,
            path: path.to_owned(),
            packer: Packer::new().map_err(StoreError::file("cannot compress for", path))?,
            index,
            hash: [0; 32],
        };
        log.hash = log.check((index - TAIL).max(0), index)?;
        Ok(log)
    }

    #[cfg(test)]
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The highest index.
    pub(crate) fn index(&self) -> i64 {
        self.index
    }

    /// Appends a batch; durable once it returns.
    pub(crate) fn append<F: Facts>(
        &mut self,
        facts: &[F],
        time: Timestamp,
    ) -> Result<i64, rusqlite::Error> {
        let batch = F::encode(facts);
        if batch.len() >= BATCH_BYTES_MAX {
            return Err(rusqlite::Error::ToSqlConversionFailure(
                format!("a batch of {} bytes is too large for the log", batch.len()).into(),
            ));
        }
        let packed = self
            .packer
            .pack(&batch)
            .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
        let index = self.index + 1;
        let hash = row_hash(index, EPOCH, &self.hash, time, &packed);
        let inserted = self
            .connection
            .prepare_cached(
                "INSERT INTO log (idx, epoch, prev, time_ms, body, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .and_then(|mut insert| insert.execute(params![index, EPOCH, self.hash, time.as_ms(), packed, hash]));
        if let Err(error) = inserted {
            // A commit that failed at its very end may stand nevertheless: the file decides.
            self.refresh()?;
            return Err(error);
        }
        (self.index, self.hash) = (index, hash);
        Ok(index)
    }

    fn refresh(&mut self) -> Result<(), rusqlite::Error> {
        let last = self
            .connection
            .query_row(
                "SELECT idx, hash FROM log ORDER BY idx DESC LIMIT 1",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        (self.index, self.hash) = last.unwrap_or((0, [0; 32]));
        Ok(())
    }

    /// The row of that index, checked against its own hash.
    pub(crate) fn read<F: Facts>(&self, index: i64) -> Result<Option<LogRow<F>>, StoreError> {
        let row = self
            .connection
            .prepare_cached("SELECT epoch, prev, time_ms, body, hash FROM log WHERE idx = ?1")
            .and_then(|mut read| {
                read.query_row([index], |row| {
                    Ok((
                        row.get(0)?,
                        row.get(1)?,
                        row.get(2)?,
                        row.get::<_, Vec<u8>>(3)?,
                        row.get(4)?,
                    ))
                })
                .optional()
            })
            .map_err(StoreError::sqlite("cannot read", &self.path))?;
        let Some((epoch, prev, time, body, hash)) = row else {
            return Ok(None);
        };
        let (prev, hash): ([u8; 32], [u8; 32]) = (prev, hash);
        let time = Timestamp(time);
        if row_hash(index, epoch, &prev, time, &body) != hash {
            return Err(self.damaged(index));
        }
        let body = unpack(&body).map_err(|e| {
            StoreError::corrupt(&format!("row {index} of {}", self.path.display()), e)
        })?;
        Ok(Some(LogRow {
            index,
            time,
            facts: F::decode(&body)?,
        }))
    }

    /// Checks the chain over rows `after < idx <= to`; the hash of the last of them.
    pub(crate) fn check(&self, after: i64, to: i64) -> Result<[u8; 32], StoreError> {
        let read = StoreError::sqlite("cannot read", &self.path);
        let mut hash = None;
        let mut expected = after;
        let scan = || -> rusqlite::Result<Option<i64>> {
            let mut rows = self.connection.prepare(
                "SELECT idx, epoch, prev, time_ms, body, hash FROM log WHERE idx > ?1 AND idx <= ?2 ORDER BY idx",
            )?;
            let mut rows = rows.query([after, to])?;
            while let Some(row) = rows.next()? {
                let index: i64 = row.get(0)?;
                let prev: [u8; 32] = row.get(2)?;
                let own: [u8; 32] = row.get(5)?;
                expected += 1;
                let chained = hash.map_or(index > 1 || prev == [0; 32], |last| last == prev);
                let body = row.get_ref(4)?.as_blob()?;
                let right =
                    row_hash(index, row.get(1)?, &prev, Timestamp(row.get(3)?), body) == own;
                if index != expected || !chained || !right {
                    return Ok(Some(index));
                }
                hash = Some(own);
            }
            Ok((expected != to).then_some(to))
        };
        let mut scan = scan;
        if let Some(index) = scan().map_err(read)? {
            return Err(self.damaged(index));
        }
        Ok(hash.unwrap_or([0; 32]))
    }

    fn damaged(&self, index: i64) -> StoreError {
        StoreError::Corrupt {
            what: format!("row {index} of the log {}", self.path.display()),
            source: None,
        }
    }
}

fn row_hash(index: i64, epoch: i64, prev: &[u8; 32], time: Timestamp, body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&index.to_be_bytes());
    hasher.update(&epoch.to_be_bytes());
    hasher.update(prev);
    hasher.update(&time.as_ms().to_be_bytes());
    hasher.update(body);
    *hasher.finalize().as_bytes()
}

/// Compresses rows. Its memory is as large as a row, and kept for the next one.
pub(crate) struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    pub(crate) fn new() -> io::Result<Self> {
        zstd::bulk::Compressor::new(ZSTD_LEVEL).map(Self)
    }

    pub(crate) fn pack(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.0.compress(bytes)
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Packer")
    }
}

/// Compresses what is compressed alone.
pub(crate) fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    Packer::new()?.pack(bytes)
}

/// Undoes [`Packer::pack`], up to a bound that nothing written by us reaches.
pub(crate) fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    zstd::stream::read::Decoder::with_buffer(bytes)?
        .take(u64::try_from(BATCH_BYTES_MAX).unwrap_or(u64::MAX))
        .read_to_end(&mut unpacked)?;
    Ok(unpacked)
}
