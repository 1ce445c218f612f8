//! What the figures were measured on.

use std::{fs, path::Path, process::Command};

use nexus_runtime::clock::Clock;
use serde_json::{Map, Value, json};

use super::float;
use crate::figure::Figure;

/// Its cores, and in the parameters what else there is to say.
#[must_use]
pub fn describe() -> Vec<Figure> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let told = json!({
        "cpu": after(&read("/proc/cpuinfo"), "model name"),
        "memory_bytes": kib(&after(&read("/proc/meminfo"), "MemTotal")) * 1024,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "os": after(&read("/etc/os-release"), "PRETTY_NAME").trim_matches(['=', '"']),
        "rustc": said(Command::new("rustc").arg("--version").current_dir(sources)),
        "commit": said(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(sources)),
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "time": Clock::system().now().to_string(),
    });
    let params: Map<String, Value> = told.as_object().cloned().unwrap_or_default();
    vec![Figure {
        bench: "machine",
        figure: "cores",
        subject: "host",
        value: float(u64::try_from(cores).unwrap_or(0)),
        unit: "cores",
        params,
    }]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What follows the first line's `name`.
fn after(text: &str, name: &str) -> String {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    let rest = rest.unwrap_or_default().trim_start();
    rest.strip_prefix(':').unwrap_or(rest).trim().to_owned()
}

fn kib(text: &str) -> u64 {
    let number = text.split_whitespace().next();
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A program's first line; nothing when it is not there.
fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout);
    let text = String::from_utf8_lossy(&output.unwrap_or_default()).into_owned();
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_cores_memory_and_a_kernel() {
        let described = describe();
        let [machine] = described.as_slice() else {
            panic!("{described:?}");
        };
        assert!(machine.value >= 1.0);
        assert!(machine.params["memory_bytes"].as_u64().unwrap() > 1 << 20);
        assert!(!machine.params["kernel"].as_str().unwrap().is_empty());
        assert_eq!(after("model name\t: X 1\n", "model name"), "X 1");
    }
}
