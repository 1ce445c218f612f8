//! One lane's upload: frames in, acks out. One frame is in the store's hands at a time; what the agent
//! sends meanwhile waits in the transport, within the credit it was given.

use std::{sync::Arc, time::Duration};

use nexus_proto::{
    agent::v1 as wire,
    ids::{Lane, NodeId, SessionId},
};
use nexus_runtime::errors;
use nexus_store::StoreError;
use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit, mpsc};
use tonic::{Status, Streaming};

use super::{
    Sessions,
    credit::Credit,
    ingest::{Batch, Frame, Intake, Reader},
    registry::Session,
};
use crate::pages::metrics::ByLane;

/// Acks that wait for the stream.
pub(crate) const ACKS: usize = 4;
/// Who sends nothing for this long has said its inventory, for now.
const QUIET: Duration = Duration::from_secs(1);
/// The longest turn at sending inventory: who is slow goes on beside the others.
const TURN: Duration = Duration::from_secs(10);

type Acks = mpsc::Sender<Result<wire::UploadAck, Status>>;

/// Runs an upload until either side ends it. An error is told to the agent, which then opens a new one.
pub(crate) async fn run(
    sessions: Arc<Sessions>,
    node: NodeId,
    mut frames: Streaming<wire::UploadFrame>,
    acks: Acks,
) {
    if let Err(status) = upload(&sessions, node, &mut frames, &acks).await {
        tracing::debug!(%node, %status, "ended an upload");
        // Nobody is left to be told when this fails.
        let _gone = acks.send(Err(status)).await;
    }
}

async fn upload(
    sessions: &Sessions,
    node: NodeId,
    frames: &mut Streaming<wire::UploadFrame>,
    acks: &Acks,
) -> Result<(), Status> {
    let (session, lane) = open(sessions, node, frames).await?;
    let ended = session.take_lane(lane);
    let cursor = sessions
        .store
        .cursors(node, session.incarnation)
        .map_err(|error| store_failed(&error))?
        .into_iter()
        .find_map(|(of, seq)| (of == lane).then_some(seq))
        .unwrap_or_default();
    let of = ByLane { lane: lane.name() };
    let mut credit = Credit::new(
        sessions.limits.upload_credit,
        patience(sessions, lane),
        sessions.metrics.upload_credit.get_or_create(&of).clone(),
    );
    let of = (node, session.incarnation);
    let mut reader = Reader::new(of, lane, cursor, sessions.keys.clone());
    let mut turn = tokio::select! {
        () = ended.cancelled() => return Ok(()),
        turn = turn(sessions, lane) => turn?,
    };
    let turn_ends = tokio::time::Instant::now() + TURN;
    // The agent sends nothing before it.
    ack(acks, cursor, &credit).await?;
    loop {
        let quiet = turn_ends.min(tokio::time::Instant::now() + QUIET);
        let frame = tokio::select! {
            () = ended.cancelled() => return Ok(()),
            frame = frames.message() => frame?,
            () = tokio::time::sleep_until(quiet), if turn.is_some() => {
                turn = None;
                continue;
            }
        };
        let Some(frame) = frame else {
            return Ok(());
        };
        let Some(wire::upload_frame::Kind::Batch(batch)) = frame.kind else {
            return Err(Status::invalid_argument(
                "an upload is opened once, then has batches",
            ));
        };
        let mut frame =
            Reader::open(batch).map_err(|error| Status::invalid_argument(error.to_string()))?;
        loop {
            let place = place(sessions, lane).await?;
            let (part, in_memory) = read_part(sessions, &mut reader, &mut frame).await?;
            let (seq, broken) = (part.last_seq, part.broken.clone());
            commit(sessions, node, lane, part, &mut credit).await?;
            // An agent that reads no acks must not keep others from sending.
            drop((in_memory, place));
            ack(acks, seq, &credit).await?;
            if let Some(why) = broken {
                return Err(Status::aborted(format!(
                    "a report could not be read, begin a new stream with a key frame: {why}"
                )));
            }
            if frame.is_read() || ended.is_cancelled() {
                break;
            }
        }
    }
}

/// Waits until a crowd that sends its inventory has let this one through.
async fn turn(sessions: &Sessions, lane: Lane) -> Result<Option<OwnedSemaphorePermit>, Status> {
    if lane != Lane::Inventory {
        return Ok(None);
    }
    let turn = Arc::clone(&sessions.inventory.sending)
        .acquire_owned()
        .await;
    turn.map(Some).map_err(|_| shutting_down())
}

/// A place for inventory that is to be stored.
async fn place(sessions: &Sessions, lane: Lane) -> Result<Option<SemaphorePermit<'_>>, Status> {
    if lane != Lane::Inventory {
        return Ok(None);
    }
    let place = sessions.inventory.storing.acquire().await;
    place.map(Some).map_err(|_| shutting_down())
}

fn shutting_down() -> Status {
    Status::unavailable("the collector is shutting down")
}

