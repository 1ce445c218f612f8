//! The ledger's file: entries to bytes and back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use nexus_pki::files;
use nexus_proto::{
    ids::{JobId, NodeId, RunKey},
    time::Timestamp,
};
use nexus_runtime::errors::chain;

use super::{LedgerError, Process};

const NAME: &str = "ledger";
const MAGIC: &[u8; 4] = b"NXLG";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 6;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Received {
        key: RunKey,
        expires: Timestamp,
        dispatch: Bytes,
    },
    Started {
        key: RunKey,
        at: Timestamp,
        node: Option<NodeId>,
    },
    Process {
        key: RunKey,
        process: Process,
    },
    Finished {
        key: RunKey,
        expires: Timestamp,
        report: Bytes,
    },
    Spooled {
        key: RunKey,
        seq: u64,
    },
    Acked {
        key: RunKey,
    },
    Horizon {
        at: Timestamp,
    },
    Since {
        at: Timestamp,
    },
}

#[derive(Debug)]
pub(super) struct LedgerFile {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    bytes: u64,
    end: End,
}

/// What stands behind the last good entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    /// Part of an entry that could be neither finished nor cut off.
    Torn,
    /// The file has to be written anew.
    Damaged,
}

impl LedgerFile {
    /// Opens it; `true`: it was not there.
    pub(super) fn open(dir: &Path) -> Result<(Self, bool), LedgerError> {
        files::create_folder(dir)?;
        let path = dir.join(NAME);
        let new = !path.exists();
        if new {
            files::write_private(dir, NAME, &header())?;
        }
        let file = open_end(&path)?;
        let file = Self {
            dir: dir.to_owned(),
            path,
            file,
            bytes: 0,
            end: End::Clean,
        };
        Ok((file, new))
    }

    /// All entries that are good; `true`: some before the last one were not, and the file must be written anew. Bad
    /// bytes behind the last one are cut.
    pub(super) fn read(&mut self) -> Result<(Vec<Entry>, bool), LedgerError> {
        let bytes = fs::read(&self.path).map_err(|source| self.fail("read", source))?;
        let mut rest = Bytes::from(bytes);
        let whole = rest.len();
        let head = rest.split_to(HEADER_BYTES.min(whole));
        let version = match head.strip_prefix(MAGIC) {
            Some([low, high]) => Some(u16::from_le_bytes([*low, *high])),
            _ => None,
        };
        if version.is_some_and(|version| version > VERSION) {
            return Err(LedgerError::Newer(self.path.clone()));
        }
        let mut damaged = !matches!(version, Some(1..));
        let mut entries = Vec::new();
        let mut good = HEADER_BYTES;
        loop {
            while let Some((entry, bytes)) = next(&mut rest) {
                entries.push(entry);
                good += bytes;
            }
            // An entry that follows shows that the bad one is no torn tail.
            let Some(skip) = (1..rest.len()).find(|at| next(&mut rest.slice(*at..)).is_some())
            else {
                break;
            };
            tracing::error!(at = good, bytes = skip, "the ledger is damaged");
            rest.advance(skip);
            good += skip;
            damaged = true;
        }
        self.bytes = u64::try_from(good).unwrap_or(u64::MAX);
        if damaged {
            self.end = End::Damaged;
        } else if good < whole {
            tracing::warn!(bytes = whole - good, "the ledger's torn tail is cut");
            self.end = End::Torn;
            self.cut()?;
        }
        Ok((entries, damaged))
    }

    /// What it holds, whatever that is.
    pub(super) fn damaged(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap_or_default()
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.end == End::Damaged
    }

