use std::fs;

use nexus_proto::ids::JobId;

use super::*;

const T: Timestamp = Timestamp(1_700_000_000_000);

fn key() -> RunKey {
    RunKey::once(JobId::random())
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
    let mut ledger = Ledger::open(dir.path()).unwrap();
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
    ledger.start(started, T).unwrap();
    ledger.start(running, T).unwrap();
    ledger.process(running, process()).unwrap();
    for (key, seq) in [(finished, 9), (acked, 3)] {
        ledger.start(key, T).unwrap();
        ledger
            .finish(key, T, Bytes::from_static(b"report"))
            .unwrap();
        ledger.spooled(key, seq).unwrap();
    }
    ledger.acked(5, T).unwrap();
    let stages = |ledger: &Ledger| keys.map(|key| ledger.get(&key).map(|run| run.stage.clone()));
    let before = stages(&ledger);
    assert_eq!(before[0], Some(Stage::Received(Bytes::from_static(b"job"))));
    assert_eq!(
        before[2],
        Some(Stage::Started {
            at: T,
            process: Some(process())
        })
    );
    assert!(matches!(
        before[3],
        Some(Stage::Finished { seq: Some(9), .. })
    ));
    assert!(matches!(before[4], Some(Stage::Acked(_))));
    assert_eq!(stages(&Ledger::open(dir.path()).unwrap()), before);
    ledger.compact(T).unwrap();
    assert_eq!(stages(&Ledger::open(dir.path()).unwrap()), before);
}

#[test]
fn what_is_forgotten_counts_as_expired() {
    let dir = tempfile::tempdir().unwrap();
    let (old, open) = (key(), key());
    let mut ledger = Ledger::open(dir.path()).unwrap();
    for key in [old, open] {
        ledger.receive(key, T, Bytes::new()).unwrap();
        ledger.start(key, T).unwrap();
    }
    ledger.finish(old, T, Bytes::new()).unwrap();
    ledger.spooled(old, 1).unwrap();
    let later = T.after(REMEMBERED * 2);
    ledger.acked(1, later).unwrap();
    ledger.compact(later).unwrap();
    for ledger in [ledger, Ledger::open(dir.path()).unwrap()] {
        assert_eq!(ledger.get(&old), None);
        assert!(ledger.get(&open).is_some());
        assert_eq!(ledger.horizon(), T);
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let run = key();
    let mut ledger = Ledger::open(dir.path()).unwrap();
    ledger.receive(run, T, Bytes::from_static(b"job")).unwrap();
    let received = fs::metadata(dir.path().join("ledger")).unwrap().len();
    ledger.start(run, T).unwrap();
    let whole = fs::read(dir.path().join("ledger")).unwrap();
    for cut in 6..whole.len() {
        fs::write(dir.path().join("ledger"), &whole[..cut]).unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        let known = (cut as u64) >= received;
        assert_eq!(ledger.get(&run).is_some(), known, "cut at {cut}");
        ledger.start(run, T).unwrap();
        let again = Ledger::open(dir.path()).unwrap();
        assert!(matches!(
            again.get(&run).unwrap().stage,
            Stage::Started { .. }
        ));
    }
    fs::write(dir.path().join("ledger"), b"NXLG\x02\x00").unwrap();
    assert!(matches!(
        Ledger::open(dir.path()),
        Err(LedgerError::Newer(_))
    ));
    fs::write(dir.path().join("ledger"), b"").unwrap();
    assert!(matches!(
        Ledger::open(dir.path()),
        Err(LedgerError::Damaged(_))
    ));
}
