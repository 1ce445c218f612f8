//! Reads of the control projections.

use std::collections::BTreeMap;

use nexus_proto::{
    agent::v1::Envelope,
    ids::{JobId, Slot, TokenId},
    store::v1,
    time::Timestamp,
};
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, Row};

use crate::{
    StoreError,
    audit::Head,
    rows::{JobRow, TokenRow, TrustRow},
};

const JOB: &str = "SELECT job, body, cancelled, ended_ms, counts FROM jobs";

type JobParts = (Vec<u8>, Vec<u8>, Option<String>, Option<i64>, String);

fn job_parts(row: &Row<'_>) -> rusqlite::Result<JobParts> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
    ))
}

fn job_row((id, body, cancelled, ended, counts): JobParts) -> Result<JobRow, StoreError> {
    let body =
        v1::JobCreated::decode(body.as_slice()).map_err(|e| StoreError::corrupt("a job", e))?;
    Ok(JobRow {
        id: JobId::from_wire(&id).map_err(|e| StoreError::corrupt("a job's id", e))?,
        envelope: body.envelope.unwrap_or_default(),
        targets: body.targets,
        selector: body.selector,
        request_id: body.request_id,
        operator: body.operator,
        summary: body.summary,
        created: Timestamp(body.created_ms),
        not_before: Timestamp(body.not_before_ms),
        expires: Timestamp(body.expires_ms),
        cancelled,
        ended: ended.map(Timestamp),
        counts: serde_json::from_str(&counts).unwrap_or_default(),
    })
}

pub(crate) fn job(db: &Connection, id: JobId) -> Result<Option<JobRow>, StoreError> {
    let parts = db
        .prepare_cached(&format!("{JOB} WHERE job = ?1"))?
        .query_row([id.as_bytes()], job_parts)
        .optional()?;
    parts.map(job_row).transpose()
}

/// Without its targets, which may be thousands.
pub(crate) fn job_end(
    db: &Connection,
    id: JobId,
) -> Result<Option<BTreeMap<String, u64>>, StoreError> {
    let counts: Option<String> = db
        .prepare_cached("SELECT counts FROM jobs WHERE job = ?1 AND ended_ms IS NOT NULL")?
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(counts.map(|counts| serde_json::from_str(&counts).unwrap_or_default()))
}

pub(crate) fn active_jobs(db: &Connection) -> Result<Vec<JobRow>, StoreError> {
    let mut read = db.prepare_cached(&format!(
        "{JOB} WHERE ended_ms IS NULL ORDER BY created_ms, job"
    ))?;
    let parts: Vec<JobParts> = read.query_map([], job_parts)?.collect::<Result<_, _>>()?;
    parts.into_iter().map(job_row).collect()
}

fn envelope(bytes: &[u8]) -> Result<Envelope, StoreError> {
    Envelope::decode(bytes).map_err(|e| StoreError::corrupt("an envelope", e))
}

pub(crate) fn token(db: &Connection, id: TokenId) -> Result<Option<TokenRow>, StoreError> {
    let row = db
        .prepare_cached(
            "SELECT envelope, labels, uses, used, operator, created_ms, expires_ms, revoked_ms FROM tokens WHERE token = ?1",
        )?
        .query_row([id.as_bytes()], |row| {
            let labels: String = row.get(1)?;
            let token = TokenRow {
                id,
                envelope: Envelope::default(),
                labels: serde_json::from_str(&labels).unwrap_or_default(),
                uses: row.get(2)?,
                used: row.get(3)?,
                operator: row.get(4)?,
                created: Timestamp(row.get(5)?),
                expires: Timestamp(row.get(6)?),
                revoked: row.get::<_, Option<i64>>(7)?.map(Timestamp),
            };
            Ok((token, row.get::<_, Vec<u8>>(0)?))
        })
        .optional()?;
    row.map(|(token, bytes)| {
        Ok(TokenRow {
            envelope: envelope(&bytes)?,
            ..token
        })
    })
    .transpose()
}

pub(crate) fn trust(db: &Connection) -> Result<TrustRow, StoreError> {
    type Parts = (i64, Vec<u8>, Option<Vec<u8>>, Option<i64>);
    let row: Option<Parts> = db
        .prepare_cached("SELECT version, policy, freshness, fresh_until_ms FROM trust ORDER BY version DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let Some((version, policy, freshness, until)) = row else {
        return Ok(TrustRow::default());
    };
    Ok(TrustRow {
        policy: Some(envelope(&policy)?),
        version: u64::try_from(version).unwrap_or(0),
        freshness: freshness.as_deref().map(envelope).transpose()?,
        fresh_until: until.map(Timestamp),
    })
}

/// The key an operator signs with.
pub(crate) fn signing_key(db: &Connection, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(db
        .prepare_cached("SELECT signing_key FROM operators WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?)
}

/// How far the audit chain had come when that was last noted.
pub(crate) fn audit_head(db: &Connection) -> Result<Option<Head>, StoreError> {
    Ok(db
        .prepare("SELECT seq, hash FROM audit_head")?
        .query_row([], |row| {
            let seq: i64 = row.get(0)?;
            Ok(Head {
                seq: u64::try_from(seq).unwrap_or(0),
                hash: row.get(1)?,
            })
        })
        .optional()?)
}

/// Slot → shard, every slot.
pub(crate) fn slots(db: &Connection) -> Result<Vec<u16>, StoreError> {
    let mut read = db.prepare("SELECT shard FROM slots ORDER BY slot")?;
    let shards: Vec<u16> = read
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    if shards.len() == usize::from(Slot::COUNT) {
        return Ok(shards);
    }
    Err(StoreError::Corrupt {
        what: format!("the slot table, with {} slots,", shards.len()),
        source: None,
    })
}
