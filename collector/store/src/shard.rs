//! A shard's projections: what follows from its log about its nodes.

mod inventory;
mod nodes;
pub(crate) mod reads;
mod runs;
pub(crate) mod schema;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nexus_proto::{
    agent::v1::Lane as WireLane,
    ids::{Incarnation, JobId, Lane, NodeId},
    metrics::Encoder,
    record::{Body, Record},
    time::Timestamp,
};
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    StoreError,
    db::Format,
    entry::{DeadLetter, Entry, Fact, Outcome, Records, SessionsLost},
    watch::Watches,
    writer::{Projection, chain, is_fatal},
};

/// The writer's side of a shard.
#[derive(Debug)]
pub(crate) struct Shard {
    watches: Watches,
    /// Jobs of this transaction, and the nodes of theirs whose runs changed.
    touched: BTreeMap<JobId, BTreeSet<NodeId>>,
}

impl Shard {
    pub(crate) fn new(watches: Watches) -> Self {
        Self {
            watches,
            touched: BTreeMap::new(),
        }
    }

    fn touch(&mut self, job: JobId, node: NodeId) {
        self.touched.entry(job).or_default().insert(node);
    }

    fn touch_wire(&mut self, job: &[u8], node: &[u8]) {
        if let (Ok(job), Ok(node)) = (JobId::from_wire(job), NodeId::from_wire(node)) {
            self.touch(job, node);
        }
    }

    fn fact(
        &mut self,
        db: &Connection,
        time: Timestamp,
        fact: &Fact,
    ) -> Result<Outcome, StoreError> {
        match fact {
            Fact::Records(_) => Ok(Outcome::Refused(
                "records come in their domain form".to_owned(),
            )),
            Fact::Enrolled(new) => nodes::enrol(db, new),
            Fact::Certificate(new) => nodes::certificate(db, new),
            Fact::Opened(new) => nodes::open(db, new),
            Fact::Closed(old) => nodes::close(db, old),
            Fact::SessionsLost(lost) => nodes::sessions_lost(db, lost),
            Fact::Held(held) => nodes::hold(db, held),
            Fact::Labels(set) => nodes::labels(db, set),
            Fact::DeadLetter(letter) => dead_letter(db, letter),
            Fact::Planned(planned) => {
                for target in &planned.targets {
                    self.touch_wire(&planned.job, &target.node_id);
                }
                runs::plan(db, planned)
            }
            Fact::Dispatched(to) => {
                self.touch_wire(&to.job, &to.node);
                runs::dispatch(db, to)
            }
            Fact::Settled(settled) => {
                self.touch_wire(&settled.job, &settled.node);
                runs::settle(db, settled)
            }
            Fact::Noted(noted) => {
                let at = if noted.time_ms == 0 {
                    time.as_ms()
                } else {
                    noted.time_ms
                };
                event(db, &noted.node, &noted.kind, &noted.message, at)?;
                Ok(Outcome::Applied)
            }
        }
    }

    fn records(
        &mut self,
        db: &Connection,
        time: Timestamp,
        records: &Records,
        singly: bool,
    ) -> Result<Outcome, StoreError> {
        let node = records.node;
        let before = cursor(db, node, records.incarnation, records.lane)?;
        let mut last = before;
        let mut new = 0;
        for record in &records.records {
            if record.seq <= last {
                continue;
            }
            new += 1;
            if singly {
                self.record_singly(db, time, records, (last, record))?;
            } else {
                self.record(db, time, records, (last, record))?;
            }
            last = record.seq;
        }
        if last > before {
            set_cursor(
                db,
                node.as_bytes(),
                records.incarnation.as_bytes(),
                records.lane,
                (last, new),
            )?;
            nodes::seen(db, node, time)?;
        }
        Ok(Outcome::Committed(last))
    }

