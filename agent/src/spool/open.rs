//! Finding out what an earlier run of the agent left in a lane's folder. It always starts: a torn tail is
//! cut, a damaged file is moved aside into `quarantine/` and what could be read of it kept, and a gap says
//! what is missing.

use std::{
    collections::VecDeque,
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use nexus_pki::files;
use nexus_proto::{
    ids::Lane,
    metrics::Decoder,
    record::{Body, Record},
    time::Timestamp,
};

use super::{
    SpoolError,
    lane::{LaneConfig, LaneLog, Segment, remove},
    marks::{self, Cursor, SEQ_END},
    mend::{Extent, quarantine},
    segment::{self, Damage, HEADER_BYTES, Stored},
};

/// How far seqs jump when the file that says which were used is lost.
const LEAP: u64 = 1 << 32;
/// How far apart the seqs of two sessions are at least, when all is lost: more than one session can use, with
/// room for a few leaps.
const SESSION: u64 = 1 << 36;

/// A lane was not closed.
pub const UNCLEAN_START: &str = "spool_unclean_start";

/// Something that was not as a clean stop leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub lane: Lane,
    /// For an event record: `spool_quarantined` or `spool_unclean_start`.
    pub kind: &'static str,
    /// In words.
    pub message: String,
    /// Seqs that are lost.
    pub lost: Option<(u64, u64)>,
}

/// Opens one lane. `sessions`: how many there have been in the life of the state folder, which bounds what a
/// folder that is gone may have used.
pub(super) fn open(
    lane: Lane,
    dir: PathBuf,
    config: LaneConfig,
    sessions: u64,
    now: Timestamp,
) -> Result<(LaneLog, Vec<Finding>), SpoolError> {
    files::create_folder(&dir)?;
    let fail = |source| SpoolError::File {
        action: "open",
        path: dir.clone(),
        source,
    };
    let (cursor, acked) = Cursor::open(&dir).map_err(fail)?;
    let reserved = marks::read_reserved(&dir).map_err(fail)?;
    let names = list(&dir).map_err(fail)?;

    let mut findings = Vec::new();
    let mut segments: VecDeque<Segment> = VecDeque::new();
    for (index, path) in names.iter().enumerate() {
        let bound = names
            .get(index + 1)
            .and_then(|next| first_of(next))
            .map(|next| next - 1);
        let known = reserved.and_then(Result::ok);
        let extent = Extent {
            acked,
            bound,
            below: u64::MAX,
        };
        if let Some(segment) = recover(lane, &dir, path, (extent, known), now, &mut findings)? {
            let before = segments.back().map_or(0, |segment| segment.last);
            if segment.first <= before {
                // A crash between writing a gap and removing what it stands for: nothing is lost yet.
                remove(&segment.path)?;
            } else {
                segments.push_back(segment);
            }
        }
    }

    let high = segments.back().map_or(0, |segment| segment.last).max(acked);
    let reserved = match reserved {
        // A new folder, or all of it is gone.
        None if high == 0 => sessions.saturating_mul(SESSION).min(SEQ_END / 2),
        Some(Ok(reserved)) => reserved.max(high),
        // Without the file nothing says which seqs were used and sent.
        None | Some(Err(())) => high.saturating_add(LEAP).min(SEQ_END - 1).max(high),
    };
    let place = (lane, dir.clone(), config);
    let seqs = (high + 1, reserved);
    let mut log = LaneLog::assemble(place, segments, (cursor, acked), seqs);
    if high < reserved {
        log.skip_reserved(high + 1, now);
        findings.push(Finding {
            lane,
            kind: UNCLEAN_START,
            message: format!(
                "the {lane} lane was not closed; its seqs go on at {}",
                reserved + 1
            ),
            lost: Some((high + 1, reserved)),
        });
    }
    Ok((log, findings))
}

/// Reads one file and mends it. `reserved`: the last seq that may have been used, if it is known.
fn recover(
    lane: Lane,
    dir: &Path,
    path: &Path,
    (extent, reserved): (Extent, Option<u64>),
    now: Timestamp,
    findings: &mut Vec<Finding>,
) -> Result<Option<Segment>, SpoolError> {
    let fail = |action, source| SpoolError::File {
        action,
        path: path.to_owned(),
        source,
    };
    let bound = extent.bound;
    let mut seen = Seen::default();
    let mut read = segment::scan(path, lane, |stored| seen.note(stored));
    if let Err(error) = &read {
        tracing::warn!(path = %path.display(), %error, "a spool file cannot be read, trying once more");
        seen = Seen::default();
        read = segment::scan(path, lane, |stored| seen.note(stored));
    }
    // What cannot be read or mended now is left to whoever reads the lane, up to here.
    let last = bound.or(reserved).unwrap_or(0).max(seen.last);
    let later = |seen: &Seen| {
        let first = first_of(path).unwrap_or(seen.first);
        Segment {
            path: path.to_owned(),
            first,
            last: last.max(first),
            bytes: fs::metadata(path).map_or(HEADER_BYTES, |meta| meta.len()),
            newest: now,
            gap_from: None,
        }
    };
    let Ok(scan) = read else {
        return Ok(Some(later(&seen)));
    };
    if scan.damage == Some(Damage::Newer) {
        return Err(SpoolError::Newer(path.to_owned()));
    }
    let torn = scan.damage == Some(Damage::Torn) && bound.is_none();
    if torn && scan.good_bytes > HEADER_BYTES {
        let cut = OpenOptions::new().write(true).open(path).and_then(|file| {
            file.set_len(scan.good_bytes)?;
            file.sync_all()
        });
        cut.map_err(|source| fail("cut", source))?;
    } else if torn || (scan.damage.is_none() && seen.last == 0) {
        remove(path)?;
        return Ok(None);
    } else if scan.damage.is_some() {
        return match quarantine(lane, dir, path, extent, now, findings) {
            Ok(kept) => Ok(kept),
            Err(error) => {
                let error = nexus_runtime::errors::chain(&error).to_string();
                tracing::warn!(path = %path.display(), error, "a damaged file cannot be mended yet");
                Ok(Some(later(&seen)))
            }
        };
    }
    Ok(Some(Segment {
        path: path.to_owned(),
        first: seen.first,
        last: seen.last,
        bytes: scan.good_bytes,
        newest: seen.newest,
        gap_from: seen.gap_from.filter(|_| seen.count == 1),
    }))
}

#[derive(Default)]
struct Seen {
    first: u64,
    last: u64,
    count: u64,
    newest: Timestamp,
    gap_from: Option<u64>,
}

impl Seen {
    fn note(&mut self, stored: Stored) {
        if self.count == 0 {
            self.first = stored.seq;
            // Only a gap matters, and of gaps only one that stands alone.
            if let Ok(Record {
                body: Body::Gap(gap),
                ..
            }) = Record::decode(stored.payload, &mut Decoder::new())
            {
                self.gap_from = Some(gap.first_seq);
            }
        }
        self.count += 1;
        self.last = stored.seq;
        self.newest = self.newest.max(stored.time);
    }
}

/// Segment files by their first seq.
pub(super) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if first_of(&path).is_some() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn first_of(path: &Path) -> Option<u64> {
    path.file_name()?
        .to_str()?
        .strip_suffix(".seg")?
        .parse()
        .ok()
        .filter(|seq| (1..SEQ_END).contains(seq))
}
