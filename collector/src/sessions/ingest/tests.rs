//! What becomes of frames.

use std::sync::Arc;

use nexus_proto::{
    metrics::{Encoder, SeriesKey, SeriesType, Snapshot},
    record::Event,
};

use super::*;

const NOW: Timestamp = Timestamp(1);

fn reader(lane: Lane, cursor: u64) -> Reader {
    let of = (NodeId::random(), Incarnation::random());
    Reader::new(of, lane, cursor, KeyPool::new())
}

fn event(seq: u64) -> Bytes {
    let record = Record {
        seq,
        time: Timestamp(5),
        body: Body::Event(Event {
            kind: "test".to_owned(),
            message: "x".to_owned(),
        }),
    };
    record.encode(&mut Encoder::new())
}

fn metrics(seq: u64, encoder: &mut Encoder) -> Bytes {
    let key = Arc::new(SeriesKey::new("node_load1", &[]));
    let sample = Sample {
        key,
        kind: SeriesType::Gauge,
        value: 0.25,
    };
    let record = Record {
        seq,
        time: Timestamp(5),
        body: Body::Metrics(Snapshot {
            interval_ms: 10_000,
            samples: vec![sample],
        }),
    };
    record.encode(encoder)
}

/// All of a frame, with room enough.
fn read(reader: &mut Reader, records: Vec<Bytes>) -> Result<Intake, FrameError> {
    let mut frame = Reader::open(wire::RecordBatch { records })?;
    let intake = reader.read(&mut frame, NOW, |_| true)?;
    assert!(frame.is_read() || intake.broken.is_some());
    Ok(intake)
}

#[test]
fn takes_new_records_once() {
    let mut reader = reader(Lane::Results, 1);
    let intake = read(&mut reader, vec![event(1), event(2), event(5)]).unwrap();
    assert_eq!((intake.records, intake.last_seq), (2, 5));
    let [Batch::Entries(entries)] = intake.batches.as_slice() else {
        panic!("{:?}", intake.batches);
    };
    let [Entry::Records(records)] = entries.as_slice() else {
        panic!("{entries:?}");
    };
    assert_eq!(
        records.records.iter().map(|r| r.seq).collect::<Vec<_>>(),
        [2, 5]
    );
}

#[test]
fn a_poison_record_costs_only_itself() {
    let mut reader = reader(Lane::Results, 0);
    let mut poison = event(2).to_vec();
    poison.truncate(poison.len() - 1);
    let intake = read(&mut reader, vec![event(1), poison.into(), event(3)]).unwrap();
    assert_eq!((intake.dead, intake.last_seq, intake.broken), (1, 3, None));
    assert!(matches!(intake.batches.as_slice(), [Batch::Entries(entries)] if entries.len() == 3));
    let garbage = read(&mut reader, vec![Bytes::from_static(&[0xff; 9]), event(6)]).unwrap();
    assert_eq!((garbage.dead, garbage.last_seq), (1, 6));
}

#[test]
fn a_lost_key_frame_ends_the_stream_after_what_was_good() {
    let mut encoder = Encoder::new();
    let lost = metrics(1, &mut encoder);
    let delta = metrics(2, &mut encoder);
    let mut reader = reader(Lane::Metrics, 0);
    let intake = read(&mut reader, vec![delta.clone(), delta]).unwrap();
    assert!(intake.broken.is_some() && intake.dead == 1, "{intake:?}");
    assert!(
        read(
            &mut Reader::new(
                (reader.node, reader.incarnation),
                Lane::Metrics,
                0,
                KeyPool::new()
            ),
            vec![lost]
        )
        .unwrap()
        .broken
        .is_none()
    );
}

#[test]
fn a_record_of_another_lane_is_a_dead_letter() {
    let mut reader = reader(Lane::Inventory, 0);
    let intake = read(&mut reader, vec![metrics(1, &mut Encoder::new())]).unwrap();
    assert_eq!((intake.dead, intake.last_seq), (1, 1));
}

#[test]
fn seqs_must_rise() {
    let mut reader = reader(Lane::Results, 0);
    let error = read(&mut reader, vec![event(2), event(2)]).unwrap_err();
    assert!(matches!(
        error,
        FrameError::Order {
            before: 2,
            seq: 2,
            ..
        }
    ));
    let many = vec![Bytes::new(); limits::BATCH_RECORDS + 1];
    assert!(matches!(
        read(&mut reader, many),
        Err(FrameError::TooMany { .. })
    ));
}