    /// A record that cannot be applied is put aside, with its reason, and its lane goes on after it.
    fn record_singly(
        &mut self,
        db: &Connection,
        time: Timestamp,
        of: &Records,
        (last, record): (u64, &Record),
    ) -> Result<(), StoreError> {
        db.execute_batch("SAVEPOINT record")?;
        match self.record(db, time, of, (last, record)) {
            Err(error) if !is_fatal(&error) => {
                db.execute_batch("ROLLBACK TO record")?;
                let reason = format!("it cannot be applied: {}", chain(&error));
                put_aside(db, of, record, reason, time)?;
            }
            outcome => outcome?,
        }
        db.execute_batch("RELEASE record")?;
        Ok(())
    }

    /// `last`: the seq before this record's.
    fn record(
        &mut self,
        db: &Connection,
        time: Timestamp,
        of: &Records,
        (last, record): (u64, &Record),
    ) -> Result<(), StoreError> {
        let node = of.node;
        let ours = match &record.body {
            // In the logs of early builds; they stand in the head now.
            Body::Metrics(_) => true,
            Body::Section(section) => {
                inventory::apply(db, node, time, section)?;
                true
            }
            Body::Started(started) => {
                self.touch(started.run.job, node);
                runs::started(db, node, record.time.as_ms(), started)?
            }
            Body::Output(output) => {
                self.touch(output.run.job, node);
                runs::output(db, node, output)?
            }
            Body::Finished(finished) => {
                self.touch(finished.run.job, node);
                runs::finished(db, node, finished)?
            }
            Body::Gap(gap) => {
                // A node that lost its cursor does not know what came through of what it lost.
                let first_seq = gap.first_seq.max(last.saturating_add(1));
                db.prepare_cached(
                    "INSERT INTO gaps (node, incarnation, lane, first_seq, last_seq, reason, time_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    node.as_bytes(),
                    of.incarnation.as_bytes(),
                    i32::from(of.lane.to_wire()),
                    i64::try_from(first_seq).unwrap_or(i64::MAX),
                    i64::try_from(gap.last_seq).unwrap_or(i64::MAX),
                    gap.reason,
                    time.as_ms()
                ])?;
                true
            }
            Body::Event(said) => {
                event(
                    db,
                    node.as_bytes(),
                    &said.kind,
                    &said.message,
                    record.time.as_ms(),
                )?;
                true
            }
        };
        if !ours {
            let reason = "it reports a run that this node was never given".to_owned();
            put_aside(db, of, record, reason, time)?;
        }
        Ok(())
    }
}

impl Projection for Shard {
    type Fact = Entry;
    const STATEMENTS: usize = 256;

    fn format() -> Format {
        schema::format()
    }

    fn resume(&self, db: &Connection, now: Timestamp) -> Result<Vec<Entry>, StoreError> {
        let open = db.query_row(
            "SELECT EXISTS (SELECT 1 FROM nodes WHERE session IS NOT NULL)",
            [],
            |row| row.get(0),
        )?;
        let lost = SessionsLost {
            time_ms: now.as_ms(),
        };
        Ok(if open { vec![lost.into()] } else { Vec::new() })
    }

    fn trim(&mut self, db: &Connection, facts: &mut [Entry]) -> Result<(), StoreError> {
        let mut cursors: HashMap<(NodeId, Incarnation, Lane), u64> = HashMap::new();
        for fact in facts {
            let Entry::Records(records) = fact else {
                continue;
            };
            let key = (records.node, records.incarnation, records.lane);
            let mut last = match cursors.get(&key) {
                Some(last) => *last,
                None => cursor(db, key.0, key.1, key.2)?,
            };
            records.records.retain(|record| {
                let new = record.seq > last;
                last = last.max(record.seq);
                new
            });
            cursors.insert(key, last);
        }
        Ok(())
    }

