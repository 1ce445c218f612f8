//! A machine of its own: a Debian root whose systemd is process 1 of a container, on one end of a cable.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
    sync::atomic::{AtomicU32, Ordering},
};

use nexus_tests::{
    fleet::SOON,
    poll,
    process::{self, Process},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    debian::{self, Kind},
    package,
};

/// Puts itself in the groups before `--`, then becomes what is behind it.
const ENTER: &str =
    r#"while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@""#;
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(super) struct Machine {
    name: String,
    namespace: String,
    dir: TempDir,
    groups: Vec<PathBuf>,
    process: Process,
    /// Its systemd, as this machine counts processes.
    init: Option<u32>,
}

/// How a command ended, and what it said on both outputs.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) well: bool,
    pub(super) text: String,
}

impl Machine {
    /// Starts one in that network namespace, which has nothing of Nexus; all units that belong to its start have started.
    pub(super) async fn boot(kind: Kind, namespace: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        debian::unpack(kind, &root).await;
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nexus-{}-{turn}", std::process::id());
        let groups = groups(&name);
        let mut machine = Self {
            process: start(&name, &dir, &groups, namespace),
            namespace: namespace.to_owned(),
            name,
            dir,
            groups,
            init: None,
        };
        machine.comes_up().await;
        machine
    }

    /// Has it end and start again.
    pub(super) async fn reboot(&mut self) {
        // This ends with the machine.
        self.sh("systemctl reboot").await;
        let ended = self.process.wait().await.unwrap();
        // What systemd-nspawn says to whoever is to start it again.
        assert_eq!(ended.code(), Some(133), "{}", self.process.log_text());
        self.init = None;
        self.process = start(&self.name, &self.dir, &self.groups, &self.namespace);
        self.comes_up().await;
    }

    async fn comes_up(&mut self) {
        self.init = Some(self.has_systemd().await);
        let up = poll::until_ok("a machine that is up", SOON, || async {
            let said = self.sh("systemctl is-system-running").await.text;
            // Units of Debian's own may fail in a container.
            let up = ["running", "degraded"].contains(&said.trim());
            if up { Ok(()) } else { Err(said) }
        });
        up.await.unwrap();
    }

    async fn has_systemd(&mut self) -> u32 {
        let process = &mut self.process;
        let found = poll::until("a container with systemd", SOON, || {
            process.check().unwrap();
            let own = process.id().unwrap_or_default();
            std::future::ready(child_called(own, "systemd"))
        });
        found.await.unwrap()
    }

