//! Why the harness could not do what a test asked, with what the programs said.

use std::{fmt, io, path::Path};

/// In words, for whoever reads the test's failure.
pub struct Fault(String);

/// What the harness gives.
pub type Outcome<T = ()> = Result<T, Fault>;

impl Fault {
    /// From words.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// From an input or output that failed.
    pub fn io(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }

    /// With the end of a log.
    #[must_use]
    pub fn with_log(self, log: &Path) -> Self {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines
            .iter()
            .rev()
            .take(40)
            .rev()
            .copied()
            .collect::<Vec<_>>();
        Self(format!(
            "{}\n--- {}\n{}",
            self.0,
            log.display(),
            tail.join("\n")
        ))
    }
}

/// `unwrap` prints this one.
impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}
