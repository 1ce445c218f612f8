//! Root in a state folder that belongs to the agent's own account.
//!
//! What is in such a folder, the account can change at any moment: a link there could lead root anywhere. So root acts
//! as the account while it reads and writes there.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::IdentityError;
use crate::exec::users;

/// This process becomes the owner of a folder, for good: what it goes on to do, it can do to nobody else. Called while
/// there is no other thread.
pub fn become_owner(path: &Path) -> Result<(), IdentityError> {
    let Some(acting) = AsOwner::of(path)? else {
        return Ok(());
    };
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    set_thread_res_gid(gid, gid, gid)
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(|error| IdentityError::Owner {
            path: path.to_owned(),
            source: error.into(),
        })?;
    // There is no way back to take.
    std::mem::forget(acting);
    Ok(())
}

/// The present thread, and those it starts, act as the owner of a folder until this is dropped.
#[derive(Debug)]
pub struct AsOwner {
    path: PathBuf,
    gid: Gid,
    groups: Vec<Gid>,
}

impl AsOwner {
    /// `None`: nothing has to change, since this is the owner, or the folder is not there yet. Who is neither owner nor
    /// root has no business there.
    pub fn of(path: &Path) -> Result<Option<Self>, IdentityError> {
        let fail = |source| IdentityError::Owner {
            path: path.to_owned(),
            source,
        };
        let own = rustix::process::geteuid();
        let metadata = match std::fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(fail(source)),
        };
        if metadata.uid() == own.as_raw() {
            return Ok(None);
        }
        if !own.is_root() {
            return Err(IdentityError::Foreign {
                path: path.to_owned(),
                owner: users::shown(metadata.uid()),
                own: users::shown(own.as_raw()),
            });
        }
        let acting = Self {
            path: path.to_owned(),
            gid: rustix::process::getegid(),
            groups: rustix::process::getgroups().map_err(|error| fail(error.into()))?,
        };
        let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
        // What was changed before a step that fails is undone by dropping `acting`.
        set_thread_groups(&[gid])
            .and_then(|()| set_thread_res_gid(None, gid, None))
            .and_then(|()| set_thread_res_uid(None, uid, None))
            .map_err(|error| fail(error.into()))?;
        Ok(Some(acting))
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        let back = set_thread_res_uid(None, Uid::ROOT, None)
            .and_then(|()| set_thread_res_gid(None, self.gid, None))
            .and_then(|()| set_thread_groups(&self.groups));
        if let Err(error) = back {
            // Nothing that needs root will work, and says so itself.
            tracing::error!(path = %self.path.display(), %error, "cannot be root again");
        }
    }
}
