//! Runs: pending → dispatched → running → one final state, in which they stay.
//!
//! A report that comes after the final state is kept beside it (`late_state`).

use nexus_proto::{
    ids::{JobId, NodeId},
    record::{Finished, Output, RunOutcome, Started},
    store::v1,
};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{StoreError, entry::Outcome, rows::RunState};

type Applied = Result<Outcome, StoreError>;

pub(super) fn plan(db: &Connection, planned: &v1::RunsPlanned) -> Applied {
    let mut insert = db.prepare_cached(
        "INSERT INTO runs (job, node, name, incarnation, state, planned_ms) VALUES (?1, ?2, ?3, ?4, 'pending', ?5)
         ON CONFLICT DO NOTHING",
    )?;
    for target in &planned.targets {
        insert.execute(params![
            planned.job.as_ref(),
            target.node_id.as_ref(),
            target.name,
            target.incarnation.as_ref(),
            planned.time_ms
        ])?;
    }
    Ok(Outcome::Applied)
}

pub(super) fn dispatch(db: &Connection, to: &v1::RunDispatched) -> Applied {
    let count = db
        .prepare_cached(
            "UPDATE runs SET state = 'dispatched', session = ?3, dispatched_ms = coalesce(dispatched_ms, ?4)
             WHERE job = ?1 AND node = ?2 AND state IN ('pending', 'dispatched')",
        )?
        .execute(params![to.job.as_ref(), to.node.as_ref(), to.session.as_ref(), to.time_ms])?;
    Ok(if count == 0 {
        Outcome::Refused("the run is not waiting to be dispatched".to_owned())
    } else {
        Outcome::Applied
    })
}

pub(super) fn settle(db: &Connection, settled: &v1::RunSettled) -> Applied {
    if !RunState::parse(&settled.state).is_some_and(RunState::is_final) {
        return Ok(Outcome::Refused(format!(
            "`{}` is no final state",
            settled.state
        )));
    }
    let Some(state) = state_of(db, &settled.job, &settled.node)? else {
        return Ok(Outcome::Refused("no such run".to_owned()));
    };
    if state.is_final() {
        return Ok(Outcome::Refused(format!(
            "the run is {} already",
            state.name()
        )));
    }
    db.prepare_cached(
        "UPDATE runs SET state = ?3, reason = ?4, finished_ms = ?5 WHERE job = ?1 AND node = ?2",
    )?
    .execute(params![
        settled.job.as_ref(),
        settled.node.as_ref(),
        settled.state,
        settled.reason,
        settled.time_ms
    ])?;
    Ok(Outcome::Applied)
}

/// Whether the run is ours.
pub(super) fn started(
    db: &Connection,
    node: NodeId,
    at_ms: i64,
    started: &Started,
) -> Result<bool, StoreError> {
    let job = started.run.job;
    let Some(state) = state_of(db, job.as_bytes(), node.as_bytes())? else {
        return Ok(false);
    };
    if state.is_final() {
        late(db, job, node, RunState::Running)?;
    } else {
        db.prepare_cached(
            "UPDATE runs SET state = 'running', started_ms = ?3 WHERE job = ?1 AND node = ?2",
        )?
        .execute(params![job.as_bytes(), node.as_bytes(), at_ms])?;
    }
    Ok(true)
}

pub(super) fn output(db: &Connection, node: NodeId, output: &Output) -> Result<bool, StoreError> {
    let job = output.run.job;
    if state_of(db, job.as_bytes(), node.as_bytes())?.is_none() {
        return Ok(false);
    }
    db.prepare_cached(
        "INSERT INTO run_outputs (job, node, stream, offset, data) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
    )?
    .execute(params![
        job.as_bytes(),
        node.as_bytes(),
        output.stream.name(),
        i64::try_from(output.offset).unwrap_or(i64::MAX),
        output.data.as_ref()
    ])?;
    Ok(true)
}

pub(super) fn finished(db: &Connection, node: NodeId, end: &Finished) -> Result<bool, StoreError> {
    let job = end.run.job;
    let Some(state) = state_of(db, job.as_bytes(), node.as_bytes())? else {
        return Ok(false);
    };
    let becomes = match end.outcome {
        RunOutcome::Exited if end.exit_code == Some(0) => RunState::Succeeded,
        RunOutcome::Exited | RunOutcome::Signaled | RunOutcome::FailedToStart => RunState::Failed,
        RunOutcome::TimedOut => RunState::TimedOut,
        RunOutcome::Cancelled => RunState::Cancelled,
        RunOutcome::Rejected => RunState::Rejected,
        RunOutcome::Unknown => RunState::Unknown,
    };
    if state.is_final() {
        late(db, job, node, becomes)?;
        return Ok(true);
    }
    let int = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let ran = !matches!(
        end.outcome,
        RunOutcome::Rejected | RunOutcome::FailedToStart
    );
    db.prepare_cached(
        "UPDATE runs SET state = ?3, started_ms = coalesce(started_ms, ?4), finished_ms = ?5, exit_code = ?6,
            signal = ?7, reason = ?8, stdout_bytes = ?9, stderr_bytes = ?10, stdout_dropped_bytes = ?11,
            stderr_dropped_bytes = ?12 WHERE job = ?1 AND node = ?2",
    )?
    .execute(params![
        job.as_bytes(),
        node.as_bytes(),
        becomes.name(),
        ran.then_some(end.started.as_ms()),
        end.finished.as_ms(),
        end.exit_code,
        end.signal,
        end.reason,
        int(end.stdout_bytes),
        int(end.stderr_bytes),
        int(end.stdout_dropped_bytes),
        int(end.stderr_dropped_bytes)
    ])?;
    Ok(true)
}

fn late(db: &Connection, job: JobId, node: NodeId, state: RunState) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE runs SET late_state = ?3 WHERE job = ?1 AND node = ?2")?
        .execute(params![job.as_bytes(), node.as_bytes(), state.name()])?;
    Ok(())
}

fn state_of(db: &Connection, job: &[u8], node: &[u8]) -> Result<Option<RunState>, StoreError> {
    let name: Option<String> = db
        .prepare_cached("SELECT state FROM runs WHERE job = ?1 AND node = ?2")?
        .query_row(params![job, node], |row| row.get(0))
        .optional()?;
    Ok(name.and_then(|name| RunState::parse(&name)))
}
