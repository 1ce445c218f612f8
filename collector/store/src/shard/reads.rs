//! Reads of one shard's projections.

use std::collections::BTreeMap;

use nexus_proto::{
    ids::{Incarnation, JobId, Lane, NodeId, SessionId},
    record::OutputStream,
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::{
    StoreError,
    rows::{NodeRow, OutputRow, RunRow, RunState, SectionRow},
};

const NODE: &str = "node, name, CASE WHEN held <> '' THEN held WHEN session IS NULL THEN 'disconnected'
    ELSE 'connected' END, reason, labels, os, kernel, arch, agent_version, transport, key_exchange, last_seen_ms,
    enrolled_at_ms, slot, incarnation, session, session_counter, certificate_expires_ms, rtt_us, address";
/// The same columns, as they were: what history does not hold is as it is now.
const NODE_THEN: &str = "h.node, h.name, h.state, h.reason, h.labels, h.os, h.kernel, h.arch, h.agent_version,
    h.transport, h.key_exchange, CASE WHEN n.last_seen_ms <= ?1 THEN n.last_seen_ms END, n.enrolled_at_ms, n.slot,
    n.incarnation, NULL, n.session_counter, n.certificate_expires_ms, n.rtt_us, h.address";

const RUN: &str = "SELECT job, node, name, incarnation, state, session, dispatched_ms, started_ms, finished_ms,
    exit_code, signal, reason, stdout_bytes, stderr_bytes, stdout_dropped_bytes, stderr_dropped_bytes, late_state
    FROM runs";

fn id<T>(
    parse: impl Fn(&[u8]) -> Result<T, nexus_proto::ids::IdError>,
    row: &Row<'_>,
    at: usize,
) -> rusqlite::Result<T> {
    let bytes = row.get_ref(at)?.as_blob()?;
    parse(bytes).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Blob, Box::new(e))
    })
}

fn time(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(at)?.map(Timestamp))
}

fn unsigned(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(at)?).unwrap_or(0))
}

