//! What is stored is what the host says.

use std::{collections::BTreeSet, fs};

use nexus_tests::{
    fleet::{Fleet, SOON},
    page, poll,
};
use serde_json::Value;

/// USER_HZ: 100 on every architecture Linux runs on today (time(7)).
const TICKS_A_SECOND: f64 = 100.0;
/// The fields of a line of /proc/stat that are series of their own (proc_stat(5)).
const MODES: [&str; 8] = [
    "user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal",
];

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap()
}

/// The text after a key at the beginning of a line.
fn after<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key}")).trim()
}

fn mem_total_bytes() -> f64 {
    let meminfo = read("/proc/meminfo");
    let kib = after(&meminfo, "MemTotal:").strip_suffix(" kB").unwrap();
    kib.parse::<f64>().unwrap() * 1024.0
}

/// A page with a reading that was made after this was called.
async fn later_page(fleet: &Fleet) -> String {
    let start = page::value(&fleet_page(fleet).await, "node_time_seconds", &[]);
    poll::until("a later reading", SOON, || async {
        let later = fleet_page(fleet).await;
        let time = page::value(&later, "node_time_seconds", &[]);
        // Two further, so that the whole of it was read after the call.
        (time? > start.unwrap_or(0.0) + 1.5).then_some(later)
    })
    .await
    .unwrap()
}

async fn fleet_page(fleet: &Fleet) -> String {
    fleet.page("/metrics/nodes").await.unwrap()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_else(|| panic!("{key}: {row}"))
}

#[tokio::test]
async fn processor_time_lies_between_two_looks_at_it() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    later_page(&fleet).await;
    let before = read("/proc/stat");
    let shown = later_page(&fleet).await;
    let now = read("/proc/stat");
    let mut processors = 0;
    for line in now.lines().filter(|line| line.starts_with("cpu")) {
        let (name, fields) = line.split_once(' ').unwrap();
        let Some(number) = name.strip_prefix("cpu").filter(|n| !n.is_empty()) else {
            continue;
        };
        processors += 1;
        let earlier = after(&before, &format!("{name} "));
        let both = earlier
            .split_whitespace()
            .zip(fields.split_whitespace())
            .map(|(low, high)| (low.parse::<f64>().unwrap(), high.parse::<f64>().unwrap()));
        for (mode, (low, high)) in MODES.iter().zip(both) {
            let labels = [("cpu", number), ("mode", mode)];
            let value = page::value(&shown, "node_cpu_seconds_total", &labels).unwrap();
            // The kernel's idle and iowait times are known to step back a little (proc_stat(5)).
            let slack = if matches!(*mode, "idle" | "iowait") {
                0.05
            } else {
                1e-6
            };
            let (low, high) = (low / TICKS_A_SECOND - slack, high / TICKS_A_SECOND + slack);
            assert!(
                (low..=high).contains(&value),
                "cpu {number} {mode}: {low} … {value} … {high}"
            );
        }
    }
    let counted = page::series(&shown, "node_cpu_seconds_total").count();
    assert_eq!((processors > 0, counted), (true, processors * MODES.len()));
    let boot: f64 = after(&now, "btime ").parse().unwrap();
    let stored = page::value(&shown, "node_boot_time_seconds", &[]).unwrap();
    assert_eq!(stored.to_bits(), boot.to_bits(), "{stored} is not {boot}");
}

#[tokio::test]
async fn memory_and_the_root_filesystem_have_their_sizes() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let shown = later_page(&fleet).await;
    let exact = |name, labels: &[(&str, &str)], expected: f64| {
        let value = page::value(&shown, name, labels).unwrap_or_else(|| panic!("{name}: {shown}"));
        assert_eq!(
            value.to_bits(),
            expected.to_bits(),
            "{name}: {value}, not {expected}"
        );
    };
    exact("node_memory_MemTotal_bytes", &[], mem_total_bytes());
    let root = rustix::fs::statvfs("/").unwrap();
    let whole = [("mountpoint", "/")];
    let float = |count: u64| -> f64 { count.to_string().parse().unwrap() };
    exact(
        "node_filesystem_size_bytes",
        &whole,
        float(root.f_blocks * root.f_frsize),
    );
    exact("node_filesystem_files", &whole, float(root.f_files));
    exact("node_filesystem_readonly", &whole, 0.0);
    let rows = fleet
        .eventually("SELECT memory_bytes FROM hardware", |rows| !rows.is_empty())
        .await
        .unwrap();
    assert_eq!(rows[0]["memory_bytes"].as_f64(), Some(mem_total_bytes()));
}

#[tokio::test]
async fn every_installed_package_is_there_and_no_other() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let known = "SELECT kind FROM sections WHERE kind = 'packages' AND error IS NULL";
    fleet
        .eventually(known, |rows| !rows.is_empty())
        .await
        .unwrap();
    let rows = fleet
        .query("SELECT name, version, arch FROM packages WHERE manager = 'dpkg'")
        .await
        .unwrap();
    let stored: BTreeSet<_> = rows
        .iter()
        .map(|row| ["name", "version", "arch"].map(|key| text(row, key).to_owned()))
        .collect();
    // A host without dpkg has none of them.
    let status = fs::read_to_string("/var/lib/dpkg/status").unwrap_or_default();
    let installed: BTreeSet<_> = status
        .split("\n\n")
        .filter(|stanza| !stanza.trim().is_empty())
        .filter(|stanza| after(stanza, "Status: ").ends_with(" installed"))
        .map(|stanza| {
            ["Package: ", "Version: ", "Architecture: "].map(|key| after(stanza, key).to_owned())
        })
        .collect();
    let differ: Vec<_> = stored.symmetric_difference(&installed).collect();
    assert!(differ.is_empty(), "{differ:?}");
}

