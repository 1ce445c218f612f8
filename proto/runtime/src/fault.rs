//! How a command fails, as its user reads it: `error: what failed: why`, and where one
//! helps `hint: what to do`.

use std::{error::Error, fmt, io::Write as _};

use crate::errors;

/// One failure of a command.
#[derive(Debug)]
pub struct Fault {
    what: String,
    why: String,
    hint: Option<String>,
    usage: bool,
}

/// What a command comes to.
pub type Outcome<T = ()> = Result<T, Fault>;

impl Fault {
    /// `what` failed because of `why`.
    pub fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            what: what.into(),
            why: why.to_string(),
            hint: None,
            usage: false,
        }
    }

    /// `what` failed because of an error and its sources.
    pub fn because(what: impl Into<String>, error: &dyn Error) -> Self {
        Self::new(what, errors::chain(error))
    }

    /// What the user may do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A mistake in what was asked: exit code 2.
    #[must_use]
    pub fn usage(mut self) -> Self {
        self.usage = true;
        self
    }

    /// What failed and why, in one line.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { what, why, .. } = self;
        format!("{what}: {why}").replace('\n', "; ")
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }

    /// Writes it to standard error. Nothing is left to tell when that fails.
    pub fn report(&self) {
        let _closed = writeln!(std::io::stderr(), "{self}");
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}: {}", self.what, self.why)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// Says what was being done when something failed.
pub trait Doing<T> {
    /// `what` is what was being done.
    fn doing(self, what: impl Into<String>) -> Outcome<T>;
}

impl<T, E: Error + 'static> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Outcome<T> {
        self.map_err(|error| Fault::because(what, &error))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn is_one_line_and_a_hint() {
        let fault = Err::<(), _>(io::Error::other("no such device"))
            .doing("open the store")
            .unwrap_err()
            .hint("plug it in");
        assert_eq!(
            fault.to_string(),
            "error: open the store: no such device\nhint: plug it in"
        );
        assert_eq!(fault.exit_code(), 1);
    }
}
