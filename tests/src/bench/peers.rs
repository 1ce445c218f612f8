//! Programs of others that do a part of the work, measured in the same run: [`prometheus`] from Debian,
//! [`salt`] and [`ansible`] from PyPI ([`venv`]). Each runs in a folder of its own, listens on loopback only, and
//! ends with its handle. One that is not there is said to be missing, and ours is measured alone.

pub mod ansible;
pub mod exposition;
pub mod prometheus;
pub mod salt;
pub mod venv;

use std::path::PathBuf;

/// Where they are kept that had to be installed: `nexus-bench` in the user's cache folder.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let given = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = given.filter(|dir| dir.is_absolute()).or_else(home)?;
    Some(cache.join("nexus-bench"))
}