#[tokio::test]
async fn the_system_is_called_what_uname_calls_it() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let names = rustix::system::uname();
    let expected = [
        ("kernel", "release", names.release()),
        ("kernel_build", "version", names.version()),
        ("arch", "machine", names.machine()),
        ("hostname", "nodename", names.nodename()),
    ];
    let rows = fleet
        .eventually("SELECT * FROM os", |rows| !rows.is_empty())
        .await
        .unwrap();
    let shown = later_page(&fleet).await;
    for (column, label, value) in expected {
        let value = value.to_str().unwrap();
        assert_eq!(text(&rows[0], column), value);
        let info = page::value(&shown, "node_uname_info", &[(label, value)]);
        assert_eq!(info, Some(1.0), "{label}=\"{value}\"");
    }
    let stat = read("/proc/stat");
    assert_eq!(rows[0]["booted_at"].to_string(), after(&stat, "btime "));
}

#[tokio::test]
async fn every_account_of_the_host_is_there_and_no_other() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let rows = fleet
        .eventually("SELECT * FROM users", |rows| !rows.is_empty())
        .await
        .unwrap();
    let stored: BTreeSet<_> = rows
        .iter()
        .map(|row| {
            let [name, gecos, home, shell] =
                ["name", "gecos", "home", "shell"].map(|key| row[key].as_str().unwrap_or(""));
            let (uid, gid) = (&row["uid"], &row["gid"]);
            // passwd(5)
            format!("{name}:{uid}:{gid}:{gecos}:{home}:{shell}")
        })
        .collect();
    let accounts: BTreeSet<_> = read("/etc/passwd")
        .lines()
        .map(|line| {
            let mut fields: Vec<_> = line.split(':').collect();
            fields.remove(1);
            fields.join(":")
        })
        .collect();
    let differ: Vec<_> = stored.symmetric_difference(&accounts).collect();
    assert!(differ.is_empty(), "{differ:?}");
}

#[tokio::test]
async fn a_socket_is_told_with_its_owner() {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = std::net::UdpSocket::bind("[::1]:0");
    let mut expected = vec![("tcp", "127.0.0.1", tcp.local_addr().unwrap().port())];
    // A host may be without IPv6.
    if let Ok(udp) = &udp {
        expected.push(("udp6", "::1", udp.local_addr().unwrap().port()));
    }
    // There before the agent's first look.
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let uid = rustix::process::getuid().as_raw();
    let own = read("/proc/self/comm");
    for (protocol, address, port) in expected {
        let sql = format!(
            "SELECT address, uid, process FROM sockets WHERE protocol = '{protocol}' AND port = {port}"
        );
        let rows = fleet
            .eventually(&sql, |rows| !rows.is_empty())
            .await
            .unwrap();
        let row = serde_json::json!({"address": address, "uid": uid, "process": own.trim()});
        assert_eq!(rows, [row]);
    }
}

#[tokio::test]
async fn history_has_every_reading_with_its_value_and_time() {
    let fleet = Fleet::with_agents(&["alpha"]).await.unwrap();
    let of = |name: &str| {
        format!(
            "SELECT value, time, unixepoch(time, 'subsec') AS seconds FROM metric_history
             WHERE node = 'alpha' AND name = '{name}' ORDER BY time"
        )
    };
    let rows = fleet
        .eventually(&of("node_time_seconds"), |rows| rows.len() >= 4)
        .await
        .unwrap();
    for row in &rows {
        let (value, time) = (
            row["value"].as_f64().unwrap(),
            row["seconds"].as_f64().unwrap(),
        );
        assert!((value - time).abs() < 0.1, "{row}");
    }
    for pair in rows.windows(2) {
        let apart = pair[1]["value"].as_f64().unwrap() - pair[0]["value"].as_f64().unwrap();
        assert!(apart > 0.0, "{rows:?}");
    }
    let totals = fleet
        .query(&of("node_memory_MemTotal_bytes"))
        .await
        .unwrap();
    assert!(totals.len() >= rows.len(), "{totals:?}");
    for row in &totals {
        assert_eq!(row["value"].as_f64(), Some(mem_total_bytes()), "{row}");
    }
    // The newest of the history is what the page shows, or was a moment ago.
    let newest = "SELECT m.value FROM metrics m WHERE m.name = 'node_memory_MemTotal_bytes'";
    let newest = fleet.query(newest).await.unwrap();
    assert_eq!(newest[0]["value"].as_f64(), Some(mem_total_bytes()));
    // Without node and name it would be a walk through everything.
    let said = fleet
        .ctl
        .run(&["query", "SELECT count(*) FROM metric_history"])
        .await
        .unwrap();
    assert!(
        said.code == 1 && said.err.contains("node = ") && said.err.contains("name = "),
        "{said:?}"
    );
}
