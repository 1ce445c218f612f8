//! Node rows: who a node is, how it is connected, and what was true of it when.

use nexus_proto::{
    ids::{Lane, NodeId},
    store::v1,
    time::Timestamp,
};
use rusqlite::{Connection, params};

use crate::{StoreError, entry::Outcome};

type Applied = Result<Outcome, StoreError>;

pub(super) fn node_id(bytes: &[u8]) -> Result<NodeId, StoreError> {
    NodeId::from_wire(bytes).map_err(|e| StoreError::corrupt("a node's id", e))
}

/// Labels as sorted JSON, so that equal labels are equal text.
fn labels_json(labels: &std::collections::HashMap<String, String>) -> String {
    let sorted: std::collections::BTreeMap<_, _> = labels.iter().collect();
    serde_json::to_string(&sorted).unwrap_or_else(|_| "{}".to_owned())
}

fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn changed(count: usize) -> Outcome {
    if count == 0 {
        Outcome::Refused("no such node".to_owned())
    } else {
        Outcome::Applied
    }
}

/// Every life of a node has a cursor of each lane.
fn lanes(db: &Connection, node: &[u8], incarnation: &[u8]) -> Result<(), StoreError> {
    for lane in Lane::ALL {
        db.prepare_cached(
            "INSERT OR IGNORE INTO cursors (node, incarnation, lane, seq) VALUES (?1, ?2, ?3, 0)",
        )?
        .execute(params![node, incarnation, i32::from(lane.to_wire())])?;
    }
    Ok(())
}

pub(super) fn enrol(db: &Connection, new: &v1::NodeEnrolled) -> Applied {
    let id = node_id(&new.node)?;
    let facts = new.facts.clone().unwrap_or_default();
    db.prepare_cached(
        "INSERT INTO nodes (node, name, labels, os, kernel, arch, agent_version, enrolled_at_ms, incarnation,
            certificate_expires_ms, slot)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT DO UPDATE SET name = ?2, incarnation = ?9, certificate_expires_ms = ?10",
    )?
    .execute(params![
        id.as_bytes(),
        new.name,
        labels_json(&new.labels),
        facts.os,
        facts.kernel,
        facts.arch,
        facts.agent_version,
        new.time_ms,
        new.incarnation.as_ref(),
        new.certificate_expires_ms,
        id.slot().0
    ])?;
    lanes(db, &new.node, &new.incarnation)?;
    remember(db, &new.node, new.time_ms)?;
    Ok(Outcome::Applied)
}

pub(super) fn certificate(db: &Connection, new: &v1::CertificateIssued) -> Applied {
    let count = db
        .prepare_cached(
            "UPDATE nodes SET certificate_serial = ?2, certificate_expires_ms = ?3 WHERE node = ?1",
        )?
        .execute(params![new.node.as_ref(), new.serial, new.expires_ms])?;
    Ok(changed(count))
}

pub(super) fn open(db: &Connection, new: &v1::SessionOpened) -> Applied {
    let facts = new.facts.clone().unwrap_or_default();
    let count = db
        .prepare_cached(
            "UPDATE nodes SET session = ?2, session_counter = max(session_counter, ?3),
                name = CASE WHEN ?4 = '' THEN name ELSE ?4 END,
                os = CASE WHEN ?5 = '' THEN os ELSE ?5 END, kernel = CASE WHEN ?6 = '' THEN kernel ELSE ?6 END,
                arch = CASE WHEN ?7 = '' THEN arch ELSE ?7 END,
                agent_version = CASE WHEN ?8 = '' THEN agent_version ELSE ?8 END,
                transport = ?9, key_exchange = ?10, address = ?11, rtt_us = ?12, boot_id = ?13,
                certificate_expires_ms = coalesce(nullif(?14, 0), certificate_expires_ms),
                last_seen_ms = max(coalesce(last_seen_ms, 0), ?15),
                reason = CASE WHEN held = '' THEN '' ELSE reason END
             WHERE node = ?1",
        )?
        .execute(params![
            new.node.as_ref(),
            new.session.as_ref(),
            int(new.counter),
            new.name,
            facts.os,
            facts.kernel,
            facts.arch,
            facts.agent_version,
            new.transport,
            new.key_exchange,
            new.address,
            new.rtt_us.map(int),
            new.boot_id,
            new.certificate_expires_ms,
            new.time_ms
        ])?;
    lanes(db, &new.node, &new.incarnation)?;
    remember(db, &new.node, new.time_ms)?;
    Ok(changed(count))
}

