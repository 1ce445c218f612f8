//! Root at the collector's state folder. A package gives the folder a user of its own, as whom the service runs, and an
//! administrator calls `init` and `login-code` as root: what these write would be nothing that the service can read. So
//! root becomes the folder's owner first, for good. Anybody else who may not look into it is told who may.

use std::{fs, io, path::Path};

use nexus_runtime::{
    fault::{Fault, Outcome},
    owner::{self, OwnerError},
};
use rustix::{
    fs::{Access, access},
    process::geteuid,
};

/// Called while there is no other thread: the ones to come are the owner too.
pub(crate) fn become_owner(folder: &Path) -> Outcome {
    match owner::become_owner(folder) {
        Ok(()) => Ok(()),
        Err(OwnerError::Foreign(uid)) => {
            match access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
                Err(rustix::io::Errno::ACCESS) => Err(foreign(folder, uid, geteuid().as_raw())),
                // What else keeps it from being used says so itself.
                _ => Ok(()),
            }
        }
        Err(OwnerError::Io(error)) => {
            let what = format!("act as the owner of {}", folder.display());
            let fault = Fault::because(what, &error);
            Err(match error.kind() {
                io::ErrorKind::PermissionDenied => fault.hint("run it as root"),
                _ => fault,
            })
        }
    }
}

fn foreign(folder: &Path, owner: u32, own: u32) -> Fault {
    let who = match owner {
        0 => "root".to_owned(),
        owner => format!("root, or as {}", shown(owner)),
    };
    let (owner, own) = (shown(owner), shown(own));
    let why = format!("it belongs to the user {owner}, and this is {own}");
    Fault::new(format!("open {}", folder.display()), why).hint(format!(
        "run it as {who}; for a collector of your own, name another folder with --state-dir"
    ))
}

/// A user as people know it.
fn shown(uid: u32) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let number = uid.to_string();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(number.as_str())).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("number {number}"))
}
