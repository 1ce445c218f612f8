//! A helper whose pin names a key of the test, and its socket in the test's hands.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use bytes::Bytes;
use nexus_agent::ledger::Ledger;
use nexus_pki::{
    files, job,
    merkle::{Target, Tree},
    policy::{SignerPolicy, TrustedPolicy},
    signing::{Signer, SigningKey},
};
use nexus_proto::{
    agent::v1 as agent,
    helper::v1::{self as wire, from_helper::Kind as Said, to_helper::Kind},
    ids::{Incarnation, JobId, NodeId},
    job::{Action, Context, Job},
    time::Timestamp,
};
use nexus_runtime::clock::Clock;
use nexus_tests::helper::{AGENT, Helper};
use prost::Message as _;
use rustix::{
    fs::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

pub(super) const DOMAIN: &str = "fleet.test";

/// A helper whose pin names a key of this test.
pub(super) struct Scene {
    pub(super) dir: tempfile::TempDir,
    pub(super) helper: Helper,
    pub(super) key: SigningKey,
    pub(super) policy: TrustedPolicy,
    pub(super) own: Target,
}

pub(super) fn policy_of(version: u64, key: &SigningKey, created: Timestamp) -> SignerPolicy {
    SignerPolicy {
        version,
        trust_domain: DOMAIN.to_owned(),
        threshold: 1,
        signers: vec![Signer {
            name: "ann".to_owned(),
            public_key: key.public_key(),
        }],
        created,
    }
}

impl Scene {
    pub(super) async fn new() -> Self {
        let mut scene = Self::without_pin();
        scene.pin();
        scene.helper.start().await.unwrap();
        scene
    }

    pub(super) fn without_pin() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let helper = Helper::new(dir.path()).unwrap();
        let key = SigningKey::generate().unwrap();
        let policy = policy_of(1, &key, now());
        let policy = TrustedPolicy::first(policy.sign(&key).unwrap(), DOMAIN).unwrap();
        let own = Target {
            node: NodeId::random(),
            name: "alpha".to_owned(),
            incarnation: Incarnation::random(),
        };
        Self {
            dir,
            helper,
            key,
            policy,
            own,
        }
    }

    /// What `nexus-agent enroll` writes as root.
    pub(super) fn pin(&self) {
        self.pin_since(None);
    }

    /// What `nexus-agent pin` writes, with the time from which on jobs count.
    pub(super) fn pin_since(&self, since: Option<Timestamp>) {
        let state = self.helper.state();
        let identity = state.join("identity");
        files::create_folder(&identity).unwrap();
        let mut pin = format!(
            "node {}\nname {}\nincarnation {}\ntrust-domain {DOMAIN}\npinned {}\n",
            self.own.node,
            self.own.name,
            self.own.incarnation,
            now()
        );
        if let Some(since) = since {
            pin.push_str(&format!("since {since}\n"));
        }
        files::write_private(&identity, "pin", pin.as_bytes()).unwrap();
        let envelope = self.policy.envelope().encode_to_vec();
        files::write_private(&identity, "policy", &envelope).unwrap();
        let freshness = self.policy.sign_freshness(&self.key, now());
        files::write_private(&identity, "freshness", &freshness.encode_to_vec()).unwrap();
        if !state.join("ledger").exists() {
            Ledger::open(&state.join("ledger"), false, now()).unwrap();
        }
    }

    pub(super) fn mark(&self) -> PathBuf {
        self.dir.path().join("mark")
    }

    /// A job for this node that leaves a mark.
    pub(super) fn job(&self) -> Job {
        let now = now();
        Job {
            id: JobId::random(),
            trust_domain: DOMAIN.to_owned(),
            targets_root: self.tree().root(),
            target_count: 1,
            action: Action::Command {
                argv: vec!["touch".to_owned(), self.mark().display().to_string()],
                context: Context::default(),
                stdin: Bytes::new(),
            },
            timeout: Duration::from_secs(60),
            kill_grace: Duration::from_secs(1),
            output_limit_bytes: 1 << 20,
            created: now.before(Duration::from_secs(2)),
            not_before: now.before(Duration::from_secs(1)),
            expires: now.after(Duration::from_secs(600)),
            policy_version: 1,
            request_id: String::new(),
            operator: "ann".to_owned(),
            idempotent: false,
        }
    }

    pub(super) fn tree(&self) -> Tree {
        Tree::sorted(vec![self.own.clone()]).unwrap()
    }

    pub(super) fn dispatch(&self, job: &Job) -> agent::Dispatch {
        self.dispatch_by(&self.key, job)
    }

    pub(super) fn dispatch_by(&self, key: &SigningKey, job: &Job) -> agent::Dispatch {
        agent::Dispatch {
            job: Some(job::sign(key, job).unwrap()),
            proof: self.tree().proof_of(self.own.node),
            ..agent::Dispatch::default()
        }
    }

    /// What the helper says to a question of the agent's user.
    pub(super) fn ask(&self, question: Kind) -> Vec<Said> {
        self.ask_after(None, question)
    }

    pub(super) fn ask_after(&self, trust: Option<agent::TrustUpdate>, question: Kind) -> Vec<Said> {
        let hello = Kind::Hello(wire::Hello {
            protocol_min: 1,
            protocol_max: 1,
            trust,
        });
        let mut bytes = frame(hello);
        bytes.extend(frame(question));
        self.say(AGENT, bytes)
    }

    /// What the helper says to these bytes until it ends the connection, or the run is over.
    pub(super) fn say(&self, uid: u32, bytes: Vec<u8>) -> Vec<Said> {
        let socket = self.helper.socket();
        in_group(uid, AGENT, move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            // It may have closed it already.
            drop(stream.write_all(&bytes));
            let mut said = Vec::new();
            while let Some(kind) = hear(&mut stream) {
                let over = matches!(kind, Said::Ended(_));
                said.push(kind);
                if over {
                    break;
                }
            }
            said
        })
    }

    pub(super) fn start(&self, dispatch: &agent::Dispatch) -> Vec<Said> {
        self.ask(start(dispatch))
    }

    /// The helper's reason, and that nothing was executed.
    pub(super) fn refused(&self, said: &[Said], why: &str) {
        let Some(Said::Refused(refused)) = said.last() else {
            panic!("{said:?}\n{}", self.helper.log_text());
        };
        assert!(refused.reason.contains(why), "{why}: {}", refused.reason);
        assert!(!self.mark().exists(), "{why}");
    }

    pub(super) fn ran(&self, said: &[Said]) {
        let Some(Said::Ended(finished)) = said.last() else {
            panic!("{said:?}\n{}", self.helper.log_text());
        };
        assert_eq!(finished.exit_code, Some(0), "{finished:?}");
        fs::remove_file(self.mark()).unwrap();
    }
}

pub(super) fn now() -> Timestamp {
    Clock::system().now()
}

pub(super) fn start(dispatch: &agent::Dispatch) -> Kind {
    Kind::Start(wire::Start {
        dispatch: dispatch.encode_to_vec().into(),
    })
}

pub(super) fn frame(kind: Kind) -> Vec<u8> {
    let message = wire::ToHelper { kind: Some(kind) }.encode_to_vec();
    let mut bytes = u32::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(message);
    bytes
}

pub(super) fn hear(stream: &mut UnixStream) -> Option<Said> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut bytes).unwrap();
    wire::FromHelper::decode(bytes.as_slice()).unwrap().kind
}

/// Does something as that user, in that group. Both are a thread's own.
pub(super) fn in_group<T: Send>(uid: u32, gid: u32, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
            act()
        });
        thread.join().unwrap()
    })
}