pub(super) fn close(db: &Connection, old: &v1::SessionClosed) -> Applied {
    let count = db
        .prepare_cached(
            "UPDATE nodes SET session = NULL, reason = CASE WHEN held = '' THEN ?3 ELSE reason END
             WHERE node = ?1 AND session = ?2",
        )?
        .execute(params![old.node.as_ref(), old.session.as_ref(), old.reason])?;
    if count == 0 {
        return Ok(Outcome::Refused(
            "it is not the node's open session".to_owned(),
        ));
    }
    remember(db, &old.node, old.time_ms)?;
    Ok(Outcome::Applied)
}

pub(super) fn sessions_lost(db: &Connection, lost: &v1::SessionsLost) -> Applied {
    let open: Vec<Vec<u8>> = db
        .prepare_cached("SELECT node FROM nodes WHERE session IS NOT NULL ORDER BY node")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for node in open {
        db.prepare_cached(
            "UPDATE nodes SET session = NULL, reason = CASE WHEN held = '' THEN ?2 ELSE reason END WHERE node = ?1",
        )?
        .execute(params![node, "the collector was restarted"])?;
        remember(db, &node, lost.time_ms)?;
    }
    Ok(Outcome::Applied)
}

pub(super) fn hold(db: &Connection, held: &v1::NodeHeld) -> Applied {
    if !matches!(held.state.as_str(), "" | "quarantined" | "revoked") {
        return Ok(Outcome::Refused(format!(
            "`{}` is no state to hold a node in",
            held.state
        )));
    }
    let count = db
        .prepare_cached("UPDATE nodes SET held = ?2, reason = ?3 WHERE node = ?1")?
        .execute(params![held.node.as_ref(), held.state, held.reason])?;
    remember(db, &held.node, held.time_ms)?;
    Ok(changed(count))
}

pub(super) fn labels(db: &Connection, set: &v1::LabelsSet) -> Applied {
    let count = db
        .prepare_cached("UPDATE nodes SET labels = ?2 WHERE node = ?1")?
        .execute(params![set.node.as_ref(), labels_json(&set.labels)])?;
    remember(db, &set.node, set.time_ms)?;
    Ok(changed(count))
}

pub(super) fn seen(db: &Connection, node: NodeId, time: Timestamp) -> Result<(), StoreError> {
    db.prepare_cached(
        "UPDATE nodes SET last_seen_ms = ?2 WHERE node = ?1 AND coalesce(last_seen_ms, 0) < ?2",
    )?
    .execute(params![node.as_bytes(), time.as_ms()])?;
    Ok(())
}

/// Closes the history row that holds and opens another, if anything in it changed.
fn remember(db: &Connection, node: &[u8], time_ms: i64) -> Result<(), StoreError> {
    const NOW: &str = "SELECT node, name, CASE WHEN held <> '' THEN held WHEN session IS NULL THEN 'disconnected'
            ELSE 'connected' END, reason, labels, os, kernel, arch, agent_version, transport, key_exchange, address
        FROM nodes WHERE node = ?1";
    let same: bool = db
        .prepare_cached(&format!(
            "SELECT count(*) FROM (SELECT node, name, state, reason, labels, os, kernel, arch, agent_version, transport,
                key_exchange, address FROM node_history WHERE node = ?1 AND valid_to_ms IS NULL INTERSECT {NOW})"
        ))?
        .query_row(params![node], |row| row.get(0))?;
    if same {
        return Ok(());
    }
    db.prepare_cached("UPDATE node_history SET valid_to_ms = max(?2, valid_from_ms) WHERE node = ?1 AND valid_to_ms IS NULL")?
        .execute(params![node, time_ms])?;
    db.prepare_cached(&format!(
        "INSERT INTO node_history (node, name, state, reason, labels, os, kernel, arch, agent_version, transport,
            key_exchange, address, valid_from_ms) SELECT *, ?2 FROM ({NOW})"
    ))?
    .execute(params![node, time_ms])?;
    Ok(())
}
