//! What the crate's parsers make of arbitrary input, for the fuzz targets and the test that replays their corpora.
//! No interface: everything else goes through [`crate::main`].

use nexus_proto::{
    agent::v1::{AgentFrame, RecordBatch},
    ids::{Incarnation, Lane, NodeId},
    metrics::KeyPool,
    time::Timestamp,
};
use nexus_runtime::{
    fault::Outcome,
    settings::{Key, Settings},
};
use nexus_store::entry::{Entry, Reports};

use crate::{
    config::{Config, KEYS},
    pages::exposition::Format,
    sessions::{hello::Hello, ingest},
};

/// Bytes that the samples of one [`Intake`] may take, unless it is of one record.
pub const PART_BYTES: usize = ingest::PART_BYTES;

/// What a part of an upload came to.
#[derive(Debug)]
pub struct Intake {
    /// For the shard's log.
    pub entries: Vec<Entry>,
    /// For the head of its metrics.
    pub reports: Vec<Reports>,
    /// What is acknowledged after it.
    pub last_seq: u64,
    /// New records, the dead ones among them.
    pub records: u64,
    /// Those that could not be read.
    pub dead: u64,
}

/// Every key.
#[must_use]
pub fn keys() -> &'static [Key] {
    KEYS
}

/// What the program makes of settings.
pub fn configure(settings: &Settings) -> Outcome {
    Config::from_settings(settings).map(drop)
}

/// The name that a first frame of a session is taken under.
pub fn hello(frame: AgentFrame) -> Option<String> {
    Hello::from_wire(frame).ok().map(|hello| hello.name)
}

/// What a lane's frames come to, up to the first that is refused or ends its stream.
#[must_use]
pub fn intake(lane: Lane, cursor: u64, frames: Vec<RecordBatch>) -> Vec<Intake> {
    let mut reader = ingest::Reader::new(
        (NodeId::random(), Incarnation::random()),
        lane,
        cursor,
        KeyPool::new(),
    );
    let mut taken = Vec::new();
    for frame in frames {
        let Ok(mut frame) = ingest::Reader::open(frame) else {
            return taken;
        };
        while !frame.is_read() {
            let Ok(intake) = reader.read(&mut frame, Timestamp(1), |_| true) else {
                return taken;
            };
            let ended = intake.broken.is_some();
            let (mut entries, mut reports) = (Vec::new(), Vec::new());
            for batch in intake.batches {
                match batch {
                    ingest::Batch::Entries(more) => entries.extend(more),
                    ingest::Batch::Reports(more) => reports.push(more),
                }
            }
            taken.push(Intake {
                entries,
                reports,
                last_seq: intake.last_seq,
                records: intake.records,
                dead: intake.dead,
            });
            if ended {
                return taken;
            }
        }
    }
    taken
}

/// The `Content-Type` of a page for whoever accepts this.
#[must_use]
pub fn content_type(accept: Option<&str>) -> &'static str {
    Format::negotiate(accept).content_type()
}
