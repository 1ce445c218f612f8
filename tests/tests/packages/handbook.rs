//! What the pages in docs/ have for administrators of Debian: run there, on a machine for each page.

use std::{fs, path::Path};

use nexus_tests::handbook::{self, DEBIAN_PAGES, Runner};

use super::{cable::Cable, debian::Kind, machine::Machine, package};

const OUTPUTS: &str = "/root/outputs";

#[tokio::test]
async fn pages_do_what_they_say_on_debian() {
    for name in DEBIAN_PAGES {
        let page = handbook::page(name).unwrap();
        let cable = Cable::straight();
        let machine = Machine::boot(Kind::Stock, &cable.there).await;
        // As Debian's installer leaves it: a machine knows its own name.
        machine.write(
            "/etc/hosts",
            0o644,
            "127.0.0.1 localhost\n127.0.1.1 alpha\n",
        );
        for package in ["nexus-agent", "nexus-collector"] {
            let deb = package::built(package);
            let to = Path::new("/root").join(deb.file_name().unwrap());
            fs::copy(&deb, machine.path(to.to_str().unwrap())).unwrap();
        }
        fs::create_dir(machine.path(OUTPUTS)).unwrap();
        let script = page.script(&[Runner::Debian], Path::new(OUTPUTS));
        machine.write("/root/script", 0o700, &script);
        let said = machine.sh("cd && bash script").await;
        let checked = page.check(&[Runner::Debian], &machine.path(OUTPUTS));
        checked
            .map_err(|fault| format!("{fault}\n{said:?}"))
            .unwrap();
    }
}
