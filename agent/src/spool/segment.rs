//! One file of a lane.
//!
//! ```text
//! header  "NXSP" | version u16 | lane u8 | 0 | first seq u64 | CRC32C u32 of the bytes before
//! record  length u32 | CRC32C u32 of what follows | seq u64 | time i64 | payload
//! ```
//! Little endian; `length` counts the payload alone, the payload is an encoded `agent.v1.Record`. Seqs rise
//! within a file. A file is written at its end only, so a write that was cut short can only leave a torn
//! tail; damage before the last good record is something else and is told apart here.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use bytes::Bytes;
use nexus_proto::{ids::Lane, limits, time::Timestamp};

use super::{marks::SEQ_END, open::first_of};

pub(super) const HEADER_BYTES: u64 = 20;
pub(super) const FRAME_BYTES: u64 = 24;
const MAGIC: &[u8; 4] = b"NXSP";
/// Bytes checked at most in search of a good record behind a bad one.
const SEARCH_BYTES: usize = 64 * 1024 * 1024;
const VERSION: u16 = 1;

/// A record as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) seq: u64,
    pub(super) time: Timestamp,
    pub(super) payload: Bytes,
}

/// Why a file cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// Nothing readable follows: a write was cut short.
    Torn,
    /// Good bytes follow bad ones, or the header is no header.
    Corrupt,
    /// The header is of a later version.
    Newer,
}

/// What reading a whole file found.
#[derive(Debug)]
pub(super) struct Scan {
    /// Up to here the file is good.
    pub(super) good_bytes: u64,
    pub(super) damage: Option<Damage>,
}

pub(super) fn header(lane: Lane, first_seq: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.push(lane_byte(lane));
    bytes.push(0);
    bytes.extend_from_slice(&first_seq.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

pub(super) fn frame(stored: &Stored) -> Vec<u8> {
    let mut rest = Vec::with_capacity(stored.payload.len() + 16);
    rest.extend_from_slice(&stored.seq.to_le_bytes());
    rest.extend_from_slice(&stored.time.as_ms().to_le_bytes());
    rest.extend_from_slice(&stored.payload);
    let length = u32::try_from(stored.payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(rest.len() + 8);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&rest).to_le_bytes());
    bytes.extend_from_slice(&rest);
    bytes
}

/// The record at `offset` and where the next one begins; `None` at the end of the file or of what is good.
pub(super) fn read_at(file: &File, offset: u64, end: u64) -> io::Result<Option<(Stored, u64)>> {
    if offset.saturating_add(FRAME_BYTES) > end {
        return Ok(None);
    }
    let mut head = [0_u8; 8];
    file.read_exact_at(&mut head, offset)?;
    let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
    let length = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
    let crc = u32::from_le_bytes([c0, c1, c2, c3]);
    let next = offset + FRAME_BYTES + length;
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > limits::RECORD_BYTES || next > end {
        return Ok(None);
    }
    let mut rest = vec![0_u8; size + 16];
    file.read_exact_at(&mut rest, offset + 8)?;
    if crc32c::crc32c(&rest) != crc {
        return Ok(None);
    }
    let mut rest = Bytes::from(rest);
    let head = rest.split_to(16);
    let stored = Stored {
        seq: u64_at(&head, 0),
        time: Timestamp(i64::from_le_bytes(u64_at(&head, 8).to_le_bytes())),
        payload: rest,
    };
    Ok(Some((stored, next)))
}

/// Reads a whole file, handing each good record to `each`.
pub(super) fn scan(path: &Path, lane: Lane, mut each: impl FnMut(Stored)) -> io::Result<Scan> {
    let file = File::open(path)?;
    let end = file.metadata()?.len();
    if end < HEADER_BYTES {
        let damage = Some(Damage::Torn);
        return Ok(Scan {
            good_bytes: 0,
            damage,
        });
    }
    let mut head = [0_u8; 20];
    file.read_exact_at(&mut head, 0)?;
    let (body, crc) = head.split_at(16);
    let good = body.starts_with(MAGIC) && crc32c::crc32c(body).to_le_bytes() == *crc;
    let version = body.get(4..6).map_or(0, |v| {
        u16::from_le_bytes([
            v.first().copied().unwrap_or(0),
            v.last().copied().unwrap_or(0),
        ])
    });
    if good && version > VERSION {
        let damage = Some(Damage::Newer);
        return Ok(Scan {
            good_bytes: 0,
            damage,
        });
    }
    if !good || body.get(6) != Some(&lane_byte(lane)) {
        let damage = Some(Damage::Corrupt);
        return Ok(Scan {
            good_bytes: 0,
            damage,
        });
    }
    let (mut offset, mut last) = (HEADER_BYTES, 0);
    // A file bears the seq of its first record. One that does not would be written over by the file of its name.
    let named = first_of(path);
    while let Some((stored, next)) = read_at(&file, offset, end)? {
        let misplaced = last == 0 && named.is_some_and(|named| named != stored.seq);
        if misplaced || stored.seq <= last || stored.seq >= SEQ_END {
            break;
        }
        last = stored.seq;
        each(stored);
        offset = next;
    }
    let damage = if offset == end {
        None
    } else if readable_after(&file, offset, end)? {
        Some(Damage::Corrupt)
    } else {
        Some(Damage::Torn)
    };
    Ok(Scan {
        good_bytes: offset,
        damage,
    })
}

/// Whether any record stands whole somewhere behind a bad one: then the bad one is no torn tail.
fn readable_after(file: &File, bad: u64, end: u64) -> io::Result<bool> {
    let size = usize::try_from(end - bad).unwrap_or(usize::MAX);
    let mut tail = vec![0_u8; size];
    file.read_exact_at(&mut tail, bad)?;
    let mut budget = SEARCH_BYTES;
    for start in 1..tail.len() {
        let Some((head, rest)) = tail.get(start..).and_then(<[u8]>::split_first_chunk::<8>) else {
            break;
        };
        let [l0, l1, l2, l3, c0, c1, c2, c3] = *head;
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        // Every record of ours has a payload, so a run of zeroes is not taken for one.
        if length == 0 || length > limits::RECORD_BYTES {
            continue;
        }
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        let Some(body) = rest.get(..length + 16) else {
            continue;
        };
        let Some(left) = budget.checked_sub(body.len()) else {
            // Nobody can tell: what is taken for damage is kept.
            return Ok(true);
        };
        budget = left;
        if crc32c::crc32c(body) == crc {
            return Ok(true);
        }
    }
    Ok(false)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let chunk = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>);
    chunk.map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

fn lane_byte(lane: Lane) -> u8 {
    match lane {
        Lane::Results => 1,
        Lane::Inventory => 2,
        Lane::Metrics => 3,
    }
}
