//! The one place that opens SQLite files.
//!
//! Each kind of file has an application id and a format number (`user_version`). A file of another kind or
//! of a newer format is refused before anything is written to it; one of an older format is copied to
//! `NAME.db.vN` before its migrations run, all of them in one transaction.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};
use rusqlite_migration::{M, Migrations};

use crate::{StoreError, store::reading};

/// A kind of file.
#[derive(Debug)]
pub(crate) struct Format {
    /// What it is, for errors.
    pub(crate) name: &'static str,
    /// SQLite's `application_id`.
    pub(crate) application: i32,
    /// Whether a commit must survive a power cut by itself.
    pub(crate) durable: bool,
    /// KiB of its pages that its writer keeps. Where rows are only added a few do; with more, a collector would grow for
    /// hours until they are full.
    pub(crate) cache_kib: u32,
    /// The schema's steps, oldest first; their number is the format.
    pub(crate) steps: Vec<String>,
}

impl Format {
    fn version(&self) -> i64 {
        i64::try_from(self.steps.len()).unwrap_or(i64::MAX)
    }
}

/// Holds a folder for this process until dropped.
#[derive(Debug)]
pub(crate) struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing alone frees it only when every copy is closed, and a child that another thread is just
        // starting holds one until it executes its program.
        if let Err(error) = rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock) {
            tracing::debug!(%error, "cannot unlock a folder");
        }
    }
}

/// Takes the folder's lock, or says who cannot.
pub(crate) fn lock_folder(dir: &Path) -> Result<FolderLock, StoreError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::file("cannot open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(FolderLock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse {
            path: dir.to_owned(),
        }),
        Err(errno) => Err(StoreError::file("cannot lock", &path)(errno.into())),
    }
}

/// Makes a folder that only its owner enters, with those above it.
pub(crate) fn make_folder(dir: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(StoreError::file("cannot make", dir))
}

/// Makes what was made in a folder last.
pub(crate) fn sync_folder(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(StoreError::file("cannot sync the folder", dir))
}

/// Opens a file for its one writer, made or migrated as needed.
pub(crate) fn open_writer(path: &Path, format: &Format) -> Result<Connection, StoreError> {
    make_private(path)?;
    let found = inspect(path, format)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let setting = StoreError::sqlite("cannot set up", path);
    let pragmas = format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = {}; PRAGMA wal_autocheckpoint = 2000;
         PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -{};",
        if format.durable { "FULL" } else { "NORMAL" },
        format.cache_kib
    );
    connection.execute_batch(&pragmas).map_err(setting)?;
    let setting = StoreError::sqlite("cannot set up", path);
    connection
        .pragma_update(None, "application_id", format.application)
        .map_err(setting)?;
    if found < format.version() {
        if found > 0 {
            back_up(&connection, path, found)?;
        }
        let steps = format.steps.iter().map(|step| M::up(step)).collect();
        Migrations::new(steps)
            .to_latest(&mut connection)
            .map_err(|e| StoreError::Corrupt {
                what: format!("{}, which could not be migrated,", path.display()),
                source: Some(Box::new(e)),
            })?;
    }
    Ok(connection)
}

/// Makes a file that can give back room it no longer needs, a little at a time. Must be called before the file is
/// opened for the first time.
pub(crate) fn prepare_shrinking(path: &Path) -> Result<(), StoreError> {
    if fs::metadata(path).is_ok_and(|found| found.len() > 0) {
        return Ok(());
    }
    make_private(path)?;
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection
        .execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM;")
        .map_err(StoreError::sqlite("cannot set up", path))
}

/// SQLite would make it readable for everyone.
fn make_private(path: &Path) -> Result<(), StoreError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(StoreError::file("cannot open", path))
}

/// Gives back at most so many of the pages that are free.
pub(crate) fn shrink(writer: &Connection, pages: u64) -> Result<(), StoreError> {
    // Each step frees a page.
    let mut statement = writer.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// Opens a file that exists for reading.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection
        .execute_batch(
            "PRAGMA query_only = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -4096;",
        )
        .map_err(StoreError::sqlite("cannot set up", path))?;
    Ok(connection)
}

