//! `filesystem`: space and inodes of mounted filesystems.

use std::collections::BTreeSet;

use super::{SampleError, sink::Sink, source::Sources};

/// One line of the mount table, unescaped as far as node_exporter does it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mount {
    pub(super) device: String,
    pub(super) mountpoint: String,
    pub(super) fstype: String,
    read_only: bool,
}

pub(super) fn collect(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    // The first process sees the host's mounts even when ours is confined to fewer.
    let mut path = sources.proc("1/mounts");
    let text = match sources.files.read(&path) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            path = sources.proc("mounts");
            sources.files.read(&path)?.to_owned()
        }
    };
    let mounts = parse(&text).ok_or(SampleError::Malformed {
        path,
        what: "four fields a line",
    })?;
    let spaces = sources
        .mounts
        .probe(mounts.iter().map(|mount| mount.mountpoint.as_str()));
    for (mount, space) in mounts.iter().zip(spaces) {
        let labels = [
            ("device", mount.device.as_str()),
            ("fstype", mount.fstype.as_str()),
            ("mountpoint", mount.mountpoint.as_str()),
        ];
        let error = if space.is_some() { 0.0 } else { 1.0 };
        sink.gauge(&["node_filesystem_device_error"], &labels, error);
        let Some(space) = space else { continue };
        sink.gauge(&["node_filesystem_size_bytes"], &labels, space.size_bytes);
        sink.gauge(&["node_filesystem_free_bytes"], &labels, space.free_bytes);
        sink.gauge(&["node_filesystem_avail_bytes"], &labels, space.avail_bytes);
        sink.gauge(&["node_filesystem_files"], &labels, space.files);
        sink.gauge(&["node_filesystem_files_free"], &labels, space.files_free);
        let read_only = if mount.read_only { 1.0 } else { 0.0 };
        sink.gauge(&["node_filesystem_readonly"], &labels, read_only);
    }
    Ok(())
}

/// The mounts that are shown, none twice.
fn parse(text: &str) -> Option<Vec<Mount>> {
    let mut seen = BTreeSet::new();
    let mut mounts = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let mut next = || fields.next();
        let (device, mountpoint, fstype, options) = (next()?, next()?, next()?, next()?);
        let mountpoint = mountpoint.replace("\\040", " ").replace("\\011", "\t");
        if is_hidden(&mountpoint) || is_no_storage(fstype) {
            continue;
        }
        if seen.insert((device, mountpoint.clone(), fstype)) {
            mounts.push(Mount {
                device: device.to_owned(),
                mountpoint,
                fstype: fstype.to_owned(),
                read_only: options.split(',').any(|option| option == "ro"),
            });
        }
    }
    Some(mounts)
}

/// Debian's default exclusion:
/// `^/(dev|proc|run|sys|mnt|media|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)`.
fn is_hidden(mountpoint: &str) -> bool {
    let below = |folder: &str| {
        let rest = mountpoint.strip_prefix(folder)?;
        rest.is_empty()
            .then_some("")
            .or_else(|| rest.strip_prefix('/'))
    };
    ["/dev", "/proc", "/run", "/sys", "/mnt", "/media"]
        .iter()
        .any(|folder| below(folder).is_some())
        || ["/var/lib/docker", "/var/lib/containers/storage"]
            .iter()
            .any(|folder| below(folder).is_some_and(|rest| !rest.is_empty()))
}

/// node_exporter's default exclusion of types.
fn is_no_storage(fstype: &str) -> bool {
    matches!(
        fstype,
        "autofs"
            | "binfmt_misc"
            | "bpf"
            | "cgroup"
            | "cgroup2"
            | "configfs"
            | "debugfs"
            | "devpts"
            | "devtmpfs"
            | "fusectl"
            | "hugetlbfs"
            | "iso9660"
            | "mqueue"
            | "nsfs"
            | "overlay"
            | "proc"
            | "procfs"
            | "pstore"
            | "rpc_pipefs"
            | "securityfs"
            | "selinuxfs"
            | "squashfs"
            | "sysfs"
            | "tracefs"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_mounts_node_exporter_shows() {
        let mounts = parse(
            "/dev/vda / ext4 rw,relatime 0 0\n\
             /dev/vda / ext4 rw,relatime 0 0\n\
             tmpfs /tmp/a\\040b tmpfs ro,nosuid 0 0\n\
             tmpfs /run tmpfs rw 0 0\n\
             tmpfs /runner tmpfs rw,errors=remount-ro 0 0\n\
             proc /proc proc rw 0 0\n\
             /dev/sdb1 /mnt/x ext4 rw 0 0\n\
             overlay /var/lib/docker/overlay2/x overlay rw 0 0\n\
             /dev/sdc /var/lib/docker ext4 rw 0 0\n\
             /dev/sdd /var/lib/docker/volumes ext4 rw 0 0\n",
        )
        .unwrap();
        let points: Vec<_> = mounts
            .iter()
            .map(|m| (m.mountpoint.as_str(), m.read_only))
            .collect();
        assert_eq!(
            points,
            [
                ("/", false),
                ("/tmp/a b", true),
                ("/runner", false),
                ("/var/lib/docker", false)
            ]
        );
        assert_eq!(parse("one two\n"), None);
    }
}
