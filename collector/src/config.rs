//! What a collector can be told: one table of keys, and the typed form of their values.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use nexus_runtime::{
    log::{self, Targets},
    settings::{Key, Kind, Origin, Settings},
};

use nexus_runtime::fault::{Fault, Outcome};
use tracing::Level;

/// Where the configuration lies unless `--config` says otherwise.
pub const FILE: &str = "/etc/nexus/collector.toml";
/// What the environment's variables begin with.
pub const ENV_PREFIX: &str = "NEXUS_COLLECTOR";

/// What holds at once when the configuration is read anew.
pub(crate) const RELOADS: &[&str] = &[
    "advertise.agents",
    "log.filter",
    "query.rows",
    "query.timeout",
];

/// Every key.
pub const KEYS: &[Key] = &[
    Key {
        name: "state_dir",
        kind: Kind::Path,
        default: "/var/lib/nexus/collector",
        unit: "path",
        about: "the folder with everything this collector must keep",
    },
    Key {
        name: "trust_domain",
        kind: Kind::Text,
        default: "nexus.internal",
        unit: "",
        about: "the fleet's name in every certificate; fixed by init",
    },
    Key {
        name: "region",
        kind: Kind::Text,
        default: "default",
        unit: "",
        about: "where this collector stands; fixed by init",
    },
    Key {
        name: "id",
        kind: Kind::Text,
        default: "collector-1",
        unit: "",
        about: "this collector's name within its region; fixed by init",
    },
    Key {
        name: "shards",
        kind: Kind::Integer { min: 1, max: 8 },
        default: "4",
        unit: "shards",
        about: "how many shards init makes",
    },
    Key {
        name: "agents.listen",
        kind: Kind::Text,
        default: "[::]:7460",
        unit: "host:port",
        about: "where agents connect, UDP and TCP; port 0 takes any free one",
    },
    Key {
        name: "operators.listen",
        kind: Kind::Text,
        default: "[::]:7461",
        unit: "host:port",
        about: "where operators connect, TCP",
    },
    Key {
        name: "metrics.listen",
        kind: Kind::Text,
        default: "127.0.0.1:7462",
        unit: "host:port",
        about: "where /metrics, /metrics/nodes, /healthz and /readyz answer, plain HTTP",
    },
    Key {
        name: "metrics.keep_raw",
        kind: Kind::Duration,
        default: "2days",
        unit: "duration",
        about: "how long metrics are kept as they were sampled",
    },
    Key {
        name: "metrics.keep_minutes",
        kind: Kind::Duration,
        default: "30days",
        unit: "duration",
        about: "how long a point of each minute of them is kept",
    },
    Key {
        name: "metrics.keep_hours",
        kind: Kind::Duration,
        default: "2years",
        unit: "duration",
        about: "how long a point of each hour of them is kept",
    },
    Key {
        name: "metrics.keep_bytes",
        kind: Kind::Bytes,
        default: "1TiB",
        unit: "bytes",
        about: "what all of that may take on disk, but for the last minutes; beyond it the oldest goes, raw metrics first",
    },
    Key {
        name: "advertise.agents",
        kind: Kind::List,
        default: "",
        unit: "host:port",
        about: "the addresses agents are told; empty: this host's name and the port; a reload takes it up",
    },
    Key {
        name: "advertise.operators",
        kind: Kind::List,
        default: "",
        unit: "host:port",
        about: "the addresses operators are told; empty: this host's name and the port",
    },
    Key {
        name: "tls.key_exchange",
        kind: Kind::Choice(&["auto", "classical", "post-quantum"]),
        default: "auto",
        unit: "",
        about: "which key exchanges agents and operators may use; auto prefers X25519MLKEM768",
    },
    Key {
        name: "limits.connections",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        default: "20000",
        unit: "connections",
        about: "agents connected at the same time",
    },
    Key {
        name: "limits.handshakes",
        kind: Kind::Integer {
            min: 1,
            max: 100_000,
        },
        default: "512",
        unit: "handshakes",
        about: "handshakes under way at the same time, of each transport of each port",
    },
    Key {
        name: "limits.upload_credit",
        kind: Kind::Bytes,
        default: "1MiB",
        unit: "bytes",
        about: "the most an agent may have in flight on one lane when commits are quick",
    },
    Key {
        name: "limits.commit_latency",
        kind: Kind::Duration,
        default: "100ms",
        unit: "duration",
        about: "credit shrinks while commits take longer than this",
    },
    Key {
        name: "query.timeout",
        kind: Kind::Duration,
        default: "30s",
        unit: "duration",
        about: "the longest a query may take; a reload takes it up",
    },
    Key {
        name: "query.rows",
        kind: Kind::Integer {
            min: 1,
            max: 10_000_000,
        },
        default: "1000000",
        unit: "rows",
        about: "the most rows a query may answer; a reload takes it up",
    },
    Key {
        name: "jobs.grace",
        kind: Kind::Duration,
        default: "30s",
        unit: "duration",
        about: "how long after the last moment a run could end its report is waited for, before it counts as lost",
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
        about: "what is logged, as in `debug` or `warn,nexus_collector=debug`; empty: info; the variable NEXUS_LOG comes before it; a reload takes it up",
    },
];

