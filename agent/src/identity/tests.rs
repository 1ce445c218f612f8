use nexus_proto::{limits, time::Timestamp};

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
    let hours = |chance| {
        RenewalClock::of(begin, end, chance)
            .due
            .since(begin)
            .as_secs_f64()
            / 3600.0
    };
    assert!((hours(0.0) - 10.8).abs() < 0.01);
    assert!((hours(1.0) - 13.2).abs() < 0.01);
    let clock = RenewalClock::of(begin, end, 0.5);
    assert!(!clock.is_due(begin));
    assert!(clock.is_due(end));
    assert_eq!(clock.wait(begin).as_secs(), 60);
}
