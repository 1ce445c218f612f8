//! Whether jobs can run as others than the agent's user: the helper, and the machine's own policy.

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use nexus_runtime::errors::chain;

use super::Findings;
use crate::{
    config::Config,
    exec::users::{self, PASSWD, shown},
    helper::{self, Use},
    identity::Member,
    local_policy::{self, PolicyError},
};

const ROOT: u32 = 0;

pub(super) async fn examine(config: &Config, member: Option<&Member>, found: &mut Findings) {
    let has_helper = socket(config, found)
        && serves_us(&config.helper.user, found)
        && answers(config, member, found).await;
    policy(config, has_helper, found);
}

/// Whether there is somebody to ask.
fn socket(config: &Config, found: &mut Findings) -> bool {
    let what = "helper";
    let settings = &config.helper;
    let place = settings.socket.display();
    if settings.used == Use::Never {
        let text = "not used (helper.use is `never`): jobs run as the agent's own user";
        found.good(what, text);
        return false;
    }
    match check_socket(&settings.socket) {
        Ok(None) => return true,
        Ok(Some(why)) => {
            let hint =
                "whoever that is can take the agent's jobs: find out what it is, and remove it";
            found.bad(what, why, hint);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let hint = "to run jobs as root: `systemctl enable --now nexus-agent-helper.socket`";
            match settings.used {
                Use::Auto => {
                    let text =
                        format!("there is none at {place}: jobs run as the agent's own user");
                    found.doubt(what, text, hint);
                }
                _ => {
                    let text = format!(
                        "there is none at {place}, and helper.use is `always`: every job fails"
                    );
                    found.bad(what, text, hint);
                }
            }
        }
        Err(error) => {
            let hint = "its folder must let the agent through: mode 0755";
            found.bad(what, format!("cannot look at {place}: {error}"), hint);
        }
    }
    false
}

/// Why it cannot be root's helper that listens there.
fn check_socket(path: &Path) -> io::Result<Option<String>> {
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.file_type().is_socket() {
        return Ok(Some(format!("{} is no socket", path.display())));
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    for (path, metadata) in [(path, metadata), (folder, std::fs::metadata(folder)?)] {
        if metadata.uid() != ROOT {
            let whose = shown(metadata.uid());
            let why = format!(
                "{} belongs to the user {whose}, not to root",
                path.display()
            );
            return Ok(Some(why));
        }
    }
    Ok(None)
}

/// Whether it is the agent's user that the helper serves.
fn serves_us(name: &str, found: &mut Findings) -> bool {
    let what = "helper";
    let own = rustix::process::geteuid().as_raw();
    let text = match users::by_name(Path::new(PASSWD), name) {
        Ok(Some(user)) if user.uid == own => return true,
        Ok(Some(_)) => format!(
            "it serves the user {name} (helper.user), and the agent's folder is {}'s",
            shown(own)
        ),
        Ok(None) => format!("it serves the user {name} (helper.user), who is not in {PASSWD}"),
        Err(error) => format!("cannot look up the user {name} in {PASSWD}: {error}"),
    };
    let hint = "let helper.user name the user the agent runs as";
    found.bad(what, text, hint);
    false
}

/// Whether the helper speaks with us, and would run anything.
async fn answers(config: &Config, member: Option<&Member>, found: &mut Findings) -> bool {
    let what = "helper";
    let place = config.helper.socket.display();
    let trust = member.map(|member| member.trust.documents());
    let said = match helper::greet(&config.helper.socket, trust).await {
        Ok(said) => said,
        Err(error) => {
            let hint =
                "see `systemctl status nexus-agent-helper.socket nexus-agent-helper.service`";
            found.bad(what, format!("asked at {place}: {error}"), hint);
            return false;
        }
    };
    let pin =
        "root makes its pin: `nexus-agent pin TOKEN`, with a token of `nexusctl token create`";
    let pin = match member {
        Some(_) => pin,
        None => "`nexus-agent enroll TOKEN`, run by root, pins it too",
    };
    if !said.refuses.is_empty() {
        let text = format!(
            "it answers at {place}, and refuses every job: {}",
            said.refuses
        );
        let hint = match said.node.is_empty() || said.refuses.contains("signer policy") {
            true => pin.to_owned(),
            false => "`nexus-agent check-config` names the mistakes of a policy".to_owned(),
        };
        found.bad(what, text, hint);
    } else if member.is_some_and(|member| member.node.to_string() != said.node) {
        let text = format!(
            "it answers at {place}, and is pinned to another node, {}: it refuses every job",
            said.node
        );
        found.bad(what, text, pin);
    } else {
        found.good(what, format!("it answers at {place}, pinned to this node"));
    }
    true
}

fn policy(config: &Config, has_helper: bool, found: &mut Findings) {
    let what = "policy";
    let path = config.helper.policy.display();
    match local_policy::load(&config.helper.policy, ROOT) {
        Ok(policy) => found.good(what, format!("{path} {policy}")),
        Err(PolicyError::Missing(_)) if !has_helper => {
            let text = format!(
                "there is none at {path}: without a helper, whatever the fleet's operators sign runs"
            );
            found.good(what, text);
        }
        Err(PolicyError::Read { source, .. })
            if has_helper && source.kind() == io::ErrorKind::PermissionDenied =>
        {
            found.good(what, format!("{path} is root's, who alone can read it"));
        }
        Err(error @ PolicyError::Missing(_)) => {
            let hint = "every job is refused until there is one: [[allow]] rules, or `deny = \"everything\"`, in a file of root's";
            found.bad(what, chain(&error).to_string(), hint);
        }
        Err(error) => {
            let hint = format!(
                "every job is refused until {path} is in order: `nexus-agent check-config`"
            );
            found.bad(what, chain(&error).to_string(), hint);
        }
    }
}
