//! `nexus-agent doctor`: looks at all that a session and a job need, from the disk to the collector, and says in words
//! what was tried, what came of it, and what mends it.
//!
//! It leaves everything as it is, and disturbs no agent that runs: it reads what the agent keeps, greets the helper, and shakes
//! hands with the collector over each transport without beginning a session. Run by root it looks as the agent's user
//! does, so that what it finds is what the agent meets.

mod folder;
mod helper;
mod identity;
mod network;

use std::fmt;

use nexus_runtime::{clock::Clock, errors::chain, fault::Outcome, settings};

use crate::{
    agent::runtime,
    config::Config,
    identity::{
        at_hand::{self, AtHand, Standing},
        become_owner, is_there,
    },
    status::{self, Status},
};

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and may not for long or not for all.
    Doubt,
    /// Something does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What, in a word.
    pub what: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was tried, and what came of it.
    pub text: String,
    /// What mends it.
    pub hint: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Good => "ok",
            Verdict::Doubt => "warning",
            Verdict::Bad => "error",
        };
        write!(f, "{:<12} {verdict:<8} {}", self.what, self.text)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n{:<21} hint: {hint}", "")?;
        }
        Ok(())
    }
}

/// Everything that was looked at, in order.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// How many things do not work.
    #[must_use]
    pub fn wrong(&self) -> usize {
        let bad = self.0.iter();
        bad.filter(|finding| finding.verdict == Verdict::Bad)
            .count()
    }

    fn add(
        &mut self,
        what: &'static str,
        verdict: Verdict,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.0.push(Finding {
            what,
            verdict,
            text: text.into(),
            hint: Some(hint.into()),
        });
    }

    fn good(&mut self, what: &'static str, text: impl Into<String>) {
        self.0.push(Finding {
            what,
            verdict: Verdict::Good,
            text: text.into(),
            hint: None,
        });
    }

    fn doubt(&mut self, what: &'static str, text: impl Into<String>, hint: impl Into<String>) {
        self.add(what, Verdict::Doubt, text, hint);
    }

    fn bad(&mut self, what: &'static str, text: impl Into<String>, hint: impl Into<String>) {
        self.add(what, Verdict::Bad, text, hint);
    }

    fn token(&mut self, token: AtHand) {
        let verdict = match token.standing {
            Standing::Good => Verdict::Good,
            Standing::Hidden => Verdict::Doubt,
            Standing::Bad => Verdict::Bad,
        };
        self.add("token", verdict, token.text, token.hint);
    }
}

impl IntoIterator for Findings {
    type Item = Finding;
    type IntoIter = std::vec::IntoIter<Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Looks at everything, in the order in which an agent needs it. `passed_over` is what the configuration has that an agent
/// goes on without.
pub fn examine(
    config: &Config,
    passed_over: &[settings::Fault],
    clock: &Clock,
) -> Outcome<Findings> {
    let mut found = Findings::default();
    for fault in passed_over {
        let hint = "the agent goes on without it; `nexus-agent check-config` names every mistake";
        found.doubt("config", fault.to_string(), hint);
    }
    // A token is root's, and the agent's user is not.
    let token = at_hand::look(clock.now());
    if let Err(error) = become_owner(&config.state_dir) {
        let hint = error.hint().unwrap_or_else(|| "run it as root".to_owned());
        found.bad("state", chain(&error).to_string(), hint);
        return Ok(found);
    }
    let runtime = runtime()?;
    let there = folder::examine(config, &mut found);
    if !is_there(&config.state_dir)
        && let Some(token) = token
    {
        found.token(token);
    }
    if !there {
        return Ok(found);
    }
    let member = identity::examine(config, clock.now(), &mut found);
    if let Some(member) = &member {
        runtime.block_on(network::examine(config, member, clock, &mut found));
        session(config, &mut found);
    }
    runtime.block_on(helper::examine(config, member.as_ref(), &mut found));
    Ok(found)
}

/// What the running agent has come to.
fn session(config: &Config, found: &mut Findings) {
    let what = "session";
    match status::of(&config.state_dir) {
        Ok(status) if status.is_well() => found.good(what, status.to_string()),
        Ok(status @ Status::Said(_)) => {
            let hint = "mend what is wrong above; `journalctl -u nexus-agent` says more";
            found.bad(what, status.to_string(), hint);
        }
        Ok(status) => found.bad(what, status.to_string(), status.hint()),
        Err(error) => found.bad(what, chain(&error).to_string(), "see `permissions` above"),
    }
}