/// How long a commit may take before credit shrinks: metrics gather first.
fn patience(sessions: &Sessions, lane: Lane) -> Duration {
    let gather = match lane {
        Lane::Metrics => sessions.limits.gather,
        Lane::Results | Lane::Inventory => Duration::ZERO,
    };
    sessions.limits.commit_latency + gather
}

/// Decoded records are many times their encoded size: what is in memory at the same time is bounded over all
/// sessions together. Nobody waits for memory while holding some.
async fn read_part(
    sessions: &Sessions,
    reader: &mut Reader,
    frame: &mut Frame,
) -> Result<(Intake, OwnedSemaphorePermit), Status> {
    let first = permits(reader.weight_of_next(frame));
    let mut held = Arc::clone(&sessions.intake)
        .acquire_many_owned(first)
        .await
        .map_err(|_| shutting_down())?;
    let has_room = |weight| {
        let more = Arc::clone(&sessions.intake).try_acquire_many_owned(permits(weight));
        more.map(|more| held.merge(more)).is_ok()
    };
    let intake = reader
        .read(frame, sessions.clock.now(), has_room)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok((intake, held))
}

/// A record of the largest size always fits.
fn permits(weight: usize) -> u32 {
    u32::try_from((weight / 1024 + 1).min(super::INTAKE_KIB)).unwrap_or(u32::MAX)
}

async fn open(
    sessions: &Sessions,
    node: NodeId,
    frames: &mut Streaming<wire::UploadFrame>,
) -> Result<(Arc<Session>, Lane), Status> {
    let first = tokio::time::timeout(super::control::FIRST_FRAME, frames.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no UploadOpen came"))??;
    let Some(wire::upload_frame::Kind::Open(open)) = first.and_then(|frame| frame.kind) else {
        return Err(Status::invalid_argument(
            "the first frame of an upload is no UploadOpen",
        ));
    };
    let bad = |error: nexus_proto::ids::IdError| Status::invalid_argument(error.to_string());
    let id = SessionId::from_wire(&open.session_id).map_err(bad)?;
    let lane = Lane::from_wire(open.lane).map_err(bad)?;
    let session = sessions
        .registry
        .get(node)
        .filter(|session| session.id == id)
        .ok_or_else(|| Status::failed_precondition(format!("session {id} is not this agent's")))?;
    Ok((session, lane))
}

async fn commit(
    sessions: &Sessions,
    node: NodeId,
    lane: Lane,
    intake: Intake,
    credit: &mut Credit,
) -> Result<(), Status> {
    if intake.batches.is_empty() {
        return Ok(());
    }
    let start = sessions.clock.instant();
    for batch in intake.batches {
        store(sessions, node, batch).await?;
    }
    let latency = sessions.clock.instant().saturating_duration_since(start);
    credit.committed_in(latency);
    let metrics = &sessions.metrics;
    let by_lane = ByLane { lane: lane.name() };
    metrics.commit_seconds.0.observe(latency.as_secs_f64());
    metrics
        .records_acked
        .get_or_create(&by_lane)
        .inc_by(intake.records);
    metrics
        .record_bytes
        .get_or_create(&by_lane)
        .inc_by(intake.bytes);
    if intake.dead > 0 {
        metrics
            .dead_letters
            .get_or_create(&by_lane)
            .inc_by(intake.dead);
        tracing::warn!(%node, %lane, records = intake.dead, "put unreadable records aside as dead letters");
    }
    for job in intake.jobs {
        sessions.hints.ran(job);
    }
    Ok(())
}

async fn store(sessions: &Sessions, node: NodeId, batch: Batch) -> Result<(), Status> {
    let store = &sessions.store;
    let outcomes = match batch {
        Batch::Entries(entries) => store.append(store.shard_of(node), entries).await,
        Batch::Reports(reports) => {
            let outcome = store.append_reports(reports).await;
            let outcome = outcome.map_err(|error| store_failed(&error))?;
            // Two streams of one node at a time; the next begins with a key frame.
            return match outcome.refusal() {
                Some(why) => Err(Status::aborted(format!(
                    "the reports were not taken: {why}"
                ))),
                None => Ok(()),
            };
        }
    };
    let outcomes = outcomes.map_err(|error| store_failed(&error))?;
    match outcomes.iter().find_map(|outcome| outcome.refusal()) {
        Some(why) => Err(Status::failed_precondition(format!(
            "the records were not taken: {why}"
        ))),
        None => Ok(()),
    }
}

async fn ack(acks: &Acks, seq: u64, credit: &Credit) -> Result<(), Status> {
    let ack = wire::UploadAck {
        seq,
        credit_bytes: credit.bytes(),
    };
    acks.send(Ok(ack))
        .await
        .map_err(|_| Status::cancelled("the agent is gone"))
}

/// Nothing was acknowledged, so nothing is lost: the agent keeps it and comes again.
fn store_failed(error: &StoreError) -> Status {
    let text = errors::chain(error).to_string();
    match error {
        // The writer has said so, once for all that wait for it.
        StoreError::Unwritable(_) | StoreError::Unapplied(_) => {
            tracing::debug!(error = text, "records could not be stored");
        }
        _ => tracing::error!(error = text, "records could not be stored"),
    }
    Status::unavailable(text)
}
