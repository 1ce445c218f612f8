//! The audit file: one hash chain from the first row (`nexus_proto::audit`), each row durable before its
//! call returns.
//!
//! A chain whose end does not verify is still appended to, since acts must be recorded; the damage is
//! logged as an error when the file is opened and shows in every verification after. How far the chain had come is
//! noted in the control log now and then, so that one which was cut, replaced or removed is noticed as well: the
//! first row after that says so.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use nexus_proto::{
    audit::{GENESIS, row_hash},
    operator::v1::AuditRow,
};
use nexus_runtime::clock::Clock;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use tokio::sync::{mpsc, oneshot};

use crate::{
    StoreError,
    db::{self, Format},
    health::Health,
    writer::chain,
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
        cache_kib: 1024,
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

/// The end of the chain: its last row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) seq: u64,
    pub(crate) hash: Vec<u8>,
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
    /// Opens the file, and makes it when there is none. `known` is how far the chain had come at least.
    pub(crate) fn open(
        path: &Path,
        known: Option<&Head>,
        clock: &Clock,
    ) -> Result<Self, StoreError> {
        let mut audit = Self::read(path)?;
        if let Some(known) = known
            && let Some(fault) = audit.lacks(known)?
        {
            tracing::error!(file = %path.display(), "{fault}");
            let row = AuditRow {
                time_ms: clock.now().as_ms(),
                actor: "collector".to_owned(),
                action: "audit-chain".to_owned(),
                subject: "audit".to_owned(),
                decision: "damaged".to_owned(),
                detail: serde_json::json!({ "fault": fault }).to_string(),
                ..AuditRow::default()
            };
            // Where nothing can be written, it is said again at the next start.
            if let Err(error) = audit.append(row) {
                tracing::error!(error = %chain(&error), "the audit chain cannot say that it was damaged");
            }
        }
        Ok(audit)
    }

    /// What is missing of a chain that had come to `known`.
    fn lacks(&self, known: &Head) -> Result<Option<String>, StoreError> {
        let held: Option<Vec<u8>> = self
            .connection
            .query_row(
                "SELECT hash FROM audit WHERE seq = ?1",
                [i64::try_from(known.seq).unwrap_or(i64::MAX)],
                |row| row.get(0),
            )
            .optional()?;
        Ok(match held {
            Some(hash) if hash == known.hash => None,
            Some(_) => Some(format!(
                "row {} of the audit chain is another than it was: the chain was replaced",
                known.seq
            )),
            None => Some(format!(
                "the audit chain ends at row {}, and had come to row {}: what followed was removed",
                self.seq, known.seq
            )),
        })
    }

    fn read(path: &Path) -> Result<Self, StoreError> {
        let connection = db::open_writer(path, &format())?;
        let mut audit = Self {
            connection,
            path: path.to_owned(),
            seq: 0,
            hash: GENESIS,
        };
        (audit.seq, audit.hash) = last(&audit.connection)?;
        let rows = rows(
            &audit.connection,
            audit.seq.saturating_sub(TAIL) + 1,
            usize::MAX,
        )?;
        if let Some(fault) = fault(&rows) {
            tracing::error!(file = %path.display(), "the audit chain is broken: {fault}");
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
        if let Err(error) = appended {
            // A commit that failed at its very end may stand nevertheless: the file decides.
            (self.seq, self.hash) = last(&self.connection)?;
            return Err(StoreError::sqlite("cannot append to", &self.path)(error));
        }
        (self.seq, self.hash) = (row.seq, hash);
        Ok(row)
    }

    fn head(&self) -> Head {
        Head {
            seq: self.seq,
            hash: self.hash.to_vec(),
        }
    }
}

fn last(db: &Connection) -> Result<(u64, [u8; 32]), StoreError> {
    let last: Option<(i64, Vec<u8>)> = db
        .query_row(
            "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    Ok(last.map_or((0, GENESIS), |(seq, hash)| {
        let hash = hash.as_slice().try_into().unwrap_or(GENESIS);
        (u64::try_from(seq).unwrap_or(0), hash)
    }))
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

fn hold(head: &Mutex<Head>) -> MutexGuard<'_, Head> {
    head.lock().unwrap_or_else(PoisonError::into_inner)
}

type Reply = oneshot::Sender<Result<AuditRow, StoreError>>;

/// The one thread that appends.
#[derive(Debug)]
pub(crate) struct AuditWriter {
    queue: Mutex<Option<mpsc::Sender<(AuditRow, Reply)>>>,
    head: Arc<Mutex<Head>>,
    health: Arc<Health>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl AuditWriter {
    /// Opens the file, see [`Audit::open`], and starts the thread.
    pub(crate) fn start(
        path: &Path,
        known: Option<&Head>,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let mut audit = Audit::open(path, known, &clock)?;
        let head = Arc::new(Mutex::new(audit.head()));
        let health = Arc::new(Health::default());
        let (newest, fares) = (Arc::clone(&head), Arc::clone(&health));
        let (queue, mut rows) = mpsc::channel::<(AuditRow, Reply)>(1024);
        let thread = thread::Builder::new()
            .name("write-audit".to_owned())
            .spawn(move || {
                while let Some((row, reply)) = rows.blocking_recv() {
                    let appended = audit.append(row);
                    match &appended {
                        Ok(_) => {
                            fares.worked();
                        }
                        Err(error) => {
                            fares.failed(clock.instant(), &chain(error));
                        }
                    }
                    *hold(&newest) = audit.head();
                    drop(reply.send(appended));
                }
                db::finish(&audit.connection);
            })
            .map_err(StoreError::file("cannot start the writer of", path))?;
        Ok(Self {
            queue: Mutex::new(Some(queue)),
            head,
            health,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The last row there is.
    pub(crate) fn head(&self) -> Head {
        hold(&self.head).clone()
    }

    /// Why the last append failed, if that was less than a minute before `now`.
    pub(crate) fn failing(&self, now: Instant) -> Option<String> {
        self.health.failing(now)
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
