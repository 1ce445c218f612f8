use std::{fs, time::Duration};

use nexus_proto::{
    ids::{JobId, RunKey},
    metrics::{Sample, SeriesKey, SeriesType, Snapshot},
    record::{Cell, Output, OutputStream, Row, Section},
};
use proptest::prelude::*;

use super::*;

const T: Timestamp = Timestamp(1_700_000_000_000);

fn config(bytes: u64) -> SpoolConfig {
    let lane = LaneConfig {
        bytes,
        segment_bytes: bytes / 8,
        age: Duration::from_secs(86_400),
    };
    SpoolConfig {
        results: lane,
        inventory: lane,
        metrics: lane,
    }
}

fn snapshot(value: f64) -> Body {
    let sample = |name: &str, value| Sample {
        key: std::sync::Arc::new(SeriesKey::new(name, &[("cpu", "0")])),
        kind: SeriesType::Counter,
        value,
    };
    let samples = vec![
        sample("node_a_total", value),
        sample("node_b_total", value * 2.0),
    ];
    Body::Metrics(Snapshot {
        interval_ms: 10_000,
        samples,
    })
}

fn section(kind: &str, text: &str) -> Body {
    Body::Section(Section::new(
        kind,
        vec![Row(vec![Cell::Text(text.to_owned())])],
    ))
}

fn drain(spool: &Spool, lane: Lane, after: u64) -> Vec<Record> {
    let mut upload = spool.upload(lane, after);
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    loop {
        let batch = upload.next_batch(spool, 1000, T).unwrap();
        if batch.is_empty() {
            return found;
        }
        for (seq, bytes) in batch {
            let record = Record::decode(bytes, &mut decoder).unwrap();
            assert_eq!(record.seq, seq);
            found.push(record);
        }
    }
}

fn gaps(records: &[Record]) -> Vec<(u64, u64, String)> {
    let gap = |record: &Record| match &record.body {
        Body::Gap(gap) => Some((gap.first_seq, gap.last_seq, gap.reason.clone())),
        _ => None,
    };
    records.iter().filter_map(gap).collect()
}

#[test]
fn a_clean_stop_loses_no_seq() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3_u64 {
        let (spool, findings) = Spool::open(dir.path(), &config(1 << 20), 0, T).unwrap();
        assert_eq!(findings, []);
        assert_eq!(spool.append(T, snapshot(1.0)).unwrap(), round + 1);
        assert_eq!(drain(&spool, Lane::Metrics, 0).len() as u64, round + 1);
        spool.close().unwrap();
    }
}

#[test]
fn an_unclean_start_skips_its_block_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(1 << 20), 0, T).unwrap();
    spool.event(T, "one", "").unwrap();
    drop(spool);
    let (spool, findings) = Spool::open(dir.path(), &config(1 << 20), 0, T).unwrap();
    assert_eq!(findings[0].lost, Some((2, lane::BLOCK)));
    assert_eq!(spool.event(T, "two", "").unwrap(), lane::BLOCK + 1);
    let records = drain(&spool, Lane::Results, 0);
    assert_eq!(
        gaps(&records),
        [(2, lane::BLOCK, "unclean_start".to_owned())]
    );
    assert_eq!(
        records.iter().map(|r| r.seq).collect::<Vec<_>>(),
        [1, 1024, 1025]
    );
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(1 << 20), 0, T).unwrap();
    spool.event(T, "one", "first").unwrap();
    spool.event(T, "two", "second").unwrap();
    drop(spool);
    let file = dir.path().join("results").join(lane::file_name(1));
    let whole = fs::read(&file).unwrap();
    for cut in 0..whole.len() {
        let copy = tempfile::tempdir().unwrap();
        let folder = copy.path().join("results");
        fs::create_dir_all(&folder).unwrap();
        fs::copy(dir.path().join("results/seq"), folder.join("seq")).unwrap();
        fs::write(folder.join(lane::file_name(1)), &whole[..cut]).unwrap();
        let (spool, _) = Spool::open(copy.path(), &config(1 << 20), 0, T).unwrap();
        let records = drain(&spool, Lane::Results, 0);
        assert_eq!(gaps(&records).len(), 1, "cut at {cut}");
        assert!(spool.event(T, "three", "").unwrap() > lane::BLOCK);
    }
}

#[test]
fn a_bad_middle_is_moved_aside_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(1 << 20), 0, T).unwrap();
    for n in 0..3 {
        spool.event(T, "kind", &format!("message {n}")).unwrap();
    }
    spool.close().unwrap();
    let file = dir.path().join("results").join(lane::file_name(1));
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.windows(9).position(|w| w == b"message 1").unwrap();
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();

    let (spool, findings) = Spool::open(dir.path(), &config(1 << 20), 0, T).unwrap();
    assert_eq!(findings[0].kind, "spool_quarantined");
    assert!(
        dir.path()
            .join("results/quarantine")
            .join(lane::file_name(1))
            .exists()
    );
    let records = drain(&spool, Lane::Results, 0);
    assert_eq!(records[0].seq, 1);
    assert_eq!(gaps(&records), [(2, 3, "unclean_start".to_owned())]);
    assert!(
        records
            .iter()
            .any(|r| matches!(&r.body, Body::Event(e) if e.kind == "spool_quarantined"))
    );
}

