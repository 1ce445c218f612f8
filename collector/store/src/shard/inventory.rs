//! Inventory tables: a changed section closes the rows that went and opens those that came.

use std::collections::{BTreeMap, BTreeSet};

use nexus_proto::{
    ids::NodeId,
    inventory::{self, ColumnType, Kind},
    record::{Cell, Row, Section},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter, types::Value as Sql};

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
        replace(db, node, time, kind, &section.rows)?;
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

fn replace(
    db: &Connection,
    node: NodeId,
    time: Timestamp,
    kind: &Kind,
    rows: &[Row],
) -> Result<(), StoreError> {
    let table = table_of(kind);
    let names: String = kind
        .columns
        .iter()
        .map(|column| format!(", \"{}\"", column.name))
        .collect();
    let mut held: BTreeMap<Row, i64> = BTreeMap::new();
    {
        let mut read = db.prepare_cached(&format!(
            "SELECT row{names} FROM {table} WHERE node = ?1 AND valid_to_ms IS NULL"
        ))?;
        let mut read = read.query([node.as_bytes()])?;
        while let Some(row) = read.next()? {
            let cells = (1..=kind.columns.len()).map(|i| {
                Ok(match row.get::<_, Sql>(i)? {
                    Sql::Text(text) => Cell::Text(text),
                    Sql::Integer(integer) => Cell::Integer(integer),
                    _ => Cell::Null,
                })
            });
            held.insert(Row(cells.collect::<rusqlite::Result<_>>()?), row.get(0)?);
        }
    }
    let marks: String = (0..kind.columns.len())
        .map(|i| format!(", ?{}", i + 3))
        .collect();
    let mut insert = db.prepare_cached(&format!(
        "INSERT INTO {table} (node, valid_from_ms{names}) VALUES (?1, ?2{marks})"
    ))?;
    // Rows that differ only in columns we do not know are one.
    let rows: BTreeSet<Row> = rows.iter().map(|row| fit(kind, row)).collect();
    for cells in rows {
        if held.remove(&cells).is_some() {
            continue;
        }
        let values = [
            Sql::Blob(node.as_bytes().to_vec()),
            Sql::Integer(time.as_ms()),
        ]
        .into_iter()
        .chain(cells.0.into_iter().map(|cell| match cell {
            Cell::Null => Sql::Null,
            Cell::Text(text) => Sql::Text(text),
            Cell::Integer(integer) => Sql::Integer(integer),
        }));
        insert.execute(params_from_iter(values))?;
    }
    let mut close = db.prepare_cached(&format!(
        "UPDATE {table} SET valid_to_ms = max(?2, valid_from_ms) WHERE row = ?1"
    ))?;
    for id in held.into_values() {
        close.execute(params![id, time.as_ms()])?;
    }
    Ok(())
}

/// Exactly the columns we know, each of its type: missing or ill-typed cells are null, surplus ones go.
fn fit(kind: &Kind, row: &Row) -> Row {
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
    Row(cells.collect())
}