    /// A path of it as this machine sees it.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir
            .path()
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// Writes a file, and what folders it needs.
    pub(super) fn write(&self, path: &str, mode: u32, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Brings a package into root's home.
    pub(super) fn bring(&self, name: &str) {
        let to = self.path(&format!("/root/{name}.deb"));
        fs::copy(package::built(name), to).unwrap();
    }

    /// Runs this script as root there.
    pub(super) async fn sh(&self, script: &str) -> Said {
        let whole = format!("exec 2>&1\n{script}");
        let output = self.run(&["sh", "-c", &whole]).await;
        Said {
            well: output.status.success(),
            text: String::from_utf8_lossy(&output.stdout).into_owned(),
        }
    }

    /// The same; what it said, when it ended well.
    pub(super) async fn ok(&self, script: &str) -> String {
        let said = self.sh(script).await;
        assert!(said.well, "{script}: {}", said.text);
        said.text
    }

    async fn run(&self, command: &[&str]) -> Output {
        process::run(&mut self.enter(command), b"").await.unwrap()
    }

    fn enter(&self, command: &[&str]) -> Command {
        let init = self.init.unwrap_or_default();
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--target={init}"));
        nsenter.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        nsenter.args(["--root", "--wd", "--", "env", "-i", PATH, "HOME=/root"]);
        nsenter.args(["LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]);
        nsenter.args(command);
        nsenter
    }

    /// A property of a unit.
    pub(super) async fn show(&self, unit: &str, property: &str) -> String {
        let script = format!("systemctl show --value --property={property} {unit}");
        self.ok(&script).await.trim().to_owned()
    }

    /// Waits until a unit's property has that value.
    pub(super) async fn shows(&self, unit: &str, property: &str, value: &str) {
        let what = format!("{unit} with {property} {value}");
        let wait = poll::until_ok(&what, SOON, || async {
            let seen = self.show(unit, property).await;
            if seen == value { Ok(()) } else { Err(seen) }
        });
        wait.await.unwrap();
    }

    /// What `systemctl status` says, whatever state the unit is in.
    pub(super) async fn status(&self, unit: &str) -> String {
        let script = format!("systemctl status --no-pager --full {unit} || true");
        self.ok(&script).await
    }

    /// Lines of the status of a unit's main process as /proc has them, by their names.
    pub(super) async fn proc_status(&self, unit: &str) -> impl Fn(&str) -> String {
        let pid = self.show(unit, "MainPID").await;
        let text = self.ok(&format!("cat /proc/{pid}/status")).await;
        move |name| {
            let prefix = format!("{name}:");
            let mut lines = text.lines();
            let line = lines.find_map(|line| line.strip_prefix(&prefix));
            line.unwrap_or_default().trim().to_owned()
        }
    }

    /// How exposed `systemd-analyze security` finds a unit: 0 is best, 10 worst.
    pub(super) async fn exposure(&self, unit: &str) -> f64 {
        let script = format!("systemd-analyze security --no-pager {unit}");
        let text = self.ok(&script).await;
        let end = text.rsplit_once(": ").map(|(_, end)| end.trim());
        let score = end
            .and_then(|end| end.split(' ').next())
            .unwrap_or_default();
        let score = score.parse().unwrap_or_else(|_| panic!("{text}"));
        println!("exposure of {unit}: {score}");
        score
    }

    fn journal(&self) -> String {
        let mut command = self.enter(&["journalctl", "--boot", "--no-pager", "--lines=200"]);
        let output = command.as_std_mut().output();
        output
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- console\n{}", self.process.log_text());
            if self.init.is_some() {
                println!("--- journal\n{}", self.journal());
            }
        }
        // Without process 1 the kernel ends all others, and systemd-nspawn ends by itself.
        let init = self.init.map(ended);
        self.process.signal(Signal::KILL);
        let nspawn = self.process.id().map(ended);
        let all_gone = [init, nspawn].into_iter().flatten().all(|gone| gone);
        if !all_gone {
            println!("{} does not end", self.name);
        }
        for group in &self.groups {
            remove_group(group);
        }
        let propagate = Path::new("/run/systemd/nspawn/propagate").join(&self.name);
        drop(fs::remove_dir(propagate));
    }
}

fn start(name: &str, dir: &TempDir, groups: &[PathBuf], namespace: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", ENTER, "sh"]).args(groups);
    command.args(["--", "systemd-nspawn", "--quiet", "--settings=no", "--boot"]);
    command.args(["--register=no", "--keep-unit", "--console=pipe"]);
    command.args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"]);
    command.arg(format!("--machine={name}"));
    command.arg(format!("--network-namespace-path=/run/netns/{namespace}"));
    command.arg("--directory").arg(dir.path().join("root"));
    Process::start(&mut command, &dir.path().join("console")).unwrap()
}

/// Kills a process; whether it is gone soon.
fn ended(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some((pid, handle)) =
        pid.and_then(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
    else {
        return true;
    };
    // It may be gone already.
    let _gone = kill_process(pid, Signal::KILL);
    let limit = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&handle, PollFlags::IN)];
    poll(&mut fds, Some(&limit)).is_ok_and(|ready| ready == 1)
}

/// A cgroup of its own in every hierarchy that systemd uses, so that machines side by side do not meet.
fn groups(name: &str) -> Vec<PathBuf> {
    let hierarchies = ["", "unified", "systemd"].map(|part| Path::new("/sys/fs/cgroup").join(part));
    let there = hierarchies
        .iter()
        .filter(|path| path.join("cgroup.procs").exists());
    let groups: Vec<_> = there.map(|path| path.join(name)).collect();
    for group in &groups {
        fs::create_dir(group).unwrap();
    }
    groups
}

/// Only its folders can be removed, from the innermost outwards.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}

fn child_called(parent: u32, name: &str) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let mut pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    pids.find(|pid: &u32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim() == name)
    })
}
