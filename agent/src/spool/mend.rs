//! A file of a lane that turned out to be damaged or gone. It is moved aside into `quarantine/`, what is good
//! of it is kept in its place, and a gap stands for the rest: at a start, and when an upload comes upon it. A
//! read that merely failed is no damage: it is tried again, and only a medium that fails again and again
//! counts as one.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use nexus_pki::files;
use nexus_proto::{ids::Lane, time::Timestamp};

use super::{
    SpoolError,
    lane::{LaneLog, Segment, gap_record, remove, write_segment},
    marks::{self, Cursor},
    open::{Finding, first_of, list},
    segment::{self, Stored},
};

/// Damaged files kept for whoever wants to look at them.
const QUARANTINED: usize = 4;
/// A medium that fails this often at the same file does not pass.
const TRIES: u32 = 8;

/// What a damaged file stood for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Up to here it need not be missed.
    pub(super) acked: u64,
    /// The last seq it can hold, if that is known.
    pub(super) bound: Option<u64>,
    /// Records from this seq on are not good, whatever they look like.
    pub(super) below: u64,
}

/// Why a reader cannot go on in a file.
#[derive(Debug)]
pub(super) struct Bad {
    pub(super) path: PathBuf,
    /// Records from this seq on are not good, whatever they look like.
    pub(super) below: u64,
    pub(super) error: SpoolError,
}

impl Bad {
    /// A file that is damaged somewhere, or could not be read. `Err`: it is about no file.
    pub(super) fn of(error: SpoolError) -> Result<Self, SpoolError> {
        match &error {
            SpoolError::File { path, .. } | SpoolError::Damaged(path) => Ok(Self {
                path: path.clone(),
                below: u64::MAX,
                error,
            }),
            _ => Err(error),
        }
    }
}

impl LaneLog {
    /// Puts what is good of a file, and a gap for the rest, in its place. `Err` when the file may be read later.
    pub(super) fn mend(&mut self, bad: Bad, now: Timestamp) -> Result<Option<Finding>, SpoolError> {
        let Some(index) = self.segments.iter().position(|s| s.path == bad.path) else {
            // It was given up or replaced meanwhile.
            return Ok(None);
        };
        if let SpoolError::File { source, .. } = &bad.error
            && source.kind() != ErrorKind::NotFound
            && !self.is_lasting(&bad.path, source)
        {
            return Err(bad.error);
        }
        tracing::error!(
            lane = %self.lane, error = %nexus_runtime::errors::chain(&bad.error),
            "a spool file cannot be used"
        );
        if index + 1 == self.segments.len() {
            self.end_file();
        }
        if !self.dir.join("seq").exists() {
            // The whole folder was removed under the running agent.
            marks::write_reserved(&self.dir, self.reserved)?;
            let reopened = Cursor::open(&self.dir).and_then(|(cursor, _)| {
                cursor.write(self.acked)?;
                Ok(cursor)
            });
            self.cursor = reopened.map_err(|source| SpoolError::File {
                action: "open",
                path: self.dir.clone(),
                source,
            })?;
        }
        let extent = Extent {
            acked: self.acked,
            bound: self.segments.get(index).map(|segment| segment.last),
            below: bad.below,
        };
        let mut found = Vec::new();
        let kept = quarantine(self.lane, &self.dir, &bad.path, extent, now, &mut found)?;
        self.segments.remove(index);
        if let Some(kept) = kept {
            self.segments.insert(index, kept);
        }
        self.generation += 1;
        self.unreadable = None;
        Ok(found.pop())
    }

    /// Whether a read failed at the medium, and has done so for a while.
    fn is_lasting(&mut self, path: &Path, source: &io::Error) -> bool {
        if source.raw_os_error() != Some(rustix::io::Errno::IO.raw_os_error()) {
            return false;
        }
        let before = match &self.unreadable {
            Some((known, tries)) if known == path => *tries,
            _ => 0,
        };
        self.unreadable = Some((path.to_owned(), before + 1));
        before + 1 >= TRIES
    }
}

/// Moves a file aside, if it is there, and writes what is good of it and a gap for the rest in its place.
pub(super) fn quarantine(
    lane: Lane,
    dir: &Path,
    path: &Path,
    extent: Extent,
    now: Timestamp,
    findings: &mut Vec<Finding>,
) -> Result<Option<Segment>, SpoolError> {
    let fail = |source| SpoolError::File {
        action: "move aside",
        path: path.to_owned(),
        source,
    };
    let aside = aside(dir, path).map_err(fail)?;
    let mut good: Vec<Stored> = Vec::new();
    if let Some(aside) = &aside {
        // A file that cannot be read gives nothing.
        let keep = |stored: Stored| {
            if stored.seq < extent.below {
                good.push(stored);
            }
        };
        segment::scan(aside, lane, keep).ok();
    }
    let named = first_of(path).unwrap_or(1);
    let first_lost = good.last().map_or(named, |stored| stored.seq + 1);
    let first_lost = first_lost.max(extent.acked.saturating_add(1));
    // Without a bound, what is lost shows as the rest of the reserved block.
    let lost = extent
        .bound
        .filter(|bound| *bound >= first_lost)
        .map(|bound| (first_lost, bound));
    let only_gap = good.is_empty().then_some(first_lost);
    if let Some((first, last)) = lost {
        good.push(gap_record(first, last, now, "corrupt_segment"));
    }
    let kept = match good.as_slice() {
        [] => None,
        good => Some(write_segment(dir, lane, good, only_gap)?),
    };
    if kept.as_ref().is_none_or(|kept| kept.path != path) {
        remove(path)?;
    }
    findings.push(Finding {
        lane,
        kind: "spool_quarantined",
        message: match aside {
            Some(aside) => format!(
                "{} is damaged and was moved to {}",
                path.display(),
                aside.display()
            ),
            None => format!("{} is gone", path.display()),
        },
        lost,
    });
    Ok(kept)
}

/// Gives a file a second name in the quarantine: the first is only taken from it once there is something in its
/// place. `None`: there is no such file.
fn aside(dir: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    if !path.exists() {
        return Ok(None);
    }
    let folder = dir.join("quarantine");
    files::create_folder(&folder).map_err(io::Error::other)?;
    let to = folder.join(path.file_name().unwrap_or_default());
    let kept = list(&folder)?;
    let others: Vec<_> = kept.iter().filter(|kept| **kept != to).collect();
    for old in others
        .iter()
        .take((others.len() + 1).saturating_sub(QUARANTINED))
    {
        fs::remove_file(old)?;
    }
    match fs::remove_file(&to) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Not every file system knows a second name.
    fs::hard_link(path, &to).or_else(|_| fs::rename(path, &to))?;
    Ok(Some(to))
}
