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
    };
    let (_, ending) = follow::follow(session, collector, watch, Board::default(), None).await?;
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
    };
    let board = Board::default();
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
        "job {job}: {} runs will not begin, {} were told to stop",
        answer.cancelled, answer.stopping
    ));
    Ok(())
}
