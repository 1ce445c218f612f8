//! What this crate's decoders make of arbitrary input, for the fuzz targets and the test that replays their
//! corpora. No interface: everything else goes through [`crate::Store`].

pub mod chunks;

use nexus_proto::{metrics::KeyPool, store::v1, time::Timestamp};
use prost::Message as _;

use crate::{
    StoreError,
    entry::{ControlEntry, Entry, Facts, Reports},
    head::{self, replay::Replay},
    log,
};

/// The entries of a shard's log row, uncompressed.
pub fn batch(bytes: &[u8]) -> Result<Vec<Entry>, StoreError> {
    Entry::decode(bytes)
}

/// The entries of a row of the control log, uncompressed.
pub fn control_batch(bytes: &[u8]) -> Result<Vec<ControlEntry>, StoreError> {
    ControlEntry::decode(bytes)
}

/// What a row of these entries is read as.
pub fn log_and_read(entries: &[Entry]) -> Result<Vec<Entry>, StoreError> {
    packed(entries)
}

/// The same, of the control log.
pub fn control_log_and_read(entries: &[ControlEntry]) -> Result<Vec<ControlEntry>, StoreError> {
    packed(entries)
}

fn packed<F: Facts>(entries: &[F]) -> Result<Vec<F>, StoreError> {
    let damaged = |error| StoreError::corrupt("a row", error);
    let row = log::pack(&F::encode(entries)).map_err(damaged)?;
    F::decode(&log::unpack(&row).map_err(damaged)?)
}

/// How many reports can be read of a row of the head of metrics, uncompressed, and how many cannot.
pub fn head_row(bytes: &[u8]) -> Result<(u64, u64), StoreError> {
    let batch = v1::MetricsBatch::decode(bytes).map_err(|e| StoreError::corrupt("a row", e))?;
    let row = head::Row {
        index: 1,
        time: Timestamp(1),
        parts: batch.parts,
    };
    let mut replay = Replay::new(KeyPool::new());
    let mut taken = 0;
    replay.take(&row, |_| true, |_| taken += 1)?;
    Ok((taken, replay.lost))
}

/// The bytes of such a row.
#[must_use]
pub fn head_encoded(all: &[Reports]) -> Vec<u8> {
    let parts = all.iter().map(Reports::to_part).collect();
    v1::MetricsBatch { parts }.encode_to_vec()
}

/// The bytes of a batch, as they stand in a row before compression.
#[must_use]
pub fn encoded(entries: &[Entry]) -> Vec<u8> {
    Entry::encode(entries)
}

/// The same, of the control log.
#[must_use]
pub fn control_encoded(entries: &[ControlEntry]) -> Vec<u8> {
    <ControlEntry as Facts>::encode(entries)
}
