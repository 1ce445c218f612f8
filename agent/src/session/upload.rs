//! One lane's way up: spool → batches within the collector's credit → acks → the spool's cursor.
//!
//! A call's buffers grow with the largest batch it carried and stay so large until it ends. With thousands of agents
//! that would be most of a collector's memory, and inventory is large and rare: its call ends once all of it is acked
//! and nothing more has come for a while, and the next change begins a new one.

use std::time::Duration;

use nexus_proto::{
    agent::v1::{self as wire, agent_client::AgentClient, upload_frame},
    ids::{Lane, SessionId},
};
use nexus_runtime::errors;
use nexus_transport::Channel;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    Surroundings,
    pace::{Backoff, Window},
};
use crate::spool::SpoolError;

/// Bytes of records of one batch, one more record at most on top. The buffers of a call grow with its largest batch
/// and stay so large: with thousands of agents that is most of a collector's memory.
fn batch_bytes(lane: Lane) -> u64 {
    match lane {
        Lane::Results => 128 * 1024,
        Lane::Metrics | Lane::Inventory => 16 * 1024,
    }
}
/// Batches that wait for the stream.
const FRAMES: usize = 1;
/// How long no inventory has come when its call ends.
const REST: Duration = Duration::from_secs(5);
/// How long the collector may take to end a call that the agent has ended.
const FAREWELL: Duration = Duration::from_secs(10);

/// Uploads a lane for as long as the session lives. A stream that breaks is begun anew.
pub(super) async fn run(
    around: &Surroundings,
    session: SessionId,
    lane: Lane,
    channel: Channel,
) -> std::convert::Infallible {
    let mut backoff = Backoff::default();
    loop {
        // Those that have inventory to tell wait for each other at the collector.
        if lane == Lane::Inventory && around.spool.last(lane) <= around.spool.acked(lane) {
            around.spool.changed(lane).await;
        }
        let begun = around.clock.instant();
        let ended = stream(around, session, lane, channel.clone()).await;
        backoff.held(around.clock.instant().saturating_duration_since(begun));
        if let Err(status) = ended {
            tracing::debug!(%lane, reason = status.message(), "an upload broke off");
            tokio::time::sleep(backoff.failed(Duration::ZERO, rand::random())).await;
        }
    }
}

/// Until it breaks, or has nothing more to say.
async fn stream(
    around: &Surroundings,
    session: SessionId,
    lane: Lane,
    channel: Channel,
) -> Result<(), Status> {
    let (frames, outbound) = mpsc::channel(FRAMES);
    let open = wire::UploadOpen {
        session_id: session.to_wire(),
        lane: lane.to_wire().into(),
    };
    // There is room for the first frame.
    frames
        .send(frame(upload_frame::Kind::Open(open)))
        .await
        .ok();
    let mut client = AgentClient::new(channel);
    let answer = client.upload(ReceiverStream::new(outbound)).await?;
    let mut acks = answer.into_inner();
    let first = next(&mut acks).await?;
    take(around, lane, first.seq)?;
    let mut window = Window::new(first.credit_bytes);
    let mut records = around.spool.upload(lane, first.seq);
    let mut all_sent = false;
    loop {
        tokio::select! {
            ack = next(&mut acks) => {
                let ack = ack?;
                take(around, lane, ack.seq)?;
                window.acked(ack.seq, ack.credit_bytes);
            }
            () = around.spool.changed(lane), if all_sent => all_sent = false,
            () = tokio::time::sleep(REST), if lane == Lane::Inventory && all_sent && window.is_empty() => {
                break;
            }
            place = frames.reserve(), if !all_sent && window.room() > 0 => {
                let place = place.map_err(|_| Status::unavailable("the stream ended"))?;
                let room = usize::try_from(window.room().min(batch_bytes(lane))).unwrap_or(1);
                let batch = records
                    .next_batch(&around.spool, room, around.clock.now())
                    .map_err(|error| Status::internal(errors::chain(&error).to_string()))?;
                let Some((last, _)) = batch.last() else {
                    all_sent = true;
                    continue;
                };
                let bytes: usize = batch.iter().map(|(_, record)| record.len()).sum();
                window.sent(*last, u64::try_from(bytes).unwrap_or(u64::MAX));
                let records = batch.into_iter().map(|(_, record)| record).collect();
                place.send(frame(upload_frame::Kind::Batch(wire::RecordBatch { records })));
            }
        }
    }
    // Ends in order, so that the collector sees no half of a call.
    drop(frames);
    let rest = async {
        while let Some(ack) = acks.message().await? {
            take(around, lane, ack.seq)?;
        }
        Ok(())
    };
    tokio::time::timeout(FAREWELL, rest)
        .await
        .unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(
                "the collector does not end the call",
            ))
        })
}

async fn next(acks: &mut Streaming<wire::UploadAck>) -> Result<wire::UploadAck, Status> {
    acks.message()
        .await?
        .ok_or_else(|| Status::unavailable("the collector ended the stream"))
}

/// Lets go of what is committed.
fn take(around: &Surroundings, lane: Lane, seq: u64) -> Result<(), Status> {
    match around.spool.ack(lane, seq) {
        Ok(()) => {}
        Err(error @ SpoolError::Ack { .. }) => {
            let reason = errors::chain(&error).to_string();
            around
                .spool
                .complain(around.clock.now(), "ack_refused", &reason);
            return Err(Status::out_of_range(reason));
        }
        // It is sent again after a restart, and the collector knows it by its seq.
        Err(error) => {
            tracing::debug!(%lane, error = %errors::chain(&error), "an ack cannot be stored");
        }
    }
    if lane == Lane::Results {
        around.runs.acked(seq);
    }
    Ok(())
}

fn frame(kind: upload_frame::Kind) -> wire::UploadFrame {
    wire::UploadFrame { kind: Some(kind) }
}
