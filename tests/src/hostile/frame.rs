//! What agents, collectors and operators say to each other.
//!
//! Every message that decodes comes back the same from its own encoding; what the collector makes of an upload
//! is in order, complete, bounded, and stands in the log as it was taken; a report's values survive coding to
//! the bit.

use std::sync::Arc;

use nexus_collector::inside::{self, Intake};
use nexus_pki::{merkle, operator_code};
use nexus_proto::{
    agent::v1 as wire,
    ids::Lane,
    limits,
    metrics::{Decoder, Encoder, Sample, SeriesKey, SeriesType, Snapshot},
    operator::v1 as operator,
    record::{Body, Record},
};
use nexus_store::entry::Entry;
use prost::{Message, bytes::Bytes};

use super::fixture::Input;

pub(super) fn run(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    match choice % 8 {
        0 => messages(rest),
        1 => hello(rest),
        2..=4 => {
            let lane = Lane::ALL.into_iter().nth(usize::from(choice % 8 - 2));
            upload(lane.unwrap_or(Lane::Results), rest);
        }
        5 => reports(rest),
        6 => values(rest),
        _ => record(rest),
    }
}

/// The bytes as each message there is.
fn messages(bytes: &[u8]) {
    comes_back::<wire::AgentFrame>(bytes);
    comes_back::<wire::CollectorFrame>(bytes);
    comes_back::<wire::UploadAck>(bytes);
    comes_back::<wire::EnrolRequest>(bytes);
    comes_back::<wire::RenewRequest>(bytes);
    comes_back::<wire::RenewExpiredRequest>(bytes);
    comes_back::<wire::Identity>(bytes);
    comes_back::<wire::Dispatch>(bytes);
    comes_back::<operator::LoginRequest>(bytes);
    comes_back::<operator::LoginResponse>(bytes);
    comes_back::<operator::Trust>(bytes);
    comes_back::<operator::ListNodesRequest>(bytes);
    comes_back::<operator::ListNodesResponse>(bytes);
    comes_back::<operator::SetLabelsRequest>(bytes);
    comes_back::<operator::QueryRequest>(bytes);
    comes_back::<operator::ReadMetricsRequest>(bytes);
    comes_back::<operator::SubmitJobRequest>(bytes);
    comes_back::<operator::WatchJobRequest>(bytes);
    comes_back::<operator::JobUpdate>(bytes);
    comes_back::<operator::CancelJobRequest>(bytes);
    comes_back::<operator::CreateTokenRequest>(bytes);
    comes_back::<operator::ReadAuditRequest>(bytes);
    comes_back::<operator::AuditRow>(bytes);
    // These carry doubles, where not-a-number is not equal to itself: their bytes are compared.
    comes_back_encoded::<wire::UploadFrame>(bytes);
    comes_back_encoded::<wire::Record>(bytes);
    comes_back_encoded::<operator::QueryResponse>(bytes);
    comes_back_encoded::<operator::ReadMetricsResponse>(bytes);

    if let Ok(request) = operator::SubmitJobRequest::decode(bytes)
        && let Ok(tree) = merkle::Tree::from_wire(&request.targets)
    {
        for (index, target) in tree.targets().iter().enumerate().take(8) {
            let proof = tree.proof(index).expect("a leaf has a proof");
            merkle::verify(&tree.root(), tree.count(), target, &proof).expect("its own proof");
            let beyond = wire::InclusionProof {
                index: proof.index.wrapping_add(1),
                ..proof
            };
            let elsewhere = merkle::verify(&tree.root(), tree.count(), target, &beyond);
            assert!(elsewhere.is_err(), "one leaf, one place");
        }
    }
    if let Ok(request) = operator::LoginRequest::decode(bytes) {
        assert!(!operator_code::secret_matches(
            &request.code_secret,
            &[0; 32]
        ));
    }
}

pub(super) fn comes_back<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let encoded = message.encode_to_vec();
        assert_eq!(encoded.len(), message.encoded_len());
        assert_eq!(
            M::decode(encoded.as_slice()).expect("its own encoding"),
            message
        );
    }
}

fn comes_back_encoded<M: Message + Default>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let encoded = message.encode_to_vec();
        let again = M::decode(encoded.as_slice()).expect("its own encoding");
        assert_eq!(again.encode_to_vec(), encoded);
    }
}

fn hello(bytes: &[u8]) {
    if let Ok(frame) = wire::AgentFrame::decode(bytes)
        && let Some(name) = inside::hello(frame)
    {
        assert!((1..=limits::NAME_BYTES).contains(&name.len()));
        assert!(
            name.bytes().all(|byte| byte.is_ascii_graphic()),
            "{name:?} in a table"
        );
    }
}

/// One lane's stream: frames, each with its length before it. The first byte of it says what was committed before.
fn upload(lane: Lane, bytes: &[u8]) {
    let mut parts = Input(bytes);
    let cursor = u64::from(parts.byte());
    let mut frames = Vec::new();
    while !parts.is_empty() {
        match wire::UploadFrame::decode(parts.part()).map(|frame| frame.kind) {
            Ok(Some(wire::upload_frame::Kind::Batch(batch))) => frames.push(batch),
            _ => return,
        }
    }
    let mut last = cursor;
    for intake in inside::intake(lane, cursor, frames) {
        check_intake(lane, &intake, &mut last);
    }
}

