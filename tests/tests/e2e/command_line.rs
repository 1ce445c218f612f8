//! What every `nexusctl` command promises before a collector is involved.

use nexus_tests::{ctl::Ctl, process, programs::Programs};

#[tokio::test]
async fn errors_are_one_line_with_the_promised_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let ctl = Ctl::new(dir.path());
    for (args, code) in [
        (&["get", "nodes"][..], 1),
        (&["get", "starships"], 2),
        (&["get", "nodes", "-l", "role=web,"], 2),
        (&["no-such-command"], 2),
        (&["run", "--all"], 2),
        (&["login", "nxo_rubbish"], 1),
    ] {
        let said = ctl.run(args).await.unwrap();
        assert_eq!(
            (said.code, said.out.as_str()),
            (code, ""),
            "{args:?}: {said:?}"
        );
        let lines: Vec<_> = said.err.lines().collect();
        assert!(
            lines
                .first()
                .is_some_and(|line| line.starts_with("error: ")),
            "{args:?}: {said:?}"
        );
        let rest_is_hint = lines.iter().skip(1).all(|line| line.starts_with("hint: "));
        assert!(rest_is_hint, "{args:?}: {said:?}");
    }
}

#[tokio::test]
async fn version_and_completion_need_no_collector() {
    let dir = tempfile::tempdir().unwrap();
    let ctl = Ctl::new(dir.path());
    let version = ctl.ok(&["version"]).await.unwrap();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    assert!(
        ctl.ok(&["completion", "bash"])
            .await
            .unwrap()
            .contains("nexusctl")
    );
}

#[tokio::test]
async fn the_daemons_say_it_the_same_way() {
    for program in ["nexus-agent", "nexus-collector"] {
        for args in [
            &["--sate-dir", "x", "version"][..],
            &["florish"],
            &["--set", "x", "version"],
        ] {
            let mut command = Programs::built().await.unwrap().command(program);
            let output = process::run(command.args(args), b"").await.unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{program} {args:?}: {said}");
            let lines: Vec<_> = said.lines().collect();
            assert_eq!(lines.len(), 2, "{program} {args:?}: {said}");
            assert!(lines[0].starts_with("error: command line: "), "{said}");
            assert!(lines[1].starts_with("hint: "), "{said}");
        }
    }
}
