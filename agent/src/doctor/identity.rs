//! Who this node is: its certificate, the root it is held against, those who may sign its jobs, and the clock that all
//! their dates are compared with.

use std::time::Duration;

use nexus_pki::{admission::Admission, spiffe::Role};
use nexus_proto::{limits, time::Timestamp};
use nexus_runtime::errors::chain;

use super::Findings;
use crate::{config::Config, identity::Member};

/// Between what an operator's clock said and ours, without a word about it.
const SKEW: Duration = Duration::from_secs(60);
/// A statement about the signers that runs out sooner is worth a word.
const SOON: Duration = Duration::from_secs(3 * 24 * 3600);
const ANEW: &str = "enrol anew: `nexus-agent enroll TOKEN --force`";

pub(super) fn examine(config: &Config, wall: Timestamp, found: &mut Findings) -> Option<Member> {
    let what = "identity";
    let member = match Member::load(&config.state_dir) {
        Ok(member) => member,
        Err(error) => {
            let hint = error.hint();
            let hint = hint.unwrap_or_else(|| format!("take it from a backup, or {ANEW}"));
            found.bad(what, chain(&error).to_string(), hint);
            return None;
        }
    };
    let text = format!(
        "{} ({}) of {}",
        member.name, member.node, member.trust_domain
    );
    found.good(what, text);
    clock(&member, wall, found);
    certificate(&member, wall, found);
    root(&member, found);
    signers(&member, wall, found);
    Some(member)
}

/// The only other time that is certain without asking anybody: the newest that an operator has signed.
fn clock(member: &Member, wall: Timestamp, found: &mut Findings) {
    let what = "clock";
    let newest = member.trust.now(wall);
    if newest.since(wall) > SKEW {
        let text = format!(
            "this machine's clock says {wall}, and an operator has signed something at {newest}"
        );
        found.bad(
            what,
            text,
            "set the clock, and have a time service keep it right",
        );
    } else {
        let text = format!("this machine's clock says {wall}; nothing here was signed later");
        found.good(what, text);
    }
}

fn certificate(member: &Member, wall: Timestamp, found: &mut Findings) {
    let what = "certificate";
    let (from, until) = (member.leaf.not_before(), member.leaf.not_after());
    if wall < from {
        let text = format!("it is valid from {from}, and this machine's clock says {wall}");
        found.bad(what, text, "set the clock");
    } else if wall >= until.after(limits::RENEW_EXPIRED) {
        let text = format!(
            "it expired at {until}, and this machine's clock says {wall}: too late to renew it"
        );
        found.bad(
            what,
            text,
            format!("check the clock; if it is right, {ANEW}"),
        );
    } else if wall >= until {
        let text = format!("it expired at {until}, and this machine's clock says {wall}");
        let hint = format!(
            "check the clock; a running agent that reaches a collector over TCP renews it, until {}",
            until.after(limits::RENEW_EXPIRED)
        );
        found.bad(what, text, hint);
    } else if until.since(wall) < until.since(from) / 4 {
        let text = format!("it is valid until {until} and should have been renewed by now");
        let hint = "a connected agent renews it at half of its life: see `session` below";
        found.doubt(what, text, hint);
    } else {
        found.good(what, format!("it is valid from {from} until {until}"));
    }
}

/// At a moment when the certificate is good: dates are looked at by themselves.
fn root(member: &Member, found: &mut Findings) {
    let (what, leaf) = ("root", &member.leaf);
    let digest = nexus_pki::hex(&nexus_pki::sha256(member.root.der()));
    let admission = Admission::new(&member.root, &member.trust_domain);
    match admission.admit(leaf.chain(), &[Role::Agent], leaf.not_before()) {
        Ok(_) => {
            let text = format!("the certificate is of the pinned root, SHA-256 {digest}");
            found.good(what, text);
        }
        Err(refusal) => {
            let text = format!(
                "the certificate is not one of the pinned root, SHA-256 {digest}: {refusal}"
            );
            found.bad(what, text, ANEW);
        }
    }
}

/// Jobs run only while an operator has said lately that the list of signers is the current one.
fn signers(member: &Member, wall: Timestamp, found: &mut Findings) {
    let what = "signers";
    let now = member.trust.now(wall);
    let (version, fresh) = member.trust.state();
    let hint = "an operator says so at each login: `nexusctl login`";
    if fresh <= now {
        let text = format!(
            "nobody has said since {fresh} that policy {version} is the current one: no job runs"
        );
        found.bad(what, text, hint);
    } else {
        let text = format!("policy {version}, said to be the current one until {fresh}");
        match fresh.since(now) < SOON {
            true => found.doubt(what, text, hint),
            false => found.good(what, text),
        }
    }
}
