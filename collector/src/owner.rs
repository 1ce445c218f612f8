//! Root at the collector's state folder. A package gives the folder a user of its own, as whom the service runs, and an
//! administrator calls `init` and `login-code` as root: what these write would be nothing that the service can read. So
//! root becomes the folder's owner first, for good.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use nexus_runtime::fault::{Doing as _, Outcome};
use rustix::{
    process::{Gid, Uid, geteuid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// Called while there is no other thread: the ones to come are the owner too.
pub(crate) fn become_owner(folder: &Path) -> Outcome {
    let what = || format!("act as the owner of {}", folder.display());
    let metadata = match fs::metadata(folder) {
        Ok(metadata) => metadata,
        // Whoever makes it owns it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).doing(what()),
    };
    if !geteuid().is_root() || metadata.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    set_thread_groups(&[gid])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .doing(what())
}
