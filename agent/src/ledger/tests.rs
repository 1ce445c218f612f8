use std::fs;

use nexus_proto::ids::JobId;

use super::*;

const T: Timestamp = Timestamp(1_700_000_000_000);

fn key() -> RunKey {
    RunKey::once(JobId::random())
}

fn node() -> NodeId {
    NodeId::from_wire(&[5; 16]).unwrap()
}

fn process() -> Process {
    Process {
        pid: 7,
        start_ticks: 8,
        boot_id: "boot".to_owned(),
    }
}

#[test]
fn every_stage_survives_a_restart_and_a_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let keys = [key(), key(), key(), key(), key()];
    let [received, started, running, finished, acked] = keys;
    let mut ledger = Ledger::open(dir.path(), false, T).unwrap();
    for (key, n) in [
        (received, 1),
        (started, 1),
        (running, 1),
        (finished, 1),
        (acked, 1),
    ] {
        ledger
            .receive(
                key,
                T.after(Duration::from_secs(n)),
                Bytes::from_static(b"job"),
            )
            .unwrap();
    }
    // As an earlier version wrote it.
    let nameless = Entry::Started {
        key: started,
        at: T,
        node: None,
    };
    ledger.add(nameless, true).unwrap();
    ledger.start(running, T, node()).unwrap();
    ledger.process(running, process()).unwrap();
    for (key, seq) in [(finished, 9), (acked, 3)] {
        ledger.start(key, T, node()).unwrap();
        ledger
            .finish(key, T, Bytes::from_static(b"report"))
            .unwrap();
        ledger.spooled(key, seq).unwrap();
    }
    ledger.acked(5, T).unwrap();
    let stages = |ledger: &Ledger| keys.map(|key| ledger.get(&key).map(|run| run.stage.clone()));
    let before = stages(&ledger);
    assert_eq!(before[0], Some(Stage::Received(Bytes::from_static(b"job"))));
    assert!(matches!(before[1], Some(Stage::Started { node: None, .. })));
    assert_eq!(
        before[2],
        Some(Stage::Started {
            at: T,
            node: Some(node()),
            process: Some(process())
        })
    );
    assert!(matches!(
        before[3],
        Some(Stage::Finished { seq: Some(9), .. })
    ));
    assert!(matches!(before[4], Some(Stage::Acked(_))));
    assert_eq!(stages(&Ledger::open(dir.path(), false, T).unwrap()), before);
    ledger.compact(T).unwrap();
    assert_eq!(stages(&Ledger::open(dir.path(), false, T).unwrap()), before);
}

