//! The audit file: one hash chain from the first row (`nexus_proto::audit`), each row durable before its
//! call returns.
//!
//! A chain whose end does not verify is still appended to, since acts must be recorded; the damage is
//! logged as an error when the file is opened and shows in every verification after.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
};

use nexus_proto::{
    audit::{GENESIS, row_hash},
    operator::v1::AuditRow,
};
use rusqlite::{Connection, Row, params};
use tokio::sync::{mpsc, oneshot};

use crate::{
    StoreError,
    db::{self, Format},
};

const COLUMNS: &str =
    "seq, time_ms, actor, action, subject, decision, detail, request_id, prev_hash, hash";
/// Rows checked when the file is opened.
const TAIL: u64 = 256;

pub(crate) fn format() -> Format {
    Format {
        name: "audit file",
        application: 0x4e58_4155,
        durable: true,
        steps: vec![
            "CREATE TABLE audit (
                seq INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
                subject TEXT NOT NULL, decision TEXT NOT NULL, detail TEXT NOT NULL, request_id TEXT NOT NULL,
                prev_hash BLOB NOT NULL, hash BLOB NOT NULL
             );"
            .to_owned(),
        ],
    }
}

/// The file, open for appending.
#[derive(Debug)]
pub(crate) struct Audit {
    connection: Connection,
    path: PathBuf,
    seq: u64,
    hash: [u8; 32],
}

impl Audit {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = db::open_writer(path, &format())?;
        let mut audit = Self {
            connection,
            path: path.to_owned(),
            seq: 0,
            hash: GENESIS,
        };
        let last: Option<i64> =
            audit
                .connection
                .query_row("SELECT max(seq) FROM audit", [], |row| row.get(0))?;
        audit.seq = last.and_then(|last| u64::try_from(last).ok()).unwrap_or(0);
        let rows = rows(
            &audit.connection,
            audit.seq.saturating_sub(TAIL) + 1,
            usize::MAX,
        )?;
        if let Some(fault) = fault(&rows) {
            tracing::error!(file = %path.display(), "the audit chain is broken: {fault}");
        }
        if let Some(row) = rows.last() {
            audit.hash = row.hash.as_ref().try_into().unwrap_or(GENESIS);
        }
        Ok(audit)
    }

    pub(crate) fn append(&mut self, mut row: AuditRow) -> Result<AuditRow, StoreError> {
        row.seq = self.seq + 1;
        row.prev_hash = self.hash.to_vec().into();
        let hash = row_hash(&self.hash, &row);
        row.hash = hash.to_vec().into();
        let appended = self
            .connection
            .prepare_cached(&format!(
                "INSERT INTO audit ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
            ))
            .and_then(|mut insert| {
                insert.execute(params![
                    i64::try_from(row.seq).unwrap_or(i64::MAX),
                    row.time_ms,
                    row.actor,
                    row.action,
                    row.subject,
                    row.decision,
                    row.detail,
                    row.request_id,
                    row.prev_hash.as_ref(),
                    row.hash.as_ref()
                ])
            });
        appended.map_err(StoreError::sqlite("cannot append to", &self.path))?;
        (self.seq, self.hash) = (row.seq, hash);
        Ok(row)
    }
}

/// Up to `limit` rows from `from` on.
pub(crate) fn rows(db: &Connection, from: u64, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
    let mut read = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM audit WHERE seq >= ?1 ORDER BY seq LIMIT ?2"
    ))?;
    let bounds = [
        i64::try_from(from).unwrap_or(i64::MAX),
        i64::try_from(limit).unwrap_or(i64::MAX),
    ];
    let rows = read.query_map(bounds, audit_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn audit_row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    Ok(AuditRow {
        seq: u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0),
        time_ms: row.get(1)?,
        actor: row.get(2)?,
        action: row.get(3)?,
        subject: row.get(4)?,
        decision: row.get(5)?,
        detail: row.get(6)?,
        request_id: row.get(7)?,
        prev_hash: row.get::<_, Vec<u8>>(8)?.into(),
        hash: row.get::<_, Vec<u8>>(9)?.into(),
    })
}

/// What is wrong with rows that should follow one another, in words.
pub(crate) fn fault(rows: &[AuditRow]) -> Option<String> {
    let mut before: Option<&AuditRow> = None;
    for row in rows {
        let prev: [u8; 32] = match row.prev_hash.as_ref().try_into() {
            Ok(prev) => prev,
            Err(_) => return Some(format!("row {} has no hash of the row before it", row.seq)),
        };
        let follows = match before {
            Some(before) => before.seq + 1 == row.seq && before.hash == row.prev_hash,
            None => row.seq != 1 || prev == GENESIS,
        };
        if !follows {
            return Some(format!("row {} does not follow the row before it", row.seq));
        }
        if row_hash(&prev, row).as_slice() != row.hash.as_ref() {
            return Some(format!("row {} was changed", row.seq));
        }
        before = Some(row);
    }
    None
}

type Reply = oneshot::Sender<Result<AuditRow, StoreError>>;

/// The one thread that appends.
#[derive(Debug)]
pub(crate) struct AuditWriter {
    queue: Mutex<Option<mpsc::Sender<(AuditRow, Reply)>>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl AuditWriter {
    pub(crate) fn start(path: &Path) -> Result<Self, StoreError> {
        let mut audit = Audit::open(path)?;
        let (queue, mut rows) = mpsc::channel::<(AuditRow, Reply)>(1024);
        let thread = thread::Builder::new()
            .name("write-audit".to_owned())
            .spawn(move || {
                while let Some((row, reply)) = rows.blocking_recv() {
                    drop(reply.send(audit.append(row)));
                }
                db::finish(&audit.connection);
            })
            .map_err(StoreError::file("cannot start the writer of", path))?;
        Ok(Self {
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(crate) async fn append(&self, row: AuditRow) -> Result<AuditRow, StoreError> {
        let queue = self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (reply, appended) = oneshot::channel();
        let queue = queue.ok_or(StoreError::Closed)?;
        queue
            .send((row, reply))
            .await
            .map_err(|_| StoreError::Closed)?;
        appended.await.map_err(|_| StoreError::Closed)?
    }

    pub(crate) fn close(&self) {
        drop(
            self.queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the audit writer ended by a panic");
        }
    }
}
