//! What an agent and its root helper say to each other on their socket: a taken-over agent's bytes at the helper, and
//! anything at all at the agent.
//!
//! Frames come the same however they are cut, take no memory before they have come, and come back the same from their
//! encoding. The helper answers no more than a greeting and one word, and begins nothing that nobody has signed. The
//! agent keeps of a run what is in order and within the limits, and believes an ending of that run alone.

use std::sync::OnceLock;

use nexus_agent::helper::inside::{self, Helper};
use nexus_proto::{
    HELPER_PROTOCOL,
    agent::v1 as agent,
    helper::v1::{self as wire, from_helper::Kind as Said, to_helper::Kind},
    ids::{JobId, RunKey},
    limits,
    record::{OutputStream, RunOutcome},
};
use prost::Message;

use super::{
    fixture::{Input, fleet},
    frame::comes_back,
    record::folder,
};

/// Pieces that the agent has room for.
const ROOM: usize = 16;

struct World {
    helper: Helper,
    _dir: tempfile::TempDir,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let (dir, fleet) = (folder(), fleet());
        let freshness = fleet.policy.sign_freshness(&fleet.key, super::fixture::NOW);
        let helper = Helper::new(dir.path(), &fleet.own, fleet.policy.clone(), freshness);
        World {
            helper: helper.expect("a helper"),
            _dir: dir,
        }
    })
}

/// The run that the agent follows.
pub(super) fn own_run() -> RunKey {
    RunKey::once(JobId::from_wire(&[3; 16]).expect("16 bytes"))
}

pub(super) fn run(input: &[u8]) {
    let Some(([choice, cut], rest)) = input.split_first_chunk::<2>() else {
        return;
    };
    match choice % 5 {
        0 => {
            comes_back::<wire::ToHelper>(rest);
            comes_back::<wire::FromHelper>(rest);
        }
        1 => {
            read::<wire::ToHelper>(rest, *cut);
            serve(rest);
        }
        2 => serve(&greeted(rest)),
        3 => hear(read(rest, *cut)),
        _ => {
            let mut parts = Input(rest);
            let mut said = Vec::new();
            while !parts.is_empty() {
                said.extend(wire::FromHelper::decode(parts.part()).ok());
            }
            hear(said);
        }
    }
}

/// The messages, which are the same however their bytes are cut.
fn read<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8], cut: u8) -> Vec<M> {
    let (messages, broken) = inside::read::<M>(bytes, bytes.len());
    let again = inside::read(bytes, usize::from(cut));
    assert_eq!(again, (messages, broken));
    let (messages, _) = again;
    let frames: Vec<u8> = messages.iter().flat_map(inside::frame).collect();
    let again = inside::read(&frames, frames.len());
    assert_eq!(again, (messages, false), "their own frames");
    again.0
}

/// A proper greeting and then what the parts are, each in a frame of its own.
pub(super) fn greeted(bytes: &[u8]) -> Vec<u8> {
    let (protocol_min, protocol_max) = HELPER_PROTOCOL;
    let hello = wire::ToHelper {
        kind: Some(Kind::Hello(wire::Hello {
            protocol_min,
            protocol_max,
            trust: None,
        })),
    };
    let mut said = inside::frame(&hello);
    let mut parts = Input(bytes);
    while !parts.is_empty() {
        let part = parts.part();
        let length = u32::try_from(part.len()).expect("a few bytes");
        said.extend(length.to_be_bytes());
        said.extend(part);
    }
    said
}

fn serve(bytes: &[u8]) {
    let helper = &world().helper;
    let answer = helper.answer(bytes);
    let (said, broken) = inside::read::<wire::FromHelper>(&answer, answer.len());
    assert!(!broken && said.len() <= 2, "{said:?}");
    for (index, said) in said.into_iter().enumerate() {
        match said.kind.expect("something is said") {
            Said::Welcome(welcome) => {
                let (lowest, highest) = HELPER_PROTOCOL;
                assert!(index == 0 && (lowest..=highest).contains(&welcome.protocol));
                assert_eq!(welcome.node, fleet().own.node.to_string());
            }
            Said::Refused(refused) => {
                let outcome = RunOutcome::from_wire(refused.outcome);
                let nothing_ran = [RunOutcome::Rejected, RunOutcome::FailedToStart];
                assert!(outcome.is_ok_and(|outcome| nothing_ran.contains(&outcome)));
                assert!(!refused.reason.is_empty());
            }
            Said::NotKnown(_) => assert_eq!(index, 1),
            other => unreachable!("nothing was begun: {other:?}"),
        }
    }
    assert!(helper.is_idle(), "nobody signed it");
}

fn hear(said: Vec<wire::FromHelper>) {
    let outputs = said.iter().filter(|said| is_output(said)).count();
    let (kept, answers, ending) = inside::hear(own_run(), said, ROOM);
    assert!(kept.len() <= ROOM && kept.len() <= answers && answers <= outputs);
    for piece in &kept {
        assert!(piece.data.len() <= limits::OUTPUT_PIECE_BYTES);
    }
    for stream in [OutputStream::Stdout, OutputStream::Stderr] {
        let mut up_to = 0;
        for piece in kept.iter().filter(|piece| piece.stream == stream) {
            let bytes = u64::try_from(piece.data.len()).expect("few");
            let end = piece.offset.saturating_add(bytes);
            assert!(end > up_to, "each brings something");
            up_to = end;
        }
    }
    if let Some(ending) = ending {
        assert!(ending.reason.len() <= limits::REASON_BYTES && ending.at.is_some());
    }
}

fn is_output(said: &wire::FromHelper) -> bool {
    matches!(said.kind, Some(Said::Output(_)))
}

/// What is said in one whole conversation, for each side.
pub(super) fn examples() -> (Vec<wire::ToHelper>, Vec<wire::FromHelper>) {
    let run = Some(own_run().to_wire());
    let asked = [
        Kind::Start(wire::Start {
            dispatch: agent::Dispatch::default().encode_to_vec().into(),
        }),
        Kind::Attach(wire::Attach { run: run.clone() }),
        Kind::Taken(wire::Taken { refused: true }),
        Kind::Stop(wire::Stop {
            reason: "told to".to_owned(),
            hurried: true,
        }),
        Kind::Reported(wire::Reported {}),
    ];
    let output = |stream: OutputStream, offset, data: &'static [u8]| {
        Said::Output(wire::Output {
            stream: stream.to_wire().into(),
            offset,
            data: data.into(),
        })
    };
    let said = [
        Said::Welcome(wire::Welcome {
            protocol: 1,
            node: fleet().own.node.to_string(),
            refuses: "no policy".to_owned(),
        }),
        Said::Refused(wire::Refused {
            reason: "no".to_owned(),
            outcome: RunOutcome::Rejected.to_wire().into(),
        }),
        Said::Started(wire::Started {
            pid: 7,
            start_ticks: 8,
        }),
        output(OutputStream::Stdout, 0, b"abc"),
        output(OutputStream::Stderr, 0, b"e"),
        output(OutputStream::Stdout, 3, b"def"),
        Said::Ended(agent::RunFinished {
            run,
            outcome: RunOutcome::Exited.to_wire().into(),
            exit_code: Some(0),
            stdout_bytes: 6,
            stderr_bytes: 1,
            ..agent::RunFinished::default()
        }),
        Said::NotKnown(wire::NotKnown {}),
    ];
    (
        asked.map(|kind| wire::ToHelper { kind: Some(kind) }).into(),
        said.map(|kind| wire::FromHelper { kind: Some(kind) })
            .into(),
    )
}
