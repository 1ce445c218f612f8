//! The Debian that the machines of these tests begin as, and one that has dnf as well: each made once, then kept as an
//! archive in the target folder.

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
/// Into a root that is no machine yet, and will reach no mirror once it is one.
const ADD_DNF: &str = "apt-get --quiet=2 update
    apt-get --quiet=2 --yes --no-install-recommends -o DPkg::Options::=--force-unsafe-io install dnf rpm
    apt-get clean
    rm -r /var/lib/apt/lists/* /usr/share/doc /usr/share/locale /usr/share/man";
/// From slow mirrors too.
const PATIENCE: Duration = Duration::from_secs(600);
/// Security updates come; an older archive is made anew.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

static STOCK: OnceCell<PathBuf> = OnceCell::const_new();
static WITH_DNF: OnceCell<PathBuf> = OnceCell::const_new();

/// What a machine begins as.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Stock,
    WithDnf,
}

/// A fresh root in `root`.
pub(super) async fn unpack(kind: Kind, root: &Path) {
    let archive = match kind {
        Kind::Stock => STOCK.get_or_init(stock).await,
        Kind::WithDnf => WITH_DNF.get_or_init(with_dnf).await,
    };
    extract(archive, root).await;
}

async fn extract(archive: &Path, root: &Path) {
    fs::create_dir(root).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(archive);
    succeeds(tar.arg("--directory").arg(root)).await;
}

async fn stock() -> PathBuf {
    archive("debian", bootstrap).await
}

async fn with_dnf() -> PathBuf {
    archive("debian-dnf", add_dnf).await
}

/// The archive of that name, of a root that `make` makes if it must.
async fn archive(name: &str, make: impl AsyncFnOnce(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let archive = folder.join(format!("{name}-{}.tar", codename()));
    let age = fs::metadata(&archive).and_then(|metadata| metadata.modified());
    if age.is_ok_and(|made| Clock::system().now().since(made.into()) < KEPT) {
        return archive;
    }
    let begun = Clock::system().instant();
    let work = tempfile::tempdir_in(folder).unwrap();
    let root = work.path().join("root");
    make(&root).await;
    let whole = work.path().join("whole.tar");
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--exclude=./var/cache/apt/archives/*.deb",
        "--file",
    ]);
    succeeds(tar.arg(&whole).arg("--directory").arg(&root).arg(".")).await;
    fs::rename(whole, &archive).unwrap();
    println!("{name} was made in {:?}", begun.elapsed());
    archive
}

async fn bootstrap(root: &Path) {
    let mut asked = Command::new("apt-get");
    asked.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]);
    let mirrors = succeeds(&mut asked).await;
    // What it mounts goes with its mount namespace, however it ends.
    let mut make = Command::new("unshare");
    make.args(["--mount", "debootstrap", "--variant=minbase"]);
    make.arg(format!("--include={MORE}"))
        .arg(codename())
        .arg(root);
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
}

/// To a stock one. Debian has rpm for those who look into packages, so its database is whoever calls it: here it is the
/// machine's, where rpm itself has it by default.
async fn add_dnf(root: &Path) {
    extract(STOCK.get_or_init(stock).await, root).await;
    let script = format!("set -e\n{ADD_DNF}");
    let mut install = Command::new("chroot");
    install.arg(root).args(["sh", "-c", &script]);
    install.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    succeeds(install.env("LC_ALL", "C.UTF-8")).await;
    let folder = root.join("etc/rpm");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("macros"), "%_dbpath /var/lib/rpm\n").unwrap();
}

fn codename() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let mut lines = release.lines();
    let codename = lines.find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.unwrap_or("bookworm").trim_matches('"').to_owned()
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
