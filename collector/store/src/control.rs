//! The control projections: what belongs to no node. Jobs, tokens, serials, operators, trust, slots.

pub(crate) mod reads;

use std::collections::BTreeSet;

use nexus_proto::{ids::JobId, time::Timestamp};
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    StoreError,
    db::Format,
    entry::{ControlEntry, Outcome, TokenUsed},
    watch::Watches,
    writer::Projection,
};

const FIRST: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (
  job BLOB PRIMARY KEY, body BLOB NOT NULL, selector TEXT NOT NULL, request_id TEXT NOT NULL,
  operator TEXT NOT NULL, summary TEXT NOT NULL, targets INTEGER NOT NULL, created_ms INTEGER NOT NULL,
  not_before_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, cancelled TEXT, ended_ms INTEGER,
  counts TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX jobs_active ON jobs (ended_ms) WHERE ended_ms IS NULL;
CREATE TABLE tokens (
  token BLOB PRIMARY KEY, envelope BLOB NOT NULL, labels TEXT NOT NULL, uses INTEGER NOT NULL,
  used INTEGER NOT NULL DEFAULT 0, operator TEXT NOT NULL, created_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL, revoked_ms INTEGER
);
CREATE TABLE token_uses (
  token BLOB NOT NULL, node BLOB NOT NULL, name TEXT NOT NULL, time_ms INTEGER NOT NULL, PRIMARY KEY (token, node)
);
CREATE TABLE serials (
  serial TEXT PRIMARY KEY, identity TEXT NOT NULL, role TEXT NOT NULL, issued_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL
);
CREATE INDEX serials_by_identity ON serials (identity, issued_ms);
CREATE TABLE operators (
  name TEXT PRIMARY KEY, signing_key BLOB NOT NULL, first_login_ms INTEGER NOT NULL, last_login_ms INTEGER NOT NULL
);
CREATE TABLE trust (
  version INTEGER PRIMARY KEY, policy BLOB NOT NULL, set_ms INTEGER NOT NULL, freshness BLOB, fresh_until_ms INTEGER
);
CREATE TABLE slots (slot INTEGER PRIMARY KEY, shard INTEGER NOT NULL);
CREATE TABLE collectors (
  id TEXT PRIMARY KEY, region TEXT NOT NULL, version TEXT NOT NULL, started_ms INTEGER NOT NULL
);
";

const SECOND: &str = "
CREATE TABLE audit_head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash BLOB NOT NULL);
";

/// The writer's side of the control data.
#[derive(Debug)]
pub(crate) struct Control {
    watches: Watches,
    touched: Vec<JobId>,
}

impl Control {
    pub(crate) fn new(watches: Watches) -> Self {
        Self {
            watches,
            touched: Vec::new(),
        }
    }
}

type Applied = Result<Outcome, StoreError>;

fn applied_if(count: usize, otherwise: &str) -> Outcome {
    if count == 0 {
        Outcome::Refused(otherwise.to_owned())
    } else {
        Outcome::Applied
    }
}

fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn json(map: &impl serde::Serialize) -> String {
    serde_json::to_string(map).unwrap_or_else(|_| "{}".to_owned())
}

impl Projection for Control {
    type Fact = ControlEntry;
    const STATEMENTS: usize = 64;

    fn format() -> Format {
        Format {
            name: "file of projections of the control log",
            application: 0x4e58_4354,
            durable: false,
            cache_kib: 8192,
            steps: vec![FIRST.to_owned(), SECOND.to_owned()],
        }
    }

    fn trim(&mut self, _: &Connection, _: &mut [ControlEntry]) -> Result<(), StoreError> {
        Ok(())
    }

