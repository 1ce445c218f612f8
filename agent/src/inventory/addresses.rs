//! `addresses`: asked of the kernel by rtnetlink(7), which alone says which interface has which.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use nexus_proto::record::Row;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::SocketAddrNetlink,
    recv, sendto, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::{
    InventoryConfig, InventoryError,
    files::{Sign, names, read_line},
    worker::Source,
};

pub(super) const SOURCE: Source = Source {
    kind: "addresses",
    reread_after: None,
    sign: |config: &InventoryConfig, sign: &mut Sign| match rows(config) {
        Ok(rows) => {
            let mut text = String::new();
            // Writing to a String cannot fail.
            write!(text, "{rows:?}").ok();
            sign.text(&text);
        }
        Err(_) => sign.text("\0"),
    },
    collect: rows,
};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

fn rows(config: &InventoryConfig) -> Result<Vec<Row>, InventoryError> {
    let folder = config.sysfs.join("class/net");
    let interfaces: BTreeMap<u32, String> = names(&folder)
        .into_iter()
        .filter_map(|name| {
            let index = read_line(&folder.join(&name).join("ifindex"))?
                .parse()
                .ok()?;
            Some((index, name))
        })
        .collect();
    let addresses = dump().map_err(InventoryError::Netlink)?;
    let row = |address: Address| {
        Some(Row(vec![
            interfaces.get(&address.index)?.as_str().into(),
            address.family.into(),
            address.address.into(),
            address.prefix_length.into(),
        ]))
    };
    Ok(addresses.into_iter().filter_map(row).collect())
}

struct Address {
    index: u32,
    family: &'static str,
    address: String,
    prefix_length: u32,
}

fn dump() -> io::Result<Vec<Address>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5)))?;
    // nlmsghdr (length, type, flags, sequence, port), then ifaddrmsg of no family: 16 + 8 bytes.
    let mut request = Vec::with_capacity(24);
    request.extend_from_slice(&24_u32.to_ne_bytes());
    request.extend_from_slice(&RTM_GETADDR.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend_from_slice(&[0; 16]);
    sendto(
        &socket,
        &request,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;

    let mut addresses = Vec::new();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let (_, length) = recv(&socket, buffer.as_mut_slice(), RecvFlags::TRUNC)?;
        let messages = buffer
            .get(..length)
            .ok_or_else(|| io::Error::other("a message too long"))?;
        if parse_messages(messages, &mut addresses)? {
            return Ok(addresses);
        }
    }
}

/// Whether these messages were the last.
fn parse_messages(mut messages: &[u8], addresses: &mut Vec<Address>) -> io::Result<bool> {
    while let Some((kind, payload, rest)) = next_message(messages) {
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = payload
                    .first_chunk::<4>()
                    .map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            RTM_NEWADDR => addresses.extend(parse_address(payload)),
            _ => {}
        }
        messages = rest;
    }
    if messages.is_empty() {
        Ok(false)
    } else {
        Err(io::Error::other("a message cut short"))
    }
}

/// Type, payload and what follows.
fn next_message(messages: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*messages.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*messages.get(4..)?.first_chunk()?);
    let payload = messages.get(16..length)?;
    Some((
        kind,
        payload,
        messages
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default(),
    ))
}

fn parse_address(message: &[u8]) -> Option<Address> {
    // ifaddrmsg: family, prefix length, flags, scope, index.
    let ([family, prefix_length, _flags, _scope], rest) = message.split_first_chunk::<4>()?;
    let (index, mut attributes) = rest.split_first_chunk::<4>()?;
    let (mut address, mut local) = (None, None);
    while let Some(length) = attributes
        .first_chunk()
        .map(|l| usize::from(u16::from_ne_bytes(*l)))
    {
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(4..length)?;
        match kind {
            IFA_ADDRESS => address = Some(value),
            IFA_LOCAL => local = Some(value),
            _ => {}
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    // On a point-to-point link the address is the peer's and the local one ours.
    let ours = local.or(address)?;
    let (family, address) = match *family {
        AF_INET => (
            "ipv4",
            Ipv4Addr::from(<[u8; 4]>::try_from(ours).ok()?).to_string(),
        ),
        AF_INET6 => (
            "ipv6",
            Ipv6Addr::from(<[u8; 16]>::try_from(ours).ok()?).to_string(),
        ),
        _ => return None,
    };
    let prefix_length = u32::from(*prefix_length);
    Some(Address {
        index: u32::from_ne_bytes(*index),
        family,
        address,
        prefix_length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let mut bytes: Vec<u8> = (0..=255).collect();
        for _ in 0..256 {
            bytes.rotate_left(1);
            let _result = parse_messages(&bytes, &mut Vec::new());
            let _address = parse_address(&bytes);
        }
        assert!(parse_messages(&[], &mut Vec::new()).is_ok_and(|last| !last));
    }
}
