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
    lane::{LaneConfig, LaneLog, Segment, gap_record, remove, write_segment},
    marks::{self, Cursor},
    segment::{self, Damage, HEADER_BYTES, Scan, Stored},
};

/// Damaged files kept for whoever wants to look at them.
const QUARANTINED: usize = 4;
/// How far seqs jump when nothing says which were used.
const LEAP: u64 = 1 << 32;

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

pub(super) fn open(
    lane: Lane,
    dir: PathBuf,
    config: LaneConfig,
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
        if let Some(segment) = recover(lane, &dir, path, bound, now, &mut findings)? {
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
        None if high == 0 => 0,
        Some(Ok(reserved)) => reserved.max(high),
        // Without the file nothing says which seqs were used and sent.
        None | Some(Err(())) => high.saturating_add(LEAP),
    };
    let place = (lane, dir.clone(), config);
    let seqs = (high + 1, reserved);
    let mut log = LaneLog::assemble(place, segments, (cursor, acked), seqs);
    if high < reserved {
        log.skip_reserved(high + 1, now, "unclean_start")?;
        findings.push(Finding {
            lane,
            kind: "spool_unclean_start",
            message: format!(
                "the {lane} lane was not closed; its seqs go on at {}",
                reserved + 1
            ),
            lost: Some((high + 1, reserved)),
        });
        marks::write_reserved(&dir, reserved)?;
    }
    Ok((log, findings))
}

/// Reads one file and mends it. `bound` is the last seq it can hold, if a file follows.
fn recover(
    lane: Lane,
    dir: &Path,
    path: &Path,
    bound: Option<u64>,
    now: Timestamp,
    findings: &mut Vec<Finding>,
) -> Result<Option<Segment>, SpoolError> {
    let fail = |action, source| SpoolError::File {
        action,
        path: path.to_owned(),
        source,
    };
    let mut seen = Seen::default();
    let read = segment::scan(path, lane, |stored| seen.note(stored));
    let scan = match read {
        Ok(scan) => scan,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a spool file cannot be read");
            Scan {
                good_bytes: 0,
                damage: Some(Damage::Corrupt),
            }
        }
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
        return quarantine(lane, dir, path, (bound, now), findings).map_err(|e| match e {
            Quarantine::Io(source) => fail("move aside", source),
            Quarantine::Spool(error) => error,
        });
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

enum Quarantine {
    Io(io::Error),
    Spool(SpoolError),
}

impl From<io::Error> for Quarantine {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<SpoolError> for Quarantine {
    fn from(error: SpoolError) -> Self {
        Self::Spool(error)
    }
}

fn quarantine(
    lane: Lane,
    dir: &Path,
    path: &Path,
    (bound, now): (Option<u64>, Timestamp),
    findings: &mut Vec<Finding>,
) -> Result<Option<Segment>, Quarantine> {
    let aside = dir.join("quarantine");
    files::create_folder(&aside).map_err(SpoolError::from)?;
    let kept = list(&aside)?;
    for old in kept
        .iter()
        .take((kept.len() + 1).saturating_sub(QUARANTINED))
    {
        remove(old)?;
    }
    let name = path.file_name().unwrap_or_default();
    let moved = aside.join(name);
    fs::rename(path, &moved)?;

    let mut good = Vec::new();
    // What the scan read before it is read again; a file that cannot be read gives nothing.
    segment::scan(&moved, lane, |stored| good.push(stored)).ok();
    let named = first_of(path).unwrap_or(1);
    let first_lost = good.last().map_or(named, |stored: &Stored| stored.seq + 1);
    // Without a file behind it, what is lost shows as the rest of the reserved block.
    let lost = bound
        .filter(|bound| *bound >= first_lost)
        .map(|bound| (first_lost, bound));
    let only_gap = good.is_empty().then_some(first_lost);
    if let Some((first, last)) = lost {
        good.push(gap_record(first, last, now, "corrupt_segment"));
    }
    findings.push(Finding {
        lane,
        kind: "spool_quarantined",
        message: format!(
            "{} is damaged and was moved to {}",
            path.display(),
            moved.display()
        ),
        lost,
    });
    if good.is_empty() {
        return Ok(None);
    }
    Ok(Some(write_segment(dir, lane, &good, only_gap)?))
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
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
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

fn first_of(path: &Path) -> Option<u64> {
    path.file_name()?
        .to_str()?
        .strip_suffix(".seg")?
        .parse()
        .ok()
}
