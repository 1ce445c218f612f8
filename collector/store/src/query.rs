//! SQL over everything: one read-only statement, over views alone, with bounds on what it may cost.
//!
//! A query runs in a thread of its own, on a connection to nothing that `prepared` attaches the files to and makes the
//! views in before it sets the guard. That costs more than most answers, so a connection that shows all
//! nodes as they are now goes on to the next query (`pool`); one that shows less, or the past, serves its query
//! alone. Rows leave through a bounded channel. A deadline, a memory bound and the caller's leaving each end it.

mod current;
mod functions;
mod guard;
pub(crate) mod live;
pub(crate) mod memory;
mod newest;
mod pool;
mod prepared;
mod views;

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use nexus_proto::{ids::NodeId, time::Timestamp};
use nexus_runtime::clock::Clock;
use rusqlite::{ErrorCode, types::ValueRef};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use self::{
    current::{Asking, Ended},
    prepared::Prepared,
};
use crate::{
    StoreError,
    rows::{Value, ViewInfo},
};

pub(crate) use current::{Metrics, NamedNode, Shown, Span, Whose};
pub(crate) use pool::Pool;

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

/// Rows, or what ended them.
pub(crate) type Batch = Result<Vec<Vec<Value>>, StoreError>;

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

/// The views, for people.
pub(crate) fn schema() -> Vec<ViewInfo> {
    views::describe()
}

/// Starts a query in a thread of its own, which holds `permit`.
pub(crate) async fn start(
    sql: String,
    options: QueryOptions,
    places: Places,
    metrics: Arc<dyn Metrics>,
    clock: Clock,
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
) -> Result<QueryStream, StoreError> {
    let (head, columns) = oneshot::channel();
    let (rows, batches) = mpsc::channel(BATCHES);
    let (cut, truncated) = oneshot::channel();
    thread::Builder::new()
        .name("query".to_owned())
        .spawn(move || {
            let deadline = clock.instant() + options.timeout.min(TIMEOUT_MAX);
            let mut head = Some(head);
            let run = Run {
                sql: &sql,
                options: &options,
                asking: Arc::new(Asking::new(deadline, clock, rows.clone(), metrics)),
            };
            match run.run(&places, &pool, &mut head) {
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
    asking: Arc<Asking>,
}

impl Run<'_> {
    /// Whether the row limit cut the answer.
    fn run(&self, places: &Places, pool: &Pool, head: &mut Head) -> Result<bool, StoreError> {
        memory::bound(MEMORY_BYTES);
        if self.options.as_of.is_some() || self.options.nodes.is_some() {
            return self.answer(&Prepared::open_for(places, self.sql, self.options)?, head);
        }
        let prepared = pool.take().map_or_else(|| Prepared::open(places), Ok)?;
        let answered = self.answer(&prepared, head)?;
        // One whose query failed is not trusted with another.
        pool.put(prepared);
        Ok(answered)
    }

    fn answer(&self, prepared: &Prepared, head: &mut Head) -> Result<bool, StoreError> {
        let _turn = prepared.current.begin(Arc::clone(&self.asking));
        let explain = |error: rusqlite::Error| {
            if let Some(why) = prepared.refused() {
                return StoreError::Query(one_line(&why));
            }
            match self.asking.ended() {
                Some(Ended::Late) => StoreError::Deadline,
                Some(Ended::Alone) => StoreError::Closed,
                None if error.sqlite_error_code() == Some(ErrorCode::OutOfMemory) => {
                    StoreError::Query("the query needs too much memory".to_owned())
                }
                None => {
                    let why = self.explain(&error);
                    StoreError::Query(match why.contains("because it is a view") {
                        // SQLite says so before it asks the guard.
                        true => guard::READ_ONLY.to_owned(),
                        false => one_line(&why),
                    })
                }
            }
        };
        let mut statement = prepared.connection.prepare(self.sql).map_err(explain)?;
        if !statement.readonly() || statement.is_explain() != 0 || statement.column_count() == 0 {
            return Err(StoreError::Query(guard::READ_ONLY.to_owned()));
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
                self.asking.send(batch)?;
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
                self.asking.send(std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        self.asking.send(batch)?;
        Ok(false)
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
