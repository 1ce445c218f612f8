//! SQL over everything: one read-only statement, over views alone, with bounds on what it may cost.
//!
//! Each query has a connection of its own to nothing, to which the shards, the control file and the audit file
//! are attached read-only under names nobody can guess; the views over them are temporary, made before the
//! guard is set. Rows leave through a bounded channel. A deadline, a memory bound and the caller's leaving
//! each end it.

mod functions;
mod guard;
pub(crate) mod live;
pub(crate) mod memory;
mod newest;
mod views;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nexus_proto::{ids::NodeId, time::Timestamp};
use nexus_runtime::clock::Clock;
use rusqlite::{Connection, ErrorCode, types::ValueRef};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use uuid::Uuid;

use crate::{
    StoreError, db,
    rows::{Value, ViewInfo},
};

pub(crate) use newest::{Fetch, NodeMetrics};

/// Rows of one batch.
const BATCH_ROWS: usize = 256;
/// Roughly, bytes of one batch.
const BATCH_BYTES: usize = 256 * 1024;
/// Batches that wait for the reader.
const BATCHES: usize = 4;
/// The most rows any query gives.
const ROWS_MAX: usize = 1_000_000;
/// What a query runs at most, whatever it asks for.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// What SQLite may hold for one query.
const MEMORY_BYTES: i64 = 256 * 1024 * 1024;
/// Instructions of SQLite's machine between two looks at the deadline; each may take milliseconds.
const LOOK: i32 = 100;
/// Characters of an error that are shown.
const ERROR_CHARS: usize = 1000;

/// What a query may cost.
#[derive(Debug, Clone)]
pub struct QueryOptions {
    /// Show things as they were then.
    pub as_of: Option<Timestamp>,
    /// Rows at most; 0: the largest limit.
    pub limit: usize,
    /// It ends after this.
    pub timeout: Duration,
    /// Only these nodes are seen in views about nodes; `None`: all.
    pub nodes: Option<Vec<NodeId>>,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            as_of: None,
            limit: 0,
            timeout: Duration::from_secs(30),
            nodes: None,
        }
    }
}

type Batch = Result<Vec<Vec<Value>>, StoreError>;

/// The answer to a query: its columns, then rows in bounded batches.
#[derive(Debug)]
pub struct QueryStream {
    /// Names of the columns.
    pub columns: Vec<String>,
    batches: mpsc::Receiver<Batch>,
    truncated: oneshot::Receiver<bool>,
}

impl QueryStream {
    /// The next rows; `None` after the last. An error ends the answer.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// Whether the row limit cut the answer; known once the rows have ended.
    #[must_use]
    pub fn truncated(&mut self) -> bool {
        self.truncated.try_recv().unwrap_or(false)
    }
}

/// Where the data is.
#[derive(Clone)]
pub(crate) struct Places {
    pub(crate) shards: Vec<PathBuf>,
    pub(crate) control: PathBuf,
    pub(crate) audit: PathBuf,
}

/// What metrics views show.
pub(crate) struct Metrics {
    pub(crate) tails: Arc<live::Ask>,
    pub(crate) nodes: Arc<Vec<NodeMetrics>>,
    pub(crate) history: Arc<Fetch>,
}

/// The views, for people.
pub(crate) fn schema() -> Vec<ViewInfo> {
    views::describe()
}

/// Whether a statement may look at metrics: their tables are only filled when it does.
pub(crate) fn names_metrics(sql: &str) -> bool {
    sql.to_ascii_lowercase().contains("metric")
}

/// Starts a query in a thread of its own, which holds `permit` and asks for `metrics`.
pub(crate) async fn start(
    sql: String,
    options: QueryOptions,
    places: Places,
    metrics: impl FnOnce() -> Result<Metrics, StoreError> + Send + 'static,
    clock: Clock,
    permit: OwnedSemaphorePermit,
) -> Result<QueryStream, StoreError> {
    let (head, columns) = oneshot::channel();
    let (rows, batches) = mpsc::channel(BATCHES);
    let (cut, truncated) = oneshot::channel();
    thread::Builder::new()
        .name("query".to_owned())
        .spawn(move || {
            let mut head = Some(head);
            let run = Run {
                sql: &sql,
                options: &options,
                clock,
                rows: rows.clone(),
            };
            let result = metrics().and_then(|metrics| run.run(&places, metrics, &mut head));
            match result {
                Ok(was_cut) => drop(cut.send(was_cut)),
                Err(error) => match head.take() {
                    Some(head) => drop(head.send(Err(error))),
                    None => drop(rows.blocking_send(Err(error))),
                },
            }
            drop(permit);
        })
        .map_err(|e| StoreError::Query(format!("cannot start a query: {e}")))?;
    let columns = columns.await.map_err(|_| StoreError::Closed)??;
    Ok(QueryStream {
        columns,
        batches,
        truncated,
    })
}

