//! `sockets`: what listens, and who.
//!
//! The kernel is asked by sock_diag(7) for the sockets that listen alone: the text in `/proc/net` lists
//! every connection, and costs milliseconds even when there are none. It is read where the kernel
//! lacks the other way. Either names a socket's inode; whose it is shows only in the descriptors of processes,
//! which are looked through when the listening sockets changed, and only as far as we may and within bounds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, Ipv6Addr},
};

use nexus_proto::record::Row;
use rustix::{
    fs::{Dir, readlinkat},
    net::netlink::SOCK_DIAG,
};

use super::{
    InventoryConfig, InventoryError,
    files::{Sign, names, read, read_line},
    netlink,
    worker::Source,
};

pub(super) const SOURCE: Source = Source {
    kind: "sockets",
    reread_after: None,
    sign: |config: &InventoryConfig, sign: &mut Sign| match listening(config) {
        Ok(sockets) => sign.text(&format!("{sockets:?}")),
        Err(_) => sign.text("\0"),
    },
    collect,
};

/// Descriptors looked at, at most, to find who holds a socket.
const DESCRIPTORS: usize = 100_000;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listening {
    protocol: &'static str,
    address: String,
    port: u16,
    uid: u32,
    inode: u64,
}

fn collect(config: &InventoryConfig) -> Result<Vec<Row>, InventoryError> {
    let sockets = listening(config)?;
    let holders = holders(config, sockets.iter().map(|socket| socket.inode).collect());
    let row = |socket: Listening| {
        Row(vec![
            socket.protocol.into(),
            socket.address.into(),
            u32::from(socket.port).into(),
            socket.uid.into(),
            holders.get(&socket.inode).map(String::as_str).into(),
        ])
    };
    Ok(sockets.into_iter().map(row).collect())
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Address family, protocol number, name.
const TABLES: [(u8, u8, &str); 4] = [
    (2, 6, "tcp"),
    (2, 17, "udp"),
    (10, 6, "tcp6"),
    (10, 17, "udp6"),
];
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// A UDP socket listens when it is in TCP's state `CLOSE`, which is: not connected.
fn listening_state(protocol: &str) -> u8 {
    if protocol.starts_with("tcp") {
        TCP_LISTEN
    } else {
        TCP_CLOSE
    }
}

fn listening(config: &InventoryConfig) -> Result<BTreeSet<Listening>, InventoryError> {
    let mut sockets = BTreeSet::new();
    for (family, number, protocol) in TABLES {
        // inet_diag_req_v2: family, protocol, extensions, padding, states, and no socket in particular.
        let mut request = vec![family, number, 0, 0];
        request.extend_from_slice(&(1_u32 << listening_state(protocol)).to_ne_bytes());
        request.resize(56, 0);
        let dumped = netlink::dump(
            Some(SOCK_DIAG),
            SOCK_DIAG_BY_FAMILY,
            &request,
            |_, message| {
                sockets.extend(parse_diag(protocol, message));
            },
        );
        if dumped.is_err() {
            read_table(config, protocol, &mut sockets)?;
        }
    }
    Ok(sockets)
}

/// inet_diag_msg: family, state, timer, retransmits; ports and addresses in network order, interface,
/// cookie; expiry, queues, uid, inode.
fn parse_diag(protocol: &'static str, message: &[u8]) -> Option<Listening> {
    let ([family, state, ..], rest) = message.split_first_chunk::<4>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (remote_port, rest) = rest.split_first_chunk::<2>()?;
    let (source, rest) = rest.split_first_chunk::<16>()?;
    let uid = u32::from_ne_bytes(*rest.get(40..)?.first_chunk()?);
    let inode = u32::from_ne_bytes(*rest.get(44..)?.first_chunk()?);
    if *state != listening_state(protocol) || *remote_port != [0, 0] {
        return None;
    }
    let address = match *family {
        2 => Ipv4Addr::from(*source.first_chunk::<4>()?).to_string(),
        10 => Ipv6Addr::from(*source).to_string(),
        _ => return None,
    };
    let port = u16::from_be_bytes(*port);
    Some(Listening {
        protocol,
        address,
        port,
        uid,
        inode: u64::from(inode),
    })
}

fn read_table(
    config: &InventoryConfig,
    protocol: &'static str,
    sockets: &mut BTreeSet<Listening>,
) -> Result<(), InventoryError> {
    let path = config.procfs.join("net").join(protocol);
    // Without IPv6 its tables are missing.
    if !protocol.ends_with('6') || path.exists() {
        let text = read(&path)?;
        sockets.extend(
            text.lines()
                .skip(1)
                .filter_map(|line| parse(protocol, line)),
        );
    }
    Ok(())
}

/// `sl local remote state queues timer retransmits uid timeout inode …`, numbers in hexadecimal.
fn parse(protocol: &'static str, line: &str) -> Option<Listening> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    // TCP_LISTEN; a UDP socket listens when it is TCP_CLOSE, which is: not connected.
    let wanted = if protocol.starts_with("tcp") {
        "0A"
    } else {
        "07"
    };
    if state != wanted || !remote.ends_with(":0000") {
        return None;
    }
    let (address, port) = local.rsplit_once(':')?;
    Some(Listening {
        protocol,
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        uid: fields.nth(3)?.parse().ok()?,
        inode: fields.nth(1)?.parse().ok()?,
    })
}

/// Words of four bytes, each printed as a number of the host's byte order.
fn parse_address(text: &str) -> Option<String> {
    let word = |text: &[u8]| {
        let number = u32::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()?;
        Some(number.to_ne_bytes())
    };
    let words: Vec<[u8; 4]> = text.as_bytes().chunks(8).map(word).collect::<Option<_>>()?;
    match words.as_slice() {
        [word] => Some(Ipv4Addr::from(*word).to_string()),
        words => {
            let bytes: [u8; 16] = words.as_flattened().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).to_string())
        }
    }
}

