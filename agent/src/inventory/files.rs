//! Files below the host's root, and signs that they changed.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{InventoryConfig, InventoryError};

/// The most that is read of any one file.
const FILE_BYTES: u64 = 64 * 1024 * 1024;

impl InventoryConfig {
    /// A file of the host: `etc/passwd`.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

/// The file's text, with U+FFFD for what is not UTF-8.
pub(super) fn read(path: &Path) -> Result<String, InventoryError> {
    let read = || -> io::Result<String> {
        let mut bytes = Vec::new();
        fs::File::open(path)?
            .take(FILE_BYTES)
            .read_to_end(&mut bytes)?;
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    };
    read().map_err(|source| InventoryError::Read {
        path: path.to_owned(),
        source,
    })
}

/// A file of one short line; `None` when it is missing, empty or refused, as many of the kernel's are.
pub(super) fn read_line(path: &Path) -> Option<String> {
    let text = read(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Names in a folder, sorted; none when it is not there.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// A digest over everything whose change would change a section.
#[derive(Debug, Default)]
pub(super) struct Sign(blake3::Hasher);

impl Sign {
    pub(super) fn text(&mut self, text: &str) {
        self.0.update(text.as_bytes()).update(&[0]);
    }

    /// The content of a file that is cheap to read.
    pub(super) fn content(&mut self, path: &Path) {
        match read(path) {
            Ok(text) => self.text(&text),
            Err(_) => self.text("\0"),
        }
    }

    /// What a file is and when it changed, wherever links lead.
    pub(super) fn file(&mut self, path: &Path) {
        self.metadata(fs::metadata(path));
    }

    /// The same of a link, with what it points to.
    pub(super) fn link(&mut self, path: &Path) {
        self.metadata(fs::symlink_metadata(path));
        if let Ok(target) = fs::read_link(path) {
            self.0.update(target.as_os_str().as_bytes()).update(&[0]);
        }
    }

    fn metadata(&mut self, metadata: io::Result<fs::Metadata>) {
        let Ok(metadata) = metadata else {
            self.0.update(&[0]);
            return;
        };
        for number in [metadata.dev(), metadata.ino(), metadata.size()] {
            self.0.update(&number.to_le_bytes());
        }
        for number in [
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ] {
            self.0.update(&number.to_le_bytes());
        }
    }

    pub(super) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
