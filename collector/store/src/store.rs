//! The facade: one value that stands for the whole store.

mod reads;
mod sql;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nexus_proto::{
    ids::{NodeId, Slot},
    metrics::KeyPool,
    operator::v1::AuditRow,
};
use nexus_runtime::clock::Clock;

use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::{
    StoreError,
    audit::{self, AuditWriter, Head},
    compact::Compactor,
    control::{self, Control},
    db::{self, FolderLock},
    entry::{AuditHead, ControlEntry, Entry, Outcome, Reports, SlotTable},
    log,
    metrics::{self, Metrics, Settings},
    query,
    rows::ViewInfo,
    shard::{Shard, schema::METRICS_APART},
    watch::Watches,
    writer::{Projection as _, Writer, chain},
};

/// Queries that run at the same time; more wait.
const QUERIES: usize = 4;
/// A query attaches every shard, the control file and the audit file; SQLite attaches ten at most.
const SHARDS_MAX: u16 = 8;
/// The end of the audit chain is noted after this many rows.
const AUDIT_ROWS_NOTED: u64 = 32;

/// How a new store is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    shards: u16,
}

impl Layout {
    /// This many shards, 1 to 8, sharing the slots evenly.
    #[must_use]
    pub fn new(shards: u16) -> Self {
        Self { shards }
    }
}

/// The whole store. Clones are the same store; it closes when the last is gone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    shards: Vec<ShardParts>,
    slots: Vec<u16>,
    control: Writer<ControlEntry>,
    control_reader: Mutex<Connection>,
    audit: AuditWriter,
    audit_reader: Mutex<Connection>,
    /// What the control log says the end of the audit chain is.
    audit_noted: Mutex<Option<Head>>,
    watches: Watches,
    compactor: Compactor,
    queries: Arc<Semaphore>,
    pool: Arc<query::Pool>,
    clock: Clock,
    #[expect(dead_code, reason = "held until the store is gone")]
    lock: FolderLock,
}

struct ShardParts {
    writer: Writer<Entry>,
    /// For reads of one thing.
    reader: Mutex<Connection>,
    /// For reads of many, which nobody who asks for one thing waits for.
    bulk: Mutex<Connection>,
    metrics: Metrics,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn close(&self) {
        self.control.close();
        self.compactor.close();
        for shard in &self.shards {
            shard.writer.close();
            shard.metrics.close();
        }
        self.audit.close();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.inner.dir.display())
    }
}

pub(crate) fn reading(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shard_folder(dir: &Path, shard: u16) -> PathBuf {
    dir.join("shards").join(shard.to_string())
}

/// State of a later version is refused as a whole, before a part of it is migrated or written to.
fn refuse_newer(dir: &Path) -> Result<(), StoreError> {
    let logs_and_rows = |folder: PathBuf, rows| {
        db::refuse_newer(&folder.join("log.db"), &log::format())?;
        db::refuse_newer(&folder.join("state.db"), &rows)
    };
    logs_and_rows(dir.join("control"), Control::format())?;
    let mut number = 0;
    while shard_folder(dir, number).exists() {
        logs_and_rows(shard_folder(dir, number), Shard::format())?;
        metrics::refuse_newer(&shard_folder(dir, number))?;
        number += 1;
    }
    db::refuse_newer(&dir.join("audit.db"), &audit::format())
}

fn must_exist(path: &Path) -> Result<(), StoreError> {
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(StoreError::Missing {
            path: path.to_owned(),
        }),
        Err(error) => Err(StoreError::file("cannot look for", path)(error)),
    }
}

impl Store {
    /// Makes an empty store in a folder that holds none.
    pub fn create(dir: &Path, layout: Layout) -> Result<(), StoreError> {
        if !(1..=SHARDS_MAX).contains(&layout.shards) {
            let shards = layout.shards;
            return Err(StoreError::Invalid(format!(
                "{shards} shards: a store has 1 to {SHARDS_MAX}"
            )));
        }
        db::make_folder(dir)?;
        let _lock = db::lock_folder(dir)?;
        let control = dir.join("control");
        if control.join("log.db").exists() {
            return Err(StoreError::Exists {
                path: dir.to_owned(),
            });
        }
        let clock = Clock::system();
        for number in 0..layout.shards {
            let folder = shard_folder(dir, number);
            let shard = Shard::new(Watches::default());
            Writer::start("shard", &folder, clock.clone(), shard, Vec::new())?.close();
            metrics::create(&folder)?;
            db::sync_folder(&folder)?;
        }
        AuditWriter::start(&dir.join("audit.db"), None, clock.clone())?.close();
        let slots = u32::from(Slot::COUNT);
        let shards = (0..slots)
            .map(|slot| slot * u32::from(layout.shards) / slots)
            .collect();
        let table = ControlEntry::Slots(SlotTable { version: 1, shards });
        db::sync_folder(&dir.join("shards"))?;
        db::sync_folder(dir)?;
        // Last, also after a power cut: a store whose making was cut short has no control log, and may be made again;
        // one that has it has every shard.
        Writer::start(
            "control",
            &control,
            clock,
            Control::new(Watches::default()),
            vec![table],
        )?
        .close();
        db::sync_folder(&control)?;
        db::sync_folder(dir)?;
        Ok(())
    }

