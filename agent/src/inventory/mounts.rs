//! `mounts`: the mount table.

use nexus_proto::record::Row;

use super::{
    InventoryConfig, InventoryError,
    files::{Sign, read},
    worker::Source,
};

pub(super) const SOURCE: Source = Source {
    kind: "mounts",
    reread_after: None,
    sign: |config: &InventoryConfig, sign: &mut Sign| match table(config) {
        Ok(table) => sign.text(&table),
        Err(_) => sign.text("\0"),
    },
    collect,
};

/// The first process sees the host's mounts even when ours is confined to fewer.
fn table(config: &InventoryConfig) -> Result<String, InventoryError> {
    read(&config.procfs.join("1/mounts")).or_else(|_| read(&config.procfs.join("self/mounts")))
}

fn collect(config: &InventoryConfig) -> Result<Vec<Row>, InventoryError> {
    let row = |line: &str| {
        let mut fields = line.split_ascii_whitespace().map(unescape);
        let mut next = || fields.next();
        Some(Row(vec![
            next()?.into(),
            next()?.into(),
            next()?.into(),
            next()?.into(),
        ]))
    };
    Ok(table(config)?.lines().filter_map(row).collect())
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().filter(|_| *byte == b'\\');
        let code = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(code) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(code);
            rest = after.get(3..).unwrap_or_default();
        } else {
            bytes.push(*byte);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn unescapes_octal() {
        assert_eq!(unescape("/a\\040b\\011c\\134d\\x"), "/a b\tc\\d\\x");
        assert_eq!(unescape("\\04"), "\\04");
    }
}
