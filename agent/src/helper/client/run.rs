//! One run of the helper, as its agent sees it.

use std::{io, sync::Arc};

use nexus_proto::{
    helper::v1::{self as wire, from_helper, to_helper},
    ids::RunKey,
    limits::{HELPER_AWAY, OUTPUT_PIECE_BYTES},
    record::{Finished, OutputStream, RunOutcome},
};
use tokio::time::{Instant, sleep};

use super::{AGAIN, Link, TRIES, answer, ask};
use crate::{
    exec::{Boxed, End, Ending, Executing, Identity, Order, Piece, Sink, StartError, Stop},
    helper::frame::Frames,
};

/// A run that the helper has begun.
pub(super) struct HelperRun {
    link: Arc<Link>,
    run: RunKey,
    frames: Frames,
    identity: Identity,
    /// It ended before there was anything to follow.
    over: Option<Ending>,
}

/// What the helper says of a run that it was asked to start, or for.
enum Found {
    Began(Identity),
    Over(Ending),
    Refused(wire::Refused),
    NotKnown,
}

impl HelperRun {
    /// Has it begun.
    pub(super) async fn start(
        link: Arc<Link>,
        order: Order,
        stop: Boxed<'static, Stop>,
    ) -> Result<Self, StartError> {
        let run = order.run;
        let mut stop = stop;
        let frames = tokio::select! {
            frames = first(&link) => frames.map_err(StartError::NoHelper)?,
            why = &mut stop => {
                return Err(match why.hurried {
                    true => StartError::Stopped,
                    false => StartError::Cancelled(why.reason),
                });
            }
        };
        tokio::select! {
            begun = Self::begin(link, frames, order) => begun,
            // One that is only cancelled is stopped once it runs.
            () = agent_stops(stop) => {
                tracing::info!(job = %run.job, "a run goes on without the agent");
                Err(StartError::Stopped)
            }
        }
    }

    async fn begin(link: Arc<Link>, mut frames: Frames, order: Order) -> Result<Self, StartError> {
        let run = order.run;
        let start = wire::Start {
            dispatch: order.dispatch,
        };
        let asked = ask(&mut frames, to_helper::Kind::Start(start)).await;
        let found = match asked {
            Ok(()) => found(&mut frames, run).await,
            Err(error) => Err(error),
        };
        let found = match found {
            Ok(found) => found,
            // It may have begun.
            Err(error) => {
                tracing::warn!(job = %run.job, %error, "the helper is gone");
                let Ok((again, found)) = ask_for(&link, run).await else {
                    return Err(StartError::Lost);
                };
                frames = again;
                found
            }
        };
        match found {
            Found::Began(identity) => Ok(Self::new(link, run, frames, identity, None)),
            Found::Over(ending) => {
                link.keep(run, frames);
                Err(StartError::Over(Box::new(ending)))
            }
            Found::Refused(refused) => Err(refusal(refused)),
            Found::NotKnown => Err(StartError::Lost),
        }
    }

    /// Finds one that was begun before; `None`: the helper knows nothing of it.
    pub(super) async fn attach(link: Arc<Link>, run: RunKey) -> Option<Self> {
        let (frames, found) = ask_for(&link, run).await.ok()?;
        let (identity, over) = match found {
            Found::Began(identity) => (identity, None),
            Found::Over(ending) => (
                Identity {
                    pid: 0,
                    start_ticks: 0,
                },
                Some(ending),
            ),
            Found::Refused(_) | Found::NotKnown => return None,
        };
        Some(Self::new(link, run, frames, identity, over))
    }

    fn new(
        link: Arc<Link>,
        run: RunKey,
        frames: Frames,
        identity: Identity,
        over: Option<Ending>,
    ) -> Self {
        Self {
            link,
            run,
            frames,
            identity,
            over,
        }
    }

