//! Following a job: its runs as they change, and their output in the order it came.
//!
//! What was sent is remembered as a cursor into each shard's output and the state of each run, so nothing
//! is kept of the output itself. The results lane is in order, so output that belongs before the end of a
//! run is stored before that end: runs are read first, then output up to its present end is sent, then the
//! runs' new states.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use nexus_proto::{
    ids::{JobId, NodeId},
    operator::v1::{
        JobEnded, JobInfo, JobUpdate, RunOutputPiece, RunUpdate, WatchJobRequest, job_update::Kind,
    },
    time::Timestamp,
};
use nexus_runtime::tasks::Tasks;
use nexus_store::{JobRow, OutputRow, RunRow, Store};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Code, Status};

use super::status::{failed, of_store};

/// Messages that wait for the reader. Pieces of output are at most 64 KiB.
pub(crate) const UPDATES: usize = 16;
/// Pieces read at once.
const PIECES: usize = 32;
/// Changes that come in a burst are sent together.
const GATHER: Duration = Duration::from_millis(10);
/// After so long without a change all runs are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

type Updates = mpsc::Sender<Result<JobUpdate, Status>>;

/// Why following stopped.
enum Stop {
    /// Nobody reads any more.
    Gone,
    /// Something to tell.
    Failed(Status),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// One reader's view of one job.
pub(crate) struct Watch {
    store: Store,
    tasks: Tasks,
    job: JobId,
    node: Option<NodeId>,
    follow: bool,
    output: bool,
    cursors: BTreeMap<u16, i64>,
    sent: HashMap<NodeId, RunUpdate>,
    names: HashMap<NodeId, String>,
}

impl Watch {
    /// Prepares to follow; finds out whether there is such a job and such a node.
    pub(crate) fn new(
        store: Store,
        tasks: Tasks,
        request: &WatchJobRequest,
    ) -> Result<(Self, JobRow), Status> {
        const WHAT: &str = "watch the job";
        let job = JobId::from_wire(&request.job_id)
            .map_err(|error| failed(Code::InvalidArgument, WHAT, &error))?;
        let row = store
            .job(job)
            .map_err(|error| of_store(WHAT, &error))?
            .ok_or_else(|| Status::not_found(format!("{WHAT}: there is no job {job}")))?;
        let mut names = HashMap::new();
        for target in &row.targets {
            let id = NodeId::from_wire(&target.node_id)
                .map_err(|error| failed(Code::Internal, WHAT, &error))?;
            names.insert(id, target.name.clone());
        }
        let node = match request.node.as_str() {
            "" => None,
            wanted => Some(find(&names, wanted)?),
        };
        let watch = Self {
            job,
            node,
            follow: request.follow,
            output: request.output,
            cursors: BTreeMap::new(),
            sent: HashMap::new(),
            names,
            store,
            tasks,
        };
        Ok((watch, row))
    }

    /// Sends updates until the job has ended, the reader is gone, or, without `follow`, all has been sent.
    pub(crate) async fn run(mut self, row: JobRow, out: Updates) {
        if let Err(Stop::Failed(status)) = self.follow(row, &out).await {
            // The reader may be gone as well.
            let _gone = out.send(Err(status)).await;
        }
    }

    async fn follow(&mut self, row: JobRow, out: &Updates) -> Result<(), Stop> {
        send(out, Kind::Job(info(&row))).await?;
        let changes = self.store.watch(self.job);
        let token = self.tasks.token();
        let mut nodes = self.told_of();
        loop {
            let start = Instant::now();
            // Before the runs: once it has ended they have too.
            let end = self.end().await?;
            if end.is_some() {
                nodes.extend(self.not_over());
            }
            let runs = self.runs(std::mem::take(&mut nodes)).await?;
            let took = start.elapsed();
            if self.output {
                self.send_output(out).await?;
            }
            for run in &runs {
                let update = to_wire(run);
                if self.sent.get(&run.node) != Some(&update) {
                    self.sent.insert(run.node, update.clone());
                    send(out, Kind::Run(update)).await?;
                }
            }
            if let Some(counts) = end {
                let counts = counts.into_iter().collect();
                return send(out, Kind::Ended(JobEnded { counts })).await;
            }
            if !self.follow {
                return Ok(());
            }
            let hinted = tokio::select! {
                () = token.cancelled() => {
                    return Err(Status::unavailable("watch the job: the collector is shutting down").into());
                }
                () = out.closed() => return Err(Stop::Gone),
                hinted = tokio::time::timeout(LOOK_AGAIN, changes.changed()) => hinted.is_ok(),
            };
            // Jobs that take long to read are looked at less often than others.
            tokio::time::sleep(took.clamp(GATHER, LOOK_AGAIN)).await;
            nodes = changes.take();
            if !hinted {
                nodes.extend(self.told_of());
            }
        }
    }

    /// Targets that are told of.
    fn told_of(&self) -> BTreeSet<NodeId> {
        match self.node {
            Some(node) => BTreeSet::from([node]),
            None => self.names.keys().copied().collect(),
        }
    }

