//! Messages, signed documents and files.

use std::{fs, sync::Arc, time::Duration};

use nexus_agent::{ledger::Ledger, spool::Spool};
use nexus_pki::{
    dsse::{self, payload_type},
    job,
    merkle::Tree,
    policy::SignerPolicy,
    signing::Signer,
    token,
};
use nexus_proto::{
    agent::v1 as wire,
    ids::{Incarnation, JobId, Lane, NodeId, RunKey, SessionId, TokenId},
    job::{Action, Context, Job},
    metrics::{Encoder, Sample, SeriesKey, SeriesType, Snapshot},
    operator::v1 as operator,
    record::{
        Body, Cell, Event, Finished, Gap, Output, OutputStream, Record, Row, RunOutcome, Section,
        Started,
    },
    store::v1 as log,
};
use nexus_store::{
    entry::{ControlEntry, Entry, Records, Reports},
    inside,
};
use prost::{Message as _, bytes::Bytes};

use super::{
    super::{
        fixture::{DOMAIN, NOW, fleet, signing_key},
        record::{SPOOL, folder},
    },
    Add, join_token,
};

fn a_job() -> Job {
    let tree = Tree::sorted(vec![fleet().own.clone()]).expect("a tree");
    Job {
        id: JobId::random(),
        trust_domain: DOMAIN.to_owned(),
        targets_root: tree.root(),
        target_count: 1,
        action: Action::Command {
            argv: vec!["uptime".to_owned(), "-p".to_owned()],
            context: Context {
                env: vec![("LANG".to_owned(), "C".to_owned())],
                cwd: Some("/tmp".to_owned()),
                user: Some("nobody".to_owned()),
            },
            stdin: Bytes::from_static(b"in"),
        },
        timeout: Duration::from_secs(30),
        kill_grace: Duration::from_secs(1),
        output_limit_bytes: 1 << 20,
        created: NOW,
        not_before: NOW,
        expires: NOW.after(Duration::from_secs(60)),
        policy_version: 3,
        request_id: "req-1".to_owned(),
        operator: "ann".to_owned(),
        idempotent: true,
    }
}

fn dispatch(job: &Job) -> wire::Dispatch {
    let tree = Tree::sorted(vec![fleet().own.clone()]).expect("a tree");
    wire::Dispatch {
        job: Some(job::sign(&fleet().key, job).expect("a job")),
        proof: tree.proof_of(fleet().own.node),
        ..wire::Dispatch::default()
    }
}

pub(super) fn envelopes(add: Add<'_>) {
    let fleet = fleet();
    let script = Job {
        action: Action::Script {
            content: Bytes::from_static(b"#!/bin/sh\necho hello\n"),
            args: vec!["x".to_owned()],
            context: Context::default(),
        },
        ..a_job()
    };
    let policy = SignerPolicy {
        version: 4,
        trust_domain: DOMAIN.to_owned(),
        threshold: 2,
        signers: [1, 2]
            .map(|seed| Signer {
                name: format!("signer-{seed}"),
                public_key: signing_key(seed).public_key(),
            })
            .to_vec(),
        created: NOW,
    };
    let mut policy = policy.sign(&fleet.key).expect("a policy");
    dsse::add_signature(&fleet.stranger, &mut policy);
    let first = SignerPolicy {
        version: 1,
        ..fleet.policy.policy().clone()
    };
    let token = token::create(&fleet.key, &join_token()).expect("a token");
    let signed = [
        job::sign(&fleet.key, &a_job()).expect("a job"),
        job::sign(&fleet.key, &script).expect("a job"),
        policy,
        first.sign(&fleet.key).expect("a policy"),
        fleet.policy.sign_freshness(&fleet.key, NOW),
        token.envelope().clone(),
    ];
    for envelope in signed {
        add("envelope", 0, &envelope.encode_to_vec());
        let kind = match envelope.payload_type.as_str() {
            payload_type::POLICY => 1,
            payload_type::FRESHNESS => 2,
            payload_type::JOIN_TOKEN => 3,
            _ => 0,
        };
        add("envelope", kind * 8 + 2, &envelope.payload);
        add("envelope", kind * 8 + 4, &envelope.payload);
        add(
            "envelope",
            kind * 8 + 5,
            &[&[0, 9, 3], envelope.payload.as_ref()].concat(),
        );
    }
    add("envelope", 6, &dispatch(&a_job()).encode_to_vec());
    add("envelope", 7, &dispatch(&script).encode_to_vec());
}

