//! `interfaces`: `/sys/class/net`.

use nexus_proto::record::Row;

use super::{
    InventoryConfig, InventoryError,
    files::{Sign, names, read_line},
    worker::Source,
};

pub(super) const SOURCE: Source = Source {
    kind: "interfaces",
    reread_after: None,
    // Reading them is as cheap as any sign would be.
    sign: |config: &InventoryConfig, sign: &mut Sign| sign.text(&format!("{:?}", rows(config))),
    collect: |config: &InventoryConfig| Ok::<_, InventoryError>(rows(config)),
};

fn rows(config: &InventoryConfig) -> Vec<Row> {
    let folder = config.sysfs.join("class/net");
    let row = |name: &String| {
        let folder = folder.join(name);
        // Files stand there too, such as bonding_masters.
        let mtu = read_line(&folder.join("mtu"))?.parse::<i64>().ok();
        let speed = read_line(&folder.join("speed")).and_then(|speed| speed.parse::<i64>().ok());
        Some(Row(vec![
            name.as_str().into(),
            read_line(&folder.join("address")).into(),
            mtu.into(),
            read_line(&folder.join("operstate")).into(),
            speed.filter(|speed| *speed > 0).into(),
        ]))
    };
    names(&folder).iter().filter_map(row).collect()
}