    /// Those of them whose end was not.
    fn not_over(&self) -> BTreeSet<NodeId> {
        let mut nodes = self.told_of();
        nodes.retain(|node| !self.sent.get(node).is_some_and(|run| run.r#final));
        nodes
    }

    /// How the job ended, if it has.
    async fn end(&self) -> Result<Option<BTreeMap<String, u64>>, Status> {
        let job = self.job;
        crate::reads::read(&self.tasks, &self.store, "a job", move |store| {
            store.job_end(job)
        })
        .await
        .map_err(|error| of_store("watch the job", &error))
    }

    /// The runs on some of the nodes.
    async fn runs(&self, mut nodes: BTreeSet<NodeId>) -> Result<Vec<RunRow>, Status> {
        if let Some(node) = self.node {
            nodes.retain(|other| *other == node);
        }
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let job = self.job;
        let all = nodes.len() == self.names.len();
        crate::reads::read(&self.tasks, &self.store, "runs", move |store| {
            if all {
                return store.runs(job);
            }
            store.runs_on(job, nodes)
        })
        .await
        .map_err(|error| of_store("watch the job", &error))
    }

    async fn send_output(&mut self, out: &Updates) -> Result<(), Stop> {
        let shards: Vec<u16> = match self.node {
            Some(node) => vec![self.store.shard_of(node)],
            None => {
                let mut shards: Vec<u16> = self
                    .names
                    .keys()
                    .map(|node| self.store.shard_of(*node))
                    .collect();
                shards.sort_unstable();
                shards.dedup();
                shards
            }
        };
        for shard in shards {
            loop {
                let (job, after) = (self.job, self.cursors.get(&shard).copied().unwrap_or(0));
                let pieces = crate::reads::read(&self.tasks, &self.store, "output", move |store| {
                    store.run_outputs(job, shard, after, PIECES)
                })
                .await
                .map_err(|error| of_store("read the output", &error))?;
                let more = pieces.len() == PIECES;
                for piece in pieces {
                    self.cursors.insert(shard, piece.id);
                    if self.node.is_none_or(|node| node == piece.node) {
                        send(out, Kind::Output(self.piece(piece))).await?;
                    }
                }
                if !more {
                    break;
                }
            }
        }
        Ok(())
    }

    fn piece(&self, piece: OutputRow) -> RunOutputPiece {
        RunOutputPiece {
            node: self.names.get(&piece.node).cloned().unwrap_or_default(),
            node_id: piece.node.to_wire(),
            stream: piece.stream.to_wire().into(),
            offset: piece.offset,
            data: piece.data,
        }
    }
}

fn find(names: &HashMap<NodeId, String>, wanted: &str) -> Result<NodeId, Status> {
    if let Ok(id) = wanted.parse::<NodeId>()
        && names.contains_key(&id)
    {
        return Ok(id);
    }
    let found: Vec<NodeId> = names
        .iter()
        .filter(|(_, name)| *name == wanted)
        .map(|(id, _)| *id)
        .collect();
    match found.as_slice() {
        [id] => Ok(*id),
        [] => Err(Status::not_found(format!(
            "watch the job: `{wanted}` is none of its targets"
        ))),
        several => {
            let ids: Vec<String> = several.iter().map(ToString::to_string).collect();
            Err(Status::failed_precondition(format!(
                "watch the job: the name `{wanted}` is ambiguous: {}",
                ids.join(", ")
            )))
        }
    }
}

async fn send(out: &Updates, kind: Kind) -> Result<(), Stop> {
    out.send(Ok(JobUpdate { kind: Some(kind) }))
        .await
        .map_err(|_| Stop::Gone)
}

fn info(row: &JobRow) -> JobInfo {
    JobInfo {
        job_id: row.id.to_wire(),
        envelope: Some(row.envelope.clone()),
        targets: u64::try_from(row.targets.len()).unwrap_or(u64::MAX),
        state: if row.ended.is_some() {
            "ended"
        } else {
            "active"
        }
        .to_owned(),
        request_id: row.request_id.clone(),
        created_ms: row.created.as_ms(),
    }
}

fn to_wire(run: &RunRow) -> RunUpdate {
    RunUpdate {
        node_id: run.node.to_wire(),
        node: run.name.clone(),
        state: run.state.name().to_owned(),
        r#final: run.state.is_final(),
        exit_code: run.exit_code,
        signal: run.signal,
        reason: run.reason.clone(),
        stdout_bytes: run.stdout_bytes,
        stderr_bytes: run.stderr_bytes,
        stdout_dropped_bytes: run.stdout_dropped_bytes,
        stderr_dropped_bytes: run.stderr_dropped_bytes,
        started_ms: run.started.map(Timestamp::as_ms),
        finished_ms: run.finished.map(Timestamp::as_ms),
        late_state: run.late_state.clone(),
    }
}