    fn apply(&mut self, db: &Connection, _: Timestamp, fact: &ControlEntry, _: bool) -> Applied {
        match fact {
            ControlEntry::Job(job) => {
                self.touched.extend(JobId::from_wire(&job.job).ok());
                let count = db
                    .prepare_cached(
                        "INSERT INTO jobs (job, body, selector, request_id, operator, summary, targets, created_ms,
                            not_before_ms, expires_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                         ON CONFLICT DO NOTHING",
                    )?
                    .execute(params![
                        job.job.as_ref(),
                        job.encode_to_vec(),
                        job.selector,
                        job.request_id,
                        job.operator,
                        job.summary,
                        i64::try_from(job.targets.len()).unwrap_or(i64::MAX),
                        job.created_ms,
                        job.not_before_ms,
                        job.expires_ms
                    ])?;
                Ok(applied_if(count, "there is a job of this id already"))
            }
            ControlEntry::JobCancelled(cancel) => {
                self.touched.extend(JobId::from_wire(&cancel.job).ok());
                let count = db
                    .prepare_cached(
                        "UPDATE jobs SET cancelled = ?2 WHERE job = ?1 AND ended_ms IS NULL AND cancelled IS NULL",
                    )?
                    .execute(params![cancel.job.as_ref(), cancel.reason])?;
                Ok(applied_if(
                    count,
                    "there is no such job that could be cancelled",
                ))
            }
            ControlEntry::JobEnded(end) => {
                self.touched.extend(JobId::from_wire(&end.job).ok());
                let counts: std::collections::BTreeMap<_, _> = end.counts.iter().collect();
                let count = db
                    .prepare_cached("UPDATE jobs SET ended_ms = ?2, counts = ?3 WHERE job = ?1 AND ended_ms IS NULL")?
                    .execute(params![end.job.as_ref(), end.time_ms, json(&counts)])?;
                Ok(applied_if(count, "there is no such job that has not ended"))
            }
            ControlEntry::Token(token) => {
                let labels: std::collections::BTreeMap<_, _> = token.labels.iter().collect();
                let count = db
                    .prepare_cached(
                        "INSERT INTO tokens (token, envelope, labels, uses, operator, created_ms, expires_ms)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
                    )?
                    .execute(params![
                        token.token.as_ref(),
                        token.envelope.clone().unwrap_or_default().encode_to_vec(),
                        json(&labels),
                        token.uses,
                        token.operator,
                        token.created_ms,
                        token.expires_ms
                    ])?;
                Ok(applied_if(count, "there is a token of this id already"))
            }
            ControlEntry::TokenUsed(used) => use_token(db, used),
            ControlEntry::TokenRevoked(revoked) => {
                let count = db
                    .prepare_cached(
                        "UPDATE tokens SET revoked_ms = ?2 WHERE token = ?1 AND revoked_ms IS NULL",
                    )?
                    .execute(params![revoked.token.as_ref(), revoked.time_ms])?;
                Ok(applied_if(
                    count,
                    "there is no such token that could be revoked",
                ))
            }
            ControlEntry::Serial(serial) => {
                db.prepare_cached(
                    "INSERT INTO serials (serial, identity, role, issued_ms, expires_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    serial.serial,
                    serial.identity,
                    serial.role,
                    serial.issued_ms,
                    serial.expires_ms
                ])?;
                Ok(Outcome::Applied)
            }
            ControlEntry::Operator(login) => {
                db.prepare_cached(
                    "INSERT INTO operators (name, signing_key, first_login_ms, last_login_ms) VALUES (?1, ?2, ?3, ?3)
                     ON CONFLICT DO UPDATE SET signing_key = ?2, last_login_ms = ?3",
                )?
                .execute(params![login.name, login.signing_key.as_ref(), login.time_ms])?;
                Ok(Outcome::Applied)
            }
            ControlEntry::Policy(policy) => {
                let count = db
                    .prepare_cached(
                        "INSERT INTO trust (version, policy, set_ms) SELECT ?1, ?2, ?3
                         WHERE ?1 > (SELECT coalesce(max(version), 0) FROM trust)",
                    )?
                    .execute(params![
                        int(policy.version),
                        policy.envelope.clone().unwrap_or_default().encode_to_vec(),
                        policy.time_ms
                    ])?;
                Ok(applied_if(count, "the policy in force is as new or newer"))
            }
            ControlEntry::Freshness(fresh) => {
                let count = db
                    .prepare_cached(
                        "UPDATE trust SET freshness = ?1, fresh_until_ms = ?2
                         WHERE version = (SELECT max(version) FROM trust) AND coalesce(fresh_until_ms, 0) <= ?2",
                    )?
                    .execute(params![
                        fresh.envelope.clone().unwrap_or_default().encode_to_vec(),
                        fresh.expires_ms
                    ])?;
                Ok(applied_if(
                    count,
                    "there is no policy, or a fresher statement",
                ))
            }
            ControlEntry::Slots(table) => {
                let held: Option<i64> = db
                    .query_row(
                        "SELECT value FROM meta WHERE key = 'slots_version'",
                        [],
                        |row| row.get(0),
                    )
                    .optional()?;
                if held.is_some_and(|held| held >= int(table.version)) {
                    return Ok(Outcome::Refused(
                        "the slot table in force is as new or newer".to_owned(),
                    ));
                }
                let mut set = db.prepare_cached(
                    "INSERT INTO slots (slot, shard) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET shard = ?2",
                )?;
                for (slot, shard) in table.shards.iter().enumerate() {
                    set.execute(params![i64::try_from(slot).unwrap_or(i64::MAX), shard])?;
                }
                db.execute(
                    "INSERT INTO meta (key, value) VALUES ('slots_version', ?1) ON CONFLICT DO UPDATE SET value = ?1",
                    [int(table.version)],
                )?;
                Ok(Outcome::Applied)
            }
            ControlEntry::AuditHead(head) => {
                db.prepare_cached(
                    "INSERT INTO audit_head (one, seq, hash) VALUES (1, ?1, ?2)
                     ON CONFLICT DO UPDATE SET seq = ?1, hash = ?2",
                )?
                .execute(params![int(head.seq), head.hash.as_ref()])?;
                Ok(Outcome::Applied)
            }
            ControlEntry::Collector(started) => {
                db.prepare_cached(
                    "INSERT INTO collectors (id, region, version, started_ms) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET region = ?2, version = ?3, started_ms = ?4",
                )?
                .execute(params![started.id, started.region, started.version, started.time_ms])?;
                Ok(Outcome::Applied)
            }
        }
    }

    fn settle(&mut self, committed: bool) {
        for job in std::mem::take(&mut self.touched) {
            if committed {
                self.watches.touch(job, &BTreeSet::new());
            }
        }
    }
}

