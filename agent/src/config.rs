//! What an agent can be told: one table of keys, and the typed form of their values.

use std::{path::PathBuf, time::Duration};

use nexus_pki::tls::KeyExchange;
use nexus_proto::ids::is_node_name;
use nexus_runtime::{
    fault::{Fault, Outcome},
    log::{self, Targets},
    settings::{Key, Kind, Settings},
};
use nexus_transport::Mode;
use tracing::Level;

use crate::{
    helper::{HelperConfig, Use},
    spool::{LaneConfig, SpoolConfig},
};

/// Where the configuration lies unless `--config` says otherwise.
pub const FILE: &str = "/etc/nexus/agent.toml";
/// What the environment's variables begin with.
pub const ENV_PREFIX: &str = "NEXUS_AGENT";

/// What holds at once when the configuration is read anew.
pub const RELOADS: &[&str] = &["addresses", "interval", "log.filter", "transport"];

/// A lane smaller than this could not hold two of the largest records.
const LANE_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Files of a spool lane are an eighth of it, within these bounds.
const SEGMENT_BYTES: (u64, u64) = (512 * 1024, 4 * 1024 * 1024);

/// Where the packages' units have the state folder.
pub const STATE_DIR: &str = "/var/lib/nexus/agent";

/// Every key.
pub const KEYS: &[Key] = &[
    Key {
        name: "state_dir",
        kind: Kind::Path,
        default: STATE_DIR,
        unit: "path",
        about: "the folder with everything this agent must keep",
    },
    Key {
        name: "name",
        kind: Kind::Text,
        default: "",
        unit: "",
        about: "what the node asks to be called when it enrols; empty: this host's name",
    },
    Key {
        name: "addresses",
        kind: Kind::List,
        default: "",
        unit: "host:port",
        about: "where the collector answers; empty: what the join token and the collector said; a reload takes it up",
    },
    Key {
        name: "interval",
        kind: Kind::Duration,
        default: "10s",
        unit: "duration",
        about: "from one reading of the metrics to the next, 1s at least; a reload takes it up",
    },
    Key {
        name: "transport",
        kind: Kind::Choice(&["auto", "quic", "tcp"]),
        default: "auto",
        unit: "",
        about: "what carries a session; auto prefers QUIC and takes TCP where UDP does not come through; a reload takes it up",
    },
    Key {
        name: "tls.key_exchange",
        kind: Kind::Choice(&["auto", "classical", "post-quantum"]),
        default: "auto",
        unit: "",
        about: "which key exchanges may be used; auto prefers X25519MLKEM768",
    },
    Key {
        name: "spool.results_bytes",
        kind: Kind::Bytes,
        default: "256MiB",
        unit: "bytes",
        about: "room for what jobs did until the collector has it; no new job is taken when it fills up",
    },
    Key {
        name: "spool.inventory_bytes",
        kind: Kind::Bytes,
        default: "32MiB",
        unit: "bytes",
        about: "room for inventory; superseded sections make way",
    },
    Key {
        name: "spool.metrics_bytes",
        kind: Kind::Bytes,
        default: "64MiB",
        unit: "bytes",
        about: "room for metrics; the oldest make way",
    },
    Key {
        name: "spool.age",
        kind: Kind::Duration,
        default: "48h",
        unit: "duration",
        about: "metrics older than this are given up",
    },
    Key {
        name: "exec.concurrency",
        kind: Kind::Integer { min: 1, max: 16 },
        default: "4",
        unit: "jobs",
        about: "jobs that run at the same time",
    },
    Key {
        name: "exec.kill_grace",
        kind: Kind::Duration,
        default: "10s",
        unit: "duration",
        about: "from TERM to KILL for a job that is stopped",
    },
    Key {
        name: "helper.use",
        kind: Kind::Choice(&["auto", "always", "never"]),
        default: "auto",
        unit: "",
        about: "whether jobs are run by nexus-agent-helper, as root; auto: when its socket is there, as the agent's own user otherwise",
    },
    Key {
        name: "helper.socket",
        kind: Kind::Path,
        default: "/run/nexus/helper.sock",
        unit: "path",
        about: "where the helper listens, unless its service manager passes it a socket",
    },
    Key {
        name: "helper.user",
        kind: Kind::Text,
        default: "nexus-agent",
        unit: "",
        about: "the user the agent runs as: the helper serves nobody else",
    },
    Key {
        name: "helper.state_dir",
        kind: Kind::Path,
        default: "/var/lib/nexus/helper",
        unit: "path",
        about: "the folder with everything the helper must keep; root's own",
    },
    Key {
        name: "policy",
        kind: Kind::Path,
        default: "/etc/nexus/policy.toml",
        unit: "path",
        about: "who may run what as which user on this machine; without it the helper runs nothing, and an agent without a helper what the fleet's operators sign",
    },
    Key {
        name: "shutdown.timeout",
        kind: Kind::Duration,
        default: "10s",
        unit: "duration",
        about: "how long shutdown waits for work under way",
    },
    Key {
        name: "log.format",
        kind: Kind::Choice(log::Format::NAMES),
        default: "text",
        unit: "",
        about: "text for people, json for machines",
    },
    Key {
        name: "log.filter",
        kind: Kind::Text,
        default: "",
        unit: "",
        about: "what is logged, as in `debug` or `warn,nexus_agent=debug`; empty: info; the variable NEXUS_LOG comes before it; a reload takes it up",
    },
];

