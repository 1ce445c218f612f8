//! How a job ended: the summary for people and the document for programs.

use nexus_proto::{
    ids::{JobId, NodeId},
    operator::v1::RunUpdate,
    time::Timestamp,
};
use serde_json::{Map, Value, json};

use super::board::{Board, Run};
use crate::{
    fault::one_line,
    terminal::{self, Colour, Phrase},
};

/// Targets that did not succeed and are named one by one.
const NAMED: usize = 20;

/// `{"job": …, "counts": {…}, "runs": […]}`
pub(crate) fn document(job: JobId, board: &Board) -> Value {
    let counts: Map<_, _> = board
        .counts()
        .into_iter()
        .map(|(state, count)| (state, Value::from(count)))
        .collect();
    let runs: Vec<_> = board
        .runs()
        .into_iter()
        .map(|(node, run)| run_document(node, run))
        .collect();
    json!({ "job": job.to_string(), "counts": counts, "runs": runs })
}

fn run_document(node: NodeId, run: &Run) -> Value {
    let update = &run.update;
    let time = |ms: Option<i64>| ms.map(|ms| Timestamp(ms).to_string());
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "node": run.name,
        "node_id": node.to_string(),
        "state": update.state,
        "exit_code": update.exit_code,
        "signal": update.signal,
        "reason": text(&update.reason),
        "started_at": time(update.started_ms),
        "finished_at": time(update.finished_ms),
        "duration_seconds": duration(update),
        "stdout": String::from_utf8_lossy(&run.stdout.kept),
        "stderr": String::from_utf8_lossy(&run.stderr.kept),
        "stdout_bytes": update.stdout_bytes,
        "stderr_bytes": update.stderr_bytes,
        "stdout_dropped_bytes": update.stdout_dropped_bytes,
        "stderr_dropped_bytes": update.stderr_dropped_bytes,
        "stdout_omitted_bytes": run.stdout.omitted,
        "stderr_omitted_bytes": run.stderr.omitted,
        "late_state": text(&update.late_state),
    })
}

fn duration(update: &RunUpdate) -> Option<f64> {
    let (started, finished) = (
        Timestamp(update.started_ms?),
        Timestamp(update.finished_ms?),
    );
    Some(finished.since(started).as_secs_f64())
}

/// On standard error: every target that did not succeed, then the counts.
pub(crate) fn summary(job: JobId, board: &Board) {
    let mut others = 0;
    for (_, run) in board.runs() {
        for note in missing(job, run) {
            terminal::say(&note);
        }
        if run.update.state == "succeeded" {
            continue;
        }
        others += 1;
        if others <= NAMED {
            let lead = Phrase::new().words(&format!("{}: ", run.name));
            state(lead, &run.update.state)
                .words(&why(&run.update))
                .say();
        }
    }
    if others > NAMED {
        terminal::say(&format!(
            "… and {} more; `nexusctl get runs/{job}` lists all",
            others - NAMED
        ));
    }
    counts(Phrase::new().words(&format!("job {job}: ")), board).say();
}

/// `3 targets: 2 succeeded, 1 failed`
fn counts(phrase: Phrase, board: &Board) -> Phrase {
    let targets = u64::try_from(board.len()).unwrap_or(u64::MAX);
    let phrase = phrase.words(&terminal::counted(targets, "target"));
    let counts = board.counts().into_iter().filter(|(_, count)| *count > 0);
    let leads = std::iter::once(": ").chain(std::iter::repeat(", "));
    counts
        .zip(leads)
        .fold(phrase, |phrase, ((name, count), lead)| {
            state(phrase.words(&format!("{lead}{count} ")), &name)
        })
}

fn state(phrase: Phrase, state: &str) -> Phrase {
    phrase.coloured(Colour::of_state(state), state)
}

fn why(update: &RunUpdate) -> String {
    let mut parts = Vec::new();
    if let Some(code) = update.exit_code {
        parts.push(format!("exit code {code}"));
    }
    if let Some(signal) = update.signal {
        parts.push(format!("signal {signal}"));
    }
    if !update.reason.is_empty() {
        parts.push(one_line(&update.reason));
    }
    if !update.late_state.is_empty() {
        parts.push(format!("reported later: {}", update.late_state));
    }
    if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join(", "))
    }
}

/// Output that is not there, and why.
fn missing(job: JobId, run: &Run) -> Vec<String> {
    let name = &run.name;
    let mut notes = Vec::new();
    for (stream, dropped, omitted) in [
        (
            "stdout",
            run.update.stdout_dropped_bytes,
            run.stdout.omitted,
        ),
        (
            "stderr",
            run.update.stderr_dropped_bytes,
            run.stderr.omitted,
        ),
    ] {
        if dropped > 0 {
            notes.push(format!(
                "{name}: {dropped} bytes of {stream} were dropped: the output limit was reached"
            ));
        }
        if omitted > 0 {
            notes.push(format!(
                "{name}: {omitted} bytes of {stream} are not in the document: it has all the output it can hold; `nexusctl logs {job} --node {name}` prints them"
            ));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{run::lines::Stream, terminal::Paint};
    use nexus_proto::operator::v1::RunOutputPiece;

    fn board() -> (Board, JobId) {
        let (a, b) = (NodeId::random(), NodeId::random());
        let mut board = Board::new(vec![(a, "web-1".into()), (b, "web-2".into())]);
        board.update(
            a,
            RunUpdate {
                state: "succeeded".into(),
                r#final: true,
                exit_code: Some(0),
                started_ms: Some(1000),
                finished_ms: Some(1500),
                ..RunUpdate::default()
            },
        );
        let piece = RunOutputPiece {
            data: b"hi\xff\n".as_slice().into(),
            ..RunOutputPiece::default()
        };
        board.output(a, Stream::Stdout, &piece, true);
        board.update(
            b,
            RunUpdate {
                state: "timed_out".into(),
                r#final: true,
                signal: Some(15),
                reason: "took longer\nthan 1s".into(),
                ..RunUpdate::default()
            },
        );
        (board, JobId::random())
    }

    #[test]
    fn the_document_has_the_promised_keys() {
        let (board, job) = board();
        let document = document(job, &board);
        assert_eq!(document["job"], job.to_string());
        assert_eq!(document["counts"]["succeeded"], 1);
        assert_eq!(document["counts"]["lost"], 0);
        let total: u64 = document["counts"]
            .as_object()
            .unwrap()
            .values()
            .filter_map(Value::as_u64)
            .sum();
        assert_eq!(total, 2);
        let run = &document["runs"][0];
        assert_eq!(
            (run["node"].as_str(), run["exit_code"].as_i64()),
            (Some("web-1"), Some(0))
        );
        assert_eq!(run["stdout"], "hi\u{fffd}\n");
        assert_eq!(run["signal"], Value::Null);
        assert_eq!(run["duration_seconds"], 0.5);
        assert_eq!(document["runs"][1]["signal"], 15);
    }

    #[test]
    fn the_summary_adds_up_in_words() {
        let (board, _) = board();
        assert_eq!(
            counts(Phrase::with(Paint::PLAIN), &board).text(),
            "2 targets: 1 succeeded, 1 timed_out"
        );
        let update = &board.runs()[1].1.update;
        assert_eq!(why(update), " (signal 15, took longer than 1s)");
    }
}
