//! What is reported of a run, and how that becomes durable: in the ledger, then in the spool.

use bytes::Bytes;
use nexus_proto::{
    ids::RunKey,
    limits::REASON_BYTES,
    metrics::{Decoder, Encoder},
    record::{Body, Finished, Record, RunOutcome},
    time::Timestamp,
};
use nexus_runtime::errors::chain;

use super::{STORE_AGAIN, Shared};
use crate::exec::Ending;

/// Characters of a reason; each takes four bytes at most.
pub(super) const REASON_CHARS: usize = REASON_BYTES / 4;

impl Shared {
    /// Makes a report durable.
    pub(super) async fn report(&self, key: RunKey, expires: Timestamp, report: Finished) {
        let time = report.finished;
        let record = Record {
            seq: 0,
            time,
            body: Body::Finished(report),
        };
        let encoded = record.encode(&mut Encoder::new());
        loop {
            let kept = self.ledger().finish(key, expires, encoded.clone());
            if self.in_ledger(&kept) {
                break;
            }
            tokio::time::sleep(STORE_AGAIN).await;
        }
        self.around.executor.reported(key);
        self.spool_report(key, encoded).await;
    }

    /// Puts a report that is in the ledger into the spool.
    pub(super) async fn spool_report(&self, key: RunKey, encoded: Bytes) {
        let record = match Record::decode(encoded, &mut Decoder::new()) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(job = %key.job, error = %chain(&error), "a report in the ledger is not readable");
                return;
            }
        };
        let seq = loop {
            let stored = self.around.spool.append(record.time, record.body.clone());
            self.in_spool(&stored);
            match stored {
                Ok(seq) => break seq,
                Err(_) => tokio::time::sleep(STORE_AGAIN).await,
            }
        };
        let noted = self.ledger().spooled(key, seq);
        self.in_ledger(&noted);
    }
}

/// A run that wrote nothing.
pub(crate) fn ended(
    run: RunKey,
    outcome: RunOutcome,
    mut reason: String,
    started: Timestamp,
    finished: Timestamp,
) -> Finished {
    if reason.len() > REASON_BYTES {
        reason = reason.chars().take(REASON_CHARS).collect();
    }
    Finished {
        run,
        outcome,
        exit_code: None,
        signal: None,
        reason,
        stdout_bytes: 0,
        stderr_bytes: 0,
        stdout_dropped_bytes: 0,
        stderr_dropped_bytes: 0,
        started,
        finished,
    }
}

/// A run that was seen to its end.
pub(crate) fn finished(
    run: RunKey,
    ending: Ending,
    started: Timestamp,
    finished: Timestamp,
) -> Finished {
    let [stdout_bytes, stderr_bytes] = ending.produced;
    let [stdout_dropped_bytes, stderr_dropped_bytes] = ending.dropped;
    Finished {
        exit_code: ending.exit_code,
        signal: ending.signal,
        stdout_bytes,
        stderr_bytes,
        stdout_dropped_bytes,
        stderr_dropped_bytes,
        ..ended(
            run,
            ending.outcome,
            ending.reason,
            started,
            ending.at.unwrap_or(finished),
        )
    }
}