fn session(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<SessionId>> {
    let bytes: Option<Vec<u8>> = row.get(at)?;
    Ok(bytes.and_then(|bytes| SessionId::from_wire(&bytes).ok()))
}

fn node_row(row: &Row<'_>, shard: u16) -> rusqlite::Result<NodeRow> {
    let labels: String = row.get(4)?;
    Ok(NodeRow {
        id: id(NodeId::from_wire, row, 0)?,
        name: row.get(1)?,
        state: row.get(2)?,
        state_reason: row.get(3)?,
        labels: serde_json::from_str(&labels).unwrap_or_default(),
        os: row.get(5)?,
        kernel: row.get(6)?,
        arch: row.get(7)?,
        agent_version: row.get(8)?,
        transport: row.get(9)?,
        key_exchange: row.get(10)?,
        last_seen: time(row, 11)?,
        enrolled_at: time(row, 12)?.unwrap_or_default(),
        shard,
        slot: row.get(13)?,
        incarnation: id(Incarnation::from_wire, row, 14)?,
        session: session(row, 15)?,
        session_counter: unsigned(row, 16)?,
        certificate_expires: time(row, 17)?,
        rtt_us: row
            .get::<_, Option<i64>>(18)?
            .and_then(|us| u64::try_from(us).ok()),
        address: row.get(19)?,
    })
}

pub(crate) fn node(db: &Connection, shard: u16, id: NodeId) -> Result<Option<NodeRow>, StoreError> {
    let mut read = db.prepare_cached(&format!("SELECT {NODE} FROM nodes WHERE node = ?1"))?;
    let row = read
        .query_map([id.as_bytes()], |row| node_row(row, shard))?
        .next();
    Ok(row.transpose()?)
}

pub(crate) fn identity(
    db: &Connection,
    id: NodeId,
) -> Result<Option<(String, Incarnation)>, StoreError> {
    let row = db
        .prepare_cached("SELECT name, incarnation FROM nodes WHERE node = ?1")?
        .query_row([id.as_bytes()], |row| {
            Ok((row.get(0)?, self::id(Incarnation::from_wire, row, 1)?))
        })
        .optional()?;
    Ok(row)
}

/// The nodes of this name.
pub(crate) fn nodes_named(
    db: &Connection,
    shard: u16,
    name: &str,
) -> Result<Vec<NodeRow>, StoreError> {
    let rows = db
        .prepare_cached(&format!("SELECT {NODE} FROM nodes WHERE name = ?1"))?
        .query_map([name], |row| node_row(row, shard))?
        .collect::<Result<_, _>>()?;
    Ok(rows)
}

/// How many nodes there are.
pub(crate) fn node_count(db: &Connection) -> Result<u64, StoreError> {
    let count = db
        .prepare_cached("SELECT count(*) FROM nodes")?
        .query_row([], |row| unsigned(row, 0))?;
    Ok(count)
}

pub(crate) fn nodes(
    db: &Connection,
    shard: u16,
    as_of: Option<Timestamp>,
) -> Result<Vec<NodeRow>, StoreError> {
    let rows = match as_of {
        None => db
            .prepare_cached(&format!("SELECT {NODE} FROM nodes"))?
            .query_map([], |row| node_row(row, shard))?
            .collect::<Result<_, _>>()?,
        Some(then) => db
            .prepare_cached(&format!(
                "SELECT {NODE_THEN} FROM node_history h JOIN nodes n ON n.node = h.node
                 WHERE h.valid_from_ms <= ?1 AND (h.valid_to_ms IS NULL OR h.valid_to_ms > ?1)"
            ))?
            .query_map([then.as_ms()], |row| node_row(row, shard))?
            .collect::<Result<_, _>>()?,
    };
    Ok(rows)
}

pub(crate) fn cursors(
    db: &Connection,
    node: NodeId,
    of: Incarnation,
) -> Result<[(Lane, u64); 3], StoreError> {
    let mut cursors = Lane::ALL.map(|lane| (lane, 0));
    for (lane, seq) in &mut cursors {
        *seq = super::cursor(db, node, of, *lane)?;
    }
    Ok(cursors)
}

pub(crate) fn sections(db: &Connection, node: NodeId) -> Result<Vec<SectionRow>, StoreError> {
    let mut read = db.prepare_cached(
        "SELECT kind, hash, since_ms, error FROM sections WHERE node = ?1 ORDER BY kind",
    )?;
    let rows = read.query_map([node.as_bytes()], |row| {
        Ok(SectionRow {
            kind: row.get(0)?,
            hash: row.get(1)?,
            since: time(row, 2)?.unwrap_or_default(),
            error: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(crate) fn runs(db: &Connection, job: JobId) -> Result<Vec<RunRow>, StoreError> {
    let mut read = db.prepare_cached(&format!("{RUN} WHERE job = ?1 ORDER BY node"))?;
    let rows = read.query_map([job.as_bytes()], run_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// By its key: a condition that also takes all runs of a job would look through them.
pub(crate) fn run(db: &Connection, job: JobId, node: NodeId) -> Result<Option<RunRow>, StoreError> {
    let row = db
        .prepare_cached(&format!("{RUN} WHERE job = ?1 AND node = ?2"))?
        .query_row(params![job.as_bytes(), node.as_bytes()], run_row)
        .optional()?;
    Ok(row)
}

fn run_row(row: &Row<'_>) -> rusqlite::Result<RunRow> {
    Ok(RunRow {
        job: id(JobId::from_wire, row, 0)?,
        node: id(NodeId::from_wire, row, 1)?,
        name: row.get(2)?,
        incarnation: id(Incarnation::from_wire, row, 3)?,
        state: run_state(row, 4)?,
        session: session(row, 5)?,
        dispatched: time(row, 6)?,
        started: time(row, 7)?,
        finished: time(row, 8)?,
        exit_code: row.get(9)?,
        signal: row.get(10)?,
        reason: row.get(11)?,
        stdout_bytes: unsigned(row, 12)?,
        stderr_bytes: unsigned(row, 13)?,
        stdout_dropped_bytes: unsigned(row, 14)?,
        stderr_dropped_bytes: unsigned(row, 15)?,
        late_state: row.get(16)?,
    })
}

fn run_state(row: &Row<'_>, at: usize) -> rusqlite::Result<RunState> {
    let name = row.get_ref(at)?.as_str()?;
    Ok(RunState::parse(name).unwrap_or(RunState::Unknown))
}

pub(crate) fn run_states(
    db: &Connection,
    job: JobId,
    states: &mut Vec<(NodeId, RunState)>,
) -> Result<(), StoreError> {
    let mut read = db.prepare_cached("SELECT node, state FROM runs WHERE job = ?1")?;
    let mut rows = read.query([job.as_bytes()])?;
    while let Some(row) = rows.next()? {
        states.push((id(NodeId::from_wire, row, 0)?, run_state(row, 1)?));
    }
    Ok(())
}

/// The first node from `from` on whose run has not ended.
pub(crate) fn open_run(
    db: &Connection,
    job: JobId,
    from: NodeId,
) -> Result<Option<NodeId>, StoreError> {
    let open = db
        .prepare_cached(
            "SELECT node FROM runs WHERE job = ?1 AND node >= ?2 AND state IN ('pending', 'dispatched', 'running')
             ORDER BY node LIMIT 1",
        )?
        .query_row(params![job.as_bytes(), from.as_bytes()], |row| {
            id(NodeId::from_wire, row, 0)
        })
        .optional()?;
    Ok(open)
}

pub(crate) fn run_counts(
    db: &Connection,
    job: JobId,
    counts: &mut BTreeMap<RunState, u64>,
) -> Result<(), StoreError> {
    let mut read =
        db.prepare_cached("SELECT state, count(*) FROM runs WHERE job = ?1 GROUP BY state")?;
    let mut rows = read.query([job.as_bytes()])?;
    while let Some(row) = rows.next()? {
        let state = RunState::parse(&row.get::<_, String>(0)?).unwrap_or(RunState::Unknown);
        *counts.entry(state).or_default() += unsigned(row, 1)?;
    }
    Ok(())
}

pub(crate) fn run_outputs(
    db: &Connection,
    job: JobId,
    after: i64,
    limit: usize,
) -> Result<Vec<OutputRow>, StoreError> {
    let mut read = db.prepare_cached(
        "SELECT id, node, stream, offset, data FROM run_outputs WHERE job = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = read.query_map(params![job.as_bytes(), after, limit], |row| {
        let stream: String = row.get(2)?;
        Ok(OutputRow {
            id: row.get(0)?,
            node: id(NodeId::from_wire, row, 1)?,
            stream: if stream == "stderr" {
                OutputStream::Stderr
            } else {
                OutputStream::Stdout
            },
            offset: unsigned(row, 3)?,
            data: row.get::<_, Vec<u8>>(4)?.into(),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Every table in order of name, every row in order of its columns.
pub(crate) fn digest(db: &Connection) -> Result<[u8; 32], StoreError> {
    let tables: Vec<(String, i64)> = db
        .prepare(
            "SELECT name, (SELECT count(*) FROM pragma_table_info(t.name)) FROM sqlite_schema t
             WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut hasher = blake3::Hasher::new();
    for (table, columns) in tables {
        hasher.update(table.as_bytes());
        let order: Vec<String> = (1..=columns).map(|column| column.to_string()).collect();
        let mut read = db.prepare(&format!(
            "SELECT * FROM \"{table}\" ORDER BY {}",
            order.join(", ")
        ))?;
        let count = read.column_count();
        let mut rows = read.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..count {
                // The Debug form names the type, so 1 and '1' differ.
                hasher.update(
                    format!("{:?}\n", row.get::<_, rusqlite::types::Value>(column)?).as_bytes(),
                );
            }
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use rusqlite::types::Null;

    use super::*;
    use crate::{db, shard::schema};

    /// How SQLite goes about a question.
    fn plan(sql: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let db = db::open_writer(&dir.path().join("state.db"), &schema::format()).unwrap();
        let mut explain = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps = explain.query_map([Null, Null], |row| row.get::<_, String>(3));
        steps
            .unwrap()
            .map(Result::unwrap)
            .collect::<Vec<_>>()
            .join("; ")
    }

    #[test]
    fn a_run_is_found_by_its_key() {
        let plan = plan(&format!("{RUN} WHERE job = ?1 AND node = ?2"));
        assert!(plan.contains("(job=? AND node=?)"), "{plan}");
    }
}
