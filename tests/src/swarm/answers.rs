//! How a swarm answers jobs: nothing is executed, so that thousands of answers cost the collector what they
//! would cost it, and this machine nothing.

use std::{io, time::Duration};

use bytes::Bytes;
use nexus_agent::exec::{
    Boxed, End, Ending, Executing, Executor, Identity, Order, Piece, Plan, Sink, StartError, Stop,
};
use nexus_proto::record::{OutputStream, RunOutcome};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// Bytes of a piece, as capturing a program makes them at most.
const PIECE: usize = 64 * 1024;

/// What every job seems to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answers {
    /// How long it takes.
    pub delay: Duration,
    /// How much it writes, bytes.
    pub output: usize,
}

impl Executor for Answers {
    fn start(
        &self,
        _order: Order,
        plan: Plan,
        _stop: Boxed<'static, Stop>,
    ) -> Boxed<'_, Result<Box<dyn Executing>, StartError>> {
        let answering = Answering {
            delay: self.delay.min(plan.timeout),
            output: self.output,
            limit: usize::try_from(plan.output_limit_bytes).unwrap_or(usize::MAX),
        };
        Box::pin(async { Ok(Box::new(answering) as Box<dyn Executing>) })
    }
}

struct Answering {
    delay: Duration,
    output: usize,
    limit: usize,
}

impl Executing for Answering {
    fn identity(&self) -> Identity {
        // Of no process that there could be, since what is left of a run is killed by it.
        Identity {
            pid: u32::MAX,
            start_ticks: u64::MAX,
        }
    }

    fn finish(
        self: Box<Self>,
        mut sink: Box<dyn Sink>,
        stop: Boxed<'static, Stop>,
    ) -> Boxed<'static, io::Result<End>> {
        Box::pin(async move {
            let (outcome, reason) = tokio::select! {
                () = sleep(self.delay) => (RunOutcome::Exited, String::new()),
                stop = stop => (RunOutcome::Cancelled, stop.reason),
            };
            let (mut kept, wanted) = (0, self.output.min(self.limit));
            while kept < wanted {
                let piece = Piece {
                    stream: OutputStream::Stdout,
                    offset: u64::try_from(kept).unwrap_or(u64::MAX),
                    data: Bytes::from(vec![b'x'; PIECE.min(wanted - kept)]),
                };
                let bytes = piece.data.len();
                if !sink.take(piece) {
                    break;
                }
                kept += bytes;
            }
            let count = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
            Ok(End::Over(Ending {
                outcome,
                exit_code: (outcome == RunOutcome::Exited).then_some(0),
                signal: None,
                reason,
                produced: [count(self.output), 0],
                dropped: [count(self.output - kept), 0],
                at: None,
            }))
        })
    }
}
