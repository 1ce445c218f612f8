//! What a process does between fork and exec: it leaves what it inherited and becomes what its job asks for.
//!
//! The order matters: the namespace of the network is entered while the process still may, the working folder is
//! entered as the job's user, and the parent's death is watched for last, since a change of user ends that.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    fs::{Gid, Mode, Uid},
    io::FdFlags,
    process::{Pid, Signal},
    thread::LinkNameSpaceType,
};
use tokio::process::Command;

/// What a service's settings make of files, jobs would not expect.
const UMASK: Mode = Mode::from_raw_mode(0o022);

/// What a child becomes.
pub(super) struct Child<'a> {
    /// The network to run in; `None`: the parent's.
    pub(super) network: Option<&'a OwnedFd>,
    /// Whom to become; `None`: nobody else.
    pub(super) user: Option<(u32, u32)>,
    /// The working folder.
    pub(super) folder: CString,
    /// Stays open.
    pub(super) keep_open: Option<&'a OwnedFd>,
}

/// Has the command's process begin as `child`. What is borrowed must stay open until the command has been spawned.
#[expect(
    unsafe_code,
    reason = "only between fork and exec can a process leave what its parent is in"
)]
pub(super) fn prepare(command: &mut Command, child: Child<'_>) {
    let parent = rustix::process::getpid();
    // The raw numbers, as the child's copy of the descriptor table has them.
    let network = child.network.map(|fd| fd.as_raw_fd());
    let keep_open = child.keep_open.map(|fd| fd.as_raw_fd());
    let user = child
        .user
        .map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid)));
    let folder = child.folder;
    let prepare = move || become_it(parent, network, user, &folder, keep_open);
    // SAFETY: between fork and exec only async-signal-safe calls are made: `setsid`, `umask`, `setns`, `setgroups`,
    // `setresgid`, `setresuid`, `chdir`, `prctl`, `getppid` and `fcntl`, as bare system calls; nothing allocates,
    // locks or unwinds.
    unsafe { command.pre_exec(prepare) };
}

#[expect(
    unsafe_code,
    reason = "descriptors are numbers in the child's copy of the table"
)]
fn become_it(
    parent: Pid,
    network: Option<RawFd>,
    user: Option<(Uid, Gid)>,
    folder: &CString,
    keep_open: Option<RawFd>,
) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::umask(UMASK);
    if let Some(number) = network {
        // SAFETY: the descriptor was open when the process forked, and nothing closes it before exec.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::thread::move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))?;
    }
    if let Some((uid, gid)) = user {
        // A process between fork and exec has this one thread.
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    rustix::process::chdir(folder.as_c_str())?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that died before the call above sends no signal any more.
    if rustix::process::getppid() != Some(parent) {
        return Err(io::ErrorKind::NotConnected.into());
    }
    if let Some(number) = keep_open {
        // SAFETY: as above.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(())
}
