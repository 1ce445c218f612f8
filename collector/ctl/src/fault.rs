//! How a command ends badly: `error: what failed: why`, an optional `hint: …`, and an exit code.

use std::{error::Error, fmt::Display};

use crate::visible::acts;

/// What scripts may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything worked.
    Success = 0,
    /// Something failed.
    Error = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Some targets did not succeed.
    Targets = 3,
    /// The collector cannot be reached.
    Unreachable = 4,
    /// The collector said no.
    Denied = 5,
    /// The time to wait is over.
    TimedOut = 124,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl Exit {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Success,
        Self::Error,
        Self::Usage,
        Self::Targets,
        Self::Unreachable,
        Self::Denied,
        Self::TimedOut,
        Self::Interrupted,
    ];

    /// The process's exit status.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// A failure as the user reads it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Fault {
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// How the program exits.
    pub exit: Exit,
    /// Nothing is said: whoever read our output has gone.
    pub quiet: bool,
}

/// What most functions here return.
pub type Outcome<T = ()> = Result<T, Fault>;

impl Fault {
    /// An error of exit code 1.
    pub fn new(what: impl Into<String>, why: impl Display) -> Self {
        Self {
            what: one_line(&what.into()),
            why: one_line(&why.to_string()),
            hint: None,
            exit: Exit::Error,
            quiet: false,
        }
    }

    /// A command line that cannot be meant.
    pub fn usage(what: impl Into<String>, why: impl Display) -> Self {
        Self::new(what, why).exits(Exit::Usage)
    }

    /// With the causes of an error as the why.
    pub fn because(what: impl Into<String>, error: &dyn Error) -> Self {
        Self::new(what, chain(error))
    }

    /// With advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(one_line(&hint.into()));
        self
    }

    /// With another exit code.
    #[must_use]
    pub fn exits(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

/// Turns any error into a [`Fault`] that says what was being done.
pub trait Context<T> {
    /// `what` failed, for the causes the error gives.
    fn doing(self, what: impl Into<String>) -> Outcome<T>;
}

impl<T, E: Error> Context<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Outcome<T> {
        self.map_err(|error| Fault::because(what, &error))
    }
}

/// An error and its sources, joined; a source whose words the error repeats is left out.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// Line breaks become spaces and what would act on a terminal vanishes: a message is one line.
#[must_use]
pub fn one_line(text: &str) -> String {
    let words = text.split_whitespace().map(|word| word.replace(acts, ""));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn joins_causes_on_one_line() {
        let error = Outer(std::io::Error::other("inner\n  cause\u{1b}[31m"));
        let fault = Fault::because("read x", &error);
        assert_eq!(fault.to_string(), "read x: outer: inner cause[31m");
        assert_eq!(fault.exit.code(), 1);
    }

    #[test]
    fn no_part_of_a_message_moves_the_cursor() {
        let fault = Fault::new("a\r\u{1b}[2Kb", "c\u{9b}\u{202e}d").hint("e\n\u{7}f");
        assert_eq!(fault.to_string(), "a [2Kb: cd");
        assert_eq!(fault.hint.unwrap(), "e f");
    }
}
