use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    ids::JobId,
    metrics::{Sample, SeriesKey, SeriesType},
};

fn round_trip(body: Body) {
    let record = Record {
        seq: 7,
        time: Timestamp(1_700_000_000_123),
        body,
    };
    let encoded = record.encode(&mut Encoder::new());
    assert_eq!(
        Record::decode(encoded, &mut Decoder::new()).unwrap(),
        record
    );
}

fn refused(change: impl FnOnce(&mut wire::RunFinished)) -> String {
    let mut finished = finished(RunOutcome::Exited).to_wire();
    change(&mut finished);
    let record = wire::Record {
        seq: 1,
        time_ms: 1,
        body: Some(wire::record::Body::Finished(finished)),
    };
    Record::from_wire(record, &mut Decoder::new())
        .unwrap_err()
        .to_string()
}

fn finished(outcome: RunOutcome) -> Finished {
    Finished {
        run: RunKey::once(JobId::random()),
        outcome,
        exit_code: Some(3),
        signal: Some(15),
        reason: "as it was told".to_owned(),
        stdout_bytes: 10,
        stderr_bytes: 20,
        stdout_dropped_bytes: 1,
        stderr_dropped_bytes: 2,
        started: Timestamp(1),
        finished: Timestamp(2),
    }
}

#[test]
fn every_body_comes_back() {
    let run = RunKey::once(JobId::random());
    round_trip(Body::Metrics(Snapshot {
        interval_ms: 10_000,
        samples: vec![Sample {
            key: Arc::new(SeriesKey::new("a", &[("b", "c")])),
            kind: SeriesType::Gauge,
            value: f64::NAN,
        }],
    }));
    round_trip(Body::Section(Section::new(
        "users",
        vec![
            Row(vec!["root".into(), 0_i64.into(), Cell::Null]),
            Row(vec!["".into()]),
        ],
    )));
    round_trip(Body::Section(Section::failed(
        "units",
        "systemctl hangs".to_owned(),
    )));
    round_trip(Body::Started(Started { run, pid: 1 }));
    for stream in [OutputStream::Stdout, OutputStream::Stderr] {
        let data = Bytes::from_static(b"hello");
        round_trip(Body::Output(Output {
            run,
            stream,
            offset: 9,
            data,
        }));
    }
    for outcome in [
        RunOutcome::Exited,
        RunOutcome::Signaled,
        RunOutcome::TimedOut,
        RunOutcome::Cancelled,
        RunOutcome::Rejected,
        RunOutcome::Unknown,
        RunOutcome::FailedToStart,
    ] {
        round_trip(Body::Finished(finished(outcome)));
    }
    round_trip(Body::Gap(Gap {
        first_seq: 1,
        last_seq: 1,
        reason: "spool_full".to_owned(),
    }));
    let event = Event {
        kind: "agent_started".to_owned(),
        message: "0.1.0".to_owned(),
    };
    round_trip(Body::Event(event));
}

#[test]
fn refuses_what_cannot_be() {
    assert_eq!(
        refused(|f| f.exit_code = None),
        "the record has no exit code, though the run exited"
    );
    assert_eq!(refused(|f| f.outcome = 99), "run outcome 99 does not exist");
    assert_eq!(refused(|f| f.run = None), "the record has no run key");
    assert_eq!(
        refused(|f| f.reason = "x".repeat(5000)),
        "bytes of a run's reason has 5000, more than 4096"
    );
    let mut decoder = Decoder::new();
    let empty = wire::Record::default();
    assert!(matches!(
        Record::from_wire(empty, &mut decoder),
        Err(RecordError::Missing("body"))
    ));
    let huge = Bytes::from(vec![0; limits::RECORD_BYTES + 1]);
    assert!(matches!(
        Record::decode(huge, &mut decoder),
        Err(RecordError::Limit { .. })
    ));
}

#[test]
fn seqs_have_an_end() {
    let at = |seq, last_seq| wire::Record {
        seq,
        time_ms: 0,
        body: Some(wire::record::Body::Gap(wire::Gap {
            first_seq: 1,
            last_seq,
            reason: String::new(),
        })),
    };
    let end = limits::SEQ;
    let read = |record| Record::from_wire(record, &mut Decoder::new());
    assert!(read(at(end, end)).is_ok());
    for beyond in [at(end + 1, end), at(end, end + 1), at(u64::MAX, 1)] {
        assert!(matches!(read(beyond), Err(RecordError::Seq(_))));
    }
}

#[test]
fn a_section_is_a_set_with_a_hash() {
    let row = |name: &str| Row(vec![name.into(), 1_i64.into()]);
    let one = Section::new("users", vec![row("b"), row("a"), row("b")]);
    assert_eq!(one, Section::new("users", vec![row("a"), row("b")]));
    assert_eq!(
        one.hash,
        section_hash("users", &[row("b"), row("a"), row("b")])
    );
    assert_ne!(one.hash, section_hash("groups", &one.rows));
    assert_ne!(one.hash, section_hash("users", &[row("a")]));

    // The hash is that of the encoded rows, as the wire format says.
    let encoded = one.to_wire().rows.unwrap().encode_to_vec();
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"users\0").update(&encoded);
    assert_eq!(one.hash, *hasher.finalize().as_bytes());

    let mut forged = one.to_wire();
    forged.rows.as_mut().unwrap().rows.pop();
    assert!(matches!(
        Section::from_wire(forged),
        Err(RecordError::Hash(_))
    ));
    let mut odd = one.to_wire();
    odd.kind = "no/kind".to_owned();
    assert!(matches!(Section::from_wire(odd), Err(RecordError::Kind(_))));
}

fn cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        Just(Cell::Null),
        "\\PC{0,8}".prop_map(Cell::Text),
        any::<i64>().prop_map(Cell::Integer),
    ]
}

proptest! {
    #[test]
    fn sections_come_back(rows in proptest::collection::vec(proptest::collection::vec(cell(), 0..5).prop_map(Row), 0..8)) {
        let section = Section::new("packages", rows.clone());
        prop_assert_eq!(section.hash, section_hash("packages", &rows));
        prop_assert_eq!(Section::from_wire(section.to_wire()).unwrap(), section);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _result = Record::decode(bytes.into(), &mut Decoder::new());
    }
}
