//! The helper has no network: it leaves the namespace it was started in for an empty one, and keeps the way back for
//! the programs it runs.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
};

use rustix::thread::UnshareFlags;

const OWN: &str = "/proc/self/ns/net";

/// Why the helper would have a network.
#[derive(Debug, thiserror::Error)]
pub(super) enum NamespaceError {
    /// The present one cannot be kept for jobs.
    #[error("cannot open {OWN}, by which jobs get their network")]
    Keep(#[source] io::Error),
    /// It is not permitted.
    #[error("cannot leave the network (unshare(CLONE_NEWNET))")]
    Leave(#[source] io::Error),
    /// The kernel says it was done, and it was not.
    #[error("the kernel did not give an empty network")]
    Same,
}

/// Leaves the present network for an empty one; what was left. Before any other thread is started, since those that run
/// would stay behind.
#[expect(
    unsafe_code,
    reason = "unshare(2) could take descriptors from other threads"
)]
pub(super) fn leave() -> Result<OwnedFd, NamespaceError> {
    let kept = File::open(OWN).map_err(NamespaceError::Keep)?;
    // SAFETY: only the network's namespace is left; descriptors stay shared, and there is no other thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|error| NamespaceError::Leave(error.into()))?;
    let before = kept.metadata().map_err(NamespaceError::Keep)?.ino();
    let now = std::fs::metadata(OWN).map_err(NamespaceError::Keep)?.ino();
    if before == now {
        return Err(NamespaceError::Same);
    }
    Ok(kept.into())
}
