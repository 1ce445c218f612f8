//! The one description of inventory: kinds of section with their columns.
//!
//! Agents fill rows in this order, shards make a table with validity intervals of each kind, queries
//! show it as a view, `query --schema` prints it. Columns are only ever added at the end of a kind: a
//! reader takes missing cells as null and ignores surplus ones, so neighbouring versions understand
//! each other. A kind's rows form a set: their order says nothing and equal rows count once.

/// What a cell holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// UTF-8; bytes that are not are replaced by U+FFFD.
    Text,
    /// i64.
    Integer,
}

/// One column of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// SQL name.
    pub name: &'static str,
    /// What it holds.
    pub kind: ColumnType,
    /// Meaning and unit.
    pub about: &'static str,
}

/// One kind of section.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its name, which is also the view's.
    pub name: &'static str,
    /// What a row is.
    pub about: &'static str,
    /// In wire order.
    pub columns: &'static [Column],
}

const fn text(name: &'static str, about: &'static str) -> Column {
    Column {
        name,
        kind: ColumnType::Text,
        about,
    }
}

const fn integer(name: &'static str, about: &'static str) -> Column {
    Column {
        name,
        kind: ColumnType::Integer,
        about,
    }
}

/// Every kind of inventory.
pub const SCHEMA: &[Kind] = &[
    Kind {
        name: "os",
        about: "the operating system (one row a node)",
        columns: &[
            text("id", "os-release ID: debian, fedora …"),
            text("name", "os-release PRETTY_NAME"),
            text("version", "os-release VERSION"),
            text("version_id", "os-release VERSION_ID"),
            text("codename", "os-release VERSION_CODENAME"),
            text("kernel", "uname -r"),
            text("kernel_build", "uname -v"),
            text("arch", "uname -m"),
            text("hostname", "the kernel's host name"),
            text("timezone", "the zone /etc/localtime names"),
            integer("booted_at", "seconds since the epoch"),
        ],
    },
    Kind {
        name: "hardware",
        about: "the machine (one row a node)",
        columns: &[
            text("cpu_model", "model name of the first processor"),
            text("cpu_vendor", "vendor id of the first processor"),
            integer("cpu_sockets", "physical packages"),
            integer("cpu_cores", "physical cores"),
            integer("cpu_threads", "logical processors online"),
            integer("memory_bytes", "MemTotal"),
            integer("swap_bytes", "SwapTotal"),
            text("vendor", "DMI sys_vendor"),
            text("product", "DMI product_name"),
            text("bios_version", "DMI bios_version"),
            text(
                "virtualization",
                "hypervisor or container manager, when one shows itself",
            ),
        ],
    },
    Kind {
        name: "packages",
        about: "an installed package",
        columns: &[
            text("name", "package name"),
            text(
                "version",
                "version with epoch and release, as the package manager prints it",
            ),
            text("arch", "architecture"),
            text("manager", "dpkg or rpm"),
        ],
    },
    Kind {
        name: "units",
        about: "a systemd unit",
        columns: &[
            text("name", "unit name with its suffix"),
            text(
                "load_state",
                "loaded, not-found, masked …; null when systemd has not loaded it or does not run",
            ),
            text(
                "active_state",
                "active, inactive, failed …; null when systemd does not run",
            ),
            text(
                "sub_state",
                "running, exited, dead …; null when systemd does not run",
            ),
            text("unit_file_state", "enabled, disabled, static, masked …"),
        ],
    },
    Kind {
        name: "users",
        about: "a user account of /etc/passwd",
        columns: &[
            text("name", "login name"),
            integer("uid", "user id"),
            integer("gid", "primary group's id"),
            text("gecos", "full name and comments"),
            text("home", "home folder"),
            text("shell", "login shell"),
        ],
    },
    Kind {
        name: "groups",
        about: "a group of /etc/group",
        columns: &[
            text("name", "group name"),
            integer("gid", "group id"),
            text("members", "login names, comma-separated"),
        ],
    },
    Kind {
        name: "mounts",
        about: "a mounted filesystem",
        columns: &[
            text("device", "what is mounted"),
            text("mountpoint", "where"),
            text("fstype", "filesystem type"),
            text("options", "mount options, comma-separated"),
        ],
    },
    Kind {
        name: "interfaces",
        about: "a network interface",
        columns: &[
            text("name", "interface name"),
            text("mac", "link-layer address"),
            integer("mtu", "bytes"),
            text("state", "operstate: up, down, unknown …"),
            integer(
                "speed_mbps",
                "link speed, megabits a second; null when unknown",
            ),
        ],
    },
    Kind {
        name: "addresses",
        about: "an address of a network interface",
        columns: &[
            text("interface", "interface name"),
            text("family", "ipv4 or ipv6"),
            text("address", "the address"),
            integer("prefix_length", "bits of the network prefix"),
        ],
    },
    Kind {
        name: "sockets",
        about: "a listening socket",
        columns: &[
            text("protocol", "tcp, tcp6, udp or udp6"),
            text("address", "local address"),
            integer("port", "local port"),
            integer("uid", "owner's user id"),
            text(
                "process",
                "command name of the holder, when the agent may see it",
            ),
        ],
    },
];

/// The kind of that name.
#[must_use]
pub fn kind(name: &str) -> Option<&'static Kind> {
    SCHEMA.iter().find(|kind| kind.name == name)
}
