//! Follows a job until it has ended, through lost connections, interrupts and deadlines.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use nexus_proto::{
    agent::v1::OutputStream,
    ids::{JobId, NodeId},
    operator::v1::{JobUpdate, RunOutputPiece, WatchJobRequest, job_update::Kind},
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::{Code, Status, Streaming};

use super::{
    board::Board,
    lines::{Lines, Manner, Stream},
};
use crate::{
    connection::{Collector, fault},
    fault::{Context as _, Exit, Fault, Outcome},
    session::Session,
    terminal::Paint,
};

/// Pause before the collector is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often it is tried in a row: a restart of the collector takes less.
const RETRIES: u32 = 60;

/// What is followed and how.
pub(crate) struct Watch {
    pub(crate) job: JobId,
    /// Until the end, or only what is there.
    pub(crate) follow: bool,
    /// Only this node.
    pub(crate) node: Option<String>,
    /// Keep the output in the board.
    pub(crate) keep: bool,
    /// Write the output as it comes.
    pub(crate) show: bool,
    /// Write the node's name before each line.
    pub(crate) prefix: bool,
    /// Write output as it came, to a terminal too.
    pub(crate) raw: bool,
}

/// Why following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Ended,
    Interrupted,
    TimedOut,
}

/// Follows; the board has everything that was learnt.
pub(crate) async fn follow(
    session: &Session,
    collector: Collector,
    watch: Watch,
    board: Board,
    limit: Option<Duration>,
) -> Outcome<(Board, Ending)> {
    let manner = Manner {
        prefix: watch.prefix,
        paint: Paint::stdout(session.color),
        guard_stdout: !watch.raw && io::stdout().is_terminal(),
        guard_stderr: !watch.raw && io::stderr().is_terminal(),
    };
    let lines = Lines::new(io::stdout(), io::stderr(), manner);
    let mut follower = Follower {
        session,
        collector,
        watch,
        board,
        lines,
    };
    let mut interrupt = Interrupt::new()?;
    let deadline = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let ending = tokio::select! {
        ended = follower.work() => ended.map(|()| Ending::Ended)?,
        () = interrupt.wait() => Ending::Interrupted,
        () = deadline => Ending::TimedOut,
    };
    follower.end_lines()?;
    Ok((follower.board, ending))
}

/// INT or TERM.
pub(crate) struct Interrupt {
    int: Signal,
    term: Signal,
}

impl Interrupt {
    pub(crate) fn new() -> Outcome<Self> {
        let catch = |kind| signal(kind).doing("listen for signals");
        Ok(Self {
            int: catch(SignalKind::interrupt())?,
            term: catch(SignalKind::terminate())?,
        })
    }

    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

struct Follower<'a> {
    session: &'a Session,
    collector: Collector,
    watch: Watch,
    board: Board,
    lines: Lines<io::Stdout, io::Stderr>,
}

/// How a stream of updates came to its end.
enum Stop {
    /// The job has ended, or everything there was has been sent.
    Done,
    /// The connection broke.
    Broken(Fault),
}

impl Follower<'_> {
    async fn work(&mut self) -> Outcome {
        let mut failures = 0;
        loop {
            let heard = match self.open().await {
                Ok(mut stream) => match self.read(&mut stream).await? {
                    (Stop::Done, _) => return Ok(()),
                    (Stop::Broken(fault), heard) => {
                        self.session
                            .log(&format!("the collector went away: {fault}"));
                        heard
                    }
                },
                Err(fault) if fault.exit != Exit::Unreachable || failures >= RETRIES => {
                    return Err(self.lost(fault));
                }
                Err(fault) => {
                    self.session.log(&format!("{fault}"));
                    false
                }
            };
            failures = if heard { 0 } else { failures + 1 };
            if failures > RETRIES {
                let why = "the connection breaks again and again";
                return Err(self.lost(Fault::new("follow the job", why).exits(Exit::Unreachable)));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            match self.session.connect().await {
                Ok(collector) => self.collector = collector,
                Err(fault) if fault.exit == Exit::Unreachable => {}
                Err(fault) => return Err(self.lost(fault)),
            }
        }
    }

    fn lost(&self, fault: Fault) -> Fault {
        if fault.exit != Exit::Unreachable {
            return fault;
        }
        let job = self.watch.job;
        fault.hint(format!(
            "the job goes on; `nexusctl wait {job}` follows it again"
        ))
    }

    async fn open(&mut self) -> Outcome<Streaming<JobUpdate>> {
        let request = self.collector.request(WatchJobRequest {
            job_id: self.watch.job.to_wire(),
            follow: self.watch.follow,
            output: self.watch.show || self.watch.keep,
            node: self.watch.node.clone().unwrap_or_default(),
        });
        Ok(self
            .collector
            .client
            .watch_job(request)
            .await
            .map_err(fault)?
            .into_inner())
    }

    /// Also says whether anything was heard.
    async fn read(&mut self, stream: &mut Streaming<JobUpdate>) -> Outcome<(Stop, bool)> {
        let mut heard = false;
        let mut ended = false;
        loop {
            match stream.message().await {
                Ok(Some(update)) => {
                    heard = true;
                    ended |= matches!(update.kind, Some(Kind::Ended(_)));
                    self.take(update)?;
                }
                Ok(None) if ended || !self.watch.follow => return Ok((Stop::Done, heard)),
                Ok(None) => {
                    let why = "it ended the stream before the job's end";
                    return Ok((Stop::Broken(Fault::new("follow the job", why)), heard));
                }
                Err(_) if ended => return Ok((Stop::Done, heard)),
                Err(status) if is_break(&status) => {
                    return Ok((Stop::Broken(fault(status)), heard));
                }
                Err(status) => return Err(fault(status)),
            }
        }
    }

    fn take(&mut self, update: JobUpdate) -> Outcome {
        match update.kind {
            Some(Kind::Run(run)) => {
                if let Ok(node) = NodeId::from_wire(&run.node_id) {
                    self.board.update(node, run);
                }
                Ok(())
            }
            Some(Kind::Output(piece)) => self.output(&piece),
            Some(Kind::Job(_) | Kind::Ended(_)) | None => Ok(()),
        }
    }

    fn output(&mut self, piece: &RunOutputPiece) -> Outcome {
        let Ok(node) = NodeId::from_wire(&piece.node_id) else {
            return Ok(());
        };
        let stream = match piece.stream() {
            OutputStream::Stderr => Stream::Stderr,
            OutputStream::Stdout | OutputStream::Unspecified => Stream::Stdout,
        };
        let heard = self.board.output(node, stream, piece, self.watch.keep);
        match heard {
            Some((name, fresh)) if self.watch.show && !fresh.is_empty() => {
                self.lines.take(node, &name, stream, &fresh)
            }
            _ => Ok(()),
        }
    }

    fn end_lines(&mut self) -> Outcome {
        for (node, run) in self.board.runs() {
            self.lines.end(node, &run.name)?;
        }
        Ok(())
    }
}

/// Whether the connection or the collector went away, as opposed to an answer.
fn is_break(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}
