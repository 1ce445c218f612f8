//! What this crate's decoders make of arbitrary input, for the fuzz targets and the test that replays their
//! corpora. No interface: everything else goes through [`crate::Store`].

use nexus_proto::{metrics::Snapshot, time::Timestamp};

use crate::{
    StoreError,
    entry::{ControlEntry, Entry, Facts},
    log,
    shard::metrics,
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
    let row = log::pack(&F::encode(entries), log::ZSTD_LEVEL).map_err(damaged)?;
    F::decode(&log::unpack(&row).map_err(damaged)?)
}

/// The reports of a chunk of metrics, compressed as it stands on disk.
pub fn chunk(packed: &[u8]) -> Result<Vec<(Timestamp, Snapshot)>, StoreError> {
    metrics::unpack(packed)
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

/// A chunk's message as it stands on disk.
pub fn packed_chunk(message: &[u8]) -> std::io::Result<Vec<u8>> {
    log::pack(message, log::ZSTD_LEVEL)
}
