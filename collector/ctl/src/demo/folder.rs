//! The demo's folder: who may use it, what is where, and the programs' configurations.
//!
//! ```text
//! D/demo.lock              held while a demo runs here
//! D/demo.pids              programs it started
//! D/endpoints.json         where they are reached
//! D/client.toml operator/  the operator's identity
//! D/collector.toml collector/ collector.log
//! D/agent-K.toml   agent-K/   agent-K.log
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::fault::{Context as _, Fault, Outcome};

/// The fleet of every demo.
const TRUST_DOMAIN: &str = "demo.nexus";

/// An open demo folder; no other demo can open it meanwhile.
pub(super) struct Folder {
    pub(super) dir: PathBuf,
    _lock: Lock,
}

/// Where the collector is reached. `agents` is `host:port`, the others are URLs.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Endpoints {
    pub(super) agents: String,
    pub(super) operators: String,
    pub(super) metrics: String,
}

impl Endpoints {
    /// From what the collector wrote, with or without schemes.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let raw: Self = serde_json::from_slice(text).ok()?;
        Some(Self {
            agents: bare(&raw.agents).to_owned(),
            operators: format!("https://{}", bare(&raw.operators)),
            metrics: format!("http://{}", bare(&raw.metrics)),
        })
    }

    /// `host:port`
    pub(super) fn operators_address(&self) -> &str {
        bare(&self.operators)
    }

    /// `host:port`
    pub(super) fn metrics_address(&self) -> &str {
        bare(&self.metrics)
    }
}

fn bare(url: &str) -> &str {
    url.split_once("://")
        .map_or(url, |(_, rest)| rest)
        .trim_end_matches('/')
}

/// Let go of in so many words: a program that is just being started holds every file of this one for a moment, and with a
/// file its lock.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Who has the file no more has no lock either.
        let _unlocked = rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock);
    }
}

impl Folder {
    /// Makes the folder if need be, and keeps other demos out of it.
    pub(super) fn open(dir: PathBuf) -> Outcome<Self> {
        let dir = super::absolute(dir)?;
        nexus_pki::files::create_folder(&dir).doing("demo")?;
        let dir = fs::canonicalize(&dir).doing(format!("find {}", dir.display()))?;
        let path = dir.join("demo.lock");
        let what = format!("open {}", path.display());
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .doing(what.clone())?;
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&lock, operation).is_err() {
            let mut holder = String::new();
            lock.read_to_string(&mut holder).doing(what)?;
            let why = format!(
                "a demo is running there already (process {})",
                holder.trim()
            );
            return Err(Fault::new(format!("demo in {}", dir.display()), why)
                .hint("stop it with Ctrl-C, or give another folder with --dir"));
        }
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .doing(what)?;
        Ok(Self {
            dir,
            _lock: Lock(lock),
        })
    }

    pub(super) fn client_toml(&self) -> PathBuf {
        self.dir.join("client.toml")
    }

    pub(super) fn pids_file(&self) -> PathBuf {
        self.dir.join("demo.pids")
    }

    pub(super) fn collector_toml(&self) -> PathBuf {
        self.dir.join("collector.toml")
    }

    pub(super) fn collector_dir(&self) -> PathBuf {
        self.dir.join("collector")
    }

    pub(super) fn collector_log(&self) -> PathBuf {
        self.dir.join("collector.log")
    }

    pub(super) fn agent_toml(&self, number: u32) -> PathBuf {
        self.dir.join(format!("agent-{number}.toml"))
    }

    pub(super) fn agent_dir(&self, number: u32) -> PathBuf {
        self.dir.join(format!("agent-{number}"))
    }

    pub(super) fn agent_log(&self, number: u32) -> PathBuf {
        self.dir.join(format!("agent-{number}.log"))
    }

    /// `D/endpoints.json`
    pub(super) fn write_endpoints(&self, endpoints: &Endpoints) -> Outcome {
        let text = serde_json::to_string(endpoints).doing("write endpoints.json")?;
        self.write("endpoints.json", &format!("{text}\n"))
    }

    /// The collector's configuration, with the ports of an earlier demo where they are free.
    pub(super) fn write_collector_config(&self) -> Outcome {
        let earlier = fs::read(self.dir.join("endpoints.json")).ok();
        let earlier = earlier.and_then(|text| Endpoints::parse(&text));
        let listen = |address: Option<&str>, udp: bool| {
            let address = address.filter(|address| is_free(address, udp));
            address.unwrap_or("127.0.0.1:0").to_owned()
        };
        let endpoints = Endpoints {
            agents: listen(earlier.as_ref().map(|e| e.agents.as_str()), true),
            operators: listen(earlier.as_ref().map(Endpoints::operators_address), false),
            metrics: listen(earlier.as_ref().map(Endpoints::metrics_address), false),
        };
        self.keep_ports(&endpoints)
    }

    /// Writes the collector's configuration with these addresses to listen on.
    pub(super) fn keep_ports(&self, endpoints: &Endpoints) -> Outcome {
        let text = format!(
            "state_dir = {}\ntrust_domain = {}\n\n[agents]\nlisten = {}\n\n[operators]\nlisten = {}\n\n[metrics]\nlisten = {}\n",
            quoted(&self.collector_dir().to_string_lossy()),
            quoted(TRUST_DOMAIN),
            quoted(&endpoints.agents),
            quoted(endpoints.operators_address()),
            quoted(endpoints.metrics_address()),
        );
        self.write("collector.toml", &text)
    }

    /// An agent's configuration. A helper that this host has is another agent's.
    pub(super) fn write_agent_config(
        &self,
        number: u32,
        name: &str,
        endpoints: &Endpoints,
    ) -> Outcome {
        let text = format!(
            "state_dir = {}\nname = {}\naddresses = [{}]\n\n[helper]\nuse = \"never\"\n",
            quoted(&self.agent_dir(number).to_string_lossy()),
            quoted(name),
            quoted(&endpoints.agents),
        );
        self.write(&format!("agent-{number}.toml"), &text)
    }

    fn write(&self, name: &str, text: &str) -> Outcome {
        nexus_pki::files::write_private(&self.dir, name, text.as_bytes()).doing("demo")
    }
}

