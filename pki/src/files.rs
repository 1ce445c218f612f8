//! Files that hold keys: written whole or not at all, readable by their owner alone.
//!
//! A file is made under a temporary name with mode 0600, synced, renamed over its name, and the folder
//! is synced; two programs that write into one folder take turns. A key that others may read is refused on loading,
//! since it must count as known to them, and so is what others could have written where it decides whom to trust.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags};

/// The largest file of this crate: a key and a chain take a few KiB.
const FILE_BYTES: u64 = 1024 * 1024;

/// A file or folder of keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others than the owner may read a key.
    #[error("{} has mode {mode:04o}: others can read the key; make a new one, or chmod 600 if nobody did", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others than the owner may write what is trusted.
    #[error("{} has mode {mode:04o}: others can write it; find out whether they did, then chmod go-w", path.display())]
    Writable {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Of somebody else, who can write it whatever its mode.
    #[error("{} belongs to the user {owner}, not to the one that runs this program", path.display())]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// The user's number.
        owner: u32,
    },
    /// A folder, pipe or device.
    #[error("{} is no file", path.display())]
    NoFile {
        /// What is there.
        path: PathBuf,
    },
    /// Larger than any file of ours.
    #[error("{} is larger than {FILE_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

impl FileError {
    /// Whether the file simply does not exist.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether it takes another user.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Makes a folder, and the ones above it, with mode 0700; an existing one is left as it is. When others may write it,
/// it is closed to them if it is ours and nothing is in it yet, and refused otherwise.
pub fn create_folder(dir: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(fail("make the folder", dir))?;
    let metadata = fs::metadata(dir).map_err(fail("examine", dir))?;
    let refused = match check_unwritable(dir, &metadata) {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    let empty = fs::read_dir(dir)
        .map_err(fail("list", dir))?
        .next()
        .is_none();
    if !empty || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused);
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(fail("close to others", dir))
}

/// Replaces `dir/name` by `bytes` with mode 0600; after a crash either the old or the new file is there.
pub fn write_private(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), FileError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.new"));
    let folder = File::open(dir).map_err(fail("open", dir))?;
    // Until it is closed: nobody else's temporary file is removed or renamed here.
    rustix::fs::flock(&folder, FlockOperation::LockExclusive)
        .map_err(io::Error::from)
        .map_err(fail("lock the folder", dir))?;
    // One left by a crash; `create_new` below then also refuses links placed there.
    match fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail("remove", &temporary)(error)),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(fail("create", &temporary))?;
    file.write_all(bytes).map_err(fail("write", &temporary))?;
    file.sync_all().map_err(fail("sync", &temporary))?;
    fs::rename(&temporary, &path).map_err(fail("rename to", &path))?;
    folder.sync_all().map_err(fail("sync the folder", dir))
}

/// A new folder that is filled under a temporary name and then appears whole, or not at all.
pub(crate) struct NewFolder {
    temporary: PathBuf,
    path: PathBuf,
}

impl NewFolder {
    /// Begins one for `path`. What an earlier attempt left under the temporary name is removed.
    pub(crate) fn begin(path: &Path) -> Result<Self, FileError> {
        let no_name = || io::Error::from(io::ErrorKind::InvalidInput);
        let name = path
            .file_name()
            .ok_or_else(no_name)
            .map_err(fail("make the folder", path))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".new");
        let temporary = path.with_file_name(hidden);
        match fs::remove_dir_all(&temporary) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail("remove", &temporary)(error)),
        }
        create_folder(&temporary)?;
        Ok(Self {
            temporary,
            path: path.to_owned(),
        })
    }

    /// Where to write its files.
    pub(crate) fn filling(&self) -> &Path {
        &self.temporary
    }

    /// Gives it its name. Fails when there is a folder of that name with anything in it.
    pub(crate) fn finish(self) -> Result<(), FileError> {
        fs::rename(&self.temporary, &self.path).map_err(fail("rename to", &self.path))?;
        let above = folder_of(&self.path);
        File::open(above)
            .and_then(|folder| folder.sync_all())
            .map_err(fail("sync the folder", above))
    }
}

/// Reads a file with a key in it.
pub fn read_private(path: &Path) -> Result<Vec<u8>, FileError> {
    read_all(open_private(path)?, path)
}

/// Checks a file with a key in it without reading it.
pub fn check_private(path: &Path) -> Result<(), FileError> {
    open_private(path).map(drop)
}

fn open_private(path: &Path) -> Result<File, FileError> {
    let (file, metadata) = open(path)?;
    let mode = permissions(&metadata);
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    check_owner(path, &metadata)?;
    Ok(file)
}

/// Reads a file that decides whom to trust: nobody else may write it, or put another in its place.
pub fn read_trusted(path: &Path) -> Result<Vec<u8>, FileError> {
    let (file, metadata) = open(path)?;
    let dir = folder_of(path);
    for (path, metadata) in [
        (dir, &fs::metadata(dir).map_err(fail("examine", dir))?),
        (path, &metadata),
    ] {
        check_unwritable(path, metadata)?;
        check_owner(path, metadata)?;
    }
    read_all(file, path)
}

/// Reads a file without secrets.
pub fn read_public(path: &Path) -> Result<Vec<u8>, FileError> {
    read_all(open(path)?.0, path)
}

