//! What the pages show, from the store and the registry.

use std::{
    fs,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nexus_runtime::{clock::Clock, errors, tasks::Tasks};
use nexus_store::Store;
use nexus_transport::Connections;
use tokio::sync::Semaphore;

use super::{
    exposition::Format,
    metrics::{ByFile, ByPort, ByQueue, ByResolution, ByWay, Metrics},
    nodes::{NodeReport, NodesPage, Report},
    server::{Asked, Source},
};
use crate::{
    folder::Folder,
    ports::Seen,
    sessions::{self, registry::Registry},
};

/// The pages' view of the program.
pub(crate) struct Pages {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    pub(crate) folder: Folder,
    pub(crate) seen: Seen,
    pub(crate) registry: Arc<Registry>,
    /// Of [`sessions::INTAKE_KIB`].
    pub(crate) intake: Arc<Semaphore>,
}

impl Source for Pages {
    fn page(
        &self,
        asked: Asked,
        format: Format,
    ) -> Pin<Box<dyn Future<Output = Result<NodesPage, String>> + Send + '_>> {
        Box::pin(async move {
            let now = self.clock.now();
            let read = move |store: &Store| {
                let rows = store.nodes(None)?;
                let reports = rows.into_iter().map(|row| NodeReport {
                    id: row.id,
                    name: row.name,
                    shard: row.shard,
                    labels: row.labels,
                    report: store.newest(row.id).map(|newest| Report {
                        made: newest.time,
                        received: newest.received,
                        snapshot: newest.snapshot,
                    }),
                });
                Ok(NodesPage::new(reports.collect(), &asked, format, now))
            };
            crate::reads::read(&self.tasks, &self.store, "nodes page", read)
                .await
                .map_err(|error| errors::chain(&error).to_string())
        })
    }

    fn shards(&self) -> u16 {
        self.store.shards()
    }

    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let nodes =
                crate::reads::read(&self.tasks, &self.store, "count nodes", Store::node_count)
                    .await;
            // What cannot be read keeps its last value.
            if let Ok(nodes) = nodes {
                self.metrics
                    .nodes
                    .set(i64::try_from(nodes).unwrap_or(i64::MAX));
            }
            let sessions = self.registry.all();
            let in_trouble = sessions
                .iter()
                .filter(|session| !session.trouble().is_empty());
            self.metrics
                .nodes_in_trouble
                .set(i64::try_from(in_trouble.count()).unwrap_or(i64::MAX));
            publish(&self.metrics, "agents", &self.seen.agents);
            let waiting = self
                .seen
                .agents
                .counters()
                .waiting_quic
                .load(Ordering::Relaxed);
            let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
            self.metrics.handshakes_waiting.set(waiting);
            publish(&self.metrics, "operators", &self.seen.operators);
            let metrics = &self.metrics;
            let level = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            // Uploads are decoded within it. What it holds is bytes alone.
            let intake = ByQueue {
                queue: "intake".to_owned(),
            };
            let kib = [
                sessions::INTAKE_KIB.saturating_sub(self.intake.available_permits()),
                sessions::INTAKE_KIB,
            ];
            for (metric, kib) in [&metrics.queue_bytes, &metrics.queue_capacity_bytes]
                .into_iter()
                .zip(kib)
            {
                let bytes = kib.saturating_mul(1024);
                metric.get_or_create(&intake).set(level(bytes));
            }
            for (queue, depth) in self.store.queues() {
                let queue = ByQueue { queue };
                metrics
                    .queue_length
                    .get_or_create(&queue)
                    .set(level(depth.entries));
                metrics
                    .queue_bytes
                    .get_or_create(&queue)
                    .set(level(depth.bytes));
                metrics
                    .queue_capacity
                    .get_or_create(&queue)
                    .set(level(depth.capacity));
                metrics
                    .queue_capacity_bytes
                    .get_or_create(&queue)
                    .set(level(depth.capacity_bytes));
                let failures = metrics.commits_failed.get_or_create(&queue);
                failures.inc_by(depth.failures.saturating_sub(failures.get()));
            }
            let shards = self.store.shards();
            self.metrics
                .log_bytes
                .set(file_bytes(&self.folder, shards, "log.db"));
            for file in ["head", "chunks"] {
                let name = if file == "head" {
                    "head.db"
                } else {
                    "metrics.db"
                };
                let bytes = file_bytes(&self.folder, shards, name);
                metrics
                    .metrics_bytes
                    .get_or_create(&ByFile { file })
                    .set(bytes);
            }
            let held = self.store.metrics_held();
            for (at, resolution) in ["raw", "minutes", "hours"].into_iter().enumerate() {
                let samples = held.iter().filter_map(|totals| totals.held.get(at));
                let samples: u64 = samples.map(|held| held.samples).sum();
                let samples = i64::try_from(samples).unwrap_or(i64::MAX);
                let metric = &metrics.metrics_samples;
                metric
                    .get_or_create(&ByResolution { resolution })
                    .set(samples);
            }
        })
    }

    fn not_ready(&self) -> Option<String> {
        if self.tasks.is_shutting_down() {
            return Some("shutting down".to_owned());
        }
        let unreadable = self.store.trust().err();
        unreadable
            .map(|error| errors::chain(&error).to_string())
            .or_else(|| self.store.failing())
    }
}

/// Copies what the ports count.
fn publish(metrics: &Metrics, port: &'static str, connections: &Connections) {
    let counters = connections.counters();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (transport, open, accepted) in [
        ("quic", &counters.open_quic, &counters.accepted_quic),
        ("tcp", &counters.open_tcp, &counters.accepted_tcp),
    ] {
        let way = ByWay { port, transport };
        let open = i64::try_from(read(open)).unwrap_or(i64::MAX);
        metrics.connections.get_or_create(&way).set(open);
        let count = metrics.connections_accepted.get_or_create(&way);
        count.inner().store(read(accepted), Ordering::Relaxed);
    }
    for (reason, count) in [
        ("not_admitted", &counters.not_admitted),
        ("handshake", &counters.handshakes_failed),
        ("overload", &counters.overload),
        ("stream", &counters.streams_refused),
        ("cut", &counters.cut),
    ] {
        let metric = metrics
            .connections_refused
            .get_or_create(&ByPort { port, reason });
        metric.inner().store(read(count), Ordering::Relaxed);
    }
}

/// A file that is not there has no bytes.
fn file_bytes(folder: &Folder, shards: u16, name: &str) -> i64 {
    let shards = (0..shards).map(|shard| folder.path().join("shards").join(shard.to_string()));
    let dirs = shards.chain([folder.path().join("control")]);
    let sum: u64 = dirs
        .flat_map(|dir| [name.to_owned(), format!("{name}-wal")].map(|name| dir.join(name)))
        .filter_map(|path| fs::metadata(path).ok())
        .map(|metadata| metadata.len())
        .sum();
    i64::try_from(sum).unwrap_or(i64::MAX)
}