    /// Opens a store: locks its folder, migrates files of an older version after a backup, applies what
    /// a crash left unapplied, closes the sessions it left open.
    pub fn open(dir: &Path, clock: Clock, settings: Settings) -> Result<Self, StoreError> {
        let folder = dir.join("control");
        if dir.join("audit.db").exists() {
            must_exist(&folder.join("log.db"))?;
        } else if !folder.join("log.db").exists() {
            return Err(StoreError::Invalid(format!(
                "{} holds no store",
                dir.display()
            )));
        }
        let lock = db::lock_folder(dir)?;
        refuse_newer(dir)?;
        let watches = Watches::default();
        let projection = Control::new(watches.clone());
        let control = Writer::start("control", &folder, clock.clone(), projection, Vec::new())?;
        let control_reader = db::open_reader(&folder.join("state.db"))?;
        let slots = control::reads::slots(&control_reader)?;
        let count = slots.iter().max().map_or(1, |last| last + 1);
        let mut shards = Vec::with_capacity(usize::from(count));
        let settings = Settings {
            bytes: settings.bytes / u64::from(count),
            ..settings
        };
        let mut compactions = Vec::with_capacity(usize::from(count));
        let keys = KeyPool::new();
        for number in 0..count {
            let folder = shard_folder(dir, number);
            // The control log came last when the store was made, so every shard was there.
            must_exist(&folder.join("log.db"))?;
            if db::has_format(&folder.join("state.db"), &Shard::format(), METRICS_APART) {
                must_exist(&folder.join(metrics::HEAD))?;
                must_exist(&folder.join(metrics::CHUNKS))?;
            }
            let shard = Shard::new(watches.clone());
            let writer = Writer::start("shard", &folder, clock.clone(), shard, Vec::new())?;
            let (metrics, compaction) =
                Metrics::open(&folder, clock.clone(), settings, keys.clone())?;
            let state = folder.join("state.db");
            shards.push(ShardParts {
                writer,
                reader: Mutex::new(db::open_reader(&state)?),
                bulk: Mutex::new(db::open_reader(&state)?),
                metrics,
            });
            compactions.push(compaction);
        }
        let noted = control::reads::audit_head(&control_reader)?;
        let audit = AuditWriter::start(&dir.join("audit.db"), noted.as_ref(), clock.clone())?;
        let audit_reader = Mutex::new(db::open_reader(&dir.join("audit.db"))?);
        let inner = Inner {
            dir: dir.to_owned(),
            shards,
            slots,
            control,
            control_reader: Mutex::new(control_reader),
            audit,
            audit_reader,
            audit_noted: Mutex::new(noted),
            watches,
            compactor: Compactor::start(compactions, clock.clone())?,
            queries: Arc::new(Semaphore::new(QUERIES)),
            pool: Arc::default(),
            clock,
            lock,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        u16::try_from(self.inner.shards.len()).unwrap_or(u16::MAX)
    }

    /// The writers' queues by name: `control`, `shard-0` …
    #[must_use]
    pub fn queues(&self) -> Vec<(String, crate::QueueDepth)> {
        let shards = self.inner.shards.iter().enumerate();
        std::iter::once(("control".to_owned(), self.inner.control.depth()))
            .chain(shards.flat_map(|(shard, parts)| {
                [
                    (format!("shard-{shard}"), parts.writer.depth()),
                    (format!("metrics-{shard}"), parts.metrics.depth()),
                ]
            }))
            .collect()
    }

    /// Why nothing can be stored, or nothing of metrics moved on, if a commit of the last minute failed and none has worked since. Whoever has
    /// something to store tries again more often than that.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        let now = self.inner.clock.instant();
        let shards = self.inner.shards.iter();
        shards
            .flat_map(|parts| [parts.writer.failing(now), parts.metrics.failing(now)])
            .chain([
                self.inner.control.failing(now),
                self.inner.audit.failing(now),
            ])
            .find_map(|failing| failing)
    }

