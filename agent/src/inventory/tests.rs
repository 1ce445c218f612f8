use std::{fs, net::TcpListener, process::Command};

use nexus_proto::{
    inventory::SCHEMA,
    record::{Cell, Row},
};

use super::*;

/// Tests poll without a pause, which must not look like a hang.
fn patient() -> InventoryConfig {
    InventoryConfig {
        silent_polls: u32::MAX,
        ..InventoryConfig::default()
    }
}

/// Polls until a section of that kind comes; the harness bounds how long.
fn wait_for(inventory: &mut Inventory, kind: &str) -> Section {
    loop {
        std::thread::yield_now();
        if let Some(section) = inventory
            .poll()
            .into_iter()
            .find(|section| section.kind == kind)
        {
            return section;
        }
    }
}

fn texts(section: &Section, column: usize) -> Vec<&str> {
    let cell = |row: &'_ Row| match row.0.get(column) {
        Some(Cell::Text(text)) => Some(text.clone().leak() as &str),
        _ => None,
    };
    section.rows.iter().filter_map(cell).collect()
}

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_kind_of_the_schema_comes_with_its_columns() {
    let mut inventory = Inventory::new(&patient(), &BTreeMap::new());
    let mut found = BTreeMap::new();
    while found.len() < SCHEMA.len() {
        for section in inventory.poll() {
            found.insert(section.kind.clone(), section);
        }
    }
    for kind in SCHEMA {
        let section = &found[kind.name];
        assert_eq!(section.error, None, "{}", kind.name);
        assert!(
            section
                .rows
                .iter()
                .all(|row| row.0.len() == kind.columns.len()),
            "{}",
            kind.name
        );
        for row in &section.rows {
            for (cell, column) in row.0.iter().zip(kind.columns) {
                let fits = match cell {
                    Cell::Null => true,
                    Cell::Text(_) => column.kind == nexus_proto::inventory::ColumnType::Text,
                    Cell::Integer(_) => column.kind == nexus_proto::inventory::ColumnType::Integer,
                };
                assert!(fits, "{}.{}: {cell:?}", kind.name, column.name);
            }
        }
    }
    let uname = rustix::system::uname();
    assert_eq!(texts(&found["os"], 5), [uname.release().to_str().unwrap()]);
    assert!(texts(&found["interfaces"], 0).contains(&"lo"));
    assert!(texts(&found["mounts"], 1).contains(&"/"));
    if let Some(passwd) = run("getent", &["-s", "files", "passwd"]) {
        let mut names: Vec<_> = passwd
            .lines()
            .filter_map(|line| line.split(':').next())
            .collect();
        names.sort_unstable();
        assert_eq!(texts(&found["users"], 0), names);
    }
    if let Some(packages) = run(
        "dpkg-query",
        &[
            "-W",
            "-f=${db:Status-Status} ${Package} ${Version} ${Architecture}\\n",
        ],
    ) {
        let mut theirs: Vec<String> = packages
            .lines()
            .filter_map(|line| line.strip_prefix("installed ").map(str::to_owned))
            .collect();
        let section = &found["packages"];
        let mut ours: Vec<String> = texts(section, 0)
            .iter()
            .zip(texts(section, 1))
            .zip(texts(section, 2))
            .zip(texts(section, 3))
            .filter(|(_, manager)| *manager == "dpkg")
            .map(|(((name, version), arch), _)| format!("{name} {version} {arch}"))
            .collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours, theirs);
    }
    if let Some(addresses) = run("ip", &["-o", "addr"]) {
        let mut theirs: Vec<String> = addresses
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned))
            .collect();
        let mut ours: Vec<String> = found["addresses"]
            .rows
            .iter()
            .map(|row| match (&row.0[2], &row.0[3]) {
                (Cell::Text(address), Cell::Integer(length)) => format!("{address}/{length}"),
                other => panic!("{other:?}"),
            })
            .collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours, theirs);
    }
}

#[test]
fn a_listening_socket_comes_and_goes() {
    let mut inventory = Inventory::new(&patient(), &BTreeMap::new());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = i64::from(listener.local_addr().unwrap().port());
    let ours = |section: &Section| {
        let row = section
            .rows
            .iter()
            .find(|row| row.0[0] == Cell::from("tcp") && row.0[2] == Cell::Integer(port));
        row.cloned()
    };
    let row = loop {
        if let Some(row) = ours(&wait_for(&mut inventory, "sockets")) {
            break row;
        }
    };
    assert_eq!(row.0[1], Cell::from("127.0.0.1"));
    assert_eq!(row.0[3], Cell::from(rustix::process::getuid().as_raw()));
    assert!(
        matches!(row.0[4], Cell::Text(_)),
        "our own process is ours to see"
    );
    drop(listener);
    while ours(&wait_for(&mut inventory, "sockets")).is_some() {}
}