#[test]
fn what_is_forgotten_counts_as_expired() {
    let dir = tempfile::tempdir().unwrap();
    let (old, open) = (key(), key());
    let mut ledger = Ledger::open(dir.path(), false, T).unwrap();
    for key in [old, open] {
        ledger.receive(key, T, Bytes::new()).unwrap();
        ledger.start(key, T, node()).unwrap();
    }
    ledger.finish(old, T, Bytes::new()).unwrap();
    ledger.spooled(old, 1).unwrap();
    let later = T.after(REMEMBERED * 2);
    ledger.acked(1, later).unwrap();
    ledger.compact(later).unwrap();
    for ledger in [ledger, Ledger::open(dir.path(), false, T).unwrap()] {
        assert_eq!(ledger.get(&old), None);
        assert!(ledger.get(&open).is_some());
        assert_eq!(ledger.horizon(), T);
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let run = key();
    let mut ledger = Ledger::open(dir.path(), false, T).unwrap();
    ledger.receive(run, T, Bytes::from_static(b"job")).unwrap();
    let received = fs::metadata(dir.path().join("ledger")).unwrap().len();
    ledger.start(run, T, node()).unwrap();
    let whole = fs::read(dir.path().join("ledger")).unwrap();
    for cut in 6..whole.len() {
        assert_eq!(Ledger::open(dir.path(), true, T).unwrap().found(), None);
        fs::write(dir.path().join("ledger"), &whole[..cut]).unwrap();
        let mut ledger = Ledger::open(dir.path(), false, T).unwrap();
        let known = (cut as u64) >= received;
        assert_eq!(ledger.get(&run).is_some(), known, "cut at {cut}");
        ledger.start(run, T, node()).unwrap();
        let again = Ledger::open(dir.path(), false, T).unwrap();
        assert!(matches!(
            again.get(&run).unwrap().stage,
            Stage::Started { .. }
        ));
    }
    fs::write(dir.path().join("ledger"), b"NXLG\x02\x00").unwrap();
    assert!(matches!(
        Ledger::open(dir.path(), false, T),
        Err(LedgerError::Newer(_))
    ));
}

/// Whatever bit of a ledger turns: what was started stays started, and what may have been is not begun.
#[test]
fn damage_in_the_middle_starts_nothing_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let keys = [key(), key(), key(), key()];
    let [started, finished, received, last] = keys;
    let mut ledger = Ledger::open(dir.path(), false, T).unwrap();
    for key in keys {
        let job = Bytes::from_static(b"job");
        ledger.receive(key, T.after(REMEMBERED), job).unwrap();
    }
    ledger.start(started, T, node()).unwrap();
    ledger.start(finished, T, node()).unwrap();
    let report = Bytes::from_static(b"report");
    ledger.finish(finished, T, report.clone()).unwrap();
    let before_last = fs::metadata(&path).unwrap().len();
    ledger.start(last, T, node()).unwrap();
    drop(ledger);
    let whole = fs::read(&path).unwrap();
    let later = T.after(Duration::from_secs(9));
    for at in 0..usize::try_from(before_last).unwrap() {
        let mut bytes = whole.clone();
        // A higher version is something else.
        bytes[at] ^= if at == 4 { 1 } else { 0x80 };
        if at == 5 {
            continue;
        }
        fs::write(&path, &bytes).unwrap();
        let ledger = Ledger::open(dir.path(), true, later).unwrap();
        assert_eq!(ledger.found(), Some("the ledger is damaged"), "at {at}");
        assert_eq!(ledger.since(), later);
        assert_eq!(fs::read(dir.path().join(ASIDE)).unwrap(), bytes);
        let stage = |key: &RunKey| ledger.get(key).map(|run| run.stage.clone());
        for run in [started, received, last] {
            // The one entry of `received` may be the bad one: then `since` keeps it from being run.
            let begun = matches!(stage(&run), Some(Stage::Started { .. }));
            assert!(
                begun || (run == received && stage(&run).is_none()),
                "at {at}"
            );
        }
        let over = matches!(stage(&finished), Some(Stage::Finished { .. }));
        assert!(over || matches!(stage(&finished), Some(Stage::Started { .. })));
        let again = Ledger::open(dir.path(), true, later.after(REMEMBERED)).unwrap();
        assert_eq!((again.found(), again.since()), (None, later));
        assert_eq!(again.runs().count(), ledger.runs().count());
    }
}

#[test]
fn a_ledger_that_is_gone_is_not_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path(), false, T).unwrap();
    assert_eq!(ledger.since(), Timestamp(i64::MIN));
    drop(ledger);
    fs::remove_file(dir.path().join("ledger")).unwrap();
    let ledger = Ledger::open(dir.path(), true, T).unwrap();
    assert_eq!(
        (ledger.found(), ledger.since()),
        (Some("the ledger is gone"), T)
    );
    drop(ledger);
    fs::write(dir.path().join("ledger"), b"").unwrap();
    let ledger = Ledger::open(dir.path(), true, T).unwrap();
    assert_eq!(ledger.found(), Some("the ledger is damaged"));
}

#[test]
fn nothing_is_added_behind_what_cannot_be_cut() {
    let dir = tempfile::tempdir().unwrap();
    let run = key();
    let mut ledger = Ledger::open(dir.path(), false, T).unwrap();
    ledger.receive(run, T, Bytes::new()).unwrap();
    let whole = fs::metadata(dir.path().join("ledger")).unwrap().len();
    ledger.file.break_it();
    assert!(ledger.start(run, T, node()).is_err());
    ledger.file.mend_it();
    // What the disk kept of the entry.
    let mut bytes = fs::read(dir.path().join("ledger")).unwrap();
    bytes.extend_from_slice(&[7; 5]);
    fs::write(dir.path().join("ledger"), &bytes).unwrap();
    ledger.start(run, T, node()).unwrap();
    let again = Ledger::open(dir.path(), false, T).unwrap();
    assert_eq!(again.found(), None);
    assert!(matches!(
        again.get(&run).unwrap().stage,
        Stage::Started { .. }
    ));
    assert!(fs::metadata(dir.path().join("ledger")).unwrap().len() > whole);
}

#[test]
fn a_large_ledger_is_not_written_anew_at_every_ack() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(dir.path(), false, T).unwrap();
    let held = Bytes::from(vec![1; 300 * 1024]);
    ledger.receive(key(), T.after(REMEMBERED), held).unwrap();
    let mut files = std::collections::BTreeSet::new();
    for seq in 1..50 {
        let run = key();
        ledger
            .finish(run, T, Bytes::from_static(b"report"))
            .unwrap();
        ledger.spooled(run, seq).unwrap();
        ledger.acked(seq, T).unwrap();
        files.insert(fs::metadata(dir.path().join("ledger")).unwrap().ino());
    }
    assert!(files.len() <= 2, "{} files", files.len());
}