/// A key frame of so many series, then reports that change nothing, two bytes each and the seq.
fn bomb(series: usize, reports: usize) -> Vec<Bytes> {
    let mut encoder = Encoder::new();
    let samples = (0..series).map(|index| Sample {
        key: Arc::new(SeriesKey::new(&format!("n{index}"), &[])),
        kind: SeriesType::Gauge,
        value: 0.0,
    });
    let body = Body::Metrics(Snapshot {
        interval_ms: 10_000,
        samples: samples.collect(),
    });
    (1..)
        .take(reports)
        .map(|seq| {
            Record {
                seq,
                time: Timestamp(5),
                body: body.clone(),
            }
            .encode(&mut encoder)
        })
        .collect()
}

fn samples(intake: &Intake) -> usize {
    reports(intake)
        .map(|report| report.snapshot.samples.len())
        .sum()
}

fn reports(intake: &Intake) -> impl Iterator<Item = &Report> {
    intake.batches.iter().flat_map(|batch| match batch {
        Batch::Reports(of) => of.reports.iter(),
        Batch::Entries(entries) => panic!("{entries:?}"),
    })
}

#[test]
fn a_stream_that_goes_on_after_what_was_committed_begins_with_a_key_frame() {
    let mut encoder = Encoder::new();
    let records: Vec<_> = (1..=4).map(|seq| metrics(seq, &mut encoder)).collect();
    let mut reader = reader(Lane::Metrics, 2);
    let intake = read(&mut reader, records.clone()).unwrap();
    let bases: Vec<_> = reports(&intake).map(|r| (r.seq, r.base)).collect();
    assert_eq!(bases, [(3, None), (4, Some(3))]);
    let kept: Vec<_> = reports(&intake).map(|r| r.encoded.clone()).collect();
    assert!(kept[0] != records[2] && kept[1] == records[3]);
    let mut decoder = Decoder::new();
    for (kept, report) in kept.into_iter().zip(reports(&intake)) {
        let record = Record::decode(kept, &mut decoder).unwrap();
        assert_eq!(record.body, Body::Metrics((*report.snapshot).clone()));
    }
}

#[test]
fn a_small_frame_never_becomes_much_memory_at_once() {
    let records = bomb(limits::SERIES, 300);
    let bytes: usize = records.iter().skip(1).map(Bytes::len).sum();
    assert!(bytes < 10_000, "{bytes}");
    let mut reader = reader(Lane::Metrics, 0);
    let mut frame = Reader::open(wire::RecordBatch { records }).unwrap();
    let (mut seq, mut parts) = (0, 0);
    while !frame.is_read() {
        let intake = reader.read(&mut frame, NOW, |_| true).unwrap();
        assert!(samples(&intake) * size_of::<Sample>() <= PART_BYTES);
        assert!(intake.broken.is_none() && intake.last_seq > seq);
        (seq, parts) = (intake.last_seq, parts + 1);
    }
    assert_eq!(seq, 300);
    assert!(parts >= 300 * limits::SERIES * size_of::<Sample>() / PART_BYTES);
}

#[test]
fn nodes_of_one_kind_share_the_names_of_their_series() {
    let pool = KeyPool::new();
    let mut keys = Vec::new();
    for _ in 0..2 {
        let of = (NodeId::random(), Incarnation::random());
        let mut reader = Reader::new(of, Lane::Metrics, 0, pool.clone());
        let intake = read(&mut reader, bomb(1, 1)).unwrap();
        let first = reports(&intake).next().unwrap();
        keys.push(Arc::clone(&first.snapshot.samples[0].key));
    }
    assert!(Arc::ptr_eq(&keys[0], &keys[1]));
}

#[test]
fn without_room_a_frame_is_read_record_by_record() {
    let mut reader = reader(Lane::Metrics, 0);
    let mut frame = Reader::open(wire::RecordBatch {
        records: bomb(10, 3),
    })
    .unwrap();
    for seq in 1..=3 {
        assert!(!frame.is_read());
        let intake = reader.read(&mut frame, NOW, |_| false).unwrap();
        assert_eq!((intake.records, intake.last_seq), (1, seq));
    }
    assert!(frame.is_read());
    assert_eq!(reader.weight_of_next(&frame), 0);
}

#[test]
fn a_lost_report_ends_the_stream_however_it_was_lost() {
    let mut encoder = Encoder::new();
    let records: Vec<_> = (1..=3).map(|seq| metrics(seq, &mut encoder)).collect();
    let mut garbled = records[1].to_vec();
    garbled.truncate(garbled.len() - 1);
    for cursor in [0, 2] {
        let mut reader = reader(Lane::Metrics, cursor);
        let frame = [&records[0], &Bytes::from(garbled.clone()), &records[2]];
        let intake = read(&mut reader, frame.map(Bytes::clone).to_vec()).unwrap();
        assert!(
            intake.broken.is_some() && intake.last_seq == 2,
            "{intake:?}"
        );
    }
}
