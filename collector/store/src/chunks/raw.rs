//! The form of a chunk of reports as they came.
//!
//! Version, kind, length of the body, and the body in one zstd frame with its checksum. The body: how many reports and
//! series; the reports' times; their intervals, as runs; which series are not in every report, and in which ones they are;
//! the columns (`column.rs`). Series are named by their place in the chunk's key set.

use zstd::bulk::{Compressor, Decompressor};

use nexus_proto::limits;

use super::{
    ChunkError,
    bytes::{self, Bytes},
    column::{self, Column, Columns},
};

const VERSION: u8 = 1;
const ZSTD_LEVEL: i32 = 3;
/// Eight bytes a cell, and as much again around them.
const BODY_BYTES: usize = 16 * limits::CHUNK_CELLS;

/// What a chunk holds, which its second byte says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Raw = 0,
    Rollup = 1,
}

/// Compresses bodies.
pub(super) struct Packer {
    zstd: Compressor<'static>,
}

impl Packer {
    pub(super) fn new() -> Result<Self, ChunkError> {
        let mut zstd = Compressor::new(ZSTD_LEVEL).map_err(ChunkError::Zstd)?;
        zstd.include_checksum(true).map_err(ChunkError::Zstd)?;
        Ok(Self { zstd })
    }

    pub(super) fn pack(&mut self, kind: Kind, body: &[u8]) -> Result<Vec<u8>, ChunkError> {
        let packed = self.zstd.compress(body).map_err(ChunkError::Zstd)?;
        let mut chunk = Vec::with_capacity(packed.len() + 8);
        chunk.extend([VERSION, kind as u8]);
        bytes::put_size(&mut chunk, body.len());
        chunk.extend(packed);
        Ok(chunk)
    }
}

/// Undoes [`Packer::pack`].
pub(super) struct Unpacker {
    zstd: Decompressor<'static>,
    body: Vec<u8>,
}

impl Unpacker {
    pub(super) fn new() -> Result<Self, ChunkError> {
        Ok(Self {
            zstd: Decompressor::new().map_err(ChunkError::Zstd)?,
            body: Vec::new(),
        })
    }

    pub(super) fn unpack(&mut self, kind: Kind, chunk: &[u8]) -> Result<&[u8], ChunkError> {
        let mut bytes = Bytes(chunk);
        match bytes.byte()? {
            VERSION => {}
            other => return Err(ChunkError::Version(other)),
        }
        if bytes.byte()? != kind as u8 {
            return Err(ChunkError::Damaged("it is of another kind"));
        }
        let length = bytes.size("bytes", BODY_BYTES)?;
        self.body.clear();
        self.body.reserve_exact(length);
        let written = self
            .zstd
            .decompress_to_buffer(bytes.0, &mut self.body)
            .map_err(ChunkError::Zstd)?;
        if written == length {
            Ok(&self.body)
        } else {
            Err(ChunkError::Damaged("its length is another"))
        }
    }
}

/// In which reports a series stands: from and up to before.
pub(super) type Ranges = Vec<(usize, usize)>;

/// Writes everything before the columns.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    reports: &[(i64, u32)],
    series: usize,
    partial: &[(usize, Ranges)],
) {
    bytes::put_size(out, reports.len());
    bytes::put_size(out, series);
    column::write_times(out, reports.iter().map(|(time, _)| *time));
    column::write_runs(out, reports.iter().map(|(_, interval)| *interval));
    bytes::put_size(out, partial.len());
    let mut before = 0;
    for (series, ranges) in partial {
        bytes::put_size(out, series - before);
        before = *series;
        bytes::put_size(out, ranges.len());
        let mut end = 0;
        for (from, to) in ranges {
            bytes::put_size(out, from - end);
            bytes::put_size(out, to - from);
            end = *to;
        }
    }
}

/// A chunk's reports, with the series that were asked for.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// Milliseconds, rising.
    pub(crate) times: Vec<i64>,
    #[cfg_attr(not(test), expect(dead_code, reason = "tests look at them"))]
    pub(crate) intervals: Vec<u32>,
    pub(super) series: Vec<Series>,
}

/// One series of a chunk.
#[derive(Debug)]
pub(super) struct Series {
    /// Its place in the key set.
    pub(super) index: usize,
    /// The reports it stands in, unless in all.
    pub(super) ranges: Option<Ranges>,
    pub(super) column: Column,
}