fn snapshot(step: u32) -> Snapshot {
    let sample = |name: &str, labels: &[(&str, &str)], kind, value| Sample {
        key: Arc::new(SeriesKey::new(name, labels)),
        kind,
        value,
    };
    let step = f64::from(step);
    Snapshot {
        interval_ms: 10_000,
        samples: vec![
            sample("node_load1", &[], SeriesType::Gauge, 0.25 + step),
            sample(
                "node_cpu_seconds_total",
                &[("cpu", "0"), ("mode", "idle")],
                SeriesType::Counter,
                12_345.67 + step,
            ),
            sample(
                "node_memory_Cached_bytes",
                &[],
                SeriesType::Gauge,
                4096.0 * step,
            ),
            sample(
                "node_hwmon_temp_celsius",
                &[("chip", "a\"b")],
                SeriesType::Untyped,
                f64::NAN,
            ),
        ],
    }
}

fn bodies(lane: Lane) -> Vec<Body> {
    let run = RunKey::once(JobId::random());
    match lane {
        Lane::Results => vec![
            Body::Started(Started { run, pid: 77 }),
            Body::Output(Output {
                run,
                stream: OutputStream::Stdout,
                offset: 0,
                data: Bytes::from_static(b"hello\n"),
            }),
            Body::Finished(Finished {
                run,
                outcome: RunOutcome::Exited,
                exit_code: Some(1),
                signal: None,
                reason: String::new(),
                stdout_bytes: 6,
                stderr_bytes: 0,
                stdout_dropped_bytes: 0,
                stderr_dropped_bytes: 0,
                started: NOW,
                finished: NOW,
            }),
            Body::Event(Event {
                kind: "agent_started".to_owned(),
                message: "0.1.0".to_owned(),
            }),
        ],
        Lane::Inventory => {
            let row = |name: &str| Row(vec![Cell::from(name), Cell::Null, Cell::from(5_i64)]);
            vec![
                Body::Section(Section::new("packages", vec![row("bash"), row("dash")])),
                Body::Section(Section::failed("users", "permission denied".to_owned())),
            ]
        }
        Lane::Metrics => {
            let gap = Gap {
                first_seq: 4,
                last_seq: 9,
                reason: "spool_full".to_owned(),
            };
            let mut bodies: Vec<_> = (0..3).map(|step| Body::Metrics(snapshot(step))).collect();
            bodies.push(Body::Gap(gap));
            bodies
        }
    }
}

fn lane_records(lane: Lane) -> Vec<Record> {
    let numbered = (1..).zip(bodies(lane));
    numbered
        .map(|(seq, body)| Record {
            seq,
            time: NOW,
            body,
        })
        .collect()
}

/// With its length, two bytes, before it.
pub(super) fn part(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [length.to_be_bytes().as_slice(), bytes].concat()
}

pub(super) fn frames(add: Add<'_>) {
    let hello = wire::AgentFrame {
        kind: Some(wire::agent_frame::Kind::Hello(Box::new(wire::Hello {
            protocol_min: 1,
            protocol_max: 1,
            incarnation: Incarnation::random().to_wire(),
            session_counter: 9,
            name: "web-1".to_owned(),
            facts: Some(wire::NodeFacts {
                agent_version: "0.1.0".to_owned(),
                os: "Debian GNU/Linux 13".to_owned(),
                ..wire::NodeFacts::default()
            }),
            lanes: vec![wire::LaneState { lane: 1, seq: 4 }],
            sections: vec![wire::SectionState {
                kind: "os".to_owned(),
                hash: Bytes::copy_from_slice(&[1; 32]),
            }],
            boot_id: "b".to_owned(),
            ..wire::Hello::default()
        }))),
    };
    add("frame", 0, &hello.encode_to_vec());
    add("frame", 1, &hello.encode_to_vec());
    let welcome = wire::collector_frame::Kind::Welcome(Box::new(wire::Welcome {
        protocol: 1,
        session_id: SessionId::random().to_wire(),
        labels: [("role".to_owned(), "web".to_owned())].into(),
        ..wire::Welcome::default()
    }));
    let offered = wire::collector_frame::Kind::Dispatch(Box::new(dispatch(&a_job())));
    for kind in [welcome, offered] {
        add(
            "frame",
            0,
            &wire::CollectorFrame { kind: Some(kind) }.encode_to_vec(),
        );
    }
    let token = token::create(&fleet().key, &join_token()).expect("a token");
    let enrol = wire::EnrolRequest {
        token: token.to_bytes(),
        csr_der: Bytes::from_static(&[0x30, 0]),
        name: "web-1".to_owned(),
        ..wire::EnrolRequest::default()
    };
    add("frame", 0, &enrol.encode_to_vec());
    let submit = operator::SubmitJobRequest {
        job: Some(job::sign(&fleet().key, &a_job()).expect("a job")),
        targets: vec![fleet().own.to_wire()],
        selector: "role=web".to_owned(),
    };
    add("frame", 0, &submit.encode_to_vec());
    let query = operator::QueryRequest {
        sql: "SELECT name FROM nodes".to_owned(),
        limit: 5,
        ..operator::QueryRequest::default()
    };
    add("frame", 0, &query.encode_to_vec());

    for (choice, lane) in (2..).zip(Lane::ALL) {
        let mut encoder = Encoder::new();
        let records: Vec<_> = lane_records(lane)
            .iter()
            .map(|record| record.encode(&mut encoder))
            .collect();
        for record in &records {
            add("frame", 7, record);
        }
        let mut stream = vec![1];
        for chunk in records.chunks(2) {
            let records = chunk.to_vec();
            let kind = Some(wire::upload_frame::Kind::Batch(wire::RecordBatch {
                records,
            }));
            stream.extend(part(&wire::UploadFrame { kind }.encode_to_vec()));
        }
        add("frame", choice, &stream);
    }
    let mut encoder = Encoder::new();
    let reports = (0..4).flat_map(|step| part(&encoder.encode(&snapshot(step)).encode_to_vec()));
    add("frame", 5, &reports.collect::<Vec<_>>());
    add(
        "frame",
        6,
        &[
            3, 0, 1, 0, 1, 2, 1, 2, 1, 7, 7, 2, 0, 3, 0x7f, 0xf0, 0, 0, 0, 0, 0, 1, 1,
        ],
    );
}

