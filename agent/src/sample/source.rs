//! What collectors read from, and how.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use nexus_proto::time::Timestamp;

use super::{SampleConfig, SampleError, cpu::Throttles, kernel::Totals, probe::Prober, zone::Zone};

/// Everything collectors look at, and what they keep from one sampling to the next.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) config: SampleConfig,
    pub(super) files: Files,
    pub(super) now: Timestamp,
    /// The rest of `/proc/stat`, read with the processors' part.
    pub(super) totals: Option<Totals>,
    pub(super) ticks: Vec<[f64; 10]>,
    pub(super) throttles: Throttles,
    pub(super) mounts: Prober,
    pub(super) zone: Zone,
    /// Whether an interface has `rx_nohandler`.
    pub(super) nohandler: BTreeMap<String, PathBuf>,
}

impl Sources {
    pub(super) fn new(config: SampleConfig) -> Self {
        Self {
            files: Files::default(),
            now: Timestamp::default(),
            totals: None,
            ticks: Vec::new(),
            throttles: Throttles::default(),
            mounts: Prober::new(config.mount_timeout),
            zone: Zone::default(),
            nohandler: BTreeMap::new(),
            config,
        }
    }

    pub(super) fn proc(&self, path: &str) -> PathBuf {
        self.config.procfs.join(path)
    }

    pub(super) fn sys(&self, path: &str) -> PathBuf {
        self.config.sysfs.join(path)
    }
}

/// Reads small files whole, all into one buffer.
#[derive(Debug, Default)]
pub(super) struct Files {
    bytes: Vec<u8>,
    /// Only for files that are not UTF-8: mount points may have any name.
    text: String,
}

/// No file we read is longer, short of a kernel gone mad.
const FILE_BYTES: usize = 16 * 1024 * 1024;

impl Files {
    /// The file's text, with U+FFFD for what is not UTF-8.
    pub(super) fn read(&mut self, path: &Path) -> Result<&str, SampleError> {
        self.fill(path).map_err(|source| SampleError::Read {
            path: path.to_owned(),
            source,
        })?;
        if std::str::from_utf8(&self.bytes).is_err() {
            self.text = String::from_utf8_lossy(&self.bytes).into_owned();
            return Ok(&self.text);
        }
        Ok(std::str::from_utf8(&self.bytes).unwrap_or_default())
    }

    /// The same, and `None` for a file that is not there.
    pub(super) fn read_if_there(&mut self, path: &Path) -> Result<Option<&str>, SampleError> {
        match self.read(path) {
            Ok(text) => Ok(Some(text)),
            Err(SampleError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Files of the kernel have no size to ask for: they are read until they end.
    fn fill(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut length = 0;
        loop {
            if self.bytes.len() < length + 4096 {
                self.bytes.resize((length * 2).max(16 * 1024), 0);
            }
            let room = self.bytes.get_mut(length..).unwrap_or_default();
            match file.read(room) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if length > FILE_BYTES {
                return Err(io::Error::other("the file does not end"));
            }
        }
        self.bytes.truncate(length);
        Ok(())
    }
}

/// A number as the kernel writes it. Whole ones, nearly all, are read without the detours that
/// decimal fractions need; both round as node_exporter's do.
pub(super) fn number(text: &str) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a sample is a double")]
    match text.parse::<u64>() {
        Ok(whole) => Some(whole as f64),
        Err(_) => text.parse().ok(),
    }
}

/// The same, or an error that names the file.
pub(super) fn number_in(
    path: &Path,
    what: &'static str,
    text: Option<&str>,
) -> Result<f64, SampleError> {
    text.and_then(number).ok_or_else(|| SampleError::Malformed {
        path: path.to_owned(),
        what,
    })
}