/// The values in force.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) state_dir: PathBuf,
    pub(crate) trust_domain: Fixed,
    pub(crate) region: Fixed,
    pub(crate) id: Fixed,
    pub(crate) shards: u16,
    pub(crate) agents_listen: SocketAddr,
    pub(crate) operators_listen: SocketAddr,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) keep: nexus_store::Settings,
    pub(crate) advertise_agents: Vec<String>,
    pub(crate) advertise_operators: Vec<String>,
    pub(crate) key_exchange: nexus_pki::tls::KeyExchange,
    pub(crate) connections: usize,
    pub(crate) handshakes: usize,
    pub(crate) upload_credit: u64,
    pub(crate) commit_latency: Duration,
    pub(crate) query: QueryLimits,
    pub(crate) jobs_grace: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) log_format: log::Format,
    pub(crate) log_filter: Targets,
}

/// What one query may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueryLimits {
    pub(crate) timeout: Duration,
    pub(crate) rows: usize,
}

/// A value that `init` fixes: later it need not be given, but must not differ when it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fixed {
    /// In force.
    pub(crate) value: String,
    /// Whether anybody gave it.
    pub(crate) given: bool,
}

impl Config {
    /// Checks what the table of keys cannot.
    pub(crate) fn from_settings(settings: &Settings) -> Outcome<Self> {
        let fixed = |key: &str| Fixed {
            value: settings.text(key).to_owned(),
            given: !matches!(settings.origin(key), Origin::Default),
        };
        Ok(Self {
            state_dir: settings.path("state_dir").to_owned(),
            trust_domain: fixed("trust_domain"),
            region: fixed("region"),
            id: fixed("id"),
            shards: u16::try_from(settings.integer("shards"))
                .map_err(|error| bad("shards", &error))?,
            agents_listen: listen(settings, "agents.listen")?,
            operators_listen: listen(settings, "operators.listen")?,
            metrics_listen: listen(settings, "metrics.listen")?,
            keep: nexus_store::Settings {
                raw: settings.duration("metrics.keep_raw"),
                minutes: settings.duration("metrics.keep_minutes"),
                hours: settings.duration("metrics.keep_hours"),
                bytes: settings.bytes("metrics.keep_bytes"),
                ..nexus_store::Settings::default()
            },
            advertise_agents: settings.list("advertise.agents").to_vec(),
            advertise_operators: settings.list("advertise.operators").to_vec(),
            key_exchange: settings
                .text("tls.key_exchange")
                .parse()
                .map_err(|error| bad("tls.key_exchange", &error))?,
            connections: settings.count("limits.connections"),
            handshakes: settings.count("limits.handshakes"),
            upload_credit: settings.bytes("limits.upload_credit"),
            commit_latency: settings.duration("limits.commit_latency"),
            query: QueryLimits {
                timeout: settings.duration("query.timeout"),
                rows: settings.count("query.rows"),
            },
            jobs_grace: settings.duration("jobs.grace"),
            shutdown_timeout: settings.duration("shutdown.timeout"),
            log_format: settings
                .text("log.format")
                .parse()
                .map_err(|error| bad("log.format", &error))?,
            log_filter: log::filter(settings.text("log.filter"), &log::ours_at(Level::INFO))
                .map_err(|error| bad("log.filter", &error))?,
        })
    }
}

fn listen(settings: &Settings, key: &str) -> Outcome<SocketAddr> {
    let text = settings.text(key);
    text.parse().map_err(|_| {
        Fault::new(
            format!("configuration: {}: {key}", settings.origin(key)),
            format!("`{text}` is no address such as 127.0.0.1:7460 or [::]:7460"),
        )
        .usage()
    })
}

fn bad(key: &str, error: &dyn std::error::Error) -> Fault {
    Fault::because(format!("configuration: {key}"), error).usage()
}

/// What others are told: the given addresses, else `bound` with this host's name for a wildcard.
pub(crate) fn advertised(given: &[String], bound: SocketAddr) -> Vec<String> {
    if !given.is_empty() {
        return given.to_vec();
    }
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let name = if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    };
    vec![format!("{name}:{}", bound.port())]
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
        let config = with(&[]).unwrap();
        assert_eq!(config.agents_listen.port(), 7460);
        assert!(config.metrics_listen.ip().is_loopback());
        assert!(!config.trust_domain.given);
        assert!(with(&[("trust_domain", "a.b")]).unwrap().trust_domain.given);
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
    fn a_bad_address_is_named() {
        let fault = with(&[("agents.listen", "nowhere")]).unwrap_err();
        assert!(fault.to_string().contains("agents.listen"), "{fault}");
    }

    #[test]
    fn advertises_what_others_can_reach() {
        let bound: SocketAddr = "127.0.0.1:99".parse().unwrap();
        assert_eq!(advertised(&[], bound), ["127.0.0.1:99"]);
        let any: SocketAddr = "[::]:99".parse().unwrap();
        let told = advertised(&[], any);
        assert!(
            told[0].ends_with(":99") && !told[0].starts_with('['),
            "{told:?}"
        );
        assert_eq!(advertised(&["x:1".to_owned()], any), ["x:1"]);
    }
}
