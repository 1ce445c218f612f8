//! Users by name, from the local files.

use std::path::{Path, PathBuf};

/// Where they are.
pub const PASSWD: &str = "/etc/passwd";

/// One line of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// By which a user is known.
    pub name: String,
    /// The user's number.
    pub uid: u32,
    /// That of the user's group.
    pub gid: u32,
    /// The folder to begin in.
    pub home: PathBuf,
    /// What runs at a login.
    pub shell: String,
}

/// The user of that name.
pub fn by_name(passwd: &Path, name: &str) -> std::io::Result<Option<User>> {
    find(passwd, |user| user.name == name)
}

/// The first user of that number.
pub fn by_uid(passwd: &Path, uid: u32) -> std::io::Result<Option<User>> {
    find(passwd, |user| user.uid == uid)
}

/// As people know the user of that number on this machine.
#[must_use]
pub fn shown(uid: u32) -> String {
    match by_uid(Path::new(PASSWD), uid) {
        Ok(Some(user)) => user.name,
        _ => format!("number {uid}"),
    }
}

fn find(passwd: &Path, is: impl Fn(&User) -> bool) -> std::io::Result<Option<User>> {
    let text = std::fs::read(passwd)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter_map(parse).find(is))
}

fn parse(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1)?.into();
    let shell = fields.next()?.to_owned();
    Some(User {
        name,
        uid,
        gid,
        home,
        shell,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_passwd_lines() {
        let dir = tempfile::tempdir().unwrap();
        let passwd = dir.path().join("passwd");
        std::fs::write(
            &passwd,
            "bad line\nroot:x:0:0:root:/root:/bin/sh\nann:x:7:8:Ann,,:/h/ann:/bin/zsh\n",
        )
        .unwrap();
        let ann = by_name(&passwd, "ann").unwrap().unwrap();
        assert_eq!(
            (ann.uid, ann.gid, ann.home.to_str()),
            (7, 8, Some("/h/ann"))
        );
        assert_eq!(by_uid(&passwd, 7).unwrap(), Some(ann));
        assert_eq!(by_name(&passwd, "bob").unwrap(), None);
    }
}
