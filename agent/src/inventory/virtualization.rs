//! Whether the host is a guest, under the names systemd-detect-virt(1) uses.

use super::{
    InventoryConfig,
    files::{read, read_line},
};

/// The container manager when it is a container, else the hypervisor when it is a virtual machine.
pub(super) fn detect(config: &InventoryConfig, cpuinfo: &str) -> Option<String> {
    container(config).or_else(|| hypervisor(config, cpuinfo).map(str::to_owned))
}

fn container(config: &InventoryConfig) -> Option<String> {
    // Managers that follow systemd's container interface tell init, which may tell all.
    let told = read_line(&config.file("run/systemd/container"));
    let environment = || {
        let text = read(&config.procfs.join("1/environ")).ok()?;
        let value = text
            .split('\0')
            .find_map(|entry| entry.strip_prefix("container="))?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    let marker = || {
        let there = |path: &str| config.file(path).exists();
        if there("run/.containerenv") {
            Some("podman".to_owned())
        } else if there(".dockerenv") {
            Some("docker".to_owned())
        } else {
            None
        }
    };
    told.or_else(environment).or_else(marker)
}

fn hypervisor(config: &InventoryConfig, cpuinfo: &str) -> Option<&'static str> {
    let dmi = |name: &str| read_line(&config.sysfs.join("class/dmi/id").join(name));
    let fields: Vec<String> = ["product_name", "sys_vendor", "board_vendor", "bios_vendor"]
        .into_iter()
        .filter_map(dmi)
        .collect();
    let names = [
        ("KVM", "kvm"),
        ("OpenStack", "kvm"),
        ("KubeVirt", "kvm"),
        ("Amazon EC2", "amazon"),
        ("QEMU", "qemu"),
        ("VMware", "vmware"),
        ("VMW", "vmware"),
        ("innotek GmbH", "oracle"),
        ("VirtualBox", "oracle"),
        ("Xen", "xen"),
        ("Bochs", "bochs"),
        ("Parallels", "parallels"),
        ("BHYVE", "bhyve"),
        ("Hyper-V", "microsoft"),
        ("Google Compute Engine", "google"),
        ("Apple Virtualization", "apple"),
    ];
    let by_name = names
        .iter()
        .find(|(prefix, _)| fields.iter().any(|field| field.starts_with(prefix)))
        .map(|(_, name)| *name);
    let xen = || (read_line(&config.sysfs.join("hypervisor/type"))? == "xen").then_some("xen");
    // Instances of EC2 on bare metal carry the vendor's name too, but no such flag.
    let flagged = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| {
            line.split_ascii_whitespace()
                .any(|flag| flag == "hypervisor")
        });
    let by_name = by_name.filter(|name| *name != "amazon" || flagged);
    by_name
        .or_else(xen)
        .or_else(|| flagged.then_some("vm-other"))
}
