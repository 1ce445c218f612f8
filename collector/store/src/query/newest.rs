//! Metrics as virtual tables: newest values straight from memory, history from chunks and head.

use std::{
    borrow::Cow,
    ffi::{CStr, c_int},
    marker::PhantomData,
    sync::Arc,
    time::Duration,
};

use nexus_proto::{metrics::SeriesKey, time::Timestamp};
use rusqlite::{
    Connection, ffi,
    types::{Null, ValueRef},
    vtab::{
        Context, Filters, IndexConstraintOp, IndexInfo, Module, VTab, VTabConfig, VTabConnection,
        VTabCursor,
    },
};

use super::current::{Asking, Current, NamedNode, Shown, Span, Whose};
use crate::rows::Newest;

/// Makes the tables known to a connection.
pub(super) fn register(connection: &Connection, current: &Current) -> rusqlite::Result<()> {
    const MODULE: Module<'_, Table> = Module::eponymous_only_module();
    for (name, history) in [(c"nexus_newest", false), (c"nexus_history", true)] {
        let current = current.clone();
        connection.create_module(name, &MODULE, Some(Source { current, history }))?;
    }
    Ok(())
}

/// Where values come from.
#[derive(Clone)]
struct Source {
    current: Current,
    /// All values. Else the newest are shown.
    history: bool,
}

const BY_NODE: c_int = 1;
const BY_ID: c_int = 2;
const BY_NAME: c_int = 4;
const FROM: c_int = 8;
const TO: c_int = 16;
const AT: c_int = 32;

#[repr(C)]
struct Table {
    /// SQLite's part: must be first.
    base: ffi::sqlite3_vtab,
    source: Source,
}

#[expect(
    unsafe_code,
    reason = "rusqlite asks for the layout promise of a virtual table"
)]
// SAFETY: Table is repr(C) and begins with sqlite3_vtab, as the trait demands.
unsafe impl<'vtab> VTab<'vtab> for Table {
    type Aux = Source;
    type Cursor = Cursor<'vtab>;

    fn connect(
        db: &mut VTabConnection,
        aux: Option<&Source>,
        _: &[u8],
        _: &[u8],
        _: &[u8],
        _: &[&[u8]],
    ) -> rusqlite::Result<(Cow<'static, CStr>, Self)> {
        let source = aux
            .cloned()
            .ok_or_else(|| failure("no source of metrics"))?;
        db.config(VTabConfig::Innocuous)?;
        let base = ffi::sqlite3_vtab::default();
        let schema = Cow::Borrowed(
            c"CREATE TABLE x (node TEXT, node_id TEXT, name TEXT, labels TEXT, value REAL, time TEXT)",
        );
        Ok((schema, Self { base, source }))
    }

    fn best_index(&self, info: &mut IndexInfo) -> rusqlite::Result<bool> {
        use IndexConstraintOp as Op;
        let mut wanted = [None; 6];
        for (at, constraint) in info.constraints().enumerate() {
            let place = match (constraint.column(), constraint.operator()) {
                (column @ 0..3, Op::SQLITE_INDEX_CONSTRAINT_EQ) => usize::try_from(column).ok(),
                (5, Op::SQLITE_INDEX_CONSTRAINT_GE | Op::SQLITE_INDEX_CONSTRAINT_GT) => Some(3),
                (5, Op::SQLITE_INDEX_CONSTRAINT_LE | Op::SQLITE_INDEX_CONSTRAINT_LT) => Some(4),
                (5, Op::SQLITE_INDEX_CONSTRAINT_EQ) => Some(5),
                _ => None,
            };
            if constraint.is_usable()
                && let Some(slot) = place.and_then(|place| wanted.get_mut(place))
            {
                *slot = Some(at);
            }
        }
        let mut cost = 1e7;
        let mut chosen = 0;
        let mut arguments = 0;
        for (slot, bit) in wanted
            .into_iter()
            .zip([BY_NODE, BY_ID, BY_NAME, FROM, TO, AT])
        {
            let Some(at) = slot else { continue };
            arguments += 1;
            // SQLite checks the value again, so a filter need not be exact.
            info.constraint_usage(at).set_argv_index(arguments);
            chosen |= bit;
            cost /= 100.0;
        }
        if self.source.history && (chosen & (BY_NODE | BY_ID) == 0 || chosen & BY_NAME == 0) {
            // It would be refused: where there is another order, that is taken.
            cost = 1e12;
        }
        info.set_idx_num(chosen);
        info.set_estimated_cost(cost);
        Ok(true)
    }

    fn open(&'vtab mut self) -> rusqlite::Result<Cursor<'vtab>> {
        Ok(Cursor {
            base: ffi::sqlite3_vtab_cursor::default(),
            history: self.source.history,
            asking: self.source.current.get(),
            nodes: Arc::default(),
            node: None,
            id: None,
            name: None,
            span: ALWAYS,
            at: 0,
            sample: 0,
            newest: None,
            fetched: Vec::new(),
            row: 0,
            table: PhantomData,
        })
    }
}

#[repr(C)]
struct Cursor<'vtab> {
    /// SQLite's part: must be first.
    base: ffi::sqlite3_vtab_cursor,
    history: bool,
    /// `None`: nothing is shown.
    asking: Option<Arc<Asking>>,
    /// Those that may fit.
    nodes: Arc<[NamedNode]>,
    node: Option<String>,
    id: Option<String>,
    name: Option<String>,
    span: Span,
    /// Place among the nodes.
    at: usize,
    /// Place among the node's values.
    sample: usize,
    /// Of the node at `at`.
    newest: Option<Newest>,
    /// History of the node at `at`.
    fetched: Vec<Shown>,
    row: i64,
    table: PhantomData<&'vtab Table>,
}

