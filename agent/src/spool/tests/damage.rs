//! What happens to the files of a spool that is in use, or that cannot be mended at once.

use std::path::PathBuf;

use super::*;

const SESSIONS: u64 = 3;

fn opened(dir: &Path, bytes: u64) -> Spool {
    Spool::open(dir, &config(bytes), 0, T).unwrap().0
}

fn file(dir: &Path, lane: Lane, first: u64) -> PathBuf {
    dir.join(lane.name()).join(lane::file_name(first))
}

fn files_of(dir: &Path, lane: Lane) -> Vec<PathBuf> {
    open::list(&dir.join(lane.name())).unwrap()
}

fn events(spool: &Spool, kind: &str) -> Vec<String> {
    let said = |record: Record| match record.body {
        Body::Event(event) if event.kind == kind => Some(event.message),
        _ => None,
    };
    let records = drain(spool, Lane::Results, 0);
    records.into_iter().filter_map(said).collect()
}

fn flip(path: &Path, what: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(what.len()).position(|w| w == what).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_file_that_is_gone_becomes_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 800);
    for n in 0..6 {
        spool.event(T, "kind", &format!("message {n}")).unwrap();
    }
    let files = files_of(dir.path(), Lane::Results);
    assert!(files.len() > 2);
    fs::remove_file(&files[1]).unwrap();
    let (first, next) = (
        open::first_of(&files[1]).unwrap(),
        open::first_of(&files[2]).unwrap(),
    );
    let records = drain(&spool, Lane::Results, 0);
    assert_eq!(
        gaps(&records),
        [(first, next - 1, "corrupt_segment".to_owned())]
    );
    assert!(records.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert_eq!(events(&spool, "spool_quarantined").len(), 1);
}

#[test]
fn a_folder_that_is_removed_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 20);
    spool.event(T, "before", "").unwrap();
    spool.append(T, section("os", "x")).unwrap();
    fs::remove_dir_all(dir.path()).unwrap();
    assert_eq!(
        gaps(&drain(&spool, Lane::Results, 0)),
        [(1, 1, "corrupt_segment".to_owned())]
    );
    assert_eq!(gaps(&drain(&spool, Lane::Inventory, 0)).len(), 1);
    assert_eq!(spool.lost_sections(), ["os"], "it is to be sent again");
    assert!(spool.lost_sections().is_empty());
    let last = spool.event(T, "after", "").unwrap();
    spool.close().unwrap();
    drop(spool);
    let (spool, findings) = Spool::open(dir.path(), &config(1 << 20), SESSIONS, T).unwrap();
    assert_eq!(findings, []);
    assert!(spool.event(T, "later", "").unwrap() > last);
    assert_eq!(events(&spool, "after").len(), 1);
}

#[test]
fn a_file_that_cannot_be_opened_ends_the_stream_alone() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 20);
    spool.event(T, "kind", "one").unwrap();
    let (path, aside) = (file(dir.path(), Lane::Results, 1), dir.path().join("aside"));
    fs::rename(&path, &aside).unwrap();
    // ELOOP, whoever asks.
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let mut upload = spool.upload(Lane::Results, 0);
    for _ in 0..20 {
        let error = upload.next_batch(&spool, 1000, T).unwrap_err();
        assert!(matches!(error, SpoolError::File { .. }), "{error}");
    }
    fs::rename(&aside, &path).unwrap();
    assert_eq!(upload.next_batch(&spool, 1000, T).unwrap().len(), 1);
}

#[test]
fn damage_in_a_spool_in_use_is_moved_aside_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 20);
    for n in 0..4 {
        spool.event(T, "kind", &format!("message {n}")).unwrap();
    }
    flip(&file(dir.path(), Lane::Results, 1), b"message 1");
    let records = drain(&spool, Lane::Results, 0);
    assert_eq!(records[0].seq, 1);
    assert_eq!(gaps(&records), [(2, 4, "corrupt_segment".to_owned())]);
    let aside = dir.path().join("results/quarantine");
    assert!(aside.join(lane::file_name(1)).exists());
    assert_eq!(events(&spool, "spool_quarantined").len(), 1);
    // What is acked before the damage is not missed.
    let last = spool.event(T, "kind", "message 5").unwrap();
    flip(&file(dir.path(), Lane::Results, 5), b"spool_quarantined");
    spool.ack(Lane::Results, 5).unwrap();
    let records = drain(&spool, Lane::Results, 5);
    assert_eq!(gaps(&records), [(6, last, "corrupt_segment".to_owned())]);
}