/// The values in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder with all state.
    pub state_dir: PathBuf,
    /// What the node asks to be called.
    pub name: String,
    /// Whether somebody said so, or it is this host's.
    pub name_given: bool,
    /// Where the collector answers; empty: as the identity says.
    pub addresses: Vec<String>,
    /// Between two readings of the metrics.
    pub interval: Duration,
    /// What carries a session.
    pub transport: Mode,
    /// Key exchanges that may be used.
    pub key_exchange: KeyExchange,
    /// Bounds of the spool.
    pub spool: SpoolConfig,
    /// Jobs that run at the same time.
    pub concurrency: usize,
    /// From TERM to KILL.
    pub kill_grace: Duration,
    /// Who runs jobs as root.
    pub helper: HelperConfig,
    /// How long shutdown waits.
    pub shutdown_timeout: Duration,
    /// Of the log.
    pub log_format: log::Format,
    /// What is logged.
    pub log_filter: Targets,
}

impl Config {
    /// Checks what the table of keys cannot.
    pub fn from_settings(settings: &Settings) -> Outcome<Self> {
        let interval = settings.duration("interval");
        if interval < Duration::from_secs(1) || interval > Duration::from_secs(3600) {
            return Err(bad(settings, "interval", "it must be within 1s to 1h"));
        }
        let age = settings.duration("spool.age");
        let lane = |key: &str| {
            let bytes = settings.bytes(key);
            if bytes < LANE_BYTES_MIN {
                return Err(bad(settings, key, "it must be 4MiB at least"));
            }
            let (least, most) = SEGMENT_BYTES;
            Ok(LaneConfig {
                bytes,
                segment_bytes: (bytes / 8).clamp(least, most),
                age,
            })
        };
        let transport = settings.text("transport");
        Ok(Self {
            state_dir: settings.path("state_dir").to_owned(),
            name: name(settings)?,
            name_given: !settings.text("name").is_empty(),
            addresses: addresses(settings)?,
            interval,
            transport: Mode::parse(transport)
                .ok_or_else(|| bad(settings, "transport", "no such transport"))?,
            key_exchange: settings
                .text("tls.key_exchange")
                .parse()
                .map_err(|error| because(settings, "tls.key_exchange", &error))?,
            spool: SpoolConfig {
                results: lane("spool.results_bytes")?,
                inventory: lane("spool.inventory_bytes")?,
                metrics: lane("spool.metrics_bytes")?,
            },
            concurrency: settings.count("exec.concurrency"),
            kill_grace: settings.duration("exec.kill_grace"),
            helper: HelperConfig {
                used: Use::parse(settings.text("helper.use"))
                    .ok_or_else(|| bad(settings, "helper.use", "no such choice"))?,
                socket: settings.path("helper.socket").to_owned(),
                user: settings.text("helper.user").to_owned(),
                state_dir: settings.path("helper.state_dir").to_owned(),
                policy: settings.path("policy").to_owned(),
            },
            shutdown_timeout: settings.duration("shutdown.timeout"),
            log_format: settings
                .text("log.format")
                .parse()
                .map_err(|error| because(settings, "log.format", &error))?,
            log_filter: log::filter(settings.text("log.filter"), &log::ours_at(Level::INFO))
                .map_err(|error| because(settings, "log.filter", &error))?,
        })
    }
}

fn name(settings: &Settings) -> Outcome<String> {
    let given = settings.text("name");
    let name = if given.is_empty() {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    } else {
        given.to_owned()
    };
    if is_node_name(&name) {
        Ok(name)
    } else {
        let why = format!("`{name}` is no node name: letters, digits, `.`, `-` and `_`");
        Err(bad(settings, "name", &why))
    }
}

fn addresses(settings: &Settings) -> Outcome<Vec<String>> {
    let addresses = settings.list("addresses");
    for address in addresses {
        let valid = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        if !valid {
            let why = format!("`{address}` is no host:port");
            return Err(bad(settings, "addresses", &why));
        }
    }
    Ok(addresses.to_vec())
}

fn bad(settings: &Settings, key: &str, why: &str) -> Fault {
    Fault::new(
        format!("configuration: {}: {key}", settings.origin(key)),
        why,
    )
    .usage()
}

fn because(settings: &Settings, key: &str, error: &dyn std::error::Error) -> Fault {
    Fault::because(
        format!("configuration: {}: {key}", settings.origin(key)),
        error,
    )
    .usage()
}

#[cfg(test)]
mod tests {
    use nexus_runtime::settings::{Sources, Strictness, load};

    use super::*;

    fn with(flags: &[(&str, &str)]) -> Outcome<Config> {
        let sources = Sources {
            flags: flags
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..Sources::default()
        };
        Config::from_settings(&load(KEYS, &sources, Strictness::Refuse).unwrap().settings)
    }

    #[test]
    fn defaults_are_valid() {
        let config = with(&[("name", "db-1")]).unwrap();
        assert_eq!(config.interval, Duration::from_secs(10));
        assert_eq!(config.transport, Mode::Auto);
        assert_eq!(config.spool.metrics.bytes, 64 * 1024 * 1024);
        assert!(config.addresses.is_empty());
    }

    #[test]
    fn what_a_reload_takes_up_says_so() {
        let said = KEYS
            .iter()
            .filter(|key| key.about.ends_with("; a reload takes it up"));
        let mut said: Vec<_> = said.map(|key| key.name).collect();
        said.sort_unstable();
        assert_eq!(said, RELOADS);
    }

    #[test]
    fn what_the_table_cannot_check_is_named() {
        for (key, value) in [
            ("name", "a b"),
            ("addresses", "collector"),
            ("addresses", "host:0"),
            ("interval", "100ms"),
            ("spool.metrics_bytes", "1MiB"),
            ("log.filter", "nexus=loud"),
        ] {
            let fault = with(&[(key, value)]).unwrap_err();
            assert!(fault.to_string().contains(key), "{fault}");
            assert_eq!(fault.exit_code(), 2);
        }
    }
}
