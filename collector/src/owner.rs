//! Root at the collector's state folder. A package gives the folder a user of its own, as whom the service runs, and an
//! administrator calls `init` and `login-code` as root: what these write would be nothing that the service can read. So
//! root becomes the folder's owner first, for good. Anybody else who may not look into it is told who may.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use nexus_runtime::fault::{Doing as _, Fault, Outcome};
use rustix::{
    fs::{Access, access},
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
        Err(error) => {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            let fault = Fault::because(what(), &error);
            return Err(match denied {
                true => fault.hint("run it as root"),
                false => fault,
            });
        }
    };
    let own = geteuid();
    if !own.is_root() {
        return match access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
            Err(rustix::io::Errno::ACCESS) if metadata.uid() != own.as_raw() => {
                Err(foreign(folder, metadata.uid(), own.as_raw()))
            }
            // What else keeps it from being used says so itself.
            _ => Ok(()),
        };
    }
    if metadata.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    set_thread_groups(&[gid])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .doing(what())
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