#[test]
fn reports_that_cannot_be_decoded_become_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 20);
    for n in 0..3_u32 {
        spool.append(T, snapshot(f64::from(n))).unwrap();
    }
    let path = file(dir.path(), Lane::Metrics, 1);
    let mut bytes = segment::header(Lane::Metrics, 1);
    let mut records = Vec::new();
    segment::scan(&path, Lane::Metrics, |stored| records.push(stored)).unwrap();
    records[1].payload = Bytes::from_static(b"\xff\xff");
    for record in &records {
        bytes.extend_from_slice(&segment::frame(record));
    }
    spool.with(Lane::Metrics, |log| {
        log.end_file();
        log.segments[0].bytes = bytes.len() as u64;
    });
    fs::write(&path, bytes).unwrap();
    spool.append(T, snapshot(4.0)).unwrap();
    let records = drain(&spool, Lane::Metrics, 0);
    assert_eq!(gaps(&records), [(2, 3, "corrupt_segment".to_owned())]);
    assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 3, 4]);
}

#[test]
fn a_removed_spool_goes_on_above_all_it_may_have_sent() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 20);
    let sent = (0..50)
        .map(|_| spool.event(T, "sent", "").unwrap())
        .max()
        .unwrap();
    drop(spool);
    fs::remove_dir_all(dir.path()).unwrap();
    let (spool, findings) = Spool::open(dir.path(), &config(1 << 20), SESSIONS, T).unwrap();
    assert_eq!(findings.len(), Lane::ALL.len());
    let seq = spool.event(T, "kept", "").unwrap();
    assert!(seq > sent);
    // What the collector says at the first ack is about the spool before.
    spool.ack(Lane::Results, sent).unwrap();
    assert_eq!(events(&spool, "kept").len(), 1);
    assert!(spool.holds_result(seq));
    // The next time as well, even when the file of the reserved seqs was lost in between.
    drop(spool);
    fs::remove_file(dir.path().join("results/seq")).unwrap();
    let before = opened(dir.path(), 1 << 20).event(T, "later", "").unwrap();
    fs::remove_dir_all(dir.path()).unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(1 << 20), SESSIONS + 1, T).unwrap();
    assert!(spool.event(T, "again", "").unwrap() > before);
}

#[test]
fn an_ack_that_cannot_be_true_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 20);
    let seq = spool.event(T, "kept", "").unwrap();
    for hostile in [u64::MAX, u64::MAX - 1, 1 << 62, 1 << 50] {
        let error = spool.ack(Lane::Results, hostile).unwrap_err();
        assert!(matches!(error, SpoolError::Ack { .. }), "{error}");
    }
    assert_eq!(spool.acked(Lane::Results), 0);
    assert_eq!(spool.event(T, "next", "").unwrap(), seq + 1);
    assert_eq!(drain(&spool, Lane::Results, 0).len(), 2);
    drop(spool);
    // A cursor that was kept by an agent that did not look.
    let mut cursor = b"NXC1".to_vec();
    cursor.extend_from_slice(&u64::MAX.to_le_bytes());
    let crc = crc32c::crc32c(&cursor);
    cursor.extend_from_slice(&crc.to_le_bytes());
    fs::write(dir.path().join("results/cursor"), cursor).unwrap();
    let spool = opened(dir.path(), 1 << 20);
    assert_eq!(spool.acked(Lane::Results), 0);
    assert!(spool.event(T, "next", "").unwrap() > seq);
}

/// A disk that is full at the start: nothing is in the way of starting, and the gap stands before what follows.
#[test]
fn a_gap_that_cannot_be_written_yet_is_owed() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 20);
    spool.event(T, "one", "").unwrap();
    drop(spool);
    let gap = format!("results/.{}.new", lane::file_name(lane::BLOCK));
    let in_the_way = dir.path().join(gap);
    fs::create_dir(&in_the_way).unwrap();
    let spool = opened(dir.path(), 1 << 20);
    assert!(spool.event(T, "two", "").is_err());
    assert_eq!(drain(&spool, Lane::Results, 0).len(), 1);
    assert!(spool.close().is_err(), "the stop is no clean one");
    drop(spool);
    let spool = opened(dir.path(), 1 << 20);
    fs::remove_dir(&in_the_way).unwrap();
    spool.event(T, "two", "").unwrap();
    let records = drain(&spool, Lane::Results, 0);
    let gap = (2, lane::BLOCK, "unclean_start".to_owned());
    assert_eq!(gaps(&records), [gap]);
    assert_eq!(
        records.iter().map(|r| r.seq).collect::<Vec<_>>(),
        [1, lane::BLOCK, lane::BLOCK + 1]
    );
}