    async fn follow(
        mut self,
        mut sink: Box<dyn Sink>,
        stop: Boxed<'static, Stop>,
    ) -> io::Result<End> {
        let mut hearing = Hearing {
            over: self.over.take(),
            ..Hearing::default()
        };
        let mut stop = Some(stop);
        let mut stopped: Option<Stop> = None;
        loop {
            if let Some(ending) = hearing.over.take() {
                self.link.keep(self.run, self.frames);
                return Ok(End::Over(ending));
            }
            let said = tokio::select! {
                said = answer(&mut self.frames) => said,
                why = wait(&mut stop), if stop.is_some() => {
                    stop = None;
                    if why.hurried {
                        return Ok(End::GoesOn);
                    }
                    let asked = ask_to_stop(&mut self.frames, &why).await;
                    stopped = Some(why);
                    match asked {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
            };
            let heard = match said {
                Ok(kind) => match hearing.hear(kind, self.run, sink.as_mut())? {
                    Some(answer) => ask(&mut self.frames, answer).await,
                    None => Ok(()),
                },
                Err(error) => Err(error),
            };
            let Err(error) = heard else {
                continue;
            };
            tracing::warn!(job = %self.run.job, %error, "the helper is gone");
            let link = Arc::clone(&self.link);
            let found = tokio::select! {
                found = ask_for(&link, self.run) => Some(found),
                why = wait(&mut stop), if stop.is_some() => {
                    stop = None;
                    if why.hurried {
                        return Ok(End::GoesOn);
                    }
                    stopped = Some(why);
                    None
                }
            };
            let (frames, found) = match found {
                Some(found) => found?,
                None => ask_for(&link, self.run).await?,
            };
            self.frames = frames;
            match found {
                Found::Began(_) => {
                    if let Some(why) = &stopped
                        && let Err(error) = ask_to_stop(&mut self.frames, why).await
                    {
                        tracing::debug!(%error, "the helper was not told to stop a run");
                    }
                }
                Found::Over(ending) => hearing.over = Some(ending),
                Found::Refused(refused) => return Err(io::Error::other(refused.reason)),
                Found::NotKnown => return Err(io::Error::other("the helper lost it")),
            }
        }
    }
}

impl Executing for HelperRun {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn finish(
        self: Box<Self>,
        sink: Box<dyn Sink>,
        stop: Boxed<'static, Stop>,
    ) -> Boxed<'static, io::Result<End>> {
        Box::pin(self.follow(sink, stop))
    }
}

/// What an agent has heard of a run that it follows.
#[derive(Debug, Default)]
pub(in crate::helper) struct Hearing {
    taking: Taking,
    pub(in crate::helper) over: Option<Ending>,
}

impl Hearing {
    /// What is to be answered to what the helper says.
    pub(in crate::helper) fn hear(
        &mut self,
        said: from_helper::Kind,
        run: RunKey,
        sink: &mut dyn Sink,
    ) -> io::Result<Option<to_helper::Kind>> {
        match said {
            from_helper::Kind::Output(output) => {
                let refused = !self.taking.take(piece(output)?, sink);
                Ok(Some(to_helper::Kind::Taken(wire::Taken { refused })))
            }
            from_helper::Kind::Ended(finished) => {
                self.over = Some(ending(finished, run)?);
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

/// What of each stream was taken.
#[derive(Debug, Default)]
struct Taking {
    up_to: [u64; 2],
    refused: [bool; 2],
}

impl Taking {
    /// Once a piece was refused, what follows of its stream would stand behind a hole.
    fn take(&mut self, piece: Piece, sink: &mut dyn Sink) -> bool {
        let [stdout, stderr] = &mut self.up_to;
        let [no_stdout, no_stderr] = &mut self.refused;
        let (up_to, refused) = match piece.stream {
            OutputStream::Stdout => (stdout, no_stdout),
            OutputStream::Stderr => (stderr, no_stderr),
        };
        let end = piece
            .offset
            .saturating_add(u64::try_from(piece.data.len()).unwrap_or(0));
        // What the helper did not hear was taken, it sends again.
        if end <= *up_to {
            return true;
        }
        if *refused || !sink.take(piece) {
            *refused = true;
            return false;
        }
        *up_to = end;
        true
    }
}

/// A connection for something that has not begun.
async fn first(link: &Link) -> io::Result<Frames> {
    let mut tries = 1;
    loop {
        match link.reach().await {
            Ok(frames) => return Ok(frames),
            Err(error) if tries >= TRIES => return Err(error),
            Err(error) => tracing::debug!(%error, "the helper does not answer"),
        }
        tries += 1;
        sleep(AGAIN).await;
    }
}

/// Asks what became of a run, for as long as a helper may be away: it may be running.
async fn ask_for(link: &Link, run: RunKey) -> io::Result<(Frames, Found)> {
    let mut quiet = false;
    let until = Instant::now() + HELPER_AWAY;
    loop {
        match try_ask_for(link, run).await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= until => {
                let minutes = HELPER_AWAY.as_secs() / 60;
                let text = format!("the helper was asked for {minutes} minutes: {error}");
                return Err(io::Error::other(text));
            }
            Err(error) if quiet => tracing::debug!(%error, "the helper does not answer"),
            Err(error) => {
                tracing::warn!(job = %run.job, %error, "the helper does not say what became of a run; it is asked again");
                quiet = true;
            }
        }
        sleep(AGAIN).await;
    }
}

async fn try_ask_for(link: &Link, run: RunKey) -> io::Result<(Frames, Found)> {
    let mut frames = link.reach().await?;
    let attach = wire::Attach {
        run: Some(run.to_wire()),
    };
    ask(&mut frames, to_helper::Kind::Attach(attach)).await?;
    let found = found(&mut frames, run).await?;
    Ok((frames, found))
}

async fn found(frames: &mut Frames, run: RunKey) -> io::Result<Found> {
    match answer(frames).await? {
        from_helper::Kind::Started(started) => Ok(Found::Began(Identity {
            pid: started.pid,
            start_ticks: started.start_ticks,
        })),
        from_helper::Kind::Ended(finished) => Ok(Found::Over(ending(finished, run)?)),
        from_helper::Kind::Refused(refused) => Ok(Found::Refused(refused)),
        from_helper::Kind::NotKnown(_) => Ok(Found::NotKnown),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn refusal(refused: wire::Refused) -> StartError {
    match RunOutcome::from_wire(refused.outcome) {
        Ok(RunOutcome::FailedToStart) => StartError::Failed(refused.reason),
        _ => StartError::Refused(refused.reason),
    }
}

fn piece(output: wire::Output) -> io::Result<Piece> {
    let stream = OutputStream::from_wire(output.stream).map_err(io::Error::other)?;
    if output.data.len() > OUTPUT_PIECE_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Piece {
        stream,
        offset: output.offset,
        data: output.data,
    })
}

fn ending(finished: nexus_proto::agent::v1::RunFinished, run: RunKey) -> io::Result<Ending> {
    let finished = Finished::from_wire(finished).map_err(io::Error::other)?;
    if finished.run != run {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Ending {
        outcome: finished.outcome,
        exit_code: finished.exit_code,
        signal: finished.signal,
        reason: finished.reason,
        produced: [finished.stdout_bytes, finished.stderr_bytes],
        dropped: [finished.stdout_dropped_bytes, finished.stderr_dropped_bytes],
        at: Some(finished.finished),
    })
}

async fn ask_to_stop(frames: &mut Frames, why: &Stop) -> io::Result<()> {
    let stop = wire::Stop {
        reason: why.reason.clone(),
        hurried: why.hurried,
    };
    ask(frames, to_helper::Kind::Stop(stop)).await
}

/// Only while there is something to wait for.
async fn wait(stop: &mut Option<Boxed<'static, Stop>>) -> Stop {
    match stop {
        Some(stop) => stop.await,
        None => std::future::pending().await,
    }
}

/// Resolves when the agent stops, and not when a run is cancelled.
async fn agent_stops(stop: Boxed<'static, Stop>) {
    if !stop.await.hurried {
        std::future::pending::<()>().await;
    }
}
