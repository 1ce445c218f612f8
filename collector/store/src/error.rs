//! What can go wrong with a store.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

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
        source: rusqlite::Error,
    },
    /// SQLite refused a statement within a file that was open already.
    #[error("a statement failed")]
    Statement(#[from] rusqlite::Error),
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
            source,
        }
    }
}