/// Brings what is in the WAL into the file itself, since a reader that closes last cannot.
pub(crate) fn finish(writer: &Connection) {
    if let Err(error) = writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(%error, "a file was closed with its WAL beside it");
    }
}

/// Connections to a file for reading, so that a long answer does not hold up all others.
#[derive(Debug)]
pub(crate) struct Readers(Vec<Mutex<Connection>>);

impl Readers {
    /// How many may read at the same time.
    const COUNT: usize = 4;

    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let open = || Ok(Mutex::new(open_reader(path)?));
        let readers = (0..Self::COUNT).map(|_| open());
        Ok(Self(readers.collect::<Result<_, StoreError>>()?))
    }

    /// One that is free, if there is one.
    pub(crate) fn get(&self) -> Result<MutexGuard<'_, Connection>, StoreError> {
        let free = self.0.iter().find_map(|reader| reader.try_lock().ok());
        let first = || self.0.first().map(reading);
        free.or_else(first).ok_or(StoreError::Closed)
    }
}

/// A connection to nothing, which files are attached to for one query.
pub(crate) fn open_query() -> Result<Connection, StoreError> {
    connect(
        Path::new(":memory:"),
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI,
    )
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that opens databases"
)]
fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    crate::query::memory::install()?;
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .map_err(StoreError::sqlite("cannot open", path))?;
    let set_up = || -> rusqlite::Result<()> {
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        Ok(())
    };
    set_up().map_err(StoreError::sqlite("cannot set up", path))?;
    Ok(connection)
}

/// The file's format, 0 for an empty one; looks only, so that a refused file stays as it is.
/// Fails if the file is of a later version, and at nothing else.
pub(crate) fn refuse_newer(path: &Path, format: &Format) -> Result<(), StoreError> {
    match inspect(path, format) {
        Err(newer @ StoreError::Newer { .. }) => Err(newer),
        // What else is wrong with it, its opening says or mends.
        _ => Ok(()),
    }
}

/// Whether a file is there and has at least that format.
pub(crate) fn has_format(path: &Path, format: &Format, version: i64) -> bool {
    inspect(path, format).is_ok_and(|found| found >= version)
}

fn inspect(path: &Path, format: &Format) -> Result<i64, StoreError> {
    let size = fs::metadata(path)
        .map_err(StoreError::file("cannot read", path))?
        .len();
    if size == 0 {
        return Ok(0);
    }
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let read = |pragma: &str| {
        connection
            .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            .map_err(StoreError::sqlite("cannot read", path))
    };
    let (application, version) = (read("application_id")?, read("user_version")?);
    if application == 0 && version == 0 {
        return Ok(0);
    }
    if application != i64::from(format.application) {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
            wanted: format.name,
        });
    }
    let known = format.version();
    if version > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found: version,
            known,
        });
    }
    Ok(version)
}

fn back_up(connection: &Connection, path: &Path, version: i64) -> Result<(), StoreError> {
    let copy = PathBuf::from(format!("{}.v{version}", path.display()));
    if copy.exists() {
        fs::remove_file(&copy).map_err(StoreError::file("cannot replace", &copy))?;
    }
    connection
        .execute("VACUUM INTO ?1", [copy.to_string_lossy().as_ref()])
        .map_err(StoreError::sqlite("cannot back up to", &copy))?;
    File::open(&copy)
        .and_then(|file| file.sync_all())
        .map_err(StoreError::file("cannot back up to", &copy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_free_when_its_holder_is_gone_though_a_child_has_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock_folder(dir.path()).unwrap();
        let in_use = lock_folder(dir.path());
        assert!(matches!(in_use, Err(StoreError::InUse { .. })));
        // As a child has it between fork and exec.
        let copy = held.0.try_clone().unwrap();
        drop(held);
        lock_folder(dir.path()).unwrap();
        drop(copy);
    }
}
