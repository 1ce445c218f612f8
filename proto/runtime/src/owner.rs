//! Root in a folder of state that belongs to a service's own account.
//!
//! What is in such a folder, the account can change at any moment: a link there could lead root anywhere, and what root
//! writes there the service could not read. So root acts as the account while it reads and writes there.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use rustix::{
    process::{Gid, Uid, getegid, geteuid, getgroups},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// Why nobody can act as a folder's owner.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Neither its owner nor root looks at it.
    #[error("it belongs to the user number {0}")]
    Foreign(u32),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// This process becomes the owner of a folder, for good: what it goes on to do, it can do to nobody else. Called while
/// there is no other thread: the ones to come are the owner too.
pub fn become_owner(folder: &Path) -> Result<(), OwnerError> {
    let Some(acting) = AsOwner::of(folder)? else {
        return Ok(());
    };
    let (uid, gid) = (geteuid(), getegid());
    set_thread_res_gid(gid, gid, gid)
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(io::Error::from)?;
    // There is no way back to take.
    std::mem::forget(acting);
    Ok(())
}

/// The present thread, and those it starts, act as the owner of a folder until this is dropped.
#[derive(Debug)]
pub struct AsOwner {
    gid: Gid,
    groups: Vec<Gid>,
}

impl AsOwner {
    /// `None`: nothing has to change, since this is the owner, or the folder is not there yet: whoever makes it owns it.
    /// Who is neither owner nor root has no business there.
    pub fn of(folder: &Path) -> Result<Option<Self>, OwnerError> {
        let metadata = match look_at(folder) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let own = geteuid();
        if metadata.uid() == own.as_raw() {
            return Ok(None);
        }
        if !own.is_root() {
            return Err(OwnerError::Foreign(metadata.uid()));
        }
        let acting = Self {
            gid: getegid(),
            groups: getgroups().map_err(io::Error::from)?,
        };
        let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
        // What was changed before a step that fails is undone by dropping `acting`.
        set_thread_groups(&[gid])
            .and_then(|()| set_thread_res_gid(None, gid, None))
            .and_then(|()| set_thread_res_uid(None, uid, None))
            .map_err(io::Error::from)?;
        Ok(Some(acting))
    }
}

/// A link of root's leads where root wants the folder to be; one of somebody else's leads root nowhere.
fn look_at(folder: &Path) -> io::Result<Metadata> {
    let metadata = fs::symlink_metadata(folder)?;
    if metadata.is_symlink() && metadata.uid() == 0 {
        return fs::metadata(folder);
    }
    Ok(metadata)
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        let back = set_thread_res_uid(None, Uid::ROOT, None)
            .and_then(|()| set_thread_res_gid(None, self.gid, None))
            .and_then(|()| set_thread_groups(&self.groups));
        if let Err(error) = back {
            // Nothing that needs root will work, and says so itself.
            tracing::error!(%error, "cannot be root again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, lchown, symlink};

    use super::*;

    /// Who makes a file, on a thread that acts as the owner of that folder.
    fn maker(folder: &Path) -> u32 {
        let file = folder.join("made");
        std::thread::scope(|scope| {
            let act = || {
                let _owner = AsOwner::of(folder).unwrap();
                fs::write(&file, "").unwrap();
            };
            scope.spawn(act).join().unwrap();
        });
        let uid = fs::metadata(&file).unwrap().uid();
        fs::remove_file(file).unwrap();
        uid
    }

    #[test]
    fn root_acts_as_whoever_has_the_folder_wherever_its_own_link_leads() {
        let dir = tempfile::tempdir().unwrap();
        let own = geteuid().as_raw();
        assert_eq!(maker(dir.path()), own);
        let none = AsOwner::of(&dir.path().join("none"));
        assert!(matches!(none, Ok(None)));
        if own != 0 {
            // Nobody else can give folders away.
            let refused = AsOwner::of(Path::new("/"));
            assert!(matches!(refused, Err(OwnerError::Foreign(0))));
            return;
        }
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).unwrap();
        let (folder, link) = (dir.path().join("folder"), dir.path().join("link"));
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(12_345), Some(12_345)).unwrap();
        symlink(&folder, &link).unwrap();
        assert_eq!((maker(&folder), maker(&link)), (12_345, 12_345));
        // Somebody else's link to what is root's.
        fs::remove_file(&link).unwrap();
        fs::write(dir.path().join("precious"), "").unwrap();
        symlink(dir.path(), &link).unwrap();
        lchown(&link, Some(12_345), Some(12_345)).unwrap();
        let owner = AsOwner::of(&link).unwrap();
        assert!(owner.is_some() && fs::write(link.join("precious"), "").is_err());
    }
}