    fn apply(
        &mut self,
        db: &Connection,
        time: Timestamp,
        fact: &Entry,
        alone: bool,
    ) -> Result<Outcome, StoreError> {
        match fact {
            Entry::Records(records) => {
                match self.records(db, time, records, false) {
                    // One of them cannot be applied: then each is on its own.
                    Err(error) if alone && !is_fatal(&error) => {
                        db.execute_batch("ROLLBACK TO fact")?;
                        self.records(db, time, records, true)
                    }
                    outcome => outcome,
                }
            }
            Entry::Fact(fact) => self.fact(db, time, fact),
        }
    }

    fn settle(&mut self, committed: bool) {
        for (job, nodes) in std::mem::take(&mut self.touched) {
            if committed {
                self.watches.touch(job, &nodes);
            }
        }
    }
}

fn cursor(
    db: &Connection,
    node: NodeId,
    incarnation: Incarnation,
    lane: Lane,
) -> Result<u64, StoreError> {
    let seq: Option<i64> = db
        .prepare_cached(
            "SELECT seq FROM cursors WHERE node = ?1 AND incarnation = ?2 AND lane = ?3",
        )?
        .query_row(
            params![
                node.as_bytes(),
                incarnation.as_bytes(),
                i32::from(lane.to_wire())
            ],
            |row| row.get(0),
        )
        .optional()?;
    Ok(seq.map_or(0, |seq| u64::try_from(seq).unwrap_or(0)))
}

/// Moves a lane on by so many records.
fn set_cursor(
    db: &Connection,
    node: &[u8],
    incarnation: &[u8],
    lane: Lane,
    (seq, records): (u64, i64),
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO cursors (node, incarnation, lane, seq, records) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET seq = max(seq, ?4), records = records + ?5",
    )?
    .execute(params![
        node,
        incarnation,
        i32::from(lane.to_wire()),
        i64::try_from(seq).unwrap_or(i64::MAX),
        records
    ])?;
    Ok(())
}

fn event(
    db: &Connection,
    node: &[u8],
    kind: &str,
    message: &str,
    time_ms: i64,
) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO events (node, kind, message, time_ms) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![node, kind, message, time_ms])?;
    Ok(())
}

/// A record that could not be read: it is kept, and its lane goes on after it.
fn dead_letter(db: &Connection, letter: &DeadLetter) -> Result<Outcome, StoreError> {
    let node = nodes::node_id(&letter.node)?;
    let bad = |e| StoreError::corrupt("a dead letter's key", e);
    let incarnation = Incarnation::from_wire(&letter.incarnation).map_err(bad)?;
    let lane = WireLane::try_from(letter.lane).unwrap_or_default();
    let lane = Lane::from_wire(lane.into()).map_err(bad)?;
    let last = cursor(db, node, incarnation, lane)?;
    if letter.seq <= last && letter.seq != 0 {
        return Ok(Outcome::Committed(last));
    }
    insert_dead_letter(db, letter)?;
    if letter.seq > last {
        set_cursor(db, &letter.node, &letter.incarnation, lane, (letter.seq, 1))?;
    }
    Ok(Outcome::Committed(last.max(letter.seq)))
}

fn put_aside(
    db: &Connection,
    of: &Records,
    record: &Record,
    reason: String,
    time: Timestamp,
) -> Result<(), StoreError> {
    let letter = DeadLetter {
        node: of.node.to_wire(),
        incarnation: of.incarnation.to_wire(),
        lane: of.lane.to_wire().into(),
        seq: record.seq,
        reason,
        data: record.to_wire(&mut Encoder::new()).encode_to_vec().into(),
        time_ms: time.as_ms(),
    };
    insert_dead_letter(db, &letter)
}

fn insert_dead_letter(db: &Connection, letter: &DeadLetter) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO dead_letters (node, incarnation, lane, seq, reason, data, time_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        letter.node.as_ref(),
        letter.incarnation.as_ref(),
        letter.lane,
        i64::try_from(letter.seq).unwrap_or(i64::MAX),
        letter.reason,
        letter.data.as_ref(),
        letter.time_ms
    ])?;
    Ok(())
}
