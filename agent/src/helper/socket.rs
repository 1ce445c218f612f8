//! Where the helper listens: on the socket its service manager passes (sd_listen_fds(3)), or on one it binds itself.

use std::{
    fs, io,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::Mode,
    net::{AddressFamily, SocketType, sockopt},
};

/// For the agent's group too.
const MODE: u32 = 0o660;

/// Why there is nothing to listen on.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    /// What was passed cannot be told.
    #[error("cannot take the service manager's socket")]
    Passed(#[source] io::Error),
    /// More than one, or none of this kind.
    #[error("the service manager must pass one listening UNIX stream socket, not {0}")]
    Kind(String),
    /// Somebody could put another socket in its place.
    #[error("{} can be written by others than root: make the folder root's own (mode 0755)", .0.display())]
    Folder(PathBuf),
    /// Another file, or a helper that runs.
    #[error("{} is taken: {}", .0.display(), .1)]
    Taken(PathBuf, &'static str),
    /// The system refused.
    #[error("cannot listen on {path}", path = path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A socket to listen on.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listener: UnixListener,
    /// Where this program has made it; `None`: it is the service manager's, and others may come later.
    pub(super) own: Option<PathBuf>,
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(path) = &self.own
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "the socket stays behind");
        }
    }
}

/// The passed socket if there is one, or one at `path` for the group `gid`.
pub(super) fn open(path: &Path, gid: u32) -> Result<Door, SocketError> {
    let passed: Vec<RawFd> = sd_notify::listen_fds()
        .map_err(SocketError::Passed)?
        .collect();
    let door = match passed.as_slice() {
        [] => bind(path, gid)?,
        [number] => Door {
            listener: take(*number)?,
            own: None,
        },
        several => return Err(SocketError::Kind(format!("{} sockets", several.len()))),
    };
    let nonblocking = door.listener.set_nonblocking(true);
    nonblocking.map_err(SocketError::Passed)?;
    Ok(door)
}

#[expect(unsafe_code, reason = "a descriptor is passed as a number")]
fn take(number: RawFd) -> Result<UnixListener, SocketError> {
    // SAFETY: the service manager has opened it for this process, which takes it here and nowhere else.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    let passed = |error: rustix::io::Errno| SocketError::Passed(error.into());
    let fits = sockopt::socket_domain(&fd).map_err(passed)? == AddressFamily::UNIX
        && sockopt::socket_type(&fd).map_err(passed)? == SocketType::STREAM
        && sockopt::socket_acceptconn(&fd).map_err(passed)?;
    if fits {
        Ok(fd.into())
    } else {
        Err(SocketError::Kind("another kind of socket".to_owned()))
    }
}

fn bind(path: &Path, gid: u32) -> Result<Door, SocketError> {
    let fail = |source| SocketError::Bind {
        path: path.to_owned(),
        source,
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(fail)?;
    let metadata = fs::metadata(folder).map_err(fail)?;
    let own = rustix::process::geteuid().as_raw();
    // What follows goes by the path, and must not go where somebody else points it.
    if metadata.uid() != own || metadata.mode() & 0o022 != 0 {
        return Err(SocketError::Folder(folder.to_owned()));
    }
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(SocketError::Taken(path.to_owned(), "it is no socket"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(SocketError::Taken(path.to_owned(), "another helper runs"));
        }
        // A helper that was killed left it.
        Ok(_) => fs::remove_file(path).map_err(fail)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound.map_err(fail)?;
    std::os::unix::fs::chown(path, None, Some(gid)).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(fail)?;
    Ok(Door {
        listener,
        own: Some(path.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn own_group() -> u32 {
        rustix::process::getegid().as_raw()
    }

    #[test]
    fn the_socket_is_for_the_group_and_goes_with_the_helper() {
        let dir = folder();
        let path = dir.path().join("helper.sock");
        let door = bind(&path, own_group()).unwrap();
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o660);
        let error = bind(&path, own_group()).unwrap_err();
        assert!(
            matches!(error, SocketError::Taken(_, "another helper runs")),
            "{error}"
        );
        drop(door);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_helper_left_is_replaced_and_nothing_else_is() {
        let dir = folder();
        let path = dir.path().join("helper.sock");
        drop(UnixListener::bind(&path).unwrap());
        drop(bind(&path, own_group()).unwrap());
        fs::write(&path, "precious").unwrap();
        let error = bind(&path, own_group()).unwrap_err();
        assert!(matches!(error, SocketError::Taken(..)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_folder_that_others_write_is_no_place_for_it() {
        let dir = folder();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = bind(&dir.path().join("helper.sock"), own_group()).unwrap_err();
        assert!(matches!(error, SocketError::Folder(_)), "{error}");
    }

    #[test]
    fn what_is_passed_must_be_a_listening_stream_socket() {
        use std::os::{fd::IntoRawFd as _, unix::net::UnixStream};
        let dir = folder();
        let listener = UnixListener::bind(dir.path().join("one")).unwrap();
        take(listener.into_raw_fd()).unwrap();
        let (one, _two) = UnixStream::pair().unwrap();
        let error = take(one.into_raw_fd()).unwrap_err();
        assert!(matches!(error, SocketError::Kind(_)), "{error}");
    }
}
