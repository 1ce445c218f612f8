//! Whom this machine believes, and what it says of that: signers, clocks, certificates.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nexus_pki::{
    authority::Authority,
    policy::{SignerPolicy, TrustedPolicy},
    signing::{Signer, SigningKey},
};
use nexus_proto::agent::v1::Envelope;
use serde_json::Value;
use tokio::process::Command;

use crate::{LIFE, World, code, err, fake, lies::Lies, out, terminal};

impl World {
    fn operator_dir(&self) -> PathBuf {
        self.dir.path().join("client/operator")
    }

    /// `nexusctl login` on another machine, where nothing is known of the fleet.
    fn login_elsewhere(&self, flags: &[&str]) -> Command {
        let login = self.fake.code();
        let mut args = vec!["login", &login];
        args.extend(flags);
        let mut command = self.command(&args);
        command.env(
            "NEXUSCTL_CONFIG",
            self.dir.path().join("second/client.toml"),
        );
        command
    }

    fn is_elsewhere(&self) -> bool {
        self.dir.path().join("second/client.toml").exists()
    }

    async fn config(&self) -> Value {
        let config = self.run(&["config", "-o", "json"]).await;
        serde_json::from_str(&out(&config)).unwrap()
    }
}

/// A policy that lists the operator, and a thief who signed it.
fn usurped(version: u64, operator: &SigningKey, thief: &SigningKey) -> Envelope {
    let signer = |name: &str, key: &SigningKey| Signer {
        name: name.to_owned(),
        public_key: key.public_key(),
    };
    let policy = SignerPolicy {
        version,
        trust_domain: "test.example".to_owned(),
        threshold: 1,
        signers: vec![signer("admin", operator), signer("mallory", thief)],
        created: fake::now(),
    };
    policy.sign(thief).unwrap()
}

