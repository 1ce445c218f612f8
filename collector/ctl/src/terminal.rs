//! Colours, and what goes to standard error: progress, warnings, hints.

use std::io::{self, BufRead as _, IsTerminal, Write};

use clap::ValueEnum;
use nexus_runtime::tasks::Tasks;

use crate::{
    fault::{Context as _, Fault, Outcome},
    visible::visible,
};

/// `1 node`, `2 nodes`.
#[must_use]
pub fn counted(count: u64, singular: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {singular}{plural}")
}

/// Whether somebody sits there who can be asked.
#[must_use]
pub fn is_answered() -> bool {
    io::stdin().is_terminal()
}

/// Asks on the terminal; whatever is not a yes is a no. Connections stay alive meanwhile.
pub async fn asked(question: &str) -> Outcome<bool> {
    say(&format!("{question} [y/N]"));
    let read = || {
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map(|_| answer)
    };
    let answer = Tasks::new().spawn_blocking("question", read).await;
    let what = "read the answer";
    let answer = answer.doing(what)?.doing(what)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// `--color`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum When {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Whether text gets colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(bool);

/// A colour of the terminal's palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Bad.
    Red,
    /// Good.
    Green,
    /// Not as it should be.
    Yellow,
    /// Told apart from its neighbours.
    Numbered(u8),
}

impl Colour {
    /// How good a state of a node, job, run or token is.
    #[must_use]
    pub fn of_state(state: &str) -> Option<Self> {
        match state {
            "connected" | "succeeded" | "allowed" | "serving" => Some(Self::Green),
            "disconnected" | "pending" | "dispatched" | "running" | "cancelled" | "expired" => {
                Some(Self::Yellow)
            }
            "quarantined" | "revoked" | "failed" | "timed_out" | "rejected" | "lost"
            | "unknown" | "refused" => Some(Self::Red),
            _ => None,
        }
    }

    /// One of six colours, by number.
    #[must_use]
    pub fn numbered(number: usize) -> Self {
        Self::Numbered(u8::try_from(number % 6).unwrap_or(0))
    }

    fn code(self) -> u8 {
        match self {
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Numbered(n) => [36, 35, 34, 96, 95, 94]
                .get(usize::from(n))
                .copied()
                .unwrap_or(36),
        }
    }
}

impl Paint {
    /// Never.
    pub const PLAIN: Self = Self(false);

    /// By the flag, the environment and whether the stream is a terminal.
    #[must_use]
    pub fn new(when: When, is_terminal: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(match when {
            When::Always => true,
            When::Never => false,
            When::Auto => is_terminal && !unwanted && !dumb,
        })
    }

    /// For standard output.
    #[must_use]
    pub fn stdout(when: When) -> Self {
        Self::new(when, io::stdout().is_terminal())
    }

    /// For standard error.
    #[must_use]
    pub fn stderr(when: When) -> Self {
        Self::new(when, io::stderr().is_terminal())
    }

    /// The text in a colour.
    #[must_use]
    pub fn apply(self, colour: Colour, text: &str) -> String {
        if self.0 {
            format!("\x1b[{}m{text}\x1b[0m", colour.code())
        } else {
            text.to_owned()
        }
    }
}

/// A line for standard error, parts of it coloured. What others wrote in it moves no cursor.
#[derive(Debug)]
pub struct Phrase {
    paint: Paint,
    text: String,
}

impl Phrase {
    /// Empty, with the colours standard error gets.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Paint::stderr(When::Auto))
    }

    /// Empty.
    #[must_use]
    pub fn with(paint: Paint) -> Self {
        Self {
            paint,
            text: String::new(),
        }
    }

    /// Goes on with these words.
    #[must_use]
    pub fn words(mut self, words: &str) -> Self {
        self.text.push_str(&visible(words));
        self
    }

    /// Goes on in a colour.
    #[must_use]
    pub fn coloured(mut self, colour: Option<Colour>, words: &str) -> Self {
        let Some(colour) = colour else {
            return self.words(words);
        };
        let painted = self.paint.apply(colour, &visible(words));
        self.text.push_str(&painted);
        self
    }

    /// Says it. A standard error that cannot be written to is no reason to fail.
    pub fn say(self) {
        let mut err = io::stderr().lock();
        drop(writeln!(err, "{}", self.text));
    }

    /// What would be said.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Default for Phrase {
    fn default() -> Self {
        Self::new()
    }
}

/// Says a line on standard error.
pub fn say(text: &str) {
    Phrase::new().words(text).say();
}

/// `warning: …`
pub fn warn(text: &str) {
    Phrase::new()
        .coloured(Some(Colour::Yellow), "warning:")
        .words(" ")
        .words(text)
        .say();
}

/// `error: what: why` and its hint.
pub fn report(fault: &Fault) {
    if fault.quiet {
        return;
    }
    Phrase::new()
        .coloured(Some(Colour::Red), "error:")
        .words(&format!(" {fault}"))
        .say();
    if let Some(hint) = &fault.hint {
        say(&format!("hint: {hint}"));
    }
}
