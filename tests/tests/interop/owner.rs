//! Whose a collector's state folder is, and what others hear of it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use nexus_tests::{process, programs::Programs};
use tokio::process::Command;

/// Neither root nor the folder's owner.
const STRANGER: &str = "65533";

/// What the collector says to somebody of that number, who is root without one.
async fn said(state: &Path, word: &str, uid: Option<&str>) -> String {
    let mut command = Programs::built().await.unwrap().command("nexus-collector");
    command.arg("--state-dir").arg(state).arg(word);
    if let Some(uid) = uid {
        let own = command.as_std();
        let mut outer = Command::new("setpriv");
        outer.args(["--reuid", uid, "--regid", uid, "--clear-groups"]);
        outer.arg(own.get_program()).args(own.get_args());
        command = outer;
    }
    let output = process::run(&mut command, b"").await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.success(), uid.is_none(), "{word}: {said}");
    said
}

#[tokio::test]
async fn who_may_not_look_into_a_collectors_folder_is_told_who_may() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    let state = dir.path().join("collector");
    let refused = said(&state, "init", Some(STRANGER)).await;
    assert!(refused.contains("Permission denied"), "{refused}");
    assert!(refused.contains("\nhint: run it as root"), "{refused}");

    said(&state, "init", None).await;
    for word in ["init", "login-code", "serve"] {
        let refused = said(&state, word, Some(STRANGER)).await;
        let why = "it belongs to the user root, and this is number 65533\n";
        assert!(refused.contains(why), "{word}: {refused}");
        assert!(
            refused.contains("\nhint: run it as root; "),
            "{word}: {refused}"
        );
    }
    said(&state, "login-code", None).await;
}