/// A host made of files, as far as files go.
fn host() -> (tempfile::TempDir, InventoryConfig) {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\n+::::::\nbad:x:y:0:::\n",
    );
    write("etc/group", "root:x:0:\nadm:x:4:root,web\n");
    write(
        "var/lib/dpkg/status",
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\nDescription: x\n Package: no\n\n\
         Package: libc6\nStatus: install ok installed\nArchitecture: i386\nVersion: 2.36-9\n\n\
         Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\
         Package: held\nStatus: hold ok installed\nArchitecture: all\nVersion: 1:2-3",
    );
    write("etc/systemd/system/off.service", "");
    write(
        "lib/systemd/system/web.service",
        "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
    );
    write(
        "lib/systemd/system/idle.service",
        "[Install]\nWantedBy = x.target\n",
    );
    write("lib/systemd/system/fixed.service", "[Unit]\nWantedBy=x\n");
    write(
        "lib/systemd/system/off.service",
        "[Install]\nWantedBy=x.target\n",
    );
    write("lib/systemd/system/README", "");
    write(
        "lib/systemd/system/tty@.service",
        "[Install]\nWantedBy=x.target\n",
    );
    let wants = folder
        .path()
        .join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants).unwrap();
    for (name, target) in [
        ("web.service", "web.service"),
        ("tty@1.service", "tty@.service"),
    ] {
        let target = format!("/lib/systemd/system/{target}");
        std::os::unix::fs::symlink(target, wants.join(name)).unwrap();
    }
    let nothing = folder.path().join("etc/systemd/system/masked.service");
    std::os::unix::fs::symlink("/dev/null", nothing).unwrap();
    let config = InventoryConfig {
        root: folder.path().into(),
        ..patient()
    };
    (folder, config)
}

#[test]
fn reads_accounts_packages_and_units() {
    let (_folder, config) = host();
    let mut inventory = Inventory::new(&config, &BTreeMap::new());
    let mut found = BTreeMap::new();
    while found.len() < SCHEMA.len() {
        for section in inventory.poll() {
            found.insert(section.kind.clone(), section);
        }
    }
    assert_eq!(texts(&found["users"], 0), ["root"]);
    assert_eq!(texts(&found["groups"], 2), ["root,web", ""]);
    assert_eq!(texts(&found["packages"], 0), ["held", "libc6", "libc6"]);
    assert_eq!(texts(&found["packages"], 1), ["1:2-3", "2.36-9", "2.36-9"]);
    let units: Vec<_> = texts(&found["units"], 0)
        .into_iter()
        .zip(texts(&found["units"], 4))
        .collect();
    assert_eq!(
        units,
        [
            ("fixed.service", "static"),
            ("idle.service", "disabled"),
            ("masked.service", "masked"),
            ("off.service", "masked"),
            ("tty@.service", "enabled"),
            ("web.service", "enabled"),
        ]
    );
}

/// Puts a whole file in a file's place, as those who edit /etc/passwd do: a reader must not meet it empty.
fn replace(folder: &tempfile::TempDir, file: &str, text: &str) {
    let new = folder.path().join("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, folder.path().join(file)).unwrap();
}

#[test]
fn hands_out_what_changed_and_nothing_else() {
    let (folder, config) = host();
    let mut inventory = Inventory::new(&config, &BTreeMap::new());
    let first = wait_for(&mut inventory, "users");
    replace(&folder, "etc/passwd", "web:x:33:33::/:/bin/false\n");
    let second = wait_for(&mut inventory, "users");
    assert_eq!(texts(&second, 0), ["web"]);
    assert_ne!(first.hash, second.hash);

    // What cannot be read is said once, and what can be read again is told again.
    fs::remove_file(folder.path().join("etc/passwd")).unwrap();
    let failed = wait_for(&mut inventory, "users");
    assert!(failed.error.unwrap().contains("etc/passwd"));
    replace(&folder, "etc/passwd", "web:x:33:33::/:/bin/false\n");
    assert_eq!(wait_for(&mut inventory, "users").hash, second.hash);

    // A request brings a section that did not change; a known one is not handed out at all.
    inventory.resend(&["groups".to_owned()]);
    let groups = wait_for(&mut inventory, "groups");
    let known = BTreeMap::from([("groups".to_owned(), groups.hash)]);
    let mut later = Inventory::new(&config, &known);
    let mut seen = Vec::new();
    while !seen.contains(&"users".to_owned()) {
        seen.extend(later.poll().into_iter().map(|section| section.kind));
    }
    assert!(!seen.contains(&"groups".to_owned()));
}

#[test]
fn agrees_with_systemctl_on_unit_files() {
    let arguments = [
        "--root=/",
        "list-unit-files",
        "--no-legend",
        "--plain",
        "--no-pager",
    ];
    let Some(text) = run("systemctl", &arguments) else {
        return;
    };
    if std::path::Path::new("/run/systemd/system").exists() {
        return;
    }
    let section = wait_for(&mut Inventory::new(&patient(), &BTreeMap::new()), "units");
    let ours: BTreeMap<_, _> = texts(&section, 0)
        .into_iter()
        .zip(texts(&section, 4))
        .collect();
    let mut differences = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let (name, state) = (fields.next().unwrap(), fields.next().unwrap());
        // Units that generators make are not files.
        if state != "generated" && ours.get(name) != Some(&state) {
            differences.push(format!("{name}: {state}, ours {:?}", ours.get(name)));
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
}
