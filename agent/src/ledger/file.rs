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
    ids::{JobId, RunKey},
    time::Timestamp,
};

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
}

#[derive(Debug)]
pub(super) struct LedgerFile {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LedgerFile {
    pub(super) fn open(dir: &Path) -> Result<Self, LedgerError> {
        files::create_folder(dir)?;
        let path = dir.join(NAME);
        if !path.exists() {
            files::write_private(dir, NAME, &header())?;
        }
        let file = open_end(&path)?;
        Ok(Self {
            dir: dir.to_owned(),
            path,
            file,
            bytes: 0,
        })
    }

    /// All entries; the file is cut behind the last good one.
    pub(super) fn read(&mut self) -> Result<Vec<Entry>, LedgerError> {
        let bytes = fs::read(&self.path).map_err(|source| self.fail("read", source))?;
        let mut rest = Bytes::from(bytes);
        let whole = rest.len();
        let head = rest.split_to(HEADER_BYTES.min(whole));
        let version = match head.strip_prefix(MAGIC) {
            Some([low, high]) => u16::from_le_bytes([*low, *high]),
            _ => return Err(LedgerError::Damaged(self.path.clone())),
        };
        if version > VERSION {
            return Err(LedgerError::Newer(self.path.clone()));
        }
        let mut entries = Vec::new();
        let mut good = HEADER_BYTES;
        while let Some((entry, bytes)) = next(&mut rest) {
            entries.push(entry);
            good += bytes;
        }
        self.bytes = u64::try_from(good).unwrap_or(u64::MAX);
        if good < whole {
            tracing::warn!(bytes = whole - good, "the ledger's torn tail is cut");
            self.file
                .set_len(self.bytes)
                .map_err(|source| self.fail("cut", source))?;
            self.file
                .sync_all()
                .map_err(|source| self.fail("fsync", source))?;
        }
        Ok(entries)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn append(&mut self, entry: &Entry, sync: bool) -> Result<(), LedgerError> {
        let bytes = frame(entry);
        let written = self
            .file
            .write_all(&bytes)
            .and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        if let Err(source) = written {
            // What was written of it must not stay in front of the next entry.
            self.file.set_len(self.bytes).ok();
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
        Ok(())
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
    if ahead.len() < length {
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
        Entry::Started { key, at } => {
            begin(2, key);
            out.put_i64_le(at.as_ms());
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
    }
    out.freeze()
}

fn decode(mut body: Bytes) -> Option<Entry> {
    let kind = body.try_get_u8().ok()?;
    if kind == 7 {
        return Some(Entry::Horizon {
            at: Timestamp(body.try_get_i64_le().ok()?),
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
                dispatch: body,
            }
        }
        2 => Entry::Started {
            key,
            at: Timestamp(body.try_get_i64_le().ok()?),
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
                report: body,
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
