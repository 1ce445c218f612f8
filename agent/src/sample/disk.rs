//! `diskstats`: what block devices did, and what udev knows of them.

use super::{
    SampleError,
    sink::Sink,
    source::{Sources, number, number_in},
};

/// The columns of `/proc/diskstats` after the device, as long as the kernel has them
/// (Documentation/admin-guide/iostats.rst).
const COLUMNS: [(&str, Unit); 17] = [
    ("reads_completed_total", Unit::Count),
    ("reads_merged_total", Unit::Count),
    ("read_bytes_total", Unit::Sectors),
    ("read_time_seconds_total", Unit::Milliseconds),
    ("writes_completed_total", Unit::Count),
    ("writes_merged_total", Unit::Count),
    ("written_bytes_total", Unit::Sectors),
    ("write_time_seconds_total", Unit::Milliseconds),
    ("io_now", Unit::Present),
    ("io_time_seconds_total", Unit::Milliseconds),
    ("io_time_weighted_seconds_total", Unit::Milliseconds),
    ("discards_completed_total", Unit::Count),
    ("discards_merged_total", Unit::Count),
    ("discarded_sectors_total", Unit::Count),
    ("discard_time_seconds_total", Unit::Milliseconds),
    ("flush_requests_total", Unit::Count),
    ("flush_requests_time_seconds_total", Unit::Milliseconds),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Count,
    /// A number that falls too.
    Present,
    /// Of 512 bytes, whatever the device's own are.
    Sectors,
    /// Multiplied by a thousandth, as node_exporter does: a division rounds differently.
    Milliseconds,
}

pub(super) fn collect(sources: &mut Sources, sink: &mut Sink) -> Result<(), SampleError> {
    let path = sources.proc("diskstats");
    let mut devices = Vec::new();
    for line in sources.files.read(&path)?.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(major), Some(minor), Some(device)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if is_left_out(device) {
            continue;
        }
        devices.push([major.to_owned(), minor.to_owned(), device.to_owned()]);
        for ((name, unit), field) in COLUMNS.iter().zip(fields) {
            let value = number_in(&path, "numbers", Some(field))?;
            let labels = [("device", device)];
            let name = ["node_disk_", *name];
            match unit {
                Unit::Count => sink.counter(&name, &labels, value),
                Unit::Present => sink.gauge(&name, &labels, value),
                Unit::Sectors => sink.counter(&name, &labels, value * 512.0),
                Unit::Milliseconds => sink.counter(&name, &labels, value * 0.001),
            }
        }
    }
    for [major, minor, device] in &devices {
        let file = sources.config.udev.join(format!("b{major}:{minor}"));
        // A host without udev has devices all the same.
        let text = sources.files.read(&file).unwrap_or_default();
        describe(&Udev(text), [major, minor, device], sink);
    }
    Ok(())
}

fn describe(udev: &Udev<'_>, [major, minor, device]: [&str; 3], sink: &mut Sink) {
    let get = |property| udev.get(property).unwrap_or_default();
    let labels = [
        ("device", device),
        ("major", major),
        ("minor", minor),
        ("model", get("ID_MODEL")),
        ("path", get("ID_PATH")),
        ("revision", get("ID_REVISION")),
        ("serial", get("ID_SERIAL_SHORT")),
        ("wwn", get("ID_WWN")),
    ];
    sink.gauge(&["node_disk_info"], &labels, 1.0);
    if !get("ID_FS_TYPE").is_empty() {
        let labels = [
            ("device", device),
            ("type", get("ID_FS_TYPE")),
            ("usage", get("ID_FS_USAGE")),
            ("uuid", get("ID_FS_UUID")),
            ("version", get("ID_FS_VERSION")),
        ];
        sink.gauge(&["node_disk_filesystem_info"], &labels, 1.0);
    }
    if !get("DM_NAME").is_empty() {
        let labels = [
            ("device", device),
            ("lv_layer", get("DM_LV_LAYER")),
            ("lv_name", get("DM_LV_NAME")),
            ("name", get("DM_NAME")),
            ("uuid", get("DM_UUID")),
            ("vg_name", get("DM_VG_NAME")),
        ];
        sink.gauge(&["node_disk_device_mapper_info"], &labels, 1.0);
    }
    if !get("ID_ATA").is_empty() {
        for (property, name) in [
            ("ID_ATA_WRITE_CACHE", "node_disk_ata_write_cache"),
            (
                "ID_ATA_WRITE_CACHE_ENABLED",
                "node_disk_ata_write_cache_enabled",
            ),
            (
                "ID_ATA_ROTATION_RATE_RPM",
                "node_disk_ata_rotation_rate_rpm",
            ),
        ] {
            if let Some(value) = udev.get(property).and_then(number) {
                sink.gauge(&[name], &[("device", device)], value);
            }
        }
    }
}

/// A file of udev's database: lines `E:PROPERTY=value` among others.
struct Udev<'a>(&'a str);

impl<'a> Udev<'a> {
    fn get(&self, property: &str) -> Option<&'a str> {
        self.0.lines().find_map(|line| {
            let value = line.strip_prefix("E:")?.strip_prefix(property)?;
            value.strip_prefix('=')
        })
    }
}

/// node_exporter's default: `^(ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$`, which is to say
/// memory disks, loops, floppies and partitions.
fn is_left_out(device: &str) -> bool {
    let stem = device.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == device.len() {
        return false;
    }
    if matches!(stem, "ram" | "loop" | "fd") {
        return true;
    }
    let disk = ["hd", "sd", "vd", "xvd"]
        .iter()
        .find_map(|kind| stem.strip_prefix(kind));
    if disk
        .is_some_and(|letter| letter.len() == 1 && letter.bytes().all(|b| b.is_ascii_lowercase()))
    {
        return true;
    }
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let namespace = stem
        .strip_prefix("nvme")
        .and_then(|rest| rest.strip_suffix('p'));
    namespace
        .and_then(|rest| rest.split_once('n'))
        .is_some_and(|(controller, namespace)| number(controller) && number(namespace))
}

#[cfg(test)]
mod tests {
    use super::is_left_out;

    #[test]
    fn leaves_out_what_node_exporter_does() {
        for out in [
            "ram0",
            "loop12",
            "fd0",
            "sda1",
            "hdb12",
            "vdc3",
            "xvda1",
            "nvme0n1p2",
        ] {
            assert!(is_left_out(out), "{out}");
        }
        for shown in [
            "sda",
            "vda",
            "nvme0n1",
            "zram0",
            "dm-0",
            "md127",
            "sr0",
            "sdaa1",
            "mmcblk0p1",
            "nvmen1p1",
        ] {
            assert!(!is_left_out(shown), "{shown}");
        }
    }
}
