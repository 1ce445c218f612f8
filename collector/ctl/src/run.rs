//! `nexusctl run`: choose the targets, sign the job here, submit it, follow it.
//!
//! What travels is a DSSE envelope over the exact bytes of the job, signed with the operator's key, and
//! a Merkle root over the sorted targets inside it: the collector can pass a job on, not make one. Which
//! nodes are targets follows from the command line; the collector's list of them is checked against it.

use std::io::Read as _;

use nexus_pki::merkle;
use nexus_proto::{
    ids::JobId,
    job::{Action, Context as Surroundings, Job},
    limits,
    operator::v1::SubmitJobRequest,
};

use crate::{
    cli::RunArgs,
    connection::{Collector, fault},
    fault::{Context as _, Exit, Fault, Outcome},
    output::{self, Format},
    session::Session,
    signers,
    skew::Skew,
    terminal,
};

pub(crate) mod board;
pub(crate) mod follow;
pub(crate) mod lines;
pub(crate) mod report;
mod targets;

use follow::{Ending, Watch};
use targets::Wanted;

/// Between TERM and KILL of an execution that takes too long.
const KILL_GRACE: std::time::Duration = std::time::Duration::from_secs(10);
/// A clock that differs by more than this is worth a word: jobs expire by it.
const SKEW_WORTH_A_WORD: std::time::Duration = std::time::Duration::from_secs(20);

pub(crate) async fn run(session: &Session, args: &RunArgs) -> Outcome<Exit> {
    let wanted = Wanted::from_args(args)?;
    let action = action(args)?;
    let mut collector = session.connect().await?;
    let tree = targets::choose(&mut collector, &wanted).await?;
    if args.dry_run {
        return dry_run(session, args, &tree, &action);
    }
    confirm(args, &wanted, &tree).await?;
    signers::update(&mut collector).await?;
    let job = build(session, args, &collector, &tree, action);
    check_clock(session, &mut collector).await?;
    submit(&mut collector, &job, &tree, &wanted).await?;
    session.log(&format!(
        "job {} submitted to {} nodes",
        job.id,
        tree.count()
    ));

    let keep = output::document(args.output.output, &serde_json::Value::Null).is_some();
    let watch = Watch {
        job: job.id,
        follow: true,
        node: None,
        keep,
        show: !keep,
        prefix: true,
        raw: args.raw,
    };
    let names = tree
        .targets()
        .iter()
        .map(|t| (t.node, t.name.clone()))
        .collect();
    let board = board::Board::new(names);
    let (board, ending) = follow::follow(session, collector, watch, board, args.wait).await?;
    finish(args.output.output, job.id, &board, ending)
}

/// Prints what is to be printed once following has ended, and decides the exit code.
pub(crate) fn finish(
    format: Format,
    job: JobId,
    board: &board::Board,
    ending: Ending,
) -> Outcome<Exit> {
    if let Some(text) = output::document(format, &report::document(job, board)) {
        output::line(&text?)?;
    }
    report::summary(job, board);
    match ending {
        Ending::Interrupted => {
            terminal::say(&format!(
                "hint: the job goes on; `nexusctl wait {job}` follows it again, `nexusctl cancel {job}` stops it"
            ));
            Ok(Exit::Interrupted)
        }
        Ending::TimedOut => {
            terminal::say(&format!(
                "hint: the job goes on; `nexusctl wait {job}` follows it again"
            ));
            Ok(Exit::TimedOut)
        }
        Ending::Ended if board.all_succeeded() => Ok(Exit::Success),
        Ending::Ended => Ok(Exit::Targets),
    }
}

/// What is to run, read and checked before anyone is asked.
fn action(args: &RunArgs) -> Outcome<Action> {
    let context = Surroundings {
        env: args
            .env
            .iter()
            .map(|pair| variable(pair))
            .collect::<Outcome<_>>()?,
        cwd: args.cwd.clone(),
        user: args.user.clone(),
    };
    let Some(path) = &args.script else {
        if args.command.is_empty() {
            return Err(Fault::usage("run", "there is nothing to run")
                .hint("put the command after `--`: nexusctl run --all -- uname -r"));
        }
        let argv = args.command.clone();
        return Ok(Action::Command {
            argv,
            context,
            stdin: bytes::Bytes::new(),
        });
    };
    let mut content = Vec::new();
    let what = format!("read the script {}", path.display());
    if path.as_os_str() == "-" {
        std::io::stdin()
            .read_to_end(&mut content)
            .doing(what.clone())?;
    } else {
        content = std::fs::read(path).doing(what.clone())?;
    }
    if !content.starts_with(b"#!") {
        return Err(Fault::new(what, "it does not begin with `#!`")
            .hint("its first line must name the interpreter, such as #!/bin/sh"));
    }
    Ok(Action::Script {
        content: content.into(),
        args: args.command.clone(),
        context,
    })
}

