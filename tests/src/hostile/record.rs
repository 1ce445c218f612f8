//! What programs find in their own files: the agent's spool and ledger, the collector's log.
//!
//! A spool starts whatever is in it, hands out what it holds in order, and mends once; a ledger forgets nothing
//! it said; a log row that was read stands for the same facts when it is written again.

use std::{fs, path::Path, time::Duration};

use nexus_agent::{
    ledger::{Ledger, LedgerError},
    spool::{LaneConfig, Spool, SpoolConfig, SpoolError},
};
use nexus_proto::{ids::Lane, limits, record::Body};
use nexus_store::entry::Entry;

use super::{
    fixture::{Input, NOW},
    frame::sorted,
};

const LANE: LaneConfig = LaneConfig {
    bytes: 4 << 20,
    segment_bytes: 512 << 10,
    age: Duration::from_secs(48 * 3600),
};
pub(super) const SPOOL: SpoolConfig = SpoolConfig {
    results: LANE,
    inventory: LANE,
    metrics: LANE,
};

pub(super) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    match choice % 8 {
        0..=2 => spool(choice % 8, rest),
        3 => ledger(rest),
        4 => ledger(&sealed_ledger(rest)),
        5 => {
            if let Ok(entries) = nexus_store::inside::batch(rest) {
                let again = nexus_store::inside::log_and_read(&entries).expect("its own row");
                same_entries(&again, &entries);
            }
        }
        6 => {
            if let Ok(entries) = nexus_store::inside::control_batch(rest) {
                let again = nexus_store::inside::control_log_and_read(&entries);
                assert_eq!(again.expect("its own row"), entries);
            }
        }
        _ => {
            nexus_store::inside::head_row(rest).ok();
        }
    }
}

/// A folder that no disk has to keep.
pub(super) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.expect("a folder")
}

/// Some files of one lane. A file's first byte says whether its bytes are taken as they come, or are records to
/// be sealed; the second is a part of its name.
fn spool(lane: u8, bytes: &[u8]) {
    let lane = Lane::ALL
        .into_iter()
        .nth(usize::from(lane))
        .unwrap_or(Lane::Results);
    let dir = folder();
    let home = dir.path().join(lane.name());
    fs::create_dir_all(&home).expect("a folder");
    let mut parts = Input(bytes);
    let mut count = 0;
    while !parts.is_empty() && count < 4 {
        let (form, name) = (parts.byte(), parts.byte());
        let content = parts.part();
        let name = match form % 8 {
            0 => "cursor".to_owned(),
            1 => "seq".to_owned(),
            7 => "18446744073709551615.seg".to_owned(),
            _ => format!("{name:020}.seg"),
        };
        let content = match form % 8 {
            0 => sealed_mark(b"NXC1", content),
            1 => sealed_mark(b"NXS1", content),
            2 | 3 => content.to_vec(),
            _ => sealed_segment(lane, content),
        };
        fs::write(home.join(name), content).expect("a file");
        count += 1;
    }
    let spool = match Spool::open(dir.path(), &SPOOL, 0, NOW) {
        Ok((spool, _)) => spool,
        Err(SpoolError::Newer(_)) => return,
        Err(error) => unreachable!("the spool must start: {error:?}"),
    };
    let before = drain(&spool, lane);
    let seq = spool
        .event(NOW, "hostile", "still works")
        .expect("a spool that works");
    assert!(seq > spool.acked(Lane::Results));
    let after = drain(&spool, Lane::Results);
    assert_eq!(after.last(), Some(&seq), "the newest record is the last");
    spool.close().expect("a clean stop");
    drop(spool);

    let (spool, findings) = Spool::open(dir.path(), &SPOOL, 0, NOW).expect("it was mended");
    // The seqs of a damaged folder may be at their very end, where no agent comes: then it need only start.
    if seq > limits::SEQ - (1 << 33) {
        return;
    }
    assert!(findings.is_empty(), "{findings:?}");
    let again = drain(&spool, lane);
    assert!(
        again.starts_with(&before),
        "{again:?} does not begin with {before:?}"
    );
}

/// Reads what of a lane is not acknowledged, as an upload does; its seqs rise.
fn drain(spool: &Spool, lane: Lane) -> Vec<u64> {
    let mut upload = spool.upload(lane, spool.acked(lane));
    let mut seqs = Vec::new();
    loop {
        let batch = upload
            .next_batch(spool, 64 << 10, NOW)
            .expect("what it took in it can read");
        if batch.is_empty() {
            return seqs;
        }
        for (seq, _) in batch {
            assert!(
                seqs.last().is_none_or(|last| *last < seq),
                "{seq} after {seqs:?}"
            );
            seqs.push(seq);
        }
    }
}

