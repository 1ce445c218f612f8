//! `addresses`: asked of the kernel by rtnetlink(7), which alone says which interface has which.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use nexus_proto::record::Row;

use super::{
    InventoryConfig, InventoryError,
    files::{Sign, names, read_line},
    netlink,
    worker::Source,
};

pub(super) const SOURCE: Source = Source {
    kind: "addresses",
    reread_after: None,
    sign: |config: &InventoryConfig, sign: &mut Sign| match rows(config) {
        Ok(rows) => sign.text(&format!("{rows:?}")),
        Err(_) => sign.text("\0"),
    },
    collect: rows,
};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
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
    let mut addresses = Vec::new();
    // An ifaddrmsg of no family in particular.
    netlink::dump(None, RTM_GETADDR, &[0; 8], |kind, message| {
        if kind == RTM_NEWADDR {
            addresses.extend(parse_address(message));
        }
    })
    .map_err(|source| InventoryError::Netlink {
        what: "addresses",
        source,
    })?;
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
            let _address = parse_address(&bytes);
        }
    }
}