#[tokio::test]
async fn a_first_login_believes_no_signers_but_its_own() {
    let world = World::new(LIFE).await;
    let (other, thief) = (
        SigningKey::generate().unwrap(),
        SigningKey::generate().unwrap(),
    );
    let policy = usurped(1, &other, &thief);
    world.lie(|lies| lies.policy = Some(policy));
    let output = world.run(&["login", &world.fake.code()]).await;
    assert_eq!(code(&output), 1, "{}", err(&output));
    assert!(!world.client_toml().exists(), "{}", err(&output));
    let said = err(&output);
    let shown = format!("signer: mallory, key {}\n", thief.public_key().key_id());
    for part in [
        "a signer policy already",
        &shown,
        "nobody vouches",
        "--policy-sha256",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Without the lie this login's own policy is the fleet's first.
    world.lie(|lies| lies.policy = None);
    world.fake.seen.lock().unwrap().policy = None;
    let output = world.run(&["login", &world.fake.code()]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let config = world.config().await;
    let shown = format!(
        "signer policy: version 1, SHA-256 {}\nsigner: admin, key {} (this machine)\n",
        config["policy_sha256"].as_str().unwrap(),
        config["signing_key_id"].as_str().unwrap()
    );
    assert!(err(&output).contains(&shown), "{}", err(&output));
}

#[tokio::test]
async fn a_first_login_that_was_not_answered_loses_no_key() {
    let world = World::new(LIFE).await;
    world.lie(|lies| lies.silent_login = true);
    let output = world.run(&["login", &world.fake.code()]).await;
    assert_eq!(code(&output), 4, "{}", err(&output));
    let policy = world.fake.seen.lock().unwrap().policy.clone().unwrap();
    world.lie(|lies| lies.silent_login = false);
    let output = world.run(&["login", &world.fake.code()]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let key = SigningKey::load(&world.operator_dir()).unwrap();
    assert_eq!(policy.signers()[0].public_key, key.public_key());
    assert_eq!(world.fake.seen.lock().unwrap().freshness, 1);
    let left = world.client_toml().parent().unwrap().read_dir().unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn a_fleet_has_one_first_policy() {
    let world = World::logged_in().await;
    let first = world.fake.seen.lock().unwrap().policy.take().unwrap();
    // A collector that lost it is given the same, not another one.
    let output = world.run(&["login", &world.fake.code()]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let offered = world.fake.seen.lock().unwrap().offered.take();
    assert_eq!(offered.as_ref(), Some(first.envelope()));
}

#[tokio::test]
async fn another_operator_or_a_person_vouches_for_the_signers() {
    let world = World::logged_in().await;
    let digest = world.config().await["policy_sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    for (flags, answer) in [(vec![], "n\n"), (vec![], "\n")] {
        let shown = terminal::run(world.login_elsewhere(&flags), answer).await;
        assert_eq!(shown.status.code(), Some(1), "{}", shown.text);
        assert!(shown.text.contains(&digest), "{}", shown.text);
        assert!(!world.is_elsewhere(), "{}", shown.text);
    }
    let output = world
        .login_elsewhere(&["--policy-sha256", "1234"])
        .output()
        .await
        .unwrap();
    assert_eq!(code(&output), 2, "{}", err(&output));
    let wrong = digest.chars().rev().collect::<String>();
    let output = world
        .login_elsewhere(&["--policy-sha256", &wrong])
        .output()
        .await
        .unwrap();
    assert_eq!(code(&output), 1, "{}", err(&output));
    assert!(err(&output).contains("was pinned"), "{}", err(&output));
    assert!(!world.is_elsewhere());

    let output = world
        .login_elsewhere(&["--policy-sha256", &digest])
        .output()
        .await
        .unwrap();
    assert_eq!(code(&output), 0, "{}", err(&output));
    // A policy that is pinned is not offered anew.
    assert_eq!(world.fake.seen.lock().unwrap().offered, None);
    assert!(world.is_elsewhere());
    // Its key is in no policy, whatever the collector says.
    assert!(
        err(&output).contains("not in the fleet's signer policy"),
        "{}",
        err(&output)
    );
    std::fs::remove_dir_all(world.dir.path().join("second")).unwrap();
    let shown = terminal::run(world.login_elsewhere(&[]), "y\n").await;
    assert_eq!(shown.status.code(), Some(0), "{}", shown.text);
    assert!(world.is_elsewhere());
}

#[tokio::test]
async fn clocks_that_are_apart_make_no_statement() {
    let world = World::new(LIFE).await;
    for (apart_ms, statements) in [(-600_000, 0), (600_000, 0), (240_000, 1)] {
        world.lie(|lies| lies.clock_ms = apart_ms);
        let output = world.run(&["login", &world.fake.code()]).await;
        assert_eq!(code(&output), 0, "{}", err(&output));
        let seen = world.fake.seen.lock().unwrap().freshness;
        assert_eq!(seen, statements, "{apart_ms}: {}", err(&output));
        let warned = err(&output).contains("was not said to be current");
        assert_eq!(warned, statements == 0, "{}", err(&output));
    }
}

#[tokio::test]
async fn a_newer_policy_is_learnt_before_anything_is_signed() {
    // Certificates are dated back by five minutes, so this one is renewed by every use.
    let world = World::new(Duration::from_secs(60)).await;
    world.run(&["login", &world.fake.code()]).await;
    let operator = SigningKey::load(&world.operator_dir()).unwrap();
    let first = world.fake.seen.lock().unwrap().policy.clone().unwrap();
    let mut next = first.policy().clone();
    next.version = 2;
    let next = first.update(next.sign(&operator).unwrap()).unwrap();
    world.fake.seen.lock().unwrap().policy = Some(next);
    let before = world.fake.seen.lock().unwrap().freshness;
    let output = world.run(&["get", "nodes"]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(
        err(&output).contains("changed since version 1"),
        "{}",
        err(&output)
    );
    let after = world.fake.seen.lock().unwrap().freshness;
    assert_eq!(after, before + 1, "{}", err(&output));
    assert_eq!(world.config().await["policy_version"], 2);
}

#[tokio::test]
async fn a_job_is_signed_under_the_newest_policy_or_not_at_all() {
    let world = World::logged_in().await;
    let operator = SigningKey::load(&world.operator_dir()).unwrap();
    let first = world.fake.seen.lock().unwrap().policy.clone().unwrap();
    let thief = SigningKey::generate().unwrap();
    let policy = usurped(2, &operator, &thief);
    world.lie(|lies| lies.policy = Some(policy));
    for args in [&["run", "--all", "--", "true"][..], &["token", "create"]] {
        let output = world.run(args).await;
        assert_eq!(code(&output), 1, "{}", err(&output));
        let why = "error: believe the collector's signer policy: ";
        assert!(err(&output).contains(why), "{}", err(&output));
    }
    let mut next = first.policy().clone();
    next.version = 2;
    let next: TrustedPolicy = first.update(next.sign(&operator).unwrap()).unwrap();
    world.lie(|lies| lies.policy = None);
    world.fake.seen.lock().unwrap().policy = Some(next);
    let output = world.run(&["run", "--all", "--", "true"]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let seen = world.fake.seen.lock().unwrap();
    assert_eq!(seen.job.as_ref().unwrap().0.policy_version, 2);
    assert!(seen.tokens.is_empty());
}

#[tokio::test]
async fn an_older_policy_of_the_collectors_is_not_taken() {
    let world = World::logged_in().await;
    let operator = SigningKey::load(&world.operator_dir()).unwrap();
    let first = world.fake.seen.lock().unwrap().policy.clone().unwrap();
    let mut next = first.policy().clone();
    next.version = 2;
    let next = first.update(next.sign(&operator).unwrap()).unwrap();
    world.fake.seen.lock().unwrap().policy = Some(next);
    assert_eq!(code(&world.run(&["token", "create"]).await), 0);
    world.lie(|lies| lies.policy = Some(first.envelope().clone()));
    let output = world.run(&["run", "--all", "--", "true"]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(
        err(&output).contains("this machine knows version 2"),
        "{}",
        err(&output)
    );
    let seen = world.fake.seen.lock().unwrap();
    assert_eq!(seen.job.as_ref().unwrap().0.policy_version, 2);
}

#[tokio::test]
async fn a_certificate_for_somebody_else_is_not_taken() {
    let world = World::new(Duration::from_secs(60)).await;
    let foreign = Authority::create(
        &world.dir.path().join("foreign"),
        "test.example",
        fake::now(),
    );
    let foreign = Arc::new(foreign.unwrap());
    type Lie = Box<dyn Fn(&mut Lies)>;
    let dishonest: [(&str, Lie); 2] = [
        (
            "instead of operator `admin`",
            Box::new(|lies| lies.operator = Some("root".to_owned())),
        ),
        (
            "not issued under this fleet's root",
            Box::new(move |lies| lies.authority = Some(foreign.clone())),
        ),
    ];
    for (why, lie) in &dishonest {
        world.lie(lie);
        let output = world.run(&["login", &world.fake.code()]).await;
        assert_eq!(code(&output), 1, "{why}: {}", err(&output));
        assert!(err(&output).contains(why), "{}", err(&output));
        assert!(!world.client_toml().exists());
        world.lie(|lies| *lies = Lies::default());
        world.fake.seen.lock().unwrap().policy = None;
    }
    world.run(&["login", &world.fake.code()]).await;
    let identity = || std::fs::read(world.operator_dir().join("identity.pem")).unwrap();
    let held = identity();
    for (why, lie) in &dishonest {
        world.lie(lie);
        let output = world.run(&["-v", "get", "nodes", "-o", "name"]).await;
        assert_eq!(out(&output), "node/web-1\nnode/db-1\n", "{}", err(&output));
        assert!(err(&output).contains(why), "{}", err(&output));
        assert_eq!(identity(), held, "{why}");
        world.lie(|lies| *lies = Lies::default());
    }
}

#[tokio::test]
async fn a_token_says_where_nodes_will_go() {
    let world = World::logged_in().await;
    let addresses = vec!["thief.example:1".to_owned(), "b:2".to_owned()];
    world.lie(|lies| lies.addresses = Some(addresses));
    let output = world.run(&["token", "create"]).await;
    assert_eq!(code(&output), 0, "{}", err(&output));
    let said = err(&output);
    assert!(
        said.contains("; nodes join at thief.example:1, b:2\n"),
        "{said}"
    );
}
