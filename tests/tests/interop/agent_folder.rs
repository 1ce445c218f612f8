//! Root's commands in the folder of an agent that was taken over: anything may stand there in place of a file. Needs root.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, lchown, symlink},
    path::{Path, PathBuf},
};

use nexus_tests::{
    fleet::Fleet,
    helper::{AGENT, Helper},
    process,
};
use rustix::fs::{CWD, Mode, mkfifoat};

const SECRET: &str = "known-to-root-alone";
/// What `pin` cannot do without.
const NEEDED: [&str; 7] = [
    "incarnation",
    "identity",
    "identity/identity.pem",
    "identity/root.pem",
    "identity/name",
    "identity/enrolled",
    "identity/policy",
];
const OTHERS: [&str; 5] = [
    "lock",
    "session",
    "status",
    "identity/addresses",
    "identity/freshness",
];

/// What an agent may put in place of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Odd {
    Pipe,
    Folder,
    LinkToPipe,
    LinkToSecret,
}

struct Folder {
    fleet: Fleet,
    helper: Helper,
}

impl Folder {
    async fn new() -> Self {
        let mut fleet = Fleet::new(&[]).await.unwrap();
        let helper = Helper::new(fleet.dir()).unwrap();
        let agent = helper.agent("alpha", &[]).unwrap();
        let token = fleet.token(&[]).await.unwrap();
        agent.enroll(&token).await.unwrap();
        let secret = fleet.dir().join("secret");
        fs::write(&secret, SECRET).unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        fleet.agents.push(agent);
        let folder = Self { fleet, helper };
        folder.put(&folder.fleet.dir().join("pipe"), Odd::Pipe);
        folder
    }

    fn put(&self, path: &Path, odd: Odd) {
        let dir = self.fleet.dir();
        match odd {
            Odd::Pipe => mkfifoat(CWD, path, Mode::from_raw_mode(0o600)).unwrap(),
            Odd::Folder => fs::create_dir(path).unwrap(),
            Odd::LinkToPipe => symlink(dir.join("pipe"), path).unwrap(),
            Odd::LinkToSecret => symlink(dir.join("secret"), path).unwrap(),
        }
        lchown(path, Some(AGENT), Some(AGENT)).unwrap();
    }

    /// Has something else stand in place of a file until the returned is called for.
    fn replace(&self, name: &str, odd: Odd) -> Replaced {
        let path = self.fleet.agents[0].dir().join(name);
        let kept = self.fleet.dir().join("kept");
        // Not each of them is there before the agent has run.
        let kept = fs::rename(&path, &kept).is_ok().then_some(kept);
        self.put(&path, odd);
        Replaced { path, kept }
    }

    /// As root; whether it succeeded, and what it said. It has come to an end.
    async fn root(&self, args: &[&str], token: &str) -> (bool, String) {
        let mut command = self.fleet.agents[0].command().await.unwrap();
        let output = process::run(command.args(args), token.as_bytes()).await;
        let output = output.unwrap_or_else(|fault| panic!("{args:?}: {fault}"));
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (output.status.success(), said)
    }

    fn pin(&self) -> String {
        fs::read_to_string(self.helper.state().join("identity/pin")).unwrap()
    }
}

struct Replaced {
    path: PathBuf,
    kept: Option<PathBuf>,
}

impl Replaced {
    fn undo(self) {
        let odd = fs::symlink_metadata(&self.path).unwrap();
        if odd.is_dir() {
            fs::remove_dir(&self.path).unwrap();
        } else {
            fs::remove_file(&self.path).unwrap();
        }
        if let Some(kept) = self.kept {
            fs::rename(kept, self.path).unwrap();
        }
    }
}

#[tokio::test]
async fn whatever_stands_in_an_agents_folder_neither_holds_root_up_nor_misleads_it() {
    let folder = Folder::new().await;
    let token = folder.fleet.token(&[]).await.unwrap();
    for name in NEEDED.into_iter().chain(OTHERS) {
        for odd in [Odd::Pipe, Odd::Folder, Odd::LinkToPipe, Odd::LinkToSecret] {
            let replaced = folder.replace(name, odd);
            let before = folder.pin();
            for args in [["status"].as_slice(), &["doctor"], &["pin", "-"]] {
                let (good, said) = folder.root(args, &token).await;
                let case = format!("{name}, {odd:?}, {args:?}: {said}");
                assert!(!said.contains(SECRET), "{case}");
                if args[0] != "pin" {
                    // The agent does not run.
                    assert!(!good, "{case}");
                } else if NEEDED.contains(&name) {
                    assert!(!good && said.contains("error: pin: "), "{case}");
                    assert_eq!(folder.pin(), before, "{case}");
                } else {
                    assert!(good, "{case}");
                }
            }
            replaced.undo();
        }
    }
    let (good, said) = folder.root(&["pin", "-"], &token).await;
    assert!(good, "{said}");
}

#[tokio::test]
async fn root_does_not_enroll_where_a_pipe_stands_for_a_lock() {
    let folder = Folder::new().await;
    let token = folder.fleet.token(&[]).await.unwrap();
    let before = folder.pin();
    for name in ["lock", "incarnation"] {
        for odd in [Odd::Pipe, Odd::LinkToPipe, Odd::LinkToSecret] {
            let replaced = folder.replace(name, odd);
            let (good, said) = folder.root(&["enroll", "--force", "-"], &token).await;
            assert!(!good && said.contains("error: enroll: "), "{name}: {said}");
            assert!(!said.contains(SECRET), "{name}: {said}");
            replaced.undo();
        }
    }
    assert_eq!(folder.pin(), before);
    let (good, said) = folder.root(&["enroll", "--force", "-"], &token).await;
    assert!(good, "{said}");
}