/// A text as TOML has it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn is_free(address: &str, udp: bool) -> bool {
    TcpListener::bind(address).is_ok() && (!udp || UdpSocket::bind(address).is_ok())
}

/// This host's name, then HOST-2, HOST-3 …
pub(super) fn node_names(count: u32) -> Vec<String> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy().into_owned();
    let host = if host.is_empty() {
        "localhost".to_owned()
    } else {
        host
    };
    (1..=count)
        .map(|k| {
            if k == 1 {
                host.clone()
            } else {
                format!("{host}-{k}")
            }
        })
        .collect()
}

/// Whether an agent has its identity.
pub(super) fn is_enrolled(agent_dir: &Path) -> bool {
    fs::read_dir(agent_dir.join("identity")).is_ok_and(|mut files| files.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_with_and_without_schemes() {
        let text =
            br#"{"agents":"127.0.0.1:1","operators":"127.0.0.1:2","metrics":"http://127.0.0.1:3"}"#;
        let endpoints = Endpoints::parse(text).unwrap();
        assert_eq!(endpoints.operators, "https://127.0.0.1:2");
        assert_eq!(endpoints.metrics_address(), "127.0.0.1:3");
        assert_eq!(Endpoints::parse(b"{"), None);
    }

    #[test]
    fn a_folder_holds_one_demo() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::open(dir.path().join("d")).unwrap();
        let second = Folder::open(dir.path().join("d")).err().unwrap();
        assert!(
            second.why.contains(&std::process::id().to_string()),
            "{second}"
        );
        drop(first);
        assert!(Folder::open(dir.path().join("d")).is_ok());
    }

    #[test]
    fn names_are_numbered() {
        let names = node_names(3);
        assert_eq!(names[2], format!("{}-3", names[0]));
    }

    #[test]
    fn odd_paths_stay_readable() {
        let parsed: toml::Table = toml::from_str(&format!("a = {}", quoted("x\"y\\z"))).unwrap();
        assert_eq!(parsed["a"].as_str(), Some("x\"y\\z"));
    }
}
