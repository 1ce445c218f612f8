//! The debs that `packaging/build.sh` left in `dist/`, and later versions of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::debian::succeeds;

/// The repository.
pub(super) const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The deb of that package.
pub(super) fn built(name: &str) -> PathBuf {
    let version = |rest: &str| rest.starts_with('_') && rest.ends_with(".deb");
    in_dist(name, version)
}

/// The file that begins with that name, and goes on like that.
pub(super) fn in_dist(name: &str, goes_on: impl Fn(&str) -> bool) -> PathBuf {
    let dist = Path::new(HERE).join("dist");
    let found = fs::read_dir(&dist).into_iter().flatten().flatten();
    let mut files = found.map(|entry| entry.path()).filter(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.strip_prefix(name).is_some_and(&goes_on)
    });
    let file = files.next();
    file.unwrap_or_else(|| panic!("no {name} in {}: run packaging/build.sh", dist.display()))
}

/// The same package with that added to its version, once its files have been changed.
pub(super) async fn later(name: &str, added: &str, to: &Path, change: impl FnOnce(&Path)) {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    let mut unpack = Command::new("dpkg-deb");
    succeeds(unpack.arg("--raw-extract").arg(built(name)).arg(&tree)).await;
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let version = version_in(&text);
    let text = text.replace(
        &format!("\nVersion: {version}\n"),
        &format!("\nVersion: {version}{added}\n"),
    );
    fs::write(&control, text).unwrap();
    change(&tree);
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--build", "--root-owner-group", "-Znone"]);
    succeeds(pack.arg(&tree).arg(to)).await;
}

/// The version of what was built.
pub(super) async fn version(name: &str) -> String {
    let mut ask = Command::new("dpkg-deb");
    let text = succeeds(ask.arg("--field").arg(built(name)).arg("Version")).await;
    text.trim().to_owned()
}

fn version_in(control: &str) -> &str {
    let mut lines = control.lines();
    lines
        .find_map(|line| line.strip_prefix("Version: "))
        .unwrap()
}