fn variable(pair: &str) -> Outcome<(String, String)> {
    let (name, value) = pair
        .split_once('=')
        .ok_or_else(|| Fault::usage("run --env", format!("`{pair}` is not NAME=VALUE")))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn build(
    session: &Session,
    args: &RunArgs,
    collector: &Collector,
    tree: &merkle::Tree,
    action: Action,
) -> Job {
    let now = session.now();
    Job {
        id: JobId::random(),
        trust_domain: collector.profile.trust_domain.clone(),
        targets_root: tree.root(),
        target_count: tree.count(),
        action,
        timeout: args.timeout,
        kill_grace: KILL_GRACE,
        output_limit_bytes: limits::RUN_OUTPUT_BYTES,
        created: now,
        not_before: now.before(limits::CLOCK_SKEW),
        expires: now.after(args.expires),
        policy_version: collector.profile.policy.version(),
        request_id: session.request_id.clone(),
        operator: collector.profile.name.clone(),
        idempotent: false,
    }
}

async fn submit(
    collector: &mut Collector,
    job: &Job,
    tree: &merkle::Tree,
    wanted: &Wanted,
) -> Outcome {
    let key = collector.profile.signing_key()?;
    let envelope = nexus_pki::job::sign(&key, job)
        .map_err(|error| Fault::because("run", &error).exits(Exit::Usage))?;
    let request = collector.request(SubmitJobRequest {
        job: Some(envelope),
        targets: tree.targets().iter().map(merkle::Target::to_wire).collect(),
        selector: wanted.to_string(),
    });
    collector
        .client
        .submit_job(request)
        .await
        .map_err(fault)
        .map(drop)
}

/// Jobs expire by the nodes' clocks; a difference between ours and the collector's is the likeliest
/// reason for one that expires at once.
async fn check_clock(session: &Session, collector: &mut Collector) -> Outcome {
    let skew = Skew::ask(session, collector).await?;
    if skew.exceeds(SKEW_WORTH_A_WORD) {
        terminal::warn(&skew.to_string());
    }
    Ok(())
}

/// Says on which nodes the job is about to run. Where the collector chose them, a person at a terminal is asked.
async fn confirm(args: &RunArgs, wanted: &Wanted, tree: &merkle::Tree) -> Outcome {
    terminal::say(&format!("runs on {}", targets::shown(tree)));
    if args.yes || wanted.names_all() || !terminal::is_answered() {
        return Ok(());
    }
    if terminal::asked("Go on?").await? {
        return Ok(());
    }
    Err(Fault::new("run", "not confirmed").hint("--yes runs without asking"))
}

fn dry_run(
    session: &Session,
    args: &RunArgs,
    tree: &merkle::Tree,
    action: &Action,
) -> Outcome<Exit> {
    use output::{Cell, Field, Shown};

    let what = match action {
        Action::Command { argv, .. } => argv.join(" "),
        Action::Script { content, .. } => format!("a script of {} bytes", content.len()),
    };
    terminal::say(&format!(
        "would run on {}: {}",
        terminal::counted(tree.count(), "node"),
        crate::fault::one_line(&what)
    ));
    let fields = vec![
        Field::new("node", Shown::Always),
        Field::new("id", Shown::Always),
    ];
    let style = output::Style {
        name_prefix: "node/".to_owned(),
        ..session.style(&args.output)
    };
    let mut printer = output::Printer::new(style, fields, output::stdout())?;
    for target in tree.targets() {
        printer.row(&[
            Cell::text(target.name.clone()),
            Cell::text(target.node.to_string()),
        ])?;
    }
    printer.finish()?;
    Ok(Exit::Success)
}
