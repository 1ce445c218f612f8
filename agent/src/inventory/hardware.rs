//! `hardware`: processors, memory, and what the firmware says the machine is.

use std::collections::BTreeSet;

use nexus_proto::record::Row;

use super::{
    InventoryConfig, InventoryError,
    files::{Sign, names, read, read_line},
    virtualization,
    worker::Source,
};

pub(super) const SOURCE: Source = Source {
    kind: "hardware",
    reread_after: None,
    sign,
    collect,
};

fn sign(config: &InventoryConfig, sign: &mut Sign) {
    sign.content(&config.sysfs.join("devices/system/cpu/online"));
    let memory = read(&config.procfs.join("meminfo")).unwrap_or_default();
    for key in ["MemTotal", "SwapTotal"] {
        sign.text(&format!("{:?}", bytes(&memory, key)));
    }
}

fn collect(config: &InventoryConfig) -> Result<Vec<Row>, InventoryError> {
    let cpuinfo = read(&config.procfs.join("cpuinfo"))?;
    let memory = read(&config.procfs.join("meminfo"))?;
    let first = |key: &str| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            (name.trim() == key && !value.is_empty()).then(|| value.to_owned())
        })
    };
    let dmi = |name: &str| read_line(&config.sysfs.join("class/dmi/id").join(name));
    let topology = Topology::read(config);
    // Not every architecture names its processors; a device tree may name the board.
    let model = first("model name")
        .or_else(|| first("Model"))
        .or_else(|| first("cpu model"));
    let board = || read_line(&config.procfs.join("device-tree/model"));
    let product = dmi("product_name")
        .or_else(|| board().map(|board| board.trim_end_matches('\0').to_owned()));
    Ok(vec![Row(vec![
        model.into(),
        first("vendor_id")
            .or_else(|| first("CPU implementer"))
            .into(),
        topology.sockets.into(),
        topology.cores.into(),
        topology.threads.into(),
        bytes(&memory, "MemTotal").into(),
        bytes(&memory, "SwapTotal").into(),
        dmi("sys_vendor").into(),
        product.into(),
        dmi("bios_version").into(),
        virtualization::detect(config, &cpuinfo).into(),
    ])])
}

/// A value of meminfo, which is in KiB.
fn bytes(memory: &str, key: &str) -> Option<i64> {
    let line = memory
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_ascii_whitespace()
        .next()?
        .parse::<i64>()
        .ok()?
        .checked_mul(1024)
}

#[derive(Debug, Default)]
struct Topology {
    sockets: Option<i64>,
    cores: Option<i64>,
    threads: Option<i64>,
}

impl Topology {
    /// Of the processors that are online: others have no place.
    fn read(config: &InventoryConfig) -> Self {
        let folder = config.sysfs.join("devices/system/cpu");
        let (mut sockets, mut cores, mut threads) = (BTreeSet::new(), BTreeSet::new(), 0);
        for name in names(&folder) {
            if name
                .strip_prefix("cpu")
                .is_none_or(|number| number.parse::<u32>().is_err())
            {
                continue;
            }
            let id = |file| read_line(&folder.join(&name).join("topology").join(file));
            let (Some(socket), Some(core)) = (id("physical_package_id"), id("core_id")) else {
                continue;
            };
            threads += 1;
            // Cores are numbered anew in each die of a package.
            cores.insert((socket.clone(), id("die_id"), core));
            sockets.insert(socket);
        }
        let count = |count: usize| i64::try_from(count).ok().filter(|count| *count > 0);
        Self {
            sockets: count(sockets.len()),
            cores: count(cores.len()),
            threads: count(threads),
        }
    }
}
