//! Which series the columns of a chunk are. Hosts mostly have the same series from chunk to chunk, so each list
//! of them stands in the file once, by its BLAKE3, and chunks name it.
//!
//! A list's form: version, length and one zstd frame of: how many; then each series' type, name, number of labels, and
//! their names and values, texts with their lengths before them.

use std::sync::Arc;

use nexus_proto::{
    limits,
    metrics::{SeriesKey, SeriesType},
};
use zstd::bulk;

use super::{
    ChunkError, Key,
    bytes::{self, Bytes},
};

const VERSION: u8 = 1;
const ZSTD_LEVEL: i32 = 3;
/// A text has at least one byte, and a length before it.
const BYTES: usize = 4 * limits::CHUNK_KEY_BYTES;

/// The list as it is hashed.
pub(super) fn write(keys: &[Key]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes::put_size(&mut out, keys.len());
    let text = |out: &mut Vec<u8>, text: &str| {
        bytes::put_size(out, text.len());
        out.extend(text.as_bytes());
    };
    for (key, kind) in keys {
        out.push(match kind {
            SeriesType::Untyped => 0,
            SeriesType::Counter => 1,
            SeriesType::Gauge => 2,
        });
        text(&mut out, &key.name);
        bytes::put_size(&mut out, key.labels.len());
        for (name, value) in &key.labels {
            text(&mut out, name);
            text(&mut out, value);
        }
    }
    out
}

/// The list as it is stored.
pub(super) fn pack(list: &[u8]) -> Result<Vec<u8>, ChunkError> {
    let packed = bulk::compress(list, ZSTD_LEVEL).map_err(ChunkError::Zstd)?;
    let mut out = vec![VERSION];
    bytes::put_size(&mut out, list.len());
    out.extend(packed);
    Ok(out)
}

/// By what a list is known.
pub(super) fn hash(list: &[u8]) -> [u8; 32] {
    *blake3::hash(list).as_bytes()
}

/// Undoes both. With a hash the list must be the one that has it.
pub(super) fn read(stored: &[u8], hashed: Option<[u8; 32]>) -> Result<Vec<Key>, ChunkError> {
    let mut bytes = Bytes(stored);
    match bytes.byte()? {
        VERSION => {}
        other => return Err(ChunkError::Version(other)),
    }
    let length = bytes.size("bytes of keys", BYTES)?;
    let list = bulk::decompress(bytes.0, length).map_err(ChunkError::Zstd)?;
    if hashed.is_some_and(|hashed| hash(&list) != hashed) {
        return Err(ChunkError::Damaged("it is not what was written"));
    }
    let mut bytes = Bytes(&list);
    let mut keys = Vec::new();
    for _ in 0..bytes.size("series", limits::CHUNK_SERIES)? {
        let kind = match bytes.byte()? {
            0 => SeriesType::Untyped,
            1 => SeriesType::Counter,
            2 => SeriesType::Gauge,
            _ => return Err(ChunkError::Damaged("there is no such type of series")),
        };
        let name = text(&mut bytes)?;
        let mut labels = Vec::new();
        for _ in 0..bytes.size("labels", limits::SERIES_BYTES)? {
            labels.push((text(&mut bytes)?, text(&mut bytes)?));
        }
        keys.push((Arc::new(SeriesKey { name, labels }), kind));
    }
    if bytes.0.is_empty() {
        Ok(keys)
    } else {
        Err(ChunkError::Damaged("something follows its end"))
    }
}

fn text(bytes: &mut Bytes<'_>) -> Result<String, ChunkError> {
    let length = bytes.size("bytes of a text", limits::SERIES_BYTES)?;
    let text = std::str::from_utf8(bytes.take(length)?)
        .map_err(|_| ChunkError::Damaged("a text is no UTF-8"))?;
    Ok(text.to_owned())
}