#[test]
fn a_damaged_file_that_cannot_be_moved_yet_does_not_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 20);
    for n in 0..3 {
        spool.event(T, "kind", &format!("message {n}")).unwrap();
    }
    spool.close().unwrap();
    drop(spool);
    flip(&file(dir.path(), Lane::Results, 1), b"message 1");
    let in_the_way = dir.path().join("results/quarantine");
    fs::write(&in_the_way, "").unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(1 << 20), 0, T).unwrap();
    let mut upload = spool.upload(Lane::Results, 0);
    assert_eq!(upload.next_batch(&spool, 1 << 20, T).unwrap().len(), 1);
    assert!(upload.next_batch(&spool, 1 << 20, T).is_err());
    fs::remove_file(&in_the_way).unwrap();
    let records = drain(&spool, Lane::Results, 0);
    assert_eq!(gaps(&records), [(2, 3, "corrupt_segment".to_owned())]);
}

#[test]
fn files_that_cannot_be_removed_cost_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 4096);
    spool.append(T, snapshot(0.0)).unwrap();
    // No file can be removed from where a folder stands.
    let first = file(dir.path(), Lane::Metrics, 1);
    fs::remove_file(&first).unwrap();
    fs::create_dir(&first).unwrap();
    for n in 0..400_u32 {
        spool.append(T, snapshot(f64::from(n))).unwrap();
    }
    let records = drain(&spool, Lane::Metrics, 0);
    let gaps = gaps(&records);
    assert_eq!((gaps.len(), gaps[0].0), (1, 1));
    assert_eq!(records.len() as u64, 401 - gaps[0].1 + 1);
    let last = records.last().unwrap().seq;
    spool.ack(Lane::Metrics, last).unwrap();
    assert_eq!(spool.acked(Lane::Metrics), last);
}

#[test]
fn the_seq_of_a_record_that_may_be_there_is_spent() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 20);
    let one = spool.event(T, "one", "").unwrap();
    spool.with(Lane::Results, LaneLog::break_writer);
    assert!(spool.event(T, "lost", "").is_err());
    assert_eq!(spool.event(T, "two", "").unwrap(), one + 2);
}

#[test]
fn a_section_is_stored_though_nothing_else_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 4096);
    fs::create_dir(dir.path().join(".sections.new")).unwrap();
    spool.append(T, section("os", "1")).unwrap();
    assert_eq!(drain(&spool, Lane::Inventory, 0).len(), 1);
    // A kind that could not be read is said once, not once a try.
    for n in 0..200 {
        let failed = Section {
            error: Some(format!("try {n}")),
            ..Section::new("users", Vec::new())
        };
        spool.append(T, Body::Section(failed)).unwrap();
    }
    assert!(drain(&spool, Lane::Inventory, 0).len() < 100);
}

#[test]
fn a_clock_that_went_back_costs_no_fresh_reports() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 14);
    let ahead = T.after(Duration::from_secs(90_000));
    for n in 0..60_u32 {
        spool.append(ahead, snapshot(f64::from(n))).unwrap();
    }
    let fresh = files_of(dir.path(), Lane::Metrics).len();
    for n in 0..60_u32 {
        spool.append(T, snapshot(f64::from(n))).unwrap();
    }
    assert!(files_of(dir.path(), Lane::Metrics).len() > fresh);
    spool
        .append(T.after(Duration::from_secs(88_000)), snapshot(0.0))
        .unwrap();
    assert_eq!(gaps(&drain(&spool, Lane::Metrics, 0)), []);
}

/// Each place of the tail claims to be a record of a megabyte.
#[test]
fn a_tail_that_is_hard_to_read_costs_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 24);
    spool.event(T, "kept", "").unwrap();
    drop(spool);
    let path = file(dir.path(), Lane::Results, 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend([0x0f, 0x0f, 0x0f, 0x00].repeat(1 << 19));
    fs::write(&path, bytes).unwrap();
    let spool = opened(dir.path(), 1 << 24);
    assert_eq!(events(&spool, "kept").len(), 1);
    assert!(spool.event(T, "later", "").unwrap() > 1);
}

#[test]
fn what_is_acked_is_not_read_again_with_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let spool = opened(dir.path(), 1 << 24);
    let message = "x".repeat(1000);
    let last = (0..70)
        .map(|_| spool.event(T, "sent", &message).unwrap())
        .max()
        .unwrap();
    spool.ack(Lane::Results, last).unwrap();
    assert_eq!(spool.event(T, "next", "").unwrap(), last + 1);
    let files = files_of(dir.path(), Lane::Results);
    assert_eq!(files, [file(dir.path(), Lane::Results, last + 1)]);
}