    /// Cuts what is left of an entry that was not finished.
    fn cut(&mut self) -> Result<(), LedgerError> {
        if self.end == End::Torn {
            let cut = self.file.set_len(self.bytes);
            cut.and_then(|()| self.file.sync_all())
                .map_err(|source| self.fail("cut", source))?;
            self.end = End::Clean;
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn append(&mut self, entry: &Entry, sync: bool) -> Result<(), LedgerError> {
        if self.is_damaged() {
            return Err(LedgerError::Damaged(self.path.clone()));
        }
        self.cut()?;
        let bytes = frame(entry);
        let written = self
            .file
            .write_all(&bytes)
            .and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        if let Err(source) = written {
            // What was written of it must not stay in front of the next entry.
            self.end = End::Torn;
            if let Err(error) = self.cut() {
                tracing::error!(error = %chain(&error), "nothing is added to the ledger until it can be cut");
            }
            return Err(self.fail("write to", source));
        }
        self.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        Ok(())
    }

    pub(super) fn replace(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        let mut bytes = header();
        for entry in entries {
            bytes.extend_from_slice(&frame(entry));
        }
        files::write_private(&self.dir, NAME, &bytes)?;
        self.file = open_end(&self.path)?;
        self.bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.end = End::Clean;
        Ok(())
    }

    /// A disk that takes nothing, and does not let go of what it took.
    #[cfg(test)]
    pub(super) fn break_it(&mut self) {
        self.file = OpenOptions::new().append(true).open("/dev/full").unwrap();
    }

    /// The disk works again.
    #[cfg(test)]
    pub(super) fn mend_it(&mut self) {
        self.file = open_end(&self.path).unwrap();
    }

    fn fail(&self, action: &'static str, source: io::Error) -> LedgerError {
        LedgerError::File {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

fn open_end(path: &Path) -> Result<File, LedgerError> {
    OpenOptions::new()
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| LedgerError::File {
            action: "open",
            path: path.to_owned(),
            source,
        })
}

fn header() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes
}

fn frame(entry: &Entry) -> Bytes {
    let body = encode(entry);
    let mut bytes = BytesMut::with_capacity(body.len() + 8);
    bytes.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    bytes.put_u32_le(crc32c::crc32c(&body));
    bytes.put(body);
    bytes.freeze()
}

fn next(rest: &mut Bytes) -> Option<(Entry, usize)> {
    let mut ahead = rest.clone();
    let length = usize::try_from(ahead.try_get_u32_le().ok()?).ok()?;
    let crc = ahead.try_get_u32_le().ok()?;
    // The kind is looked at first, so that looking for an entry in bad bytes costs little.
    if ahead.len() < length || !matches!(ahead.first(), Some(1..=8)) {
        return None;
    }
    let body = ahead.split_to(length);
    if crc32c::crc32c(&body) != crc {
        return None;
    }
    let entry = decode(body)?;
    *rest = ahead;
    Some((entry, length + 8))
}

fn encode(entry: &Entry) -> Bytes {
    let mut out = BytesMut::new();
    let mut begin = |kind: u8, key: &RunKey| {
        out.put_u8(kind);
        out.put_slice(key.job.as_bytes());
        out.put_u32_le(key.occurrence);
        out.put_u32_le(key.step);
        out.put_u32_le(key.attempt);
    };
    match entry {
        Entry::Received {
            key,
            expires,
            dispatch,
        } => {
            begin(1, key);
            out.put_i64_le(expires.as_ms());
            out.put_slice(dispatch);
        }
        Entry::Started { key, at, node } => {
            begin(2, key);
            out.put_i64_le(at.as_ms());
            if let Some(node) = node {
                out.put_slice(node.as_bytes());
            }
        }
        Entry::Process { key, process } => {
            begin(3, key);
            out.put_u32_le(process.pid);
            out.put_u64_le(process.start_ticks);
            out.put_slice(process.boot_id.as_bytes());
        }
        Entry::Finished {
            key,
            expires,
            report,
        } => {
            begin(4, key);
            out.put_i64_le(expires.as_ms());
            out.put_slice(report);
        }
        Entry::Spooled { key, seq } => {
            begin(5, key);
            out.put_u64_le(*seq);
        }
        Entry::Acked { key } => begin(6, key),
        Entry::Horizon { at } => {
            out.put_u8(7);
            out.put_i64_le(at.as_ms());
        }
        Entry::Since { at } => {
            out.put_u8(8);
            out.put_i64_le(at.as_ms());
        }
    }
    out.freeze()
}

fn decode(mut body: Bytes) -> Option<Entry> {
    let kind = body.try_get_u8().ok()?;
    if let 7 | 8 = kind {
        let at = Timestamp(body.try_get_i64_le().ok()?);
        return Some(if kind == 7 {
            Entry::Horizon { at }
        } else {
            Entry::Since { at }
        });
    }
    if body.len() < 16 {
        return None;
    }
    let key = RunKey {
        job: JobId::from_wire(&body.split_to(16)).ok()?,
        occurrence: body.try_get_u32_le().ok()?,
        step: body.try_get_u32_le().ok()?,
        attempt: body.try_get_u32_le().ok()?,
    };
    Some(match kind {
        1 => {
            let expires = Timestamp(body.try_get_i64_le().ok()?);
            Entry::Received {
                key,
                expires,
                // A copy, so that what is remembered does not keep all of the file in memory.
                dispatch: Bytes::copy_from_slice(&body),
            }
        }
        2 => Entry::Started {
            key,
            at: Timestamp(body.try_get_i64_le().ok()?),
            node: NodeId::from_wire(&body).ok(),
        },
        3 => {
            let pid = body.try_get_u32_le().ok()?;
            let start_ticks = body.try_get_u64_le().ok()?;
            let boot_id = String::from_utf8(body.to_vec()).ok()?;
            Entry::Process {
                key,
                process: Process {
                    pid,
                    start_ticks,
                    boot_id,
                },
            }
        }
        4 => {
            let expires = Timestamp(body.try_get_i64_le().ok()?);
            Entry::Finished {
                key,
                expires,
                report: Bytes::copy_from_slice(&body),
            }
        }
        5 => Entry::Spooled {
            key,
            seq: body.try_get_u64_le().ok()?,
        },
        6 => Entry::Acked { key },
        _ => return None,
    })
}
