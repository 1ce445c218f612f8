//! `nexus-agent status`: who this node is, whether its agent runs, and what became of its session. The running agent
//! keeps that in a file of its state folder, for whoever may look into it.
//!
//! ```text
//! DIR/status    three lines: the agent's process, since when, what there is to tell
//! ```

use std::{fmt, path::Path};

use nexus_pki::files;
use nexus_proto::time::Timestamp;
use nexus_runtime::{
    clock::Clock,
    errors::chain,
    fault::{Fault, Outcome},
};

use crate::{
    config::Config,
    identity::{self, IdentityError, Member, at_hand},
    session::State,
};

const FILE: &str = "status";
const CONNECTED: &str = "connected to ";

/// What there is to tell of a session.
#[must_use]
pub fn words(state: &State) -> String {
    match state {
        State::Away(reason) => format!("not connected: {reason}"),
        State::Connected(to) => format!("{CONNECTED}{to}"),
    }
}

/// Keeps it for who asks. `words` is one line.
pub(crate) fn keep(folder: &Path, words: &str, now: Timestamp) {
    let text = format!("{}\n{now}\n{words}\n", std::process::id());
    if let Err(error) = files::write_private(folder, FILE, text.as_bytes()) {
        tracing::debug!(error = %chain(&error), "the status is not kept");
    }
}

/// What an agent has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Nobody uses the folder.
    Stopped,
    /// An agent that has not said anything yet.
    Starting,
    /// What it said last.
    Said(Kept),
}

/// What an agent said of its session last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    process: String,
    since: String,
    words: String,
}

impl Status {
    pub(crate) fn is_well(&self) -> bool {
        matches!(self, Self::Said(kept) if kept.words.starts_with(CONNECTED))
    }

    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Stopped => {
                "`journalctl -u nexus-agent` says how it ended, `systemctl start nexus-agent` starts it"
            }
            Self::Starting => "see `journalctl -u nexus-agent` if it stays so",
            Self::Said(_) => "`nexus-agent doctor` tries what a session needs",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("the agent does not run"),
            Self::Starting => f.write_str("the agent runs and has no session yet"),
            Self::Said(Kept {
                process,
                since,
                words,
            }) => write!(f, "{words}, since {since} (process {process})"),
        }
    }
}

/// Of the agent that has this state folder.
pub(crate) fn of(folder: &Path) -> Result<Status, IdentityError> {
    if !identity::is_in_use(folder)? {
        return Ok(Status::Stopped);
    }
    let kept = files::read_private(&folder.join(FILE)).ok();
    let kept = kept.and_then(|bytes| parse(&String::from_utf8_lossy(&bytes)));
    Ok(kept.map_or(Status::Starting, Status::Said))
}

fn parse(text: &str) -> Option<Kept> {
    // The agent's own words: what it says to a terminal is text.
    let visible = |line: &str| line.replace(char::is_control, " ");
    let mut lines = text.lines().map(visible);
    Some(Kept {
        process: lines.next()?,
        since: lines.next()?,
        words: lines.next()?,
    })
}

/// What there is to tell, and an error when no agent runs or it has no session.
pub fn report(config: &Config, clock: &Clock) -> Outcome<(String, Outcome)> {
    let what = "status";
    let failed = |error: IdentityError| {
        let fault = Fault::because(what, &error);
        match error.hint() {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    };
    let dir = config.state_dir.as_path();
    // It is root's, and the agent's user is not.
    let token = at_hand::look(clock.now());
    identity::become_owner(dir).map_err(failed)?;
    let member = Member::load(dir).map_err(|error| match (&error, &token) {
        (IdentityError::NotEnrolled(_), Some(token)) => {
            let hint = format!("{}; {}", token.text, token.hint);
            Fault::because(what, &error).hint(hint)
        }
        _ => failed(error),
    })?;
    let status = of(dir).map_err(failed)?;
    let text = format!(
        "node         {} ({}) of {}\ncertificate  until {}, it is {}\nsession      {status}\n",
        member.name,
        member.node,
        member.trust_domain,
        member.leaf.not_after(),
        clock.now(),
    );
    let verdict = match status.is_well() {
        true => Ok(()),
        false => Err(Fault::new(what, &status).hint(status.hint())),
    };
    Ok((text, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_half_of_it_is_nothing() {
        let kept = parse("12\n2026-01-01T00:00:00Z\nconnected to a\n").unwrap();
        assert!(Status::Said(kept).is_well());
        assert_eq!(parse("12\n2026-01-01T00:00:00Z"), None);
        let kept = parse("12\n2026-01-01T00:00:00Z\nconnected \u{1b}]0;x\u{7}\n").unwrap();
        assert_eq!(kept.words, "connected  ]0;x ");
    }
}