impl Series {
    /// The places of its values among the reports.
    pub(super) fn rows(&self, reports: usize) -> impl Iterator<Item = usize> + '_ {
        let all = self.ranges.is_none().then_some((0, reports));
        let some = self.ranges.iter().flatten().copied();
        all.into_iter().chain(some).flat_map(|(from, to)| from..to)
    }
}

impl Reports {
    /// The values of one of its series with their times.
    pub(super) fn points<'a>(&'a self, series: &'a Series) -> impl Iterator<Item = (i64, f64)> {
        series
            .rows(self.times.len())
            .filter_map(|row| self.times.get(row).copied())
            .zip(series.column.values())
    }

    /// Reads a body whose key set has so many series.
    pub(super) fn read(
        body: &[u8],
        series: usize,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Self, ChunkError> {
        let mut bytes = Bytes(body);
        let head = Head::read(&mut bytes, series, 1)?;
        let (times, partial) = (head.times, head.partial);
        let reports = times.len();
        let mut counts = vec![reports; series];
        for (index, ranges) in &partial {
            if let Some(count) = counts.get_mut(*index) {
                *count = ranges.iter().map(|(from, to)| to - from).sum();
            }
        }
        let columns = column::read(&mut bytes, &counts, wanted)?;
        if !bytes.0.is_empty() {
            return Err(ChunkError::Damaged("something follows its end"));
        }
        let mut partial = partial.into_iter().peekable();
        let columns = columns.into_iter().map(|(index, column)| {
            while partial.next_if(|(other, _)| *other < index).is_some() {}
            Series {
                index,
                ranges: partial
                    .next_if(|(other, _)| *other == index)
                    .map(|(_, ranges)| ranges),
                column,
            }
        });
        Ok(Self {
            series: columns.collect(),
            times,
            intervals: head.intervals,
        })
    }
}

/// What stands before the columns.
pub(super) struct Head {
    pub(super) times: Vec<i64>,
    pub(super) intervals: Vec<u32>,
    /// Series that are not in all reports.
    pub(super) partial: Vec<(usize, Ranges)>,
}

impl Head {
    /// Reads it; each series has so many columns.
    pub(super) fn read(
        bytes: &mut Bytes<'_>,
        series: usize,
        columns: usize,
    ) -> Result<Self, ChunkError> {
        let reports = bytes.size("reports", limits::CHUNK_REPORTS)?;
        let found = bytes.size("series", limits::CHUNK_SERIES)?;
        if found != series {
            return Err(ChunkError::Damaged("its key set has other series"));
        }
        let cells = reports * series * columns;
        if cells > limits::CHUNK_CELLS {
            return Err(ChunkError::TooMany {
                what: "values",
                found: u64::try_from(cells).unwrap_or(u64::MAX),
                limit: limits::CHUNK_CELLS,
            });
        }
        let times = column::read_times(bytes, reports)?;
        Ok(Self {
            intervals: column::read_runs(bytes, reports)?,
            partial: read_partial(bytes, reports, series)?,
            times,
        })
    }
}

fn read_partial(
    bytes: &mut Bytes<'_>,
    reports: usize,
    series: usize,
) -> Result<Vec<(usize, Ranges)>, ChunkError> {
    let count = bytes.size("partial series", series)?;
    let mut partial: Vec<(usize, Ranges)> = Vec::new();
    for _ in 0..count {
        let step = bytes.size("series", series)?;
        let index = match partial.last() {
            Some(_) if step == 0 => return Err(ChunkError::Damaged("a series stands twice")),
            Some((before, _)) => before + step,
            None => step,
        };
        if index >= series {
            return Err(ChunkError::Damaged("there is no such series"));
        }
        let mut ranges = Ranges::new();
        let mut end = 0;
        for _ in 0..bytes.size("ranges", reports)? {
            let from = end + bytes.size("reports", reports - end)?;
            let length = bytes.size("reports", reports - from)?;
            if length == 0 {
                return Err(ChunkError::Damaged("a range is empty"));
            }
            end = from + length;
            ranges.push((from, end));
        }
        partial.push((index, ranges));
    }
    Ok(partial)
}

/// Writes a whole body.
pub(super) fn write(
    out: &mut Vec<u8>,
    reports: &[(i64, u32)],
    series: usize,
    partial: &[(usize, Ranges)],
    columns: &Columns,
) {
    write_head(out, reports, series, partial);
    columns.write(out);
}
