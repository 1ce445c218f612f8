//! The Debian that every machine of these tests begins as: made by debootstrap once, then kept as an archive in the
//! target folder.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use nexus_runtime::clock::Clock;
use tokio::{process::Command, sync::OnceCell};

/// What a server has that the smallest Debian has not.
const MORE: &str = "systemd,systemd-sysv,dbus,init-system-helpers,iproute2";
/// From slow mirrors too.
const PATIENCE: Duration = Duration::from_secs(600);
/// Security updates come; an older archive is made anew.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

static ARCHIVE: OnceCell<PathBuf> = OnceCell::const_new();

/// A fresh root in `root`.
pub(super) async fn unpack(root: &Path) {
    let archive = ARCHIVE.get_or_init(archive).await;
    fs::create_dir(root).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(archive);
    succeeds(tar.arg("--directory").arg(root)).await;
}

async fn archive() -> PathBuf {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let mut lines = release.lines();
    let codename = lines.find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.unwrap_or("bookworm").trim_matches('"');
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let archive = folder.join(format!("debian-{codename}.tar"));
    let age = fs::metadata(&archive).and_then(|metadata| metadata.modified());
    if age.is_ok_and(|made| Clock::system().now().since(made.into()) < KEPT) {
        return archive;
    }
    let begun = Clock::system().instant();
    let mut asked = Command::new("apt-get");
    asked.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]);
    let mirrors = succeeds(&mut asked).await;
    let work = tempfile::tempdir_in(folder).unwrap();
    let root = work.path().join("root");
    // What it mounts goes with its mount namespace, however it ends.
    let mut make = Command::new("unshare");
    make.args(["--mount", "debootstrap", "--variant=minbase"]);
    make.arg(format!("--include={MORE}"))
        .arg(codename)
        .arg(&root);
    // The one with all of it.
    let mut mirrors = mirrors.lines().filter(|uri| !uri.contains("security"));
    succeeds(make.args(mirrors.next())).await;
    // What an installer writes.
    let etc = |name: &str| root.join("etc").join(name);
    fs::write(etc("hostname"), "alpha\n").unwrap();
    fs::write(etc("hosts"), "127.0.0.1 localhost\n127.0.1.1 alpha\n").unwrap();
    // It would take the lock of apt at moments of its own.
    for timer in ["apt-daily.timer", "apt-daily-upgrade.timer"] {
        symlink("/dev/null", etc("systemd/system").join(timer)).unwrap();
    }
    let whole = work.path().join("whole.tar");
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--exclude=./var/cache/apt/archives/*.deb",
        "--file",
    ]);
    succeeds(tar.arg(&whole).arg("--directory").arg(&root).arg(".")).await;
    fs::rename(whole, &archive).unwrap();
    println!("a Debian root was made in {:?}", begun.elapsed());
    archive
}

/// Its standard output.
pub(super) async fn succeeds(command: &mut Command) -> String {
    let ended = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output());
    let output = ended.await.unwrap().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    let name = command.as_std().get_program().to_owned();
    let end = tail(&out);
    assert!(output.status.success(), "{name:?} failed: {end}\n{err}");
    out
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(2000);
    text.get(from..).unwrap_or(text)
}