/// Command names by inode. Of several processes that hold a socket the oldest is named.
fn holders(config: &InventoryConfig, mut wanted: BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut holders = BTreeMap::new();
    // 0 is the inode of a socket that nobody holds any more.
    wanted.remove(&0);
    let mut processes: Vec<u32> = names(&config.procfs)
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    processes.sort_unstable();
    let mut budget = DESCRIPTORS;
    let mut target = Vec::new();
    for process in processes {
        if wanted.is_empty() || budget == 0 {
            break;
        }
        let folder = config.procfs.join(process.to_string());
        // Links are read relative to their folder: a host has many, and a path from the root costs thrice as much.
        let Ok(descriptors) = fs::File::open(folder.join("fd")) else {
            continue;
        };
        let Ok(entries) = Dir::read_from(&descriptors) else {
            continue;
        };
        for entry in entries.flatten() {
            budget = budget.saturating_sub(1);
            let Ok(read) = readlinkat(&descriptors, entry.file_name(), target) else {
                target = Vec::new();
                continue;
            };
            target = read.into_bytes();
            if let Some(inode) = socket_inode(&target).filter(|inode| wanted.remove(inode))
                && let Some(name) = read_line(&folder.join("comm"))
            {
                holders.insert(inode, name);
            }
        }
    }
    holders
}

/// `socket:[INODE]`.
fn socket_inode(target: &[u8]) -> Option<u64> {
    let inode = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_tell_the_same() {
        let config = InventoryConfig::default();
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let both = || {
            let mut text = BTreeSet::new();
            for (_, _, protocol) in TABLES {
                read_table(&config, protocol, &mut text).unwrap();
            }
            (listening(&config).unwrap(), text)
        };
        // Other programs come and go between the two.
        while {
            let (asked, text) = both();
            asked != text || asked.len() < 2
        } {}
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn reads_the_kernels_tables() {
        let tcp = "   0: 0100007F:1D24 00000000:0000 0A 00000000:00000000 00:00000000 00000000   106        0 12345 1 0";
        let socket = parse("tcp", tcp).unwrap();
        assert_eq!(
            (
                socket.address.as_str(),
                socket.port,
                socket.uid,
                socket.inode
            ),
            ("127.0.0.1", 7460, 106, 12_345)
        );
        let v6 = "   1: B80D0120000000000000000001000000:0016 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 7 1";
        assert_eq!(parse("udp6", v6).unwrap().address, "2001:db8::1");
        assert!(parse("tcp", &tcp.replace(" 0A ", " 01 ")).is_none());
        assert!(parse("udp", "nonsense").is_none());
    }
}
