//! `os`: the operating system.

use std::fs;

use nexus_proto::{
    agent::v1::NodeFacts,
    limits,
    record::{Cell, Row},
};

use super::{
    InventoryConfig, InventoryError,
    files::{Sign, read, read_line},
    worker::Source,
};

pub(super) const SOURCE: Source = Source {
    kind: "os",
    reread_after: None,
    sign,
    collect,
};

/// The time of boot is no part of it: it moves when the clock is set, and with the kernel else.
fn sign(config: &InventoryConfig, sign: &mut Sign) {
    sign.file(&config.file("etc/os-release"));
    sign.link(&config.file("etc/localtime"));
    sign.file(&config.file("etc/timezone"));
    let uname = rustix::system::uname();
    for part in [
        uname.release(),
        uname.version(),
        uname.machine(),
        uname.nodename(),
    ] {
        sign.text(&part.to_string_lossy());
    }
}

fn collect(config: &InventoryConfig) -> Result<Vec<Row>, InventoryError> {
    let release = release(config);
    let get = |key: &str| os_release(&release, key);
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| Cell::from(part.to_string_lossy().into_owned());
    Ok(vec![Row(vec![
        // os-release(5): without it the system is called just that.
        get("ID").unwrap_or_else(|| "linux".to_owned()).into(),
        get("PRETTY_NAME")
            .unwrap_or_else(|| "Linux".to_owned())
            .into(),
        get("VERSION").into(),
        get("VERSION_ID").into(),
        get("VERSION_CODENAME").into(),
        text(uname.release()),
        text(uname.version()),
        text(uname.machine()),
        text(uname.nodename()),
        timezone(config).into(),
        boot_time(config)?.into(),
    ])])
}

/// What is known of the host before anything was collected.
#[must_use]
pub fn facts(config: &InventoryConfig) -> NodeFacts {
    let uname = rustix::system::uname();
    let text = |text: &str| {
        text.chars()
            .take(limits::NAME_BYTES / 4)
            .collect::<String>()
    };
    let name = os_release(&release(config), "PRETTY_NAME");
    NodeFacts {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        os: text(name.as_deref().unwrap_or("Linux")),
        kernel: text(&uname.release().to_string_lossy()),
        arch: text(&uname.machine().to_string_lossy()),
    }
}

fn release(config: &InventoryConfig) -> String {
    read(&config.file("etc/os-release"))
        .or_else(|_| read(&config.file("usr/lib/os-release")))
        .unwrap_or_default()
}

fn boot_time(config: &InventoryConfig) -> Result<Option<i64>, InventoryError> {
    let stat = read(&config.procfs.join("stat"))?;
    Ok(stat
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()))
}

/// `/etc/localtime` is a link into the zone database, `/etc/timezone` what Debian adds to it.
fn timezone(config: &InventoryConfig) -> Option<String> {
    let target = fs::read_link(config.file("etc/localtime")).ok();
    let target = target.as_ref().and_then(|path| path.to_str());
    let zone = target.and_then(|path| Some(path.split_once("zoneinfo/")?.1.to_owned()));
    zone.or_else(|| read_line(&config.file("etc/timezone")))
}

/// A value of os-release(5), which is quoted as in a shell.
fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    let single = value
        .strip_prefix('\'')
        .and_then(|rest| rest.strip_suffix('\''));
    if let Some(single) = single {
        return Some(single.to_owned());
    }
    let inner = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(value);
    let mut out = String::with_capacity(inner.len());
    let mut escaped = false;
    for letter in inner.chars() {
        if letter == '\\' && !escaped {
            escaped = true;
        } else {
            out.push(letter);
            escaped = false;
        }
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::os_release;

    #[test]
    fn unquotes_values() {
        let text =
            "ID=debian\nNAME=\"A \\\"B\\\" \\$C\"\nVERSION='12 (x)'\nEMPTY=\nID_LIKE=other\n";
        assert_eq!(os_release(text, "ID").as_deref(), Some("debian"));
        assert_eq!(os_release(text, "NAME").as_deref(), Some("A \"B\" $C"));
        assert_eq!(os_release(text, "VERSION").as_deref(), Some("12 (x)"));
        assert_eq!(os_release(text, "EMPTY"), None);
        assert_eq!(os_release(text, "VERSION_ID"), None);
    }
}
