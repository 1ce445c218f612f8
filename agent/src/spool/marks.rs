//! Two small files beside a lane's segments: `seq`, how far seqs are reserved (replaced whole, fsynced),
//! and `cursor`, how far the collector has committed (rewritten in place, not fsynced: an old cursor only
//! costs a re-send that the collector knows). Both: magic, u64, CRC32C.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use nexus_pki::files::{self, FileError};

/// No seq is as high as this: one that says so was not written by an honest hand.
pub(super) const SEQ_END: u64 = 1 << 62;

const RESERVED: &[u8; 4] = b"NXS1";
const CURSOR: &[u8; 4] = b"NXC1";

/// The highest seq that may have been used. `Ok(None)`: no such file; `Err` only when it cannot be read.
pub(super) fn read_reserved(dir: &Path) -> io::Result<Option<Result<u64, ()>>> {
    match std::fs::read(dir.join("seq")) {
        Ok(bytes) => Ok(Some(parse(RESERVED, &bytes).ok_or(()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn write_reserved(dir: &Path, seq: u64) -> Result<(), FileError> {
    // Somebody may have removed it from under the running agent.
    files::create_folder(dir)?;
    files::write_private(dir, "seq", &render(RESERVED, seq))
}

/// The cursor, kept open.
#[derive(Debug)]
pub(super) struct Cursor(File);

impl Cursor {
    /// Opens it; one that cannot be understood counts as 0.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, u64)> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = options.open(dir.join("cursor"))?;
        let mut bytes = [0_u8; 16];
        let seq = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => parse(CURSOR, &bytes).unwrap_or(0),
            Err(_) => 0,
        };
        Ok((Self(file), seq))
    }

    pub(super) fn write(&self, seq: u64) -> io::Result<()> {
        self.0.write_all_at(&render(CURSOR, seq), 0)
    }
}

fn render(magic: &[u8; 4], seq: u64) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&seq.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn parse(magic: &[u8; 4], bytes: &[u8]) -> Option<u64> {
    let (body, crc) = bytes.split_at_checked(12)?;
    let seq = body.strip_prefix(magic)?.first_chunk::<8>()?;
    let good = crc32c::crc32c(body).to_le_bytes() == *crc;
    good.then(|| u64::from_le_bytes(*seq))
        .filter(|seq| *seq < SEQ_END)
}