fn sealed_mark(magic: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut value = [0; 8];
    let some = content.get(..8).unwrap_or(content);
    for (place, byte) in value.iter_mut().zip(some) {
        *place = *byte;
    }
    let mut bytes = [magic.as_slice(), &value].concat();
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    // What follows is what a torn write would leave.
    bytes.extend_from_slice(content.get(8..).unwrap_or_default());
    bytes
}

/// Magic, version 1, lane and first seq, then records: how far the seq rises (255: to the very last), its
/// length, its bytes. What is left over stands behind them as it is.
fn sealed_segment(lane: Lane, content: &[u8]) -> Vec<u8> {
    let mut parts = Input(content);
    let number = match lane {
        Lane::Results => 1,
        Lane::Inventory => 2,
        Lane::Metrics => 3,
    };
    let mut seq = u64::from(parts.byte());
    let mut bytes = [b"NXSP".as_slice(), &[1, 0, number, 0], &seq.to_le_bytes()].concat();
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    while parts.0.len() > 3 {
        let (step, time) = (parts.byte(), parts.byte());
        if step == 254 {
            break;
        }
        seq = match step {
            255 => u64::MAX,
            step => seq.wrapping_add(u64::from(step)),
        };
        let length = usize::from(parts.byte());
        let payload = parts.take(length);
        let time = NOW.as_ms().wrapping_add(i64::from(time));
        let rest = [&seq.to_le_bytes(), &time.to_le_bytes(), payload].concat();
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&rest).to_le_bytes());
        bytes.extend_from_slice(&rest);
    }
    bytes.extend_from_slice(parts.0);
    bytes
}

/// Entries, each with its length before it, under checksums that hold; what is left over stands behind them.
fn sealed_ledger(content: &[u8]) -> Vec<u8> {
    let mut parts = Input(content);
    let mut bytes = b"NXLG\x01\x00".to_vec();
    while parts.0.len() > 1 {
        let length = usize::from(parts.byte());
        if length == 255 {
            break;
        }
        let entry = parts.take(length);
        let length = u32::try_from(entry.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(entry).to_le_bytes());
        bytes.extend_from_slice(entry);
    }
    bytes.extend_from_slice(parts.0);
    bytes
}

fn ledger(bytes: &[u8]) {
    let dir = folder();
    fs::write(dir.path().join("ledger"), bytes).expect("a file");
    let mut ledger = match Ledger::open(dir.path(), true, NOW) {
        Ok(ledger) => ledger,
        Err(LedgerError::Newer(_) | LedgerError::Damaged(_)) => return,
        Err(error) => unreachable!("the ledger must open or say why not: {error:?}"),
    };
    let runs = |ledger: &Ledger| -> Vec<_> {
        ledger
            .runs()
            .map(|(key, run)| (*key, run.clone()))
            .collect()
    };
    let reopened = Ledger::open(dir.path(), true, NOW).expect("its torn tail was cut");
    assert_eq!(runs(&reopened), runs(&ledger));
    assert_eq!(reopened.horizon(), ledger.horizon());
    drop(reopened);

    let before = runs(&ledger);
    ledger.compact(NOW).expect("written anew");
    let reopened = Ledger::open(dir.path(), true, NOW).expect("its own file");
    assert_eq!(reopened.horizon(), ledger.horizon());
    for (key, run) in before {
        use nexus_agent::ledger::Stage::{Acked, Received, Started};
        match (reopened.get(&key), &run.stage) {
            (Some(found), Started { .. }) => {
                assert_eq!(
                    found.stage, run.stage,
                    "a run that was begun is never begun again"
                );
            }
            (Some(found), Received(_)) => assert_eq!(found.stage, run.stage),
            (Some(found), stage) => assert_eq!(&found.stage, stage),
            // Forgotten: then its job counts as expired for ever.
            (None, Acked(_)) => assert!(run.expires <= reopened.horizon()),
            (None, stage) => unreachable!("{key:?} was forgotten: {stage:?}"),
        }
    }
}

/// Equal but for the order of samples within a snapshot.
fn same_entries(some: &[Entry], others: &[Entry]) {
    let normal = |entries: &[Entry]| -> Vec<Entry> {
        let mut entries: Vec<_> = entries.to_vec();
        for entry in &mut entries {
            if let Entry::Records(part) = entry {
                for record in &mut part.records {
                    if let Body::Metrics(snapshot) = &mut record.body {
                        *snapshot = sorted(std::mem::take(snapshot));
                    }
                }
            }
        }
        entries
    };
    assert_eq!(normal(some), normal(others));
}