#[test]
fn metrics_make_way_with_a_gap_and_still_decode() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(4096), 0, T).unwrap();
    for n in 0..400_u32 {
        spool.append(T, snapshot(f64::from(n))).unwrap();
    }
    assert!(spool.bytes(Lane::Metrics) <= 4096 + 4096 / 8 + 512);
    let records = drain(&spool, Lane::Metrics, 0);
    let gaps = gaps(&records);
    assert_eq!(gaps.len(), 1);
    let (first, last, reason) = &gaps[0];
    assert_eq!((*first, reason.as_str()), (1, "spool_full"));
    assert_eq!(records.len() as u64, 400 - last + 1);
    let Body::Metrics(snapshot) = &records.last().unwrap().body else {
        panic!()
    };
    assert_eq!(snapshot.samples[0].value, 399.0);
    // A stream that begins in the middle of a file is decodable as well.
    assert_eq!(drain(&spool, Lane::Metrics, 398).len(), 2);
}

#[test]
fn old_metrics_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(1 << 12), 0, T).unwrap();
    for n in 0..20_u32 {
        spool.append(T, snapshot(f64::from(n))).unwrap();
    }
    spool
        .append(T.after(Duration::from_secs(90_000)), snapshot(0.0))
        .unwrap();
    let records = drain(&spool, Lane::Metrics, 0);
    assert_eq!(gaps(&records), [(1, 20, "spool_age".to_owned())]);
    assert_eq!(records.len(), 2);
}

#[test]
fn superseded_inventory_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(4096), 0, T).unwrap();
    for n in 0..200 {
        spool
            .append(T, section("os", &format!("version {n}")))
            .unwrap();
        spool.append(T, section("users", "same")).unwrap();
    }
    let records = drain(&spool, Lane::Inventory, 0);
    assert!(records.len() < 100);
    let newest = |kind: &str| {
        records.iter().rev().find_map(|r| match &r.body {
            Body::Section(s) if s.kind == kind => Some(s.rows.clone()),
            _ => None,
        })
    };
    assert_eq!(
        newest("os").unwrap()[0].0[0],
        Cell::Text("version 199".to_owned())
    );
    assert!(newest("users").is_some());
    let known = spool.sections();
    spool.close().unwrap();
    drop(spool);
    let (spool, _) = Spool::open(dir.path(), &config(4096), 0, T).unwrap();
    assert_eq!(spool.sections(), known);
}

#[test]
fn full_results_refuse_output_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(4096), 0, T).unwrap();
    let output = || {
        Body::Output(Output {
            run: RunKey::once(JobId::random()),
            stream: OutputStream::Stdout,
            offset: 0,
            data: vec![b'x'; 1000].into(),
        })
    };
    while spool.append(T, output()).is_ok() {}
    assert!(matches!(
        spool.append(T, output()),
        Err(SpoolError::Full(Lane::Results))
    ));
    assert!(!spool.takes_jobs());
    let last = spool.event(T, "kept", "").unwrap();
    spool.ack(Lane::Results, last).unwrap();
    assert!(spool.takes_jobs());
}

#[test]
fn a_later_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), &config(4096), 0, T).unwrap();
    spool.event(T, "one", "").unwrap();
    drop(spool);
    let file = dir.path().join("results").join(lane::file_name(1));
    let mut bytes = fs::read(&file).unwrap();
    bytes[4] = 9;
    let crc = crc32c::crc32c(&bytes[..16]).to_le_bytes();
    bytes[16..20].copy_from_slice(&crc);
    fs::write(&file, &bytes).unwrap();
    assert!(matches!(
        Spool::open(dir.path(), &config(4096), 0, T),
        Err(SpoolError::Newer(_))
    ));
    assert_eq!(fs::read(&file).unwrap(), bytes);
}

mod damage;

#[derive(Debug, Clone)]
enum Step {
    Append,
    Ack(u64),
    Read,
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Append),
        2 => (0_u64..20).prop_map(Step::Ack),
        1 => Just(Step::Read),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever happens, what was stored and not acked is read back in order, or a gap stands for it, and
    /// no seq is given twice.
    #[test]
    fn behaves_like_a_queue(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let open = || Spool::open(dir.path(), &config(2048), 0, T).unwrap().0;
        let mut spool = open();
        let mut stored: Vec<u64> = Vec::new();
        let mut acked = 0;
        for step in steps {
            match step {
                Step::Append => {
                    let seq = spool.append(T, snapshot(1.0)).unwrap();
                    prop_assert!(stored.last().is_none_or(|last| *last < seq));
                    stored.push(seq);
                }
                Step::Ack(n) => {
                    acked = acked.max(stored.last().map_or(0, |last| last.saturating_sub(n)));
                    spool.ack(Lane::Metrics, acked).unwrap();
                }
                Step::Read => {}
                Step::Reopen => {
                    spool.close().unwrap();
                    drop(spool);
                    spool = open();
                }
                Step::Crash => {
                    drop(spool);
                    spool = open();
                }
            }
            let records = drain(&spool, Lane::Metrics, acked);
            let gaps = gaps(&records);
            for seq in stored.iter().filter(|seq| **seq > acked) {
                let found = records.iter().any(|r| r.seq == *seq && matches!(r.body, Body::Metrics(_)));
                let gone = gaps.iter().any(|(first, last, _)| (first..=last).contains(&seq));
                prop_assert!(found != gone, "seq {seq}: found {found}, gone {gone}");
            }
            prop_assert!(records.windows(2).all(|pair| pair[0].seq < pair[1].seq));
        }
    }
}
