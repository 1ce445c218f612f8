//! What can go wrong with a store.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
};

use rusqlite::{ErrorCode, ffi};

type Source = Box<dyn Error + Send + Sync>;

/// A store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("{doing} {}", path.display())]
    Sqlite {
        /// In words: `cannot open`, `cannot write to`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SqliteFault,
    },
    /// SQLite refused a statement within a file that was open already.
    #[error("a statement failed")]
    Statement(#[source] SqliteFault),
    /// The file system refused.
    #[error("{doing} {}", path.display())]
    File {
        /// In words.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that must be there is not: what it held is lost, and an empty one in its place would hide that.
    #[error("{} is missing, and with it what was stored there", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A newer version of the program wrote it.
    #[error("{} has format {found}, and this version knows formats up to {known}: it was written by a newer version", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The file is something else.
    #[error("{} is no {wanted}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it should have been.
        wanted: &'static str,
    },
    /// Another process has the folder.
    #[error("{} is in use by another collector", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// There is a store already.
    #[error("{} holds a store already", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// Stored bytes are not what they should be.
    #[error("{what} is damaged")]
    Corrupt {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: Option<Source>,
    },
    /// The disk is full or failing; nothing was acknowledged, and it may work again later.
    #[error("nothing was stored: {0}")]
    Unwritable(String),
    /// It is in the log and will be applied, but is not yet.
    #[error("stored, but not in force yet: {0}")]
    Unapplied(String),
    /// The queue of a writer is full, or an entry is larger than the queue.
    #[error("the queue of {0} is full")]
    Full(&'static str),
    /// An answer would be of more values than are read for one.
    #[error("it is of more than {0} values")]
    TooMany(usize),
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
    /// A request that cannot be met.
    #[error("{0}")]
    Invalid(String),
    /// A query was refused or failed.
    #[error("{0}")]
    Query(String),
    /// A query ran out of time.
    #[error("the query was ended at its deadline")]
    Deadline,
}

impl StoreError {
    pub(crate) fn corrupt(what: &str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Corrupt {
            what: what.to_owned(),
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn sqlite(doing: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Sqlite {
            doing,
            path: path.to_owned(),
            source: SqliteFault(source),
        }
    }

    /// Whether there is no room left where the file is.
    #[must_use]
    pub fn is_full_disk(&self) -> bool {
        match self {
            Self::Sqlite { source, .. } | Self::Statement(source) => source.is_full_disk(),
            Self::File { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Statement(SqliteFault(error))
    }
}

/// SQLite's refusal, said once and in words.
#[derive(Debug)]
pub struct SqliteFault(pub(crate) rusqlite::Error);

impl SqliteFault {
    fn is_full_disk(&self) -> bool {
        // A WAL's index is the first file that finds no room; SQLite calls that an input or output error.
        const FULL: [i32; 2] = [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_SHMSIZE];
        self.0
            .sqlite_error()
            .is_some_and(|error| FULL.contains(&error.extended_code))
    }
}

impl fmt::Display for SqliteFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            _ if self.is_full_disk() => f.write_str("the disk is full"),
            rusqlite::Error::SqliteFailure(error, message) => {
                match message {
                    Some(message) => f.write_str(message)?,
                    None => write!(f, "{}", ffi::code_to_str(error.extended_code))?,
                }
                if error.code == ErrorCode::SystemIoFailure {
                    write!(f, " (SQLite's code {})", error.extended_code)?;
                }
                Ok(())
            }
            other => write!(f, "{other}"),
        }
    }
}

/// Its cause is within its words already.
impl Error for SqliteFault {}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(extended_code: i32, message: &str) -> String {
        let error = ffi::Error::new(extended_code);
        let error = rusqlite::Error::SqliteFailure(error, Some(message.to_owned()));
        crate::writer::chain(&StoreError::sqlite("cannot read", Path::new("log.db"))(
            error,
        ))
    }

    #[test]
    fn sqlite_is_understood_and_says_things_once() {
        let full = "cannot read log.db: the disk is full";
        assert_eq!(said(ffi::SQLITE_FULL, "database or disk is full"), full);
        assert_eq!(said(ffi::SQLITE_IOERR_SHMSIZE, "disk I/O error"), full);
        assert_eq!(
            said(ffi::SQLITE_IOERR_READ, "disk I/O error"),
            "cannot read log.db: disk I/O error (SQLite's code 266)"
        );
        assert_eq!(
            said(ffi::SQLITE_NOTADB, "file is not a database"),
            "cannot read log.db: file is not a database"
        );
    }
}
