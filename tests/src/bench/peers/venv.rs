//! Salt and Ansible from PyPI, in a virtual environment that is kept for the next time.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use crate::fault::{Fault, Outcome};

/// What is installed.
const PACKAGES: [&str; 2] = ["salt", "ansible-core"];
/// Is there once all is installed.
const COMPLETE: &str = "complete";
/// To download and install it on a slow network.
const PATIENCE: Duration = Duration::from_secs(900);

/// A virtual environment with both.
#[derive(Debug, Clone)]
pub struct Venv {
    dir: PathBuf,
}

impl Venv {
    /// Finds it in `cache`, or makes it there; without a network that fails soon.
    pub async fn within(cache: &Path, say: &dyn Fn(&str)) -> Outcome<Self> {
        let dir = cache.join("venv");
        let venv = Self { dir };
        if venv.dir.join(COMPLETE).exists() {
            return Ok(venv);
        }
        say(&format!(
            "installing {} into {}",
            PACKAGES.join(" and "),
            venv.dir.display()
        ));
        std::fs::create_dir_all(cache).map_err(Fault::io(cache.display()))?;
        let mut make = Command::new("python3");
        install(make.args(["-m", "venv"]).arg(&venv.dir)).await?;
        let mut pip = venv.program("pip");
        pip.args(["install", "--quiet", "--retries", "1", "--timeout", "20"]);
        install(pip.args(PACKAGES)).await?;
        let complete = venv.dir.join(COMPLETE);
        std::fs::write(&complete, "").map_err(Fault::io(complete.display()))?;
        Ok(venv)
    }

    /// One of its programs.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        Command::new(self.path(name))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// The first line of `NAME --version`.
    pub async fn version(&self, name: &str) -> Outcome<String> {
        let output = self.program(name).arg("--version").output().await;
        let output = output.map_err(Fault::io(name))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

async fn install(command: &mut Command) -> Outcome {
    let what = format!("{:?}", command.as_std());
    let ended = timeout(PATIENCE, command.kill_on_drop(true).output()).await;
    let output = ended
        .map_err(|_| Fault::new(format!("{what} does not end")))?
        .map_err(Fault::io(&what))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().last().unwrap_or_default();
    Err(Fault::new(format!("{what}: {last}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_complete_is_not_installed_again() {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("venv");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(COMPLETE), "").unwrap();
        let silent = |text: &str| panic!("{text}");
        let venv = Venv::within(cache.path(), &silent).await.unwrap();
        assert_eq!(venv.path("salt"), dir.join("bin/salt"));
    }
}
