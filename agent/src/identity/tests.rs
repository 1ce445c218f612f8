use std::{fs, time::Duration};

use nexus_pki::{
    authority::Authority,
    csr,
    leaf::Leaf,
    policy::{SignerPolicy, TrustedPolicy},
    signing::{Signer, SigningKey},
};
use nexus_proto::{ids::NodeId, limits, time::Timestamp};

use super::*;

#[test]
fn a_folder_has_one_life_and_one_agent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent");
    let folder = StateFolder::open(&path).unwrap();
    assert!(matches!(
        StateFolder::open(&path),
        Err(IdentityError::InUse(_))
    ));
    let incarnation = folder.incarnation();
    assert_eq!(folder.next_session().unwrap(), 1);
    drop(folder);
    let folder = StateFolder::open(&path).unwrap();
    assert_eq!(folder.incarnation(), incarnation);
    assert_eq!(folder.next_session().unwrap(), 2);
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join(SESSION)), 0o600);
    let error = Member::load(&path).unwrap_err();
    assert!(matches!(error, IdentityError::NotEnrolled(_)));
    assert!(error.hint().unwrap().contains("enroll"));
}

#[test]
fn a_folder_is_free_when_its_agent_is_gone_though_a_child_has_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let held = lock(dir.path()).unwrap();
    // As a child has it between fork and exec.
    let copy = held.0.try_clone().unwrap();
    assert!(matches!(lock(dir.path()), Err(IdentityError::InUse(_))));
    drop(held);
    lock(dir.path()).unwrap();
    drop(copy);
}

#[test]
fn the_counter_is_kept_in_place() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SESSION);
    fs::write(&path, "41\n").unwrap();
    let folder = StateFolder::open(dir.path()).unwrap();
    assert_eq!(folder.sessions().unwrap(), 41);
    assert_eq!(folder.next_session().unwrap(), 42);
    let file = |path: &Path| fs::metadata(path).map(|m| (m.ino(), m.len())).unwrap();
    let before = file(&path);
    for n in 43..50 {
        assert_eq!(folder.next_session().unwrap(), n);
    }
    assert_eq!(file(&path), before, "a new file needs room");
    // A write that was cut short costs the number that was not yet used.
    let whole = fs::read(&path).unwrap();
    for cut in 30..60 {
        let mut torn = whole.clone();
        torn[cut] = 0xff;
        fs::write(&path, &torn).unwrap();
        assert_eq!(folder.sessions().unwrap(), 48, "at {cut}");
        assert_eq!(folder.next_session().unwrap(), 49);
    }
}

#[test]
fn a_damaged_counter_is_no_new_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let folder = StateFolder::open(dir.path()).unwrap();
    fs::write(dir.path().join(SESSION), "many").unwrap();
    assert!(matches!(
        folder.next_session(),
        Err(IdentityError::Content { .. })
    ));
}

#[test]
fn renewal_is_due_around_half_of_the_life() {
    let begin = Timestamp(1_700_000_000_000);
    let end = begin.after(limits::LEAF_LIFE);
    let instant = nexus_runtime::clock::Clock::system().instant();
    let due = |chance, hours: u32| {
        let now = begin.after(hours * Duration::from_secs(3600));
        RenewalClock::of(begin, end, None, chance)
            .wait(now, instant)
            .is_none()
    };
    assert!(!due(0.0, 10) && due(0.0, 11));
    assert!(!due(1.0, 13) && due(1.0, 14));
    let wait = RenewalClock::of(begin, end, None, 0.5).wait(begin, instant);
    assert_eq!(wait, Some(Duration::from_secs(60)));
}

#[test]
fn a_clock_that_runs_ahead_does_not_renew_again_and_again() {
    let begin = Timestamp(1_700_000_000_000);
    let end = begin.after(limits::LEAF_LIFE);
    let instant = nexus_runtime::clock::Clock::system().instant();
    let clock = RenewalClock::of(begin, end, Some(instant), 0.5);
    let ahead = begin.after(limits::LEAF_LIFE * 3 / 4);
    assert!(clock.wait(ahead, instant).is_some());
    assert_eq!(clock.wait(ahead, instant + limits::LEAF_LIFE / 4), None);
}

#[test]
fn what_a_collector_says_of_its_addresses_is_looked_at() {
    let text = |text: &str| text.to_owned();
    let many: Vec<_> = (1..100).map(|port| format!("host:{port}")).collect();
    assert_eq!(told(many.clone()), many[..16]);
    let bad = ["", "host", "host:0", "a b:1", "x\n:1"].map(text);
    let long = format!("{}:7460", "x".repeat(300));
    let all = [&bad[..], &[long, text("good:7460")]].concat();
    assert_eq!(told(all), ["good:7460"]);
    let addresses = Addresses {
        enrolled: vec![text("10.0.0.1:7460"), text("name:7460")],
        told: vec![text("name:7460"), text("new:7460")],
    };
    assert_eq!(addresses.all(), ["name:7460", "new:7460", "10.0.0.1:7460"]);
}

#[test]
fn nothing_a_collector_said_keeps_an_agent_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let now = nexus_runtime::clock::Clock::system().now();
    let authority = Authority::create(&dir.path().join("ca"), "fleet.test", now).unwrap();
    let (key, csr) = csr::new_csr().unwrap();
    let issued = authority.issue_agent(&csr, NodeId::random(), now).unwrap();
    let signer = SigningKey::generate().unwrap();
    let policy = SignerPolicy {
        version: 1,
        trust_domain: "fleet.test".to_owned(),
        threshold: 1,
        signers: vec![Signer {
            name: "ann".to_owned(),
            public_key: signer.public_key(),
        }],
        created: now,
    };
    let policy = policy.sign(&signer).unwrap();
    let pinned = TrustedPolicy::first(policy.clone(), "fleet.test").unwrap();
    let addresses = Addresses {
        enrolled: vec!["10.0.0.1:7460".to_owned()],
        told: vec!["name:7460".to_owned()],
    };
    let member = Member::assemble(
        Leaf::from_wire(key, &issued.chain_to_wire()).unwrap(),
        authority.root().clone(),
        "web-1".to_owned(),
        addresses.clone(),
        policy,
        Some(pinned.sign_freshness(&signer, now)),
    );
    member.unwrap().store(dir.path()).unwrap();
    assert_eq!(Member::load(dir.path()).unwrap().addresses, addresses);
    let identity = dir.path().join("identity");
    for name in ["addresses", "freshness"] {
        files::write_private(&identity, name, &vec![b'x'; 2 << 20]).unwrap();
    }
    let member = Member::load(dir.path()).unwrap();
    assert_eq!(member.addresses.all(), ["10.0.0.1:7460"]);
    assert_eq!(member.trust.state().1, Timestamp(0));
    // An identity of before there were two files of addresses.
    fs::remove_file(identity.join("enrolled")).unwrap();
    Member::store_addresses(dir.path(), &["old:7460".to_owned()]).unwrap();
    let member = Member::load(dir.path()).unwrap();
    assert_eq!(member.addresses.all(), ["old:7460"]);
}
