//! A connection that is ready for queries: the shards, the control file and the audit file are attached read-only under
//! names nobody can guess, temporary views are made over them, and the guard is set last.

use std::{collections::BTreeSet, path::Path, sync::PoisonError};

use rusqlite::Connection;
use uuid::Uuid;

use super::{
    Places, QueryOptions,
    current::Current,
    functions,
    guard::{self, Refusal},
    live, newest,
    views::{self, View},
};
use crate::{StoreError, db};

/// Instructions of SQLite's machine between two looks at the deadline; each may take milliseconds.
const LOOK: i32 = 100;
/// Of each file that is kept in memory, in KiB: a connection has up to ten files, and may wait for long.
const CACHE_KB: u32 = 1024;

pub(super) struct Prepared {
    pub(super) connection: Connection,
    /// Whose query it runs.
    pub(super) current: Current,
    refusal: Refusal,
}

impl Prepared {
    /// For any statement, over all nodes as they are now.
    pub(super) fn open(places: &Places) -> Result<Self, StoreError> {
        Self::make(places, |_| true, &QueryOptions::default())
    }

    /// For this statement, over the nodes and at the time that the options name.
    pub(super) fn open_for(
        places: &Places,
        sql: &str,
        options: &QueryOptions,
    ) -> Result<Self, StoreError> {
        // A statement cannot name what its text does not contain, and most of the time goes into what it could name.
        let text = sql.to_ascii_lowercase();
        Self::make(
            places,
            |name| text.contains(&name.to_ascii_lowercase()),
            options,
        )
    }

    fn make(
        places: &Places,
        named: impl Fn(&str) -> bool,
        options: &QueryOptions,
    ) -> Result<Self, StoreError> {
        let connection = db::open_query()?;
        let views = views::all();
        let current = Current::default();
        live::register(&connection, &current)?;
        newest::register(&connection, &current)?;
        set_up(&connection, places, named, options, &views)?;
        let over = {
            let current = current.clone();
            move || current.over()
        };
        functions::register(&connection, &over)?;
        connection.progress_handler(LOOK, Some(over))?;
        let refusal = guard::set(&connection, &views)?;
        Ok(Self {
            connection,
            current,
            refusal,
        })
    }

    /// Why the guard refused the statement, if it did.
    pub(super) fn refused(&self) -> Option<String> {
        let refusal = self.refusal.lock();
        refusal.unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn set_up(
    connection: &Connection,
    places: &Places,
    named: impl Fn(&str) -> bool,
    options: &QueryOptions,
    views: &[View],
) -> Result<(), StoreError> {
    let views: Vec<&View> = views.iter().filter(|view| named(view.name)).collect();
    let attach = |path: &Path| -> Result<String, StoreError> {
        let schema = format!("x{}", Uuid::new_v4().simple());
        connection.execute(&format!("ATTACH ?1 AS {schema}"), [uri(path)])?;
        connection.execute_batch(&format!("PRAGMA {schema}.cache_size = -{CACHE_KB}"))?;
        Ok(schema)
    };
    let sharded = views.iter().any(|view| view.place == views::Place::Shards);
    let shards = places.shards.iter().filter(|_| sharded);
    let shards = shards
        .map(|path| attach(path))
        .collect::<Result<Vec<_>, _>>()?;
    let needed = |path, needs: fn(&View) -> bool| {
        let needed = views.iter().any(|view| needs(view));
        needed.then(|| attach(path)).transpose()
    };
    let control = needed(&places.control, View::reads_control)?;
    let audit = needed(&places.audit, View::reads_audit)?;
    connection.execute_batch(
        "PRAGMA temp_store = MEMORY; PRAGMA cache_size = -4096; CREATE TEMP TABLE nexus_permitted (node BLOB PRIMARY KEY);",
    )?;
    for node in options.nodes.iter().flatten() {
        connection.execute(
            "INSERT OR IGNORE INTO temp.nexus_permitted VALUES (?1)",
            [node.as_bytes()],
        )?;
    }
    let mut hidden = BTreeSet::new();
    // All shards have the same tables.
    for schema in shards.first().into_iter().chain(&control).chain(&audit) {
        let mut names = connection.prepare(&format!(
            "SELECT name FROM {schema}.sqlite_schema WHERE type = 'table'"
        ))?;
        for name in names.query_map([], |row| row.get::<_, String>(0))? {
            let name = name?;
            if named(&name) {
                hidden.insert(name);
            }
        }
    }
    for view in views {
        hidden.remove(view.name);
        connection.execute_batch(&view.sql(
            &shards,
            control.as_deref().unwrap_or_default(),
            audit.as_deref().unwrap_or_default(),
            options.as_of,
            options.nodes.is_some(),
        ))?;
    }
    for name in hidden.iter().filter(|name| !name.starts_with("sqlite_")) {
        connection.execute_batch(&format!(
            "CREATE TEMP VIEW \"{name}\" AS SELECT NULL AS hidden WHERE 0"
        ))?;
    }
    Ok(())
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
