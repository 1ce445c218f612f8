//! `/metrics`: the collector about itself. Names begin with `nexus_`, units are base units, and no label
//! ever takes an unbounded value.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use super::exposition::{self, Format};

/// By transport: `quic`, `tcp`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByTransport {
    pub(crate) transport: &'static str,
}

/// By lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByLane {
    pub(crate) lane: &'static str,
}

/// By reason, of a fixed set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByReason {
    pub(crate) reason: &'static str,
}

/// By port and reason, of fixed sets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByPort {
    pub(crate) port: &'static str,
    pub(crate) reason: &'static str,
}

/// By port and transport.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByWay {
    pub(crate) port: &'static str,
    pub(crate) transport: &'static str,
}

/// By queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByQueue {
    pub(crate) queue: String,
}

/// By file: `head`, `chunks`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByFile {
    pub(crate) file: &'static str,
}

/// By resolution: `raw`, `minutes`, `hours`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByResolution {
    pub(crate) resolution: &'static str,
}

/// By state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByState {
    pub(crate) state: &'static str,
}

/// By RPC and gRPC status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByRpc {
    pub(crate) rpc: &'static str,
    pub(crate) code: &'static str,
}

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;

/// Every metric of this program; handed to those who count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub(crate) sessions: Family<ByTransport, Level>,
    pub(crate) sessions_opened: Family<ByTransport, Count>,
    pub(crate) sessions_refused: Family<ByReason, Count>,
    pub(crate) records_acked: Family<ByLane, Count>,
    pub(crate) record_bytes: Family<ByLane, Count>,
    pub(crate) dead_letters: Family<ByLane, Count>,
    pub(crate) upload_credit: Family<ByLane, Level>,
    pub(crate) commit_seconds: CommitSeconds,
    pub(crate) queue_length: Family<ByQueue, Level>,
    pub(crate) queue_bytes: Family<ByQueue, Level>,
    pub(crate) queue_capacity: Family<ByQueue, Level>,
    pub(crate) queue_capacity_bytes: Family<ByQueue, Level>,
    pub(crate) commits_failed: Family<ByQueue, Count>,
    pub(crate) log_bytes: Level,
    pub(crate) metrics_bytes: Family<ByFile, Level>,
    pub(crate) metrics_samples: Family<ByResolution, Level>,
    pub(crate) nodes: Level,
    pub(crate) nodes_in_trouble: Level,
    pub(crate) jobs_active: Level,
    pub(crate) jobs_submitted: Count,
    pub(crate) runs_ended: Family<ByState, Count>,
    pub(crate) dispatches: Count,
    pub(crate) enrolments: Family<ByReason, Count>,
    pub(crate) connections: Family<ByWay, Level>,
    pub(crate) connections_accepted: Family<ByWay, Count>,
    pub(crate) handshakes_waiting: Level,
    pub(crate) connections_refused: Family<ByPort, Count>,
    pub(crate) operator_calls: Family<ByRpc, Count>,
}

/// How long commits take, from a millisecond to half a minute.
#[derive(Debug, Clone)]
pub(crate) struct CommitSeconds(pub(crate) Histogram);

impl Default for CommitSeconds {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.001, 2.0, 16)))
    }
}

impl Metrics {
    /// All of them under their names.
    pub(crate) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("nexus");
        let r = &mut registry;
        r.register(
            "build",
            "What was built",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        r.register("sessions", "Sessions of agents", self.sessions.clone());
        r.register(
            "sessions_opened",
            "Sessions that were opened",
            self.sessions_opened.clone(),
        );
        r.register(
            "sessions_refused",
            "Hellos that came to no session",
            self.sessions_refused.clone(),
        );
        r.register(
            "records_acked",
            "Records that were committed and acknowledged",
            self.records_acked.clone(),
        );
        r.register_with_unit(
            "record",
            "Bytes of the records that were committed",
            Unit::Bytes,
            self.record_bytes.clone(),
        );
        r.register(
            "dead_letters",
            "Records that could not be read and were put aside",
            self.dead_letters.clone(),
        );
        r.register_with_unit(
            "upload_credit",
            "Bytes that all agents together may have in flight: less while commits are slow",
            Unit::Bytes,
            self.upload_credit.clone(),
        );
        r.register_with_unit(
            "commit",
            "From handing records to their shard until they are committed and applied",
            Unit::Seconds,
            self.commit_seconds.0.clone(),
        );
        r.register(
            "queue_length",
            "Entries waiting in a queue",
            self.queue_length.clone(),
        );
        r.register(
            "queue_size_bytes",
            "Bytes waiting in a queue",
            self.queue_bytes.clone(),
        );
        r.register(
            "queue_capacity",
            "Entries a queue can hold",
            self.queue_capacity.clone(),
        );
        r.register(
            "queue_capacity_bytes",
            "Bytes a queue can hold",
            self.queue_capacity_bytes.clone(),
        );
        r.register(
            "commits_failed",
            "Commits that failed, so that nothing was acknowledged",
            self.commits_failed.clone(),
        );
        r.register_with_unit(
            "log",
            "Bytes of the record logs on disk, which metrics are not in",
            Unit::Bytes,
            self.log_bytes.clone(),
        );
        r.register_with_unit(
            "metrics_file",
            "Bytes of the files that keep nodes' metrics: the head that reports wait in, and the chunks",
            Unit::Bytes,
            self.metrics_bytes.clone(),
        );
        r.register(
            "metrics_samples",
            "Samples that chunks of nodes' metrics hold, or were made of",
            self.metrics_samples.clone(),
        );
        r.register("nodes", "Enrolled nodes", self.nodes.clone());
        r.register(
            "nodes_in_trouble",
            "Connected nodes whose agent cannot do all of its work",
            self.nodes_in_trouble.clone(),
        );
        r.register(
            "jobs_active",
            "Jobs that have not ended",
            self.jobs_active.clone(),
        );
        r.register(
            "jobs_submitted",
            "Jobs that were accepted",
            self.jobs_submitted.clone(),
        );
        r.register(
            "runs_ended",
            "Runs that reached a final state",
            self.runs_ended.clone(),
        );
        r.register(
            "dispatches",
            "Dispatches sent to agents",
            self.dispatches.clone(),
        );
        r.register(
            "enrolments",
            "Requests for an identity, by how they ended",
            self.enrolments.clone(),
        );
        r.register(
            "connections",
            "Connections that are open",
            self.connections.clone(),
        );
        r.register(
            "connections_accepted",
            "Connections that were admitted",
            self.connections_accepted.clone(),
        );
        r.register(
            "handshakes_waiting",
            "Agents that wait for their handshake over QUIC to begin",
            self.handshakes_waiting.clone(),
        );
        r.register(
            "connections_refused",
            "Connections that were turned away or cut, and streams that were refused",
            self.connections_refused.clone(),
        );
        r.register(
            "operator_calls",
            "Calls of operators",
            self.operator_calls.clone(),
        );
        registry
    }
}

