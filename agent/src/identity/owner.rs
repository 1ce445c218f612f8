//! Root in the agent's state folder, as its owner.

use std::path::Path;

use nexus_runtime::owner::{self, AsOwner, OwnerError};
use rustix::process::geteuid;

use super::IdentityError;
use crate::exec::users::shown;

/// This process becomes the owner of a folder, for good. Called while there is no other thread.
pub fn become_owner(path: &Path) -> Result<(), IdentityError> {
    owner::become_owner(path).map_err(|error| refused(path, error))
}

/// The present thread acts as the owner of a folder until what is returned is dropped; `None`: nothing has to change.
pub fn as_owner(path: &Path) -> Result<Option<AsOwner>, IdentityError> {
    AsOwner::of(path).map_err(|error| refused(path, error))
}

fn refused(path: &Path, error: OwnerError) -> IdentityError {
    let path = path.to_owned();
    match error {
        OwnerError::Foreign(owner) => IdentityError::Foreign {
            path,
            owner: shown(owner),
            own: shown(geteuid().as_raw()),
        },
        OwnerError::Io(source) => IdentityError::Owner { path, source },
    }
}