type Head = Option<oneshot::Sender<Result<Vec<String>, StoreError>>>;

struct Run<'a> {
    sql: &'a str,
    options: &'a QueryOptions,
    clock: Clock,
    rows: mpsc::Sender<Batch>,
}

/// Why the progress handler ended a query.
const RUNNING: u8 = 0;
const LATE: u8 = 1;
const ALONE: u8 = 2;

impl Run<'_> {
    fn run(&self, places: &Places, metrics: Metrics, head: &mut Head) -> Result<bool, StoreError> {
        let deadline = self.clock.instant() + self.options.timeout.min(TIMEOUT_MAX);
        let connection = db::open_query()?;
        memory::bound(MEMORY_BYTES);
        let views = views::all();
        self.set_up(&connection, places, metrics, &views)?;
        let why = self.watch(&connection, deadline)?;
        let refusal = guard::set(&connection, &views)?;
        let explain = |error: rusqlite::Error| {
            if let Some(why) = refusal
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
            {
                return StoreError::Query(one_line(&why));
            }
            match why.load(Ordering::Relaxed) {
                LATE => StoreError::Deadline,
                ALONE => StoreError::Closed,
                _ if error.sqlite_error_code() == Some(ErrorCode::OutOfMemory) => {
                    StoreError::Query("the query needs too much memory".to_owned())
                }
                _ => StoreError::Query(one_line(&self.explain(&error))),
            }
        };
        let mut statement = connection.prepare(self.sql).map_err(explain)?;
        if !statement.readonly() || statement.is_explain() != 0 || statement.column_count() == 0 {
            return Err(StoreError::Query(
                "only one read-only SELECT over the views is allowed".to_owned(),
            ));
        }
        let columns = statement
            .column_names()
            .into_iter()
            .map(str::to_owned)
            .collect();
        if let Some(head) = head.take() {
            drop(head.send(Ok(columns)));
        }
        let count = statement.column_count();
        let limit = match self.options.limit {
            0 => ROWS_MAX,
            limit => limit.min(ROWS_MAX),
        };
        let mut rows = statement.query([]).map_err(explain)?;
        let (mut batch, mut bytes, mut sent) = (Vec::new(), 0, 0);
        while let Some(row) = rows.next().map_err(explain)? {
            if sent == limit {
                self.send(batch)?;
                return Ok(true);
            }
            sent += 1;
            let mut values = Vec::with_capacity(count);
            for column in 0..count {
                let value = match row.get_ref(column).map_err(explain)? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(integer) => Value::Integer(integer),
                    ValueRef::Real(real) => Value::Real(real),
                    ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                    ValueRef::Blob(blob) => Value::Blob(blob.to_vec().into()),
                };
                bytes += match &value {
                    Value::Text(text) => 16 + text.len(),
                    Value::Blob(blob) => 16 + blob.len(),
                    _ => 16,
                };
                values.push(value);
            }
            batch.push(values);
            if batch.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
                self.send(std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        self.send(batch)?;
        Ok(false)
    }

    fn send(&self, batch: Vec<Vec<Value>>) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.rows
            .blocking_send(Ok(batch))
            .map_err(|_| StoreError::Closed)
    }

    fn set_up(
        &self,
        connection: &Connection,
        places: &Places,
        metrics: Metrics,
        views: &[views::View],
    ) -> Result<(), StoreError> {
        // A statement cannot name what its text does not contain, and most of the time goes into what it could name.
        let text = self.sql.to_ascii_lowercase();
        let views: Vec<&views::View> = views
            .iter()
            .filter(|view| text.contains(view.name))
            .collect();
        let attach = |path: &Path| -> Result<String, StoreError> {
            let schema = format!("x{}", Uuid::new_v4().simple());
            connection.execute(&format!("ATTACH ?1 AS {schema}"), [uri(path)])?;
            Ok(schema)
        };
        let sharded = views.iter().any(|view| view.place == views::Place::Shards);
        let shards = places.shards.iter().filter(|_| sharded);
        let shards = shards
            .map(|path| attach(path))
            .collect::<Result<Vec<_>, _>>()?;
        let needed = |path, needs: fn(&views::View) -> bool| {
            let needed = views.iter().any(|view| needs(view));
            needed.then(|| attach(path)).transpose()
        };
        let control = needed(&places.control, views::View::reads_control)?;
        let audit = needed(&places.audit, views::View::reads_audit)?;
        connection.execute_batch(
            "PRAGMA temp_store = MEMORY; PRAGMA cache_size = -4096; CREATE TEMP TABLE nexus_permitted (node BLOB PRIMARY KEY);",
        )?;
        for node in self.options.nodes.iter().flatten() {
            connection.execute(
                "INSERT OR IGNORE INTO temp.nexus_permitted VALUES (?1)",
                [node.as_bytes()],
            )?;
        }
        live::register(connection, &metrics.tails)?;
        let now = newest::Source {
            nodes: Arc::clone(&metrics.nodes),
            history: None,
        };
        newest::register(connection, c"nexus_newest", now)?;
        let then = newest::Source {
            nodes: metrics.nodes,
            history: Some(metrics.history),
        };
        newest::register(connection, c"nexus_history", then)?;
        let mut hidden = BTreeSet::new();
        // All shards have the same tables.
        for schema in shards.first().into_iter().chain(&control).chain(&audit) {
            let mut names = connection.prepare(&format!(
                "SELECT name FROM {schema}.sqlite_schema WHERE type = 'table'"
            ))?;
            for name in names.query_map([], |row| row.get::<_, String>(0))? {
                let name = name?;
                if text.contains(&name.to_ascii_lowercase()) {
                    hidden.insert(name);
                }
            }
        }
        for view in views {
            hidden.remove(view.name);
            let some = self.options.nodes.is_some();
            connection.execute_batch(&view.sql(
                &shards,
                control.as_deref().unwrap_or_default(),
                audit.as_deref().unwrap_or_default(),
                self.options.as_of,
                some,
            ))?;
        }
        for name in hidden.iter().filter(|name| !name.starts_with("sqlite_")) {
            connection.execute_batch(&format!(
                "CREATE TEMP VIEW \"{name}\" AS SELECT NULL AS hidden WHERE 0"
            ))?;
        }
        Ok(())
    }

    fn watch(
        &self,
        connection: &Connection,
        deadline: Instant,
    ) -> Result<Arc<AtomicU8>, StoreError> {
        let why = Arc::new(AtomicU8::new(RUNNING));
        let note = Arc::clone(&why);
        let clock = self.clock.clone();
        let rows = self.rows.clone();
        let over = move || {
            let reason = if clock.instant() >= deadline {
                LATE
            } else if rows.is_closed() {
                ALONE
            } else {
                return false;
            };
            note.store(reason, Ordering::Relaxed);
            true
        };
        functions::register(connection, &over)?;
        connection.progress_handler(LOOK, Some(over))?;
        Ok(why)
    }

    /// What SQLite said, and where.
    fn explain(&self, error: &rusqlite::Error) -> String {
        match error {
            rusqlite::Error::SqlInputError { msg, offset, .. } => {
                let before = usize::try_from(*offset)
                    .ok()
                    .and_then(|offset| self.sql.get(..offset));
                let Some(before) = before else {
                    return msg.clone();
                };
                let line = before.matches('\n').count() + 1;
                let column = before
                    .rsplit('\n')
                    .next()
                    .map_or(0, |last| last.chars().count())
                    + 1;
                format!("{msg} (line {line}, column {column})")
            }
            rusqlite::Error::MultipleStatement => "only one statement is allowed".to_owned(),
            rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
            other => other.to_string(),
        }
    }
}

/// As it can stand in a status and on a terminal: what an error quotes may hold line ends, and be long.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars().take(ERROR_CHARS) {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    if text.chars().nth(ERROR_CHARS).is_some() {
        line.push('…');
    }
    line
}

/// A file URI that opens for reading only.
fn uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                uri.push(char::from(*byte))
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?mode=ro");
    uri
}
