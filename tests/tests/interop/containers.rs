//! The images of `packaging/container/Containerfile`, made by podman of programs that are built already, on a base made of this
//! machine's C library. So no registry is asked, and the stage that compiles is not run; what is in an image, whose it is
//! and how it starts is.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nexus_tests::{handbook, process, programs::Programs};
use tokio::process::Command;

/// Whom the images run as.
const USER: u32 = 65532;
const BASE: &str = "localhost/nexus-test-base";

/// Its standard output.
async fn run(program: &str, args: &[&str]) -> String {
    let output = process::run(Command::new(program).args(args), b"")
        .await
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    out.trim().to_owned()
}

/// What the stage that compiles would have made.
async fn built(folder: &Path) {
    let programs = Programs::built().await.unwrap();
    let to = folder.join("programs");
    fs::create_dir_all(&to).unwrap();
    for program in ["nexus-agent", "nexus-collector", "nexusctl"] {
        let from = programs.folder().join(program);
        let (from, to) = (from.to_str().unwrap(), to.join(program));
        run("strip", &["-o", to.to_str().unwrap(), from]).await;
    }
    for state in ["agent/agent", "collector/collector", "operator/operator"] {
        let state = folder.join(state);
        fs::create_dir_all(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// What programs are linked to, and nothing else.
async fn base(folder: &Path, programs: &Path) {
    let root = folder.join("root");
    for program in fs::read_dir(programs).unwrap() {
        let program = program.unwrap().path();
        let linked = run("ldd", &[program.to_str().unwrap()]).await;
        for library in linked
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let to = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(library, to).unwrap();
        }
    }
    let archive = folder.join("base.tar");
    let (archive, root) = (archive.to_str().unwrap(), root.to_str().unwrap());
    run(
        "tar",
        &["--create", "--file", archive, "--directory", root, "."],
    )
    .await;
    run("podman", &["import", "--quiet", archive, BASE]).await;
}

#[tokio::test]
async fn images_run_their_programs_as_nobody_in_particular() {
    let dir = tempfile::tempdir().unwrap();
    let context = dir.path().join("context");
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    built(&context).await;
    base(dir.path(), &context.join("programs")).await;
    let file = handbook::root().join("packaging/container/Containerfile");
    let build = format!("build={}", context.display());
    let own = format!("BASE={BASE}");
    let rust = format!("RUST={BASE}");
    for (target, program, state) in [
        ("collector", "nexus-collector", "/var/lib/nexus/collector"),
        ("agent", "nexus-agent", "/var/lib/nexus/agent"),
        ("nexusctl", "nexusctl", "/var/lib/nexus/operator"),
    ] {
        let image = format!("localhost/nexus-test-{target}");
        let mut args = vec!["build", "--quiet", "--file", file.to_str().unwrap()];
        args.extend(["--build-arg", &own, "--build-arg", &rust]);
        args.extend(["--build-context", &build, "--target", target]);
        args.extend(["--tag", &image, empty.to_str().unwrap()]);
        run("podman", &args).await;
        let started = "{{index .Config.Entrypoint 0}} {{.Config.User}}";
        let started = run(
            "podman",
            &["inspect", "--type", "image", "--format", started, &image],
        )
        .await;
        assert_eq!(started, format!("/usr/bin/{program} {USER}:{USER}"));

        let container = run("podman", &["create", &image]).await;
        let root = PathBuf::from(run("podman", &["mount", &container]).await);
        let folder = fs::metadata(root.join(state.trim_start_matches('/'))).unwrap();
        let found = (folder.uid(), folder.gid(), folder.mode() & 0o7777);
        assert_eq!(found, (USER, USER, 0o700), "{target}");
        let user = format!("--userspec={USER}:{USER}");
        let path = format!("/usr/bin/{program}");
        let inside = [user.as_str(), root.to_str().unwrap(), &path];
        let said = run("chroot", &[&inside[..], &["version"]].concat()).await;
        assert!(said.contains(program), "{said}");
        if target == "collector" {
            // As the compose file says it at each start: no code is left in a log.
            let init = ["init", "--if-new", "--no-code"];
            for _ in 0..2 {
                let said = run("chroot", &[&inside[..], &init].concat()).await;
                assert_eq!(said, "");
            }
            let code = run("chroot", &[&inside[..], &["login-code"]].concat()).await;
            assert!(code.starts_with("nxo_"), "{code}");
        }
        run("podman", &["rm", "--force", &container]).await;
        run("podman", &["rmi", "--force", &image]).await;
    }
    run("podman", &["rmi", "--force", BASE]).await;
}
