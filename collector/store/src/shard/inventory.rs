//! Inventory tables: a changed section closes the rows that went and opens those that came.
//!
//! A fleet that connects at once brings hundreds of rows a node, so nothing here is done per row but what SQLite does:
//! the rows held and those that came are compared in memory, in order, and bound where they stand.

use std::{borrow::Cow, cmp::Ordering};

use nexus_proto::{
    ids::NodeId,
    inventory::{self, ColumnType, Kind},
    record::{Cell, Row, Section},
    time::Timestamp,
};
use rusqlite::{
    Connection, OptionalExtension as _, Statement, params,
    types::{Null, ValueRef},
};

use super::schema::table_of;
use crate::StoreError;

pub(super) fn apply(
    db: &Connection,
    node: NodeId,
    time: Timestamp,
    section: &Section,
) -> Result<(), StoreError> {
    let known: Option<Vec<u8>> = db
        .prepare_cached("SELECT hash FROM sections WHERE node = ?1 AND kind = ?2")?
        .query_row(params![node.as_bytes(), section.kind], |row| row.get(0))
        .optional()?;
    if let Some(error) = &section.error {
        db.prepare_cached(
            "INSERT INTO sections (node, kind, hash, since_ms, error) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET error = ?5",
        )?
        .execute(params![
            node.as_bytes(),
            section.kind,
            section.hash,
            time.as_ms(),
            error
        ])?;
        return Ok(());
    }
    if known.as_deref() == Some(section.hash.as_slice()) {
        db.prepare_cached("UPDATE sections SET error = NULL WHERE node = ?1 AND kind = ?2")?
            .execute(params![node.as_bytes(), section.kind])?;
        return Ok(());
    }
    // A kind of a newer agent has no table here; its hash is kept, so that it is not asked for again.
    if let Some(kind) = inventory::kind(&section.kind) {
        // Of a section that never came nothing is held.
        let held = match known {
            Some(_) => held(db, node, kind)?,
            None => Vec::new(),
        };
        replace(db, node, time, kind, &held, &section.rows)?;
    }
    db.prepare_cached(
        "INSERT INTO sections (node, kind, hash, since_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET hash = ?3, since_ms = ?4, error = NULL",
    )?
    .execute(params![
        node.as_bytes(),
        section.kind,
        section.hash,
        time.as_ms()
    ])?;
    Ok(())
}

/// The rows that hold now, in order, with their numbers.
fn held(db: &Connection, node: NodeId, kind: &Kind) -> Result<Vec<(Row, i64)>, StoreError> {
    let (table, names) = (table_of(kind), names_of(kind));
    let mut read = db.prepare_cached(&format!(
        "SELECT row{names} FROM {table} WHERE node = ?1 AND valid_to_ms IS NULL"
    ))?;
    let mut read = read.query([node.as_bytes()])?;
    let mut held = Vec::new();
    while let Some(row) = read.next()? {
        let cells = (1..=kind.columns.len()).map(|i| {
            Ok(match row.get_ref(i)? {
                ValueRef::Text(_) => Cell::Text(row.get(i)?),
                ValueRef::Integer(integer) => Cell::Integer(integer),
                _ => Cell::Null,
            })
        });
        held.push((Row(cells.collect::<rusqlite::Result<_>>()?), row.get(0)?));
    }
    held.sort_unstable();
    Ok(held)
}

/// Leaves the rows that are in both, closes those that only are held, opens the others.
fn replace(
    db: &Connection,
    node: NodeId,
    time: Timestamp,
    kind: &Kind,
    held: &[(Row, i64)],
    rows: &[Row],
) -> Result<(), StoreError> {
    let (table, names) = (table_of(kind), names_of(kind));
    // Rows that differ only in columns we do not know are one.
    let mut rows: Vec<Cow<'_, Row>> = rows.iter().map(|row| fit(kind, row)).collect();
    rows.sort_unstable();
    rows.dedup();
    let marks: String = (0..kind.columns.len())
        .map(|i| format!(", ?{}", i + 3))
        .collect();
    let mut insert = db.prepare_cached(&format!(
        "INSERT INTO {table} (node, valid_from_ms{names}) VALUES (?1, ?2{marks})"
    ))?;
    let mut close = db.prepare_cached(&format!(
        "UPDATE {table} SET valid_to_ms = max(?2, valid_from_ms) WHERE row = ?1"
    ))?;
    // They stay bound from row to row.
    insert.raw_bind_parameter(1, node.as_bytes())?;
    insert.raw_bind_parameter(2, time.as_ms())?;
    for change in changes(held, &rows, |(old, _), new| old.cmp(new)) {
        match change {
            Change::Came(row) => {
                bind(&mut insert, row)?;
                insert.raw_execute()?;
            }
            Change::Went((_, id)) => {
                close.execute(params![id, time.as_ms()])?;
            }
        }
    }
    if kind.name == PACKAGES {
        let before = held.iter().filter_map(|(row, _)| version_of(row));
        count_versions(db, before, rows.iter().filter_map(|row| version_of(row)))?;
    }
    Ok(())
}

