//! Users by name, from the local files.

use std::path::{Path, PathBuf};

/// One line of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: PathBuf,
    pub(super) shell: String,
}

pub(super) fn by_name(passwd: &Path, name: &str) -> std::io::Result<Option<User>> {
    find(passwd, |user| user.name == name)
}

pub(super) fn by_uid(passwd: &Path, uid: u32) -> std::io::Result<Option<User>> {
    find(passwd, |user| user.uid == uid)
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
