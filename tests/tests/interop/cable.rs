//! A collector and an agent in network namespaces of their own, with a cable between: straight, or by way of a
//! router that hides the agent's side behind an address of its own.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nexus_tests::collector::Place;

/// Of the collector.
const HERE: &str = "10.77.0.1";

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(super) struct Cable {
    /// The collector's namespace.
    pub(super) here: String,
    /// The agent's.
    pub(super) there: String,
    router: Option<String>,
}

impl Cable {
    pub(super) fn straight() -> Self {
        let cable = Self::namespaces(false);
        let (here, there) = (&cable.here, &cable.there);
        for line in [
            format!("-n {here} link add cable type veth peer name cable netns {there}"),
            format!("-n {here} addr add {HERE}/24 dev cable"),
            format!("-n {there} addr add 10.77.0.2/24 dev cable"),
            format!("-n {here} link set cable up"),
            format!("-n {there} link set cable up"),
        ] {
            succeeds(Command::new("ip").args(line.split(' ')));
        }
        cable
    }

    /// With a router that gives the agent's packets its own address, 10.77.0.2, and ports from 40000 on. What
    /// comes from outside and belongs to no mapping vanishes there.
    pub(super) fn by_router() -> Self {
        let cable = Self::namespaces(true);
        let (here, there, router) = (&cable.here, &cable.there, cable.router());
        for line in [
            format!("-n {here} link add cable type veth peer name outside netns {router}"),
            format!("-n {there} link add cable type veth peer name inside netns {router}"),
            format!("-n {here} addr add {HERE}/24 dev cable"),
            format!("-n {router} addr add 10.77.0.2/24 dev outside"),
            format!("-n {router} addr add 192.168.77.1/24 dev inside"),
            format!("-n {there} addr add 192.168.77.2/24 dev cable"),
            format!("-n {here} link set cable up"),
            format!("-n {router} link set outside up"),
            format!("-n {router} link set inside up"),
            format!("-n {there} link set cable up"),
            format!("-n {there} route add default via 192.168.77.1"),
        ] {
            succeeds(Command::new("ip").args(line.split(' ')));
        }
        for line in [
            "sysctl -q -w net.ipv4.ip_forward=1",
            "nft add table ip nat",
            "nft add chain ip nat out { type nat hook postrouting priority 100 ; }",
            "nft add chain ip nat in { type filter hook input priority 0 ; }",
            "nft add rule ip nat in iifname outside drop",
        ] {
            cable.run(router, line);
        }
        cable.map_to(40_000);
        cable
    }

    fn namespaces(routed: bool) -> Self {
        // Of other test runs, and of other tests of this one.
        let id = std::process::id() % 100_000 * 100 + NEXT.fetch_add(1, Ordering::Relaxed);
        let cable = Self {
            here: format!("nxc{id}"),
            there: format!("nxa{id}"),
            router: routed.then(|| format!("nxr{id}")),
        };
        for namespace in cable.all() {
            succeeds(Command::new("ip").args(["netns", "add", namespace]));
            let up = ["-n", namespace, "link", "set", "lo", "up"];
            succeeds(Command::new("ip").args(up));
        }
        cable
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        [&self.here, &self.there].into_iter().chain(&self.router)
    }

    fn router(&self) -> &str {
        self.router.as_deref().unwrap()
    }

    /// New mappings take ports from this one on.
    fn map_to(&self, port: u32) {
        let rule = format!(
            "nft add rule ip nat out oifname outside meta l4proto {{ tcp, udp }} masquerade to :{port}-{}",
            port + 999
        );
        self.run(self.router(), "nft flush chain ip nat out");
        self.run(self.router(), &rule);
    }

    /// The router forgets its mappings, as one that restarts does: what goes out next gets a new port.
    pub(super) fn forget_mappings(&self, port: u32) {
        self.map_to(port);
        let router = self.router();
        // The kernel drops what was masqueraded with the interface.
        for state in ["down", "up"] {
            self.run(router, &format!("ip link set outside {state}"));
        }
    }

    /// The router gets another address outside, as many do every day, and forgets its mappings with the old.
    pub(super) fn readdress(&self, address: &str) {
        self.run(self.router(), "ip addr flush dev outside");
        self.run(
            self.router(),
            &format!("ip addr add {address}/24 dev outside"),
        );
    }

    pub(super) fn place(&self) -> Place {
        Place {
            namespace: Some(self.here.clone()),
            host: HERE.to_owned(),
            ..Place::default()
        }
    }

    pub(super) fn run(&self, namespace: &str, line: &str) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]);
        succeeds(command.args(line.split(' ')));
    }

    /// So many of a hundred packets are lost, either way.
    pub(super) fn lose(&self, percent: u32) {
        for namespace in [&self.here, &self.there] {
            self.run(namespace, "nft add table inet loss");
            self.run(
                namespace,
                "nft add chain inet loss in { type filter hook input priority 0 ; }",
            );
            let rule = format!(
                "nft add rule inet loss in iifname cable numgen random mod 100 < {percent} drop"
            );
            self.run(namespace, &rule);
        }
    }

    /// How many packets either side has sent so far, lost ones counted.
    pub(super) fn packets(&self) -> u64 {
        [&self.here, &self.there]
            .map(|side| sent(side))
            .iter()
            .sum()
    }

    /// The agent's side gets another address, as a laptop on another network does.
    pub(super) fn move_to(&self, address: &str) {
        self.run(&self.there, "ip addr flush dev cable");
        self.run(&self.there, &format!("ip addr add {address}/24 dev cable"));
    }

    /// No UDP leaves the agent's side from now on, or it does again.
    pub(super) fn block_udp(&self, block: bool) {
        let rules: &[&str] = if block {
            &[
                "add table inet cut",
                "add chain inet cut out { type filter hook output priority 0 ; }",
                "add rule inet cut out oifname cable meta l4proto udp drop",
            ]
        } else {
            &["delete table inet cut"]
        };
        for rule in rules {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &self.there, "nft"]);
            succeeds(command.args(rule.split(' ')));
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in self.all() {
            // What is left of the cable goes with them.
            drop(
                Command::new("ip")
                    .args(["netns", "del", namespace])
                    .status(),
            );
        }
    }
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn sent(namespace: &str) -> u64 {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "cat", "/proc/net/dev"]);
    let devices = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let cable = devices
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("cable:"));
    // Eight figures of what came, then bytes and packets of what went.
    let packets = cable.and_then(|figures| figures.split_whitespace().nth(9));
    packets.unwrap().parse().unwrap()
}
