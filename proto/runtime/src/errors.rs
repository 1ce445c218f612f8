//! One error with its causes on one line: what failed, then why, outermost first.

use std::{error::Error, fmt};

/// Shows `error` and the chain of its sources, separated by `: `.
#[must_use]
pub fn chain(error: &dyn Error) -> impl fmt::Display + '_ {
    Chain(error)
}

struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the lock")]
    struct Outer(#[source] io::Error);

    #[test]
    fn names_every_cause() {
        let error = Outer(io::Error::other("no such device"));
        assert_eq!(
            chain(&error).to_string(),
            "cannot open the lock: no such device"
        );
    }
}