    /// Resolves once each writer has been at its queue. It is asked by one at a time.
    pub async fn turn(&self) -> Result<(), StoreError> {
        self.inner.control.turn().await?;
        for parts in &self.inner.shards {
            parts.writer.turn().await?;
            parts.metrics.turn().await?;
        }
        Ok(())
    }

    /// The shard a node lives in.
    #[must_use]
    pub fn shard_of(&self, node: NodeId) -> u16 {
        self.inner
            .slots
            .get(usize::from(node.slot().0))
            .copied()
            .unwrap_or(0)
    }

    fn shard(&self, number: u16) -> Result<&ShardParts, StoreError> {
        let shard = self.inner.shards.get(usize::from(number));
        shard.ok_or_else(|| StoreError::Invalid(format!("there is no shard {number}")))
    }

    fn shard_for(&self, node: NodeId) -> Result<&ShardParts, StoreError> {
        self.shard(self.shard_of(node))
    }

    /// Appends entries to a shard's log, in one commit, and applies them; one outcome an entry.
    pub async fn append(
        &self,
        shard: u16,
        entries: Vec<Entry>,
    ) -> Result<Vec<Outcome>, StoreError> {
        self.shard(shard)?.writer.append(entries).await
    }

    /// Appends metric reports of one node; they are committed with those of others.
    pub async fn append_reports(&self, reports: Reports) -> Result<Outcome, StoreError> {
        self.shard_for(reports.node)?.metrics.append(reports).await
    }

    /// [`Store::append`] for one entry about one node.
    pub async fn append_for(
        &self,
        node: NodeId,
        entry: impl Into<Entry>,
    ) -> Result<Outcome, StoreError> {
        let outcomes = self
            .shard_for(node)?
            .writer
            .append(vec![entry.into()])
            .await?;
        outcomes.into_iter().next().ok_or(StoreError::Closed)
    }

    /// Appends entries to the control log.
    pub async fn control_append(
        &self,
        entries: Vec<ControlEntry>,
    ) -> Result<Vec<Outcome>, StoreError> {
        self.inner.control.append(entries).await
    }

    /// Appends to the audit chain, durably. `seq`, `prev_hash` and `hash` are filled in.
    pub async fn audit(&self, row: AuditRow) -> Result<AuditRow, StoreError> {
        let row = self.inner.audit.append(row).await?;
        if row.seq % AUDIT_ROWS_NOTED == 0
            && let Err(error) = self.note_audit_head().await
        {
            // The row itself is durable, and the next note says as much.
            tracing::debug!(error = %chain(&error), "the end of the audit chain could not be noted");
        }
        Ok(row)
    }

    /// Notes in the control log how far the audit chain has come, so that it is noticed when rows go missing while no
    /// collector runs. Done by itself after a number of rows; to be done now and then, and before the store is closed.
    pub async fn note_audit_head(&self) -> Result<(), StoreError> {
        let head = self.inner.audit.head();
        let noted = || {
            self.inner
                .audit_noted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if head.seq == 0 || noted().as_ref() == Some(&head) {
            return Ok(());
        }
        let entry = ControlEntry::AuditHead(AuditHead {
            seq: head.seq,
            hash: head.hash.clone().into(),
            time_ms: self.inner.clock.now().as_ms(),
        });
        self.inner.control.append(vec![entry]).await?;
        *noted() = Some(head);
        Ok(())
    }

    /// Brings all metric reports into chunks, without waiting until it is time.
    pub async fn compact_metrics(&self) -> Result<(), StoreError> {
        self.inner.compactor.now().await
    }

    /// Makes a shard's projections anew from its log.
    pub async fn rebuild_projections(&self, shard: u16) -> Result<(), StoreError> {
        self.shard(shard)?.writer.rebuild().await
    }

    /// The views a query may name.
    #[must_use]
    pub fn schema(&self) -> Vec<ViewInfo> {
        query::schema()
    }

    /// Ends the writers after what they hold is committed. Also done when the last clone is dropped.
    pub fn close(&self) {
        self.inner.close();
    }
}
