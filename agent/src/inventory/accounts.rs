//! `users` and `groups`: passwd(5) and group(5).

use nexus_proto::record::Row;

use super::{
    InventoryConfig, InventoryError,
    files::{Sign, read},
    worker::Source,
};

pub(super) const USERS: Source = Source {
    kind: "users",
    reread_after: None,
    sign: |config: &InventoryConfig, sign: &mut Sign| sign.file(&config.file("etc/passwd")),
    collect: users,
};

pub(super) const GROUPS: Source = Source {
    kind: "groups",
    reread_after: None,
    sign: |config: &InventoryConfig, sign: &mut Sign| sign.file(&config.file("etc/group")),
    collect: groups,
};

fn users(config: &InventoryConfig) -> Result<Vec<Row>, InventoryError> {
    let text = read(&config.file("etc/passwd"))?;
    let row = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        // Lines of other forms are NIS entries, comments or damage: no accounts.
        let [name, _password, uid, gid, gecos, home, shell] = fields.as_slice() else {
            return None;
        };
        let (uid, gid) = (uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?);
        Some(Row(vec![
            (*name).into(),
            uid.into(),
            gid.into(),
            (*gecos).into(),
            (*home).into(),
            (*shell).into(),
        ]))
    };
    Ok(text.lines().filter_map(row).collect())
}

fn groups(config: &InventoryConfig) -> Result<Vec<Row>, InventoryError> {
    let text = read(&config.file("etc/group"))?;
    let row = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _password, gid, members] = fields.as_slice() else {
            return None;
        };
        Some(Row(vec![
            (*name).into(),
            gid.parse::<u32>().ok()?.into(),
            (*members).into(),
        ]))
    };
    Ok(text.lines().filter_map(row).collect())
}
