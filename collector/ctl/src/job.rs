//! `nexusctl logs`, `wait` and `cancel`: a job that was begun before.

use nexus_proto::operator::v1::CancelJobRequest;

use crate::{
    cli::{CancelArgs, LogsArgs, WaitArgs},
    connection::fault,
    fault::{Exit, Outcome},
    names,
    run::{
        board::Board,
        finish,
        follow::{self, Ending, Watch},
    },
    session::Session,
    terminal,
};

pub(crate) async fn logs(session: &Session, args: &LogsArgs) -> Outcome<Exit> {
    let mut collector = session.connect().await?;
    let job = names::job(&mut collector, &args.job).await?;
    let node = args
        .node
        .as_deref()
        .map(|name| name.strip_prefix("node/").unwrap_or(name));
    let watch = Watch {
        job,
        follow: args.follow,
        prefix: node.is_none(),
        node: node.map(str::to_owned),
        keep: false,
        show: true,
        raw: args.raw,
    };
    let (_, ending) = follow::follow(session, collector, watch, Board::of_job(), None).await?;
    Ok(if ending == Ending::Interrupted {
        Exit::Interrupted
    } else {
        Exit::Success
    })
}

pub(crate) async fn wait(session: &Session, args: &WaitArgs) -> Outcome<Exit> {
    let mut collector = session.connect().await?;
    let job = names::job(&mut collector, &args.job).await?;
    let keep = crate::output::document(args.output.output, &serde_json::Value::Null).is_some();
    let watch = Watch {
        job,
        follow: true,
        node: None,
        keep,
        show: false,
        prefix: true,
        raw: false,
    };
    let board = Board::of_job();
    let (board, ending) = follow::follow(session, collector, watch, board, args.timeout).await?;
    finish(args.output.output, job, &board, ending)
}

pub(crate) async fn cancel(session: &Session, args: &CancelArgs) -> Outcome {
    let mut collector = session.connect().await?;
    let job = names::job(&mut collector, &args.job).await?;
    let reason = args.reason.clone();
    let request = collector.request(CancelJobRequest {
        job_id: job.to_wire(),
        reason,
    });
    let answer = collector
        .client
        .cancel_job(request)
        .await
        .map_err(fault)?
        .into_inner();
    terminal::say(&format!(
        "job {job}: {}",
        cancelled(answer.cancelled, answer.stopping)
    ));
    Ok(())
}

/// What became of a job's runs.
fn cancelled(never: u64, stopping: u64) -> String {
    let never = (never > 0).then(|| format!("{} will not begin", terminal::counted(never, "run")));
    let told =
        (stopping > 0).then(|| format!("{} told to stop", terminal::counted(stopping, "run")));
    match (never, told) {
        (None, None) => "nothing was left to cancel".to_owned(),
        (Some(one), None) | (None, Some(one)) => one,
        (Some(never), Some(told)) => format!("{never}, {told}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_a_cancellation_did() {
        assert_eq!(cancelled(0, 0), "nothing was left to cancel");
        assert_eq!(cancelled(0, 1), "1 run told to stop");
        assert_eq!(cancelled(3, 0), "3 runs will not begin");
        assert_eq!(cancelled(1, 2), "1 run will not begin, 2 runs told to stop");
    }
}