fn check_intake(lane: Lane, intake: &Intake, last: &mut u64) {
    let (mut seqs, mut dead, mut samples) = (Vec::new(), 0, 0);
    for entry in &intake.entries {
        match entry {
            Entry::Records(part) => {
                assert_eq!(part.lane, lane);
                assert!(part.records.iter().all(|record| record.body.fits(lane)));
                seqs.extend(part.records.iter().map(|record| record.seq));
            }
            Entry::Fact(fact) => {
                let nexus_store::entry::Fact::DeadLetter(letter) = &**fact else {
                    unreachable!("an upload makes records and dead letters");
                };
                assert!(!letter.reason.is_empty());
                seqs.push(letter.seq);
                dead += 1;
            }
        }
    }
    for part in &intake.reports {
        assert_eq!(lane, Lane::Metrics);
        let mut before = None;
        for report in &part.reports {
            assert!(before.is_none() || report.base.is_none() || report.base == before);
            before = Some(report.seq);
            seqs.push(report.seq);
            samples += report.snapshot.samples.len();
        }
    }
    seqs.sort_unstable();
    for seq in &seqs {
        assert!(seq > last, "{seq} after {last}");
        *last = *seq;
    }
    let records = u64::try_from(seqs.len()).expect("few") - dead;
    assert_eq!((intake.records, intake.dead), (records + dead, dead));
    assert_eq!(
        intake.last_seq, *last,
        "what is acknowledged is what is stored"
    );
    let bytes = samples * size_of::<Sample>();
    assert!(
        bytes <= inside::PART_BYTES || records == 1,
        "{bytes} bytes at once"
    );
    let logged = nexus_store::inside::log_and_read(&intake.entries).expect("its own log row");
    assert_eq!(logged, intake.entries);
    let row = nexus_store::inside::head_encoded(&intake.reports);
    let (taken, lost) = nexus_store::inside::head_row(&row).expect("its own row");
    // The first may continue one of another row.
    let reports: usize = intake.reports.iter().map(|part| part.reports.len()).sum();
    assert_eq!(usize::try_from(taken + lost), Ok(reports));
}

/// A stream of reports, each with its length before it, decoded, coded anew and decoded again.
fn reports(bytes: &[u8]) {
    let mut parts = Input(bytes);
    let mut first = Decoder::new();
    let (mut encoder, mut second) = (Encoder::new(), Decoder::new());
    while !parts.is_empty() {
        let Ok(report) = wire::MetricReport::decode(parts.part()) else {
            continue;
        };
        let Ok(snapshot) = first.decode(&report) else {
            continue;
        };
        assert!(snapshot.samples.len() <= limits::SERIES);
        for sample in &snapshot.samples {
            sample.key.check().expect("a series within the limits");
        }
        let again = second
            .decode(&encoder.encode(&snapshot))
            .expect("our own report");
        assert_eq!(sorted(again), sorted(snapshot));
    }
}

/// Snapshots of any doubles at all, through the codec.
fn values(bytes: &[u8]) {
    let mut parts = Input(bytes);
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    while !parts.is_empty() {
        let many = parts.byte() % 8;
        let mut samples: Vec<Sample> = Vec::new();
        for _ in 0..many {
            let (which, kind) = (parts.byte() % 16, parts.byte());
            let key = Arc::new(SeriesKey::new(&format!("series_{which}"), &[("a", "b")]));
            let kind = match kind % 3 {
                0 => SeriesType::Untyped,
                1 => SeriesType::Counter,
                _ => SeriesType::Gauge,
            };
            let value = match parts.byte() % 4 {
                // Decimals, as hosts report them.
                0 => f64::from(parts.word()) / 100.0,
                1 => f64::from(parts.word()) * 0.001,
                2 => f64::from(parts.word()) * 65536.0,
                _ => f64::from_bits(u64_of(parts.take(8))),
            };
            if samples.iter().all(|sample| sample.key != key) {
                samples.push(Sample { key, kind, value });
            }
        }
        if parts.byte() % 16 == 0 {
            encoder.restart();
        }
        let snapshot = Snapshot {
            interval_ms: 10_000,
            samples,
        };
        let report = encoder.encode(&snapshot).encode_to_vec();
        let report = wire::MetricReport::decode(report.as_slice()).expect("our own message");
        let again = decoder.decode(&report).expect("our own report");
        assert_eq!(sorted(again), sorted(snapshot));
    }
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

/// The order of samples carries no meaning.
pub(super) fn sorted(mut snapshot: Snapshot) -> Snapshot {
    snapshot
        .samples
        .sort_by(|one, other| one.key.cmp(&other.key));
    snapshot
}

fn record(bytes: &[u8]) {
    if let Ok(record) = Record::decode(Bytes::copy_from_slice(bytes), &mut Decoder::new()) {
        let encoded = record.encode(&mut Encoder::new());
        let mut again = Record::decode(encoded, &mut Decoder::new()).expect("its own encoding");
        let mut record = record;
        for one in [&mut again, &mut record] {
            if let Body::Metrics(snapshot) = &mut one.body {
                *snapshot = sorted(std::mem::take(snapshot));
            }
        }
        assert_eq!(again, record);
    }
}