pub(super) fn records(add: Add<'_>) {
    for (choice, lane) in (0..).zip(Lane::ALL) {
        let dir = folder();
        let (spool, _) = Spool::open(dir.path(), &SPOOL, 0, NOW).expect("a spool");
        for record in lane_records(lane) {
            if !matches!(record.body, Body::Gap(_)) {
                spool.append(NOW, record.body).expect("room");
            }
        }
        drop(spool);
        let segment = dir.path().join(lane.name()).join(format!("{:020}.seg", 1));
        let segment = fs::read(segment).expect("a segment");
        add(
            "record",
            choice,
            &[&[2, 1], part(&segment).as_slice()].concat(),
        );
        let sealed = [1, 0, 0, 3, 1, 2, 3, 2, 1, 2, 9, 9];
        let two = [&[4, 1], part(&sealed).as_slice(), &[4, 9], &part(&sealed)].concat();
        add("record", choice, &two);
        let mark = part(&[5, 0, 0, 0, 0, 0, 0, 0]);
        add(
            "record",
            choice,
            &[&[0, 0], mark.as_slice(), &[1, 0], &mark, &two].concat(),
        );
    }
    let dir = folder();
    let mut ledger = Ledger::open(dir.path(), false, NOW).expect("a ledger");
    let key = RunKey::once(JobId::random());
    let process = nexus_agent::ledger::Process {
        pid: 7,
        start_ticks: 9,
        boot_id: "boot".to_owned(),
    };
    let report = Bytes::from_static(b"report");
    let held = ledger
        .receive(key, NOW, Bytes::from_static(b"dispatch"))
        .and_then(|()| ledger.start(key, NOW, NodeId::random()))
        .and_then(|()| ledger.process(key, process))
        .and_then(|()| ledger.finish(key, NOW, report))
        .and_then(|()| ledger.spooled(key, 3))
        .and_then(|()| ledger.acked(3, NOW));
    held.expect("a disk");
    let bytes = fs::read(dir.path().join("ledger")).expect("a ledger");
    add("record", 3, &bytes);
    let mut sealed = Vec::new();
    let mut rest = bytes.get(6..).unwrap_or_default();
    while let Some((head, behind)) = rest.split_first_chunk::<8>() {
        let [length, ..] = *head;
        let (entry, behind) = behind.split_at(usize::from(length).min(behind.len()));
        sealed.extend([&[length], entry].concat());
        rest = behind;
    }
    add("record", 4, &sealed);

    let (node, incarnation) = (NodeId::random(), Incarnation::random());
    let mut entries: Vec<Entry> = Lane::ALL
        .map(|lane| {
            let records = lane_records(lane);
            Entry::from(Records {
                node,
                incarnation,
                lane,
                records,
            })
        })
        .to_vec();
    entries.push(
        log::NodeEnrolled {
            node: node.to_wire(),
            name: "web-1".to_owned(),
            incarnation: incarnation.to_wire(),
            ..log::NodeEnrolled::default()
        }
        .into(),
    );
    add("record", 5, &inside::encoded(&entries));
    let control = [
        ControlEntry::Slots(log::SlotTable {
            version: 1,
            shards: vec![0, 1],
        }),
        ControlEntry::Token(log::TokenCreated {
            token: TokenId::random().to_wire(),
            uses: 3,
            ..log::TokenCreated::default()
        }),
    ];
    add("record", 6, &inside::control_encoded(&control));
    let snapshots = lane_records(Lane::Metrics)
        .into_iter()
        .filter_map(|record| {
            let Body::Metrics(snapshot) = record.body else {
                return None;
            };
            Some((record.seq, record.time, snapshot))
        });
    let reports = Reports::encode(node, incarnation, 1, snapshots.collect());
    add("record", 7, &inside::head_encoded(&[reports]));
}
