//! Reading a lane in order while it is written to, trimmed and coalesced.

use std::{fs::File, io, path::Path};

use nexus_proto::metrics::{Decoder, KeyPool};

use super::{
    SpoolError,
    lane::LaneLog,
    mend::Bad,
    segment::{self, HEADER_BYTES, Stored},
};

/// A place in one lane. It begins above a seq and finds its place again when files were replaced.
#[derive(Debug)]
pub(super) struct Reader {
    /// Everything up to here has been handed out.
    pub(super) after: u64,
    place: Option<Place>,
    generation: u64,
    /// What cannot be read, once it was told apart from what was read before it.
    pub(super) bad: Option<Bad>,
    /// The state of the metrics codec in the file being read: it begins anew with each file.
    pub(super) decoder: Decoder,
    keys: KeyPool,
}

#[derive(Debug)]
struct Place {
    first: u64,
    file: File,
    offset: u64,
}

impl Reader {
    /// `keys`: for the series of the metrics it reads.
    pub(super) fn new(after: u64, keys: KeyPool) -> Self {
        Self {
            after,
            place: None,
            generation: 0,
            bad: None,
            decoder: Decoder::pooled(keys.clone()),
            keys,
        }
    }

    /// The file the last record was read from.
    pub(super) fn path<'a>(&self, log: &'a LaneLog) -> Option<&'a Path> {
        let first = self.place.as_ref()?.first;
        let segment = log.segments.iter().find(|s| s.first == first)?;
        Some(&segment.path)
    }

    /// The next record, whether or not it was handed out before: metrics have to be decoded from the start
    /// of their file. `None`: all is read.
    pub(super) fn next(&mut self, log: &LaneLog) -> Result<Option<Stored>, SpoolError> {
        if self.generation != log.generation {
            self.generation = log.generation;
            self.place = None;
        }
        loop {
            let segment = match &self.place {
                Some(place) => log.segments.iter().find(|s| s.first == place.first),
                None => log.segments.iter().find(|s| s.last > self.after),
            };
            let Some(segment) = segment else {
                self.place = None;
                return Ok(None);
            };
            let fail = |source: io::Error| SpoolError::File {
                action: "read",
                path: segment.path.clone(),
                source,
            };
            let place = match &mut self.place {
                Some(place) => place,
                empty => {
                    self.decoder = Decoder::pooled(self.keys.clone());
                    let file = File::open(&segment.path).map_err(fail)?;
                    empty.insert(Place {
                        first: segment.first,
                        file,
                        offset: HEADER_BYTES,
                    })
                }
            };
            if let Some((stored, next)) =
                segment::read_at(&place.file, place.offset, segment.bytes).map_err(fail)?
            {
                place.offset = next;
                return Ok(Some(stored));
            }
            if place.offset < segment.bytes {
                return Err(SpoolError::Damaged(segment.path.clone()));
            }
            let last = segment.last;
            if log
                .segments
                .back()
                .is_some_and(|newest| newest.last == last)
            {
                return Ok(None);
            }
            self.after = self.after.max(last);
            self.place = None;
        }
    }
}
