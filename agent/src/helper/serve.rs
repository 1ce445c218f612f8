//! One connection of an agent: a greeting, one question, and what there is to tell of a run.

use std::{io, sync::Arc};

use nexus_proto::{
    HELPER_PROTOCOL,
    helper::v1::{self as wire, from_helper, to_helper::Kind},
    ids::RunKey,
    limits,
};
use nexus_runtime::errors::chain;
use tokio::{net::UnixStream, time::timeout};

use super::{
    frame::{FrameError, Frames},
    shelf::Next,
    works::{Refused, Work, Works},
};
use crate::exec::Stop;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("nothing was asked in time")]
    Slow,
    #[error("it says what makes no sense here: {0}")]
    Sense(&'static str),
    #[error("it speaks versions {0} to {1}")]
    Version(u32, u32),
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        FrameError::from(error).into()
    }
}

/// Serves an agent until it has gone.
pub(super) async fn serve(works: Works, stream: UnixStream) {
    let mut frames = Frames::new(stream);
    if let Err(error) = talk(&works, &mut frames).await {
        tracing::debug!(error = %chain(&error), "a connection ended");
    }
}

async fn talk(works: &Works, frames: &mut Frames) -> Result<(), ServeError> {
    let hello = match next(frames).await? {
        Some(Kind::Hello(hello)) => hello,
        None => return Ok(()),
        Some(_) => return Err(ServeError::Sense("no greeting")),
    };
    let (lowest, highest) = HELPER_PROTOCOL;
    let protocol = highest.min(hello.protocol_max);
    if protocol < lowest.max(hello.protocol_min) {
        let reason = format!(
            "the helper speaks versions {lowest} to {highest}, the agent {} to {}: upgrade the older one",
            hello.protocol_min, hello.protocol_max
        );
        send(
            frames,
            refusal(nexus_proto::record::RunOutcome::FailedToStart, reason),
        )
        .await?;
        return Err(ServeError::Version(hello.protocol_min, hello.protocol_max));
    }
    let refused = hello.trust.and_then(|update| works.trust(update).err());
    send(
        frames,
        from_helper::Kind::Welcome(works.welcome(protocol, refused)),
    )
    .await?;
    match next(frames).await? {
        None => Ok(()),
        Some(Kind::Start(start)) => match works.start(start.dispatch) {
            Ok(work) => follow(works, &work, frames).await,
            Err(Refused { outcome, reason }) => Ok(send(frames, refusal(outcome, reason)).await?),
        },
        Some(Kind::Attach(attach)) => {
            let key = attach.run.as_ref().map(RunKey::from_wire);
            let Some(Ok(key)) = key else {
                return Err(ServeError::Sense("no run to attach to"));
            };
            match works.attach(key).await {
                Some(work) => follow(works, &work, frames).await,
                None => Ok(send(frames, from_helper::Kind::NotKnown(wire::NotKnown {})).await?),
            }
        }
        Some(_) => Err(ServeError::Sense("no question")),
    }
}

/// Greeting and question must not take long.
async fn next(frames: &mut Frames) -> Result<Option<Kind>, ServeError> {
    let received = timeout(limits::HELPER_HELLO, frames.next::<wire::ToHelper>()).await;
    match received.map_err(|_| ServeError::Slow)?? {
        None => Ok(None),
        Some(wire::ToHelper { kind: Some(kind) }) => Ok(Some(kind)),
        Some(wire::ToHelper { kind: None }) => Err(ServeError::Sense("an empty frame")),
    }
}

async fn follow(works: &Works, work: &Arc<Work>, frames: &mut Frames) -> Result<(), ServeError> {
    let result = tell(works, work, frames).await;
    works.unfollowed(work);
    result
}

/// Tells what there is to tell until the agent has gone, or has it all.
async fn tell(works: &Works, work: &Arc<Work>, frames: &mut Frames) -> Result<(), ServeError> {
    let mut follower = work.shelf.follow();
    let mut over = false;
    loop {
        let told = match work.shelf.next(&mut follower) {
            Next::Superseded => return Ok(()),
            Next::Began(identity) => Some(from_helper::Kind::Started(wire::Started {
                pid: identity.pid,
                start_ticks: identity.start_ticks,
            })),
            Next::Piece(piece) => Some(from_helper::Kind::Output(wire::Output {
                stream: piece.stream.to_wire().into(),
                offset: piece.offset,
                data: piece.data,
            })),
            Next::Over(finished) if !over => {
                over = true;
                works.amend(work, &finished);
                Some(from_helper::Kind::Ended(finished.to_wire()))
            }
            Next::Over(_) | Next::Nothing => None,
        };
        if let Some(kind) = told {
            send(frames, kind).await?;
            continue;
        }
        tokio::select! {
            frame = frames.next::<wire::ToHelper>() => match frame?.map(|frame| frame.kind) {
                None => return Ok(()),
                Some(Some(Kind::Taken(taken))) => {
                    if !work.shelf.taken(&follower, taken.refused) {
                        return Err(ServeError::Sense("it took what was not sent"));
                    }
                }
                Some(Some(Kind::Stop(stop))) => {
                    let reason = stop.reason.chars().take(limits::REASON_BYTES / 4).collect();
                    tracing::info!(job = %work.key.job, reason, "run stopped");
                    work.stop(Stop { reason, hurried: stop.hurried });
                }
                Some(Some(Kind::Reported(_))) if over => {
                    works.reported(&work.key);
                    return Ok(());
                }
                Some(_) => return Err(ServeError::Sense("not while a run is followed")),
            },
            changed = follower.changes.changed() => if changed.is_err() {
                return Ok(());
            },
        }
    }
}

fn refusal(outcome: nexus_proto::record::RunOutcome, reason: String) -> from_helper::Kind {
    from_helper::Kind::Refused(wire::Refused {
        reason,
        outcome: outcome.to_wire().into(),
    })
}

async fn send(frames: &mut Frames, kind: from_helper::Kind) -> io::Result<()> {
    frames.send(&wire::FromHelper { kind: Some(kind) }).await
}
