//! File systems that fail when a test wants it. Needs mount, losetup and e2fsprogs.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A small file system over a folder.
pub(super) struct Small(PathBuf);

impl Small {
    pub(super) fn over(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=32m,mode=0700", "tmpfs"]);
        run(mount.arg(dir));
        Self(dir.to_owned())
    }

    pub(super) fn fill(&self) {
        let mut filler = File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    pub(super) fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Programs that are still being killed hold it: detach it now.
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

/// An ext4 file system on a disk of its own, which is a file in memory.
pub(super) struct Disk {
    at: PathBuf,
    /// Goes with the test.
    _image: tempfile::TempPath,
    device: String,
}

impl Disk {
    pub(super) fn over(dir: &Path) -> Self {
        let image = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        image.as_file().set_len(128 << 20).unwrap();
        let image = image.into_temp_path();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        let mut losetup = Command::new("losetup");
        let device = run(losetup.args(["--find", "--show"]).arg(&image));
        fs::create_dir_all(dir).unwrap();
        let disk = Self {
            at: dir.to_owned(),
            _image: image,
            device: device.trim().to_owned(),
        };
        disk.mount();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        // A program takes it for a folder of its own.
        fs::remove_dir(dir.join("lost+found")).unwrap();
        disk
    }

    fn mount(&self) {
        let mut mount = Command::new("mount");
        run(mount
            .args(["-o", "errors=remount-ro"])
            .arg(&self.device)
            .arg(&self.at));
    }

    /// The kernel finds a mistake in the file system and takes no more writes, as it does on a disk that fails.
    pub(super) fn turn_read_only(&self) {
        let name = self.device.trim_start_matches("/dev/");
        let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
        fs::write(trigger, "tried by a test").unwrap();
    }

    /// What an operator does then; nobody uses it meanwhile.
    pub(super) fn repair(&self) {
        run(Command::new("umount").arg(&self.at));
        // 1: mistakes were found and corrected.
        let check = Command::new("fsck.ext4")
            .args(["-y", "-f"])
            .arg(&self.device)
            .output()
            .unwrap();
        assert!(matches!(check.status.code(), Some(0 | 1)), "{check:?}");
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Programs that are still being killed hold it: detach it now.
        drop(Command::new("umount").arg("--lazy").arg(&self.at).status());
        let mut losetup = Command::new("losetup");
        drop(losetup.arg("--detach").arg(&self.device).status());
    }
}

/// Standard output of a program that succeeds.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
