//! How a machine becomes a node: `nexus-agent enroll` and `nexus-agent pin`, once each.

use std::{os::unix::fs::chown, path::Path};

use nexus_pki::{files, merkle::Target, token::Token};
use nexus_proto::{limits, time::Timestamp};
use nexus_runtime::{
    clock::Clock,
    fault::{Doing as _, Fault, Outcome},
};

use crate::{
    agent::{fault, runtime},
    config::{self, Config},
    exec::users::{self, PASSWD},
    helper::{self, Use},
    identity::{self, Enrolment, IdentityError, Member, StateFolder, at_hand},
    inventory::{self, InventoryConfig},
};

/// What a machine needs to be a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It has no identity.
    Enrolment,
    /// An enrolment got as far as the identity, and the helper refuses its jobs.
    Pin,
    /// It is one.
    Nothing,
}

/// How far an earlier enrolment got, as the files say.
pub fn what_is_left(config: &Config) -> Left {
    if !identity::is_there(&config.state_dir) {
        return Left::Enrolment;
    }
    // Root in the folder of another, whose enrolment pins.
    let pins = config.helper.used != Use::Never
        && matches!(identity::as_owner(&config.state_dir), Ok(Some(_)));
    if pins && !identity::is_there(&config.helper.state_dir) {
        return Left::Pin;
    }
    Left::Nothing
}

/// Enrols with a token, or else with the one that lies here for it; returns what to tell the user. Root does it as the owner
/// of the state folder, and pins what it got for the helper.
pub fn enroll(config: &Config, token: Option<&str>, force: bool, clock: &Clock) -> Outcome<String> {
    let what = "enroll";
    let failed = |error: IdentityError| fault(what, &error);
    let token = given_or_at_hand(token).map_err(failed)?;
    make_folder(config)?;
    let owner = identity::as_owner(&config.state_dir).map_err(failed)?;
    let folder = StateFolder::open(&config.state_dir).map_err(failed)?;
    let enrolment = Enrolment {
        token,
        name: config.name.clone(),
        facts: inventory::facts(&InventoryConfig::default()),
        key_exchange: config.key_exchange,
        force,
    };
    let member = runtime()?
        .block_on(identity::enrol(&folder, enrolment, clock.now()))
        .map_err(failed)?;
    let mut told = format!(
        "enrolled as {} ({}) in {}",
        member.name, member.node, member.trust_domain
    );
    if owner.is_some() && config.helper.used != Use::Never {
        drop(owner);
        let own = member.target(folder.incarnation());
        pin_member(config, &member, &own, None, clock).map_err(|fault| {
            fault.hint(format!(
                "{told}, but the helper refuses its jobs until `nexus-agent pin TOKEN` has been run"
            ))
        })?;
        told.push_str(", and pinned for the helper");
    }
    Ok(told)
}

/// Has the helper believe whom an enrolled agent believes, by a token that root was given; returns what to tell.
pub fn pin(config: &Config, token: Option<&str>, clock: &Clock) -> Outcome<String> {
    let what = "pin";
    let failed = |error: IdentityError| fault(what, &error);
    if !rustix::process::geteuid().is_root() {
        let why = "only root can say whom the helper may believe";
        return Err(Fault::new(what, why).hint("run it as root"));
    }
    let token = given_or_at_hand(token).map_err(failed)?;
    let (member, own) = {
        let _owner = identity::as_owner(&config.state_dir).map_err(failed)?;
        let member = Member::load(&config.state_dir).map_err(failed)?;
        let incarnation = identity::incarnation(&config.state_dir).map_err(failed)?;
        let incarnation = incarnation
            .ok_or_else(|| failed(IdentityError::NotEnrolled(config.state_dir.clone())))?;
        let own = member.target(incarnation);
        (member, own)
    };
    identity::check_held(&member, &token, clock.now()).map_err(failed)?;
    pin_member(config, &member, &own, Some(clock.now()), clock)?;
    Ok(format!(
        "the helper runs jobs for {} ({}) in {}: those that are signed {} minutes from now or later",
        member.name,
        member.node,
        member.trust_domain,
        limits::CLOCK_SKEW.as_secs() / 60
    ))
}

/// Root that begins anew with the packages' folder gone makes it for the user whom their units run the agent as. Any other
/// folder is its maker's.
fn make_folder(config: &Config) -> Outcome {
    let what = "make the state folder";
    let folder = config.state_dir.as_path();
    let ours = folder == Path::new(config::STATE_DIR) && config.helper.used != Use::Never;
    if !ours || folder.exists() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let user = users::by_name(Path::new(PASSWD), &config.helper.user).doing(what)?;
    let Some(user) = user else { return Ok(()) };
    files::create_folder(folder).doing(what)?;
    chown(folder, Some(user.uid), Some(user.gid)).doing(what)
}

fn given_or_at_hand(token: Option<&str>) -> Result<Token, IdentityError> {
    match token {
        Some(token) => identity::read_token(token),
        None => at_hand::take(),
    }
}

fn pin_member(
    config: &Config,
    member: &Member,
    own: &Target,
    since: Option<Timestamp>,
    clock: &Clock,
) -> Outcome {
    let folder = &config.helper.state_dir;
    helper::check_folder(folder)?;
    let stored = helper::pin::store(folder, member, own, (clock.now(), since));
    stored.map_err(|error| fault("pin", &error))?;
    helper::begin_ledger(folder, clock)
}
