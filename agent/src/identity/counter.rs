//! The session counter: two lines of one fixed width, written in turn and in place, so that it costs a full disk
//! nothing and a write that is cut short leaves the other line. The higher number counts.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use nexus_pki::files;

use super::IdentityError;

const LINE_BYTES: usize = 30;

/// The number; `None` when there is no file.
pub(super) fn read(path: &Path) -> Result<Option<u64>, IdentityError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(fail("read", path)(source)),
    };
    let text = |bytes| std::str::from_utf8(bytes).ok().map(str::trim);
    let lines = bytes.chunks(LINE_BYTES).filter_map(text);
    // An earlier form of the file held the bare number.
    let bare = || text(&bytes)?.parse().ok();
    let number = lines.filter_map(parse).max().or_else(bare);
    number.map(Some).ok_or_else(|| IdentityError::Content {
        path: path.to_owned(),
        what: "session counter",
    })
}

/// One more. Durable on return.
pub(super) fn next(dir: &Path, name: &str) -> Result<u64, IdentityError> {
    let path = dir.join(name);
    let before = read(&path)?;
    let next = before.unwrap_or(0).saturating_add(1);
    let line_bytes = u64::try_from(LINE_BYTES).unwrap_or(0);
    let in_place = fs::metadata(&path).is_ok_and(|meta| meta.len() == 2 * line_bytes);
    if in_place {
        let write = || {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.write_all_at(line(next).as_bytes(), next % 2 * line_bytes)?;
            file.sync_data()
        };
        write().map_err(fail("write", &path))?;
    } else {
        let [even, odd] = if next.is_multiple_of(2) {
            [next, next - 1]
        } else {
            [next - 1, next]
        };
        let whole = format!("{}{}", line(even), line(odd));
        files::write_private(dir, name, whole.as_bytes())?;
    }
    Ok(next)
}

fn line(number: u64) -> String {
    let digits = format!("{number:020}");
    format!("{digits} {:08x}\n", crc32c::crc32c(digits.as_bytes()))
}

fn parse(line: &str) -> Option<u64> {
    let (digits, crc) = line.split_once(' ')?;
    let crc = u32::from_str_radix(crc, 16).ok()?;
    (crc32c::crc32c(digits.as_bytes()) == crc)
        .then(|| digits.parse().ok())
        .flatten()
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io {
        action,
        path,
        source,
    }
}
