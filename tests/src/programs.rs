//! The programs under test, built once for all tests with the profile the tests were built with.

use std::path::{Path, PathBuf};

use tokio::{process::Command, sync::OnceCell};

use crate::fault::{Fault, Outcome};

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

static BUILT: OnceCell<Programs> = OnceCell::const_new();

impl Programs {
    /// Builds them if need be.
    pub async fn built() -> Outcome<&'static Self> {
        BUILT.get_or_try_init(build).await
    }

    /// A program by name, with none of our settings from the caller's environment.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        self.command_within(name, None)
    }

    /// The same within a network namespace.
    #[must_use]
    pub fn command_within(&self, name: &str, namespace: Option<&str>) -> Command {
        let program = self.folder.join(name);
        let mut command = match namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
        };
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if text.starts_with("NEXUS") || text == "NOTIFY_SOCKET" {
                command.env_remove(&variable);
            }
        }
        command
    }

    /// The folder they are in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// `cargo test` builds the programs only of packages that have integration tests, so this asks for all.
async fn build() -> Outcome<Programs> {
    let own = std::env::current_exe().map_err(Fault::io("find the test's own program"))?;
    let beside = own.parent().unwrap_or(&own);
    if beside.file_name().is_none_or(|name| name != "deps") {
        // A program of its own measures the programs it was built with.
        return Ok(Programs {
            folder: beside.to_owned(),
        });
    }
    // TARGET/PROFILE/deps/e2e-HASH
    let folder = beside.parent();
    let folder = folder.ok_or_else(|| Fault::new("the test runs outside of a target folder"))?;
    let target = folder.parent().unwrap_or(folder);
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text == "CARGO_MANIFEST_DIR" {
            command.env_remove(&variable);
        }
    }
    command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args([
            "build",
            "--quiet",
            "--workspace",
            "--bins",
            "--locked",
            "--target-dir",
        ])
        .arg(target);
    if folder.file_name().is_some_and(|name| name == "release") {
        command.arg("--release");
    }
    let output = command.output().await.map_err(Fault::io("run cargo"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Fault::new(format!("the programs do not build: {said}")));
    }
    Ok(Programs {
        folder: folder.to_owned(),
    })
}