/// Counts one use, if one is left. A node that used the token already uses nothing more.
fn use_token(db: &Connection, used: &TokenUsed) -> Applied {
    let token: Option<(i64, i64, i64, Option<i64>)> = db
        .prepare_cached("SELECT uses, used, expires_ms, revoked_ms FROM tokens WHERE token = ?1")?
        .query_row([used.token.as_ref()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let Some((uses, so_far, expires, revoked)) = token else {
        return Ok(Outcome::Refused("no such token".to_owned()));
    };
    let again: bool = db
        .prepare_cached("SELECT count(*) FROM token_uses WHERE token = ?1 AND node = ?2")?
        .query_row(params![used.token.as_ref(), used.node.as_ref()], |row| {
            row.get(0)
        })?;
    let refusal = if revoked.is_some() {
        "the token was revoked"
    } else if used.time_ms >= expires {
        "the token has expired"
    } else if again {
        return Ok(Outcome::Applied);
    } else if so_far >= uses {
        "the token has no use left"
    } else {
        db.prepare_cached(
            "INSERT INTO token_uses (token, node, name, time_ms) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![
            used.token.as_ref(),
            used.node.as_ref(),
            used.name,
            used.time_ms
        ])?;
        db.prepare_cached("UPDATE tokens SET used = used + 1 WHERE token = ?1")?
            .execute([used.token.as_ref()])?;
        return Ok(Outcome::Applied);
    };
    Ok(Outcome::Refused(refusal.to_owned()))
}