/// One series of every family, with nothing in its labels: families without any are not on the page.
pub(crate) fn specimen() -> Metrics {
    fn touch<L, M, C>(family: &Family<L, M, C>, labels: &L)
    where
        L: Clone + Eq + std::hash::Hash,
        C: prometheus_client::metrics::family::MetricConstructor<M>,
    {
        drop(family.get_or_create(labels));
    }
    let metrics = Metrics::default();
    // Named one by one, so that none is forgotten.
    let Metrics {
        sessions,
        sessions_opened,
        sessions_refused,
        records_acked,
        record_bytes,
        dead_letters,
        upload_credit,
        commit_seconds: _,
        queue_length,
        queue_bytes,
        queue_capacity,
        queue_capacity_bytes,
        commits_failed,
        log_bytes: _,
        metrics_bytes,
        metrics_samples,
        nodes: _,
        nodes_in_trouble: _,
        jobs_active: _,
        jobs_submitted: _,
        runs_ended,
        dispatches: _,
        enrolments,
        connections,
        connections_accepted,
        handshakes_waiting: _,
        connections_refused,
        operator_calls,
    } = &metrics;
    let transport = ByTransport { transport: "" };
    touch(sessions, &transport);
    touch(sessions_opened, &transport);
    let reason = ByReason { reason: "" };
    touch(sessions_refused, &reason);
    touch(enrolments, &reason);
    let lane = ByLane { lane: "" };
    for family in [records_acked, record_bytes, dead_letters] {
        touch(family, &lane);
    }
    touch(upload_credit, &lane);
    let queue = ByQueue {
        queue: String::new(),
    };
    for family in [
        queue_length,
        queue_bytes,
        queue_capacity,
        queue_capacity_bytes,
    ] {
        touch(family, &queue);
    }
    touch(commits_failed, &queue);
    touch(metrics_bytes, &ByFile { file: "" });
    touch(metrics_samples, &ByResolution { resolution: "" });
    touch(runs_ended, &ByState { state: "" });
    let way = ByWay {
        port: "",
        transport: "",
    };
    touch(connections, &way);
    touch(connections_accepted, &way);
    touch(
        connections_refused,
        &ByPort {
            port: "",
            reason: "",
        },
    );
    touch(operator_calls, &ByRpc { rpc: "", code: "" });
    metrics
}

/// The page.
pub(crate) fn page(registry: &Registry, format: Format) -> Result<String, std::fmt::Error> {
    let mut page = String::new();
    text::encode(&mut page, registry)?;
    Ok(match format {
        Format::OpenMetrics => page,
        Format::Plain => exposition::downgrade(&page),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_whole() {
        let metrics = Metrics::default();
        metrics
            .sessions
            .get_or_create(&ByTransport { transport: "quic" })
            .set(3);
        metrics
            .records_acked
            .get_or_create(&ByLane { lane: "metrics" })
            .inc_by(7);
        metrics.commit_seconds.0.observe(0.003);
        let registry = metrics.registry();
        let open = page(&registry, Format::OpenMetrics).unwrap();
        assert!(open.ends_with("# EOF\n"), "{open}");
        assert!(
            open.contains("nexus_sessions{transport=\"quic\"} 3\n"),
            "{open}"
        );
        assert!(
            open.contains("# TYPE nexus_records_acked counter\n"),
            "{open}"
        );
        let plain = page(&registry, Format::Plain).unwrap();
        assert!(
            plain.contains("# TYPE nexus_records_acked_total counter\n"),
            "{plain}"
        );
        assert!(plain.contains("# TYPE nexus_build_info gauge\n"), "{plain}");
        assert!(!plain.contains("# EOF"));
    }
}
