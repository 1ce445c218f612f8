//! Who publishes packages: has a signing key, and makes repositories with `packaging/repo.sh`.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process,
};

use tempfile::TempDir;
use tokio::process::Command;

use super::{debian::succeeds, package::HERE};

const KEY: &str = "packages@nexus.example.org";

pub(super) struct Publisher {
    /// Laid out as the script expects it, with what is to be published in `dist`.
    dir: TempDir,
}

impl Publisher {
    /// With a key of its own, and the packages that were built.
    pub(super) async fn new() -> Self {
        let here = Path::new(HERE);
        let dir = tempfile::tempdir().unwrap();
        let publisher = Self { dir };
        for folder in ["packaging", "dist"] {
            fs::create_dir(publisher.dir.path().join(folder)).unwrap();
        }
        fs::copy(here.join("packaging/repo.sh"), publisher.script()).unwrap();
        for file in fs::read_dir(here.join("dist")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), publisher.dist().join(file.file_name())).unwrap();
        }
        let mut folder = fs::DirBuilder::new();
        folder.mode(0o700).create(publisher.keys()).unwrap();
        let mut make = Command::new("gpg");
        make.args(["--batch", "--quiet", "--passphrase", ""]);
        make.args(["--quick-generate-key", KEY, "rsa3072", "sign", "never"]);
        succeeds(make.env("GNUPGHOME", publisher.keys())).await;
        publisher
    }

    /// The folder of what is published.
    pub(super) fn dist(&self) -> PathBuf {
        self.dir.path().join("dist")
    }

    /// Publishes it, beside what is in the trees already.
    pub(super) async fn publish(&self, trees: &Path) {
        let mut publish = Command::new(self.script());
        publish.env("GNUPGHOME", self.keys());
        succeeds(publish.arg(KEY).arg(trees)).await;
    }

    fn script(&self) -> PathBuf {
        self.dir.path().join("packaging/repo.sh")
    }

    fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let mut end = process::Command::new("gpgconf");
        end.args(["--kill", "all"]).env("GNUPGHOME", self.keys());
        // It would end by itself, without its folder.
        drop(end.status());
    }
}