/// Reads a key from the folder that the service manager has made for this program alone. Owner and mode there are the
/// service manager's business: it may be root's, and opened by an access control list that shows as the group's.
pub fn read_credential(path: &Path) -> Result<Vec<u8>, FileError> {
    read_all(open(path)?.0, path)
}

/// Opens a regular file. A pipe would never answer.
fn open(path: &Path) -> Result<(File, Metadata), FileError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(fail("open", path))?;
    let metadata = file.metadata().map_err(fail("examine", path))?;
    if !metadata.is_file() {
        return Err(FileError::NoFile {
            path: path.to_owned(),
        });
    }
    Ok((file, metadata))
}

fn permissions(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

fn check_unwritable(path: &Path, metadata: &Metadata) -> Result<(), FileError> {
    let mode = permissions(metadata);
    if mode & 0o022 == 0 {
        return Ok(());
    }
    Err(FileError::Writable {
        path: path.to_owned(),
        mode,
    })
}

/// Ours or root's. Root also reads what belongs to the account of a service, as the folder does.
fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), FileError> {
    let (owner, own) = (metadata.uid(), rustix::process::geteuid());
    if owner == own.as_raw() || owner == 0 {
        return Ok(());
    }
    if own.is_root() && fs::metadata(folder_of(path)).is_ok_and(|folder| folder.uid() == owner) {
        return Ok(());
    }
    Err(FileError::Foreign {
        path: path.to_owned(),
        owner,
    })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    }
}

fn read_all(file: File, path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(fail("read", path))?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > FILE_BYTES) {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_whole_files_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".key.new"), "left by a crash").unwrap();
        write_private(dir.path(), "key", b"one").unwrap();
        write_private(dir.path(), "key", b"two").unwrap();
        let path = dir.path().join("key");
        assert_eq!(read_private(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_a_key_that_others_can_read() {
        let dir = tempfile::tempdir().unwrap();
        write_private(dir.path(), "key", b"one").unwrap();
        let path = dir.path().join("key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            read_private(&path),
            Err(FileError::Exposed { mode: 0o640, .. })
        ));
        assert!(
            read_private(&dir.path().join("none"))
                .unwrap_err()
                .is_missing()
        );
    }

    #[test]
    fn a_link_at_the_temporary_name_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(".key.new")).unwrap();
        write_private(dir.path(), "key", b"secret").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }

    #[test]
    fn a_new_folder_appears_whole_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca");
        fs::create_dir(dir.path().join(".ca.new")).unwrap();
        fs::write(dir.path().join(".ca.new/half"), "left by a crash").unwrap();
        let new = NewFolder::begin(&path).unwrap();
        write_private(new.filling(), "key", b"one").unwrap();
        assert!(!path.exists());
        new.finish().unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let again = NewFolder::begin(&path).unwrap();
        write_private(again.filling(), "key", b"two").unwrap();
        again.finish().unwrap_err();
        assert_eq!(read_private(&path.join("key")).unwrap(), b"one");
    }

    #[test]
    fn writers_of_one_folder_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let whole = |letter: u8| vec![letter; 100_000];
        std::thread::scope(|scope| {
            for letter in b'a'..b'e' {
                let (dir, bytes) = (dir.path(), whole(letter));
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_private(dir, "key", &bytes).unwrap();
                        let read = read_private(&dir.join("key")).unwrap();
                        assert!(
                            read.len() == bytes.len() && read.iter().all(|one| *one == read[0])
                        );
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_decides_whom_to_trust_is_written_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.pem");
        fs::write(&path, "trust").unwrap();
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        set(&path, 0o644);
        assert_eq!(read_trusted(&path).unwrap(), b"trust");
        for writable in [0o664, 0o646] {
            set(&path, writable);
            assert!(matches!(
                read_trusted(&path),
                Err(FileError::Writable { mode, .. }) if mode == writable
            ));
        }
        set(&path, 0o644);
        set(dir.path(), 0o777);
        assert!(matches!(
            read_trusted(&path),
            Err(FileError::Writable { mode: 0o777, .. })
        ));
        assert!(create_folder(dir.path()).is_err());
        // Where nothing is yet, nobody has put anything.
        fs::remove_file(&path).unwrap();
        create_folder(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn what_belongs_to_somebody_else_is_no_key_of_ours() {
        if !rustix::process::geteuid().is_root() {
            // Nobody else can give files away.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        write_private(dir.path(), "key", b"one").unwrap();
        let path = dir.path().join("key");
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        for read in [read_private, read_trusted] {
            assert!(matches!(
                read(&path),
                Err(FileError::Foreign { owner: 12_345, .. })
            ));
        }
        // A service's own, looked at by an administrator.
        std::os::unix::fs::chown(dir.path(), Some(12_345), None).unwrap();
        assert_eq!(read_private(&path).unwrap(), b"one");
    }

    #[test]
    fn a_pipe_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        for read in [read_private, read_trusted, read_public] {
            assert!(matches!(read(&path), Err(FileError::NoFile { .. })));
        }
        assert!(matches!(
            read_public(dir.path()),
            Err(FileError::NoFile { .. })
        ));
    }

    #[test]
    fn folders_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        create_folder(&deep).unwrap();
        create_folder(&deep).unwrap();
        assert_eq!(fs::metadata(&deep).unwrap().mode() & 0o7777, 0o700);
    }
}