impl Cursor<'_> {
    fn current(&self) -> Option<(&NamedNode, &Arc<SeriesKey>, f64, Timestamp)> {
        let node = self.nodes.get(self.at)?;
        if self.history {
            let (key, value, time) = self.fetched.get(self.sample)?;
            return Some((node, key, *value, *time));
        }
        let newest = self.newest.as_ref()?;
        let sample = newest.snapshot.samples.get(self.sample)?;
        Some((node, &sample.key, sample.value, newest.time))
    }

    /// The nodes that may fit: without a name or an id all are looked at.
    fn find(&self, asking: &Asking) -> rusqlite::Result<Arc<[NamedNode]>> {
        let whose = match (&self.id, &self.node) {
            (Some(id), _) => match id.parse() {
                Ok(id) => Whose::Id(id),
                Err(_) => return Ok(Arc::default()),
            },
            (None, Some(name)) => Whose::Name(name),
            (None, None) => Whose::All,
        };
        asking.nodes(whose).map_err(|e| failure(&e.to_string()))
    }

    /// Goes on from a node's values to the next value that fits.
    fn settle(&mut self) -> rusqlite::Result<()> {
        let Some(asking) = self.asking.clone() else {
            return Ok(());
        };
        while let Some(node) = self.nodes.get(self.at) {
            if self.sample == 0 {
                match &self.name {
                    Some(name) if self.history => {
                        let values = asking.history(node.node, name, self.span);
                        self.fetched = values.map_err(|e| failure(&e))?;
                    }
                    _ => self.newest = asking.newest(node.node),
                }
            }
            while let Some((_, key, ..)) = self.current() {
                if self.name.as_ref().is_none_or(|wanted| *wanted == key.name) {
                    return Ok(());
                }
                self.sample += 1;
            }
            self.fetched.clear();
            (self.at, self.sample) = (self.at + 1, 0);
        }
        Ok(())
    }
}

#[expect(
    unsafe_code,
    reason = "rusqlite asks for the layout promise of a cursor"
)]
// SAFETY: Cursor is repr(C) and begins with sqlite3_vtab_cursor, as the trait demands.
unsafe impl VTabCursor for Cursor<'_> {
    fn filter(
        &mut self,
        chosen: c_int,
        _: Option<&str>,
        arguments: &Filters<'_>,
    ) -> rusqlite::Result<()> {
        (self.node, self.id, self.name) = (None, None, None);
        (self.at, self.sample, self.row) = (0, 0, 0);
        self.span = ALWAYS;
        self.fetched.clear();
        let mut values = arguments.iter().map(|value| match value {
            ValueRef::Text(text) => String::from_utf8(text.to_vec()).ok(),
            _ => None,
        });
        for (bit, slot) in [
            (BY_NODE, &mut self.node),
            (BY_ID, &mut self.id),
            (BY_NAME, &mut self.name),
        ] {
            if chosen & bit != 0 {
                *slot = values.next().flatten();
            }
        }
        for (bit, from, to) in [(FROM, true, false), (TO, false, true), (AT, true, true)] {
            let text = if chosen & bit == 0 {
                None
            } else {
                values.next().flatten()
            };
            if let Some(text) = text {
                let (first, last) = span_of(&text);
                self.span.0 = if from {
                    first.max(self.span.0)
                } else {
                    self.span.0
                };
                self.span.1 = if to {
                    last.min(self.span.1)
                } else {
                    self.span.1
                };
            }
        }
        let whose = self.node.is_some() || self.id.is_some();
        if self.history && !(whose && self.name.is_some()) {
            return Err(failure(
                "metric_history asks for node = … (or node_id = …) AND name = …",
            ));
        }
        self.nodes = match &self.asking {
            Some(asking) => self.find(asking)?,
            None => Arc::default(),
        };
        self.settle()
    }

    fn next(&mut self) -> rusqlite::Result<()> {
        self.sample += 1;
        self.row += 1;
        self.settle()
    }

    fn eof(&self) -> bool {
        self.current().is_none()
    }

    fn column(&self, context: &mut Context, column: c_int) -> rusqlite::Result<()> {
        let Some((node, key, value, time)) = self.current() else {
            return Ok(());
        };
        match column {
            0 => context.set_result(&node.name),
            1 => context.set_result(&node.id),
            2 => context.set_result(&key.name),
            3 => {
                let labels: std::collections::BTreeMap<_, _> =
                    key.labels.iter().map(|(k, v)| (k, v)).collect();
                context.set_result(&serde_json::to_string(&labels).unwrap_or_default())
            }
            4 if value.is_nan() => context.set_result(&Null),
            4 => context.set_result(&value),
            _ => context.set_result(&time.to_string()),
        }
    }

    fn rowid(&self) -> rusqlite::Result<i64> {
        Ok(self.row)
    }
}

const ALWAYS: Span = (Timestamp(i64::MIN), Timestamp(i64::MAX));
/// Times are compared as texts, whose seconds may have a fraction or none.
const SLACK: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// Times that no row is before, or after, that is at what a text says.
fn span_of(text: &str) -> Span {
    let (first, last) = match (text.parse::<Timestamp>(), day_of(text)) {
        (Ok(time), _) => (time, time),
        (Err(_), Some(day)) => (day, day.after(DAY)),
        (Err(_), None) => return ALWAYS,
    };
    (first.before(SLACK), last.after(SLACK))
}

/// The beginning of the day that a text begins with.
fn day_of(text: &str) -> Option<Timestamp> {
    format!("{}T00:00:00Z", text.get(..10)?).parse().ok()
}

fn failure(what: &str) -> rusqlite::Error {
    rusqlite::Error::ModuleError(what.to_owned())
}