/// Binds a row's cells where they stand.
fn bind(insert: &mut Statement<'_>, row: &Row) -> rusqlite::Result<()> {
    for (at, cell) in (3..).zip(&row.0) {
        match cell {
            Cell::Null => insert.raw_bind_parameter(at, Null),
            Cell::Text(text) => insert.raw_bind_parameter(at, text.as_str()),
            Cell::Integer(integer) => insert.raw_bind_parameter(at, integer),
        }?;
    }
    Ok(())
}

/// The kind that is counted.
pub(super) const PACKAGES: &str = "packages";

/// Name and version of a package.
fn version_of(row: &Row) -> Option<(&str, &str)> {
    match row.0.as_slice() {
        [Cell::Text(name), Cell::Text(version), ..] => Some((name, version)),
        _ => None,
    }
}

/// Keeps `package_versions`: how many nodes have a version of a package now. A node that has it for two architectures
/// is one node.
fn count_versions<'a>(
    db: &Connection,
    before: impl Iterator<Item = (&'a str, &'a str)>,
    after: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), StoreError> {
    // In order, since rows are ordered by these columns first.
    let mut before: Vec<_> = before.collect();
    let mut after: Vec<_> = after.collect();
    before.dedup();
    after.dedup();
    let mut more = db.prepare_cached(
        "INSERT INTO package_versions (name, version, nodes) VALUES (?1, ?2, 1)
         ON CONFLICT DO UPDATE SET nodes = nodes + 1",
    )?;
    let mut fewer = db.prepare_cached(
        "UPDATE package_versions SET nodes = nodes - 1 WHERE name = ?1 AND version = ?2",
    )?;
    let mut none = db.prepare_cached(
        "DELETE FROM package_versions WHERE name = ?1 AND version = ?2 AND nodes <= 0",
    )?;
    for change in changes(before, after, Ord::cmp) {
        match change {
            Change::Came(version) => {
                more.execute(version)?;
            }
            Change::Went(version) => {
                fewer.execute(version)?;
                none.execute(version)?;
            }
        }
    }
    Ok(())
}

/// What one of two lists has and the other has not.
enum Change<A, B> {
    Went(A),
    Came(B),
}

/// The differences of two lists in the same order, none twice.
fn changes<A, B>(
    before: impl IntoIterator<Item = A>,
    after: impl IntoIterator<Item = B>,
    order: impl Fn(&A, &B) -> Ordering,
) -> impl Iterator<Item = Change<A, B>> {
    let mut before = before.into_iter().peekable();
    let mut after = after.into_iter().peekable();
    std::iter::from_fn(move || {
        loop {
            let earlier = match (before.peek(), after.peek()) {
                (Some(old), Some(new)) => order(old, new),
                (Some(_), None) => Ordering::Less,
                (None, _) => Ordering::Greater,
            };
            match earlier {
                Ordering::Less => return before.next().map(Change::Went),
                Ordering::Greater => return after.next().map(Change::Came),
                Ordering::Equal => (before.next(), after.next()),
            };
        }
    })
}

/// `, "name", "version"`
fn names_of(kind: &Kind) -> String {
    let columns = kind.columns.iter();
    columns
        .map(|column| format!(", \"{}\"", column.name))
        .collect()
}

/// Exactly the columns we know, each of its type: missing or ill-typed cells are null, surplus ones go.
fn fit<'a>(kind: &Kind, row: &'a Row) -> Cow<'a, Row> {
    let fits = |(column, cell): (&inventory::Column, &Cell)| {
        matches!(
            (column.kind, cell),
            (_, Cell::Null)
                | (ColumnType::Text, Cell::Text(_))
                | (ColumnType::Integer, Cell::Integer(_))
        )
    };
    if row.0.len() == kind.columns.len() && kind.columns.iter().zip(&row.0).all(fits) {
        return Cow::Borrowed(row);
    }
    let cells =
        kind.columns
            .iter()
            .enumerate()
            .map(|(i, column)| match (column.kind, row.0.get(i)) {
                (ColumnType::Text, Some(Cell::Text(text))) => Cell::Text(text.clone()),
                (ColumnType::Text, Some(Cell::Integer(integer))) => Cell::Text(integer.to_string()),
                (ColumnType::Integer, Some(Cell::Integer(integer))) => Cell::Integer(*integer),
                _ => Cell::Null,
            });
    Cow::Owned(Row(cells.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_begin_with_name_and_version() {
        let kind = inventory::kind(PACKAGES).unwrap();
        let first: Vec<_> = kind
            .columns
            .iter()
            .take(2)
            .map(|c| (c.name, c.kind))
            .collect();
        assert_eq!(
            first,
            [("name", ColumnType::Text), ("version", ColumnType::Text)]
        );
    }

    #[test]
    fn differences_are_what_only_one_has() {
        let told = |before: &[u8], after: &[u8]| {
            let mut text = String::new();
            for change in changes(before.to_vec(), after.to_vec(), Ord::cmp) {
                match change {
                    Change::Went(old) => text.push_str(&format!("-{old}")),
                    Change::Came(new) => text.push_str(&format!("+{new}")),
                }
            }
            text
        };
        assert_eq!(told(&[1, 2, 4], &[2, 3, 4, 5]), "-1+3+5");
        assert_eq!(told(&[], &[1]), "+1");
        assert_eq!(told(&[1], &[]), "-1");
        assert_eq!(told(&[1, 2], &[1, 2]), "");
    }
}
