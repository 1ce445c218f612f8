//! What is known of every target of a job: exactly one state each.

use std::collections::BTreeMap;

use bytes::Bytes;
use nexus_proto::{ids::NodeId, operator::v1::RunUpdate};

use super::lines::Stream;

/// Final states in the order summaries name them.
pub(crate) const FINAL: [&str; 8] = [
    "succeeded",
    "failed",
    "timed_out",
    "cancelled",
    "expired",
    "rejected",
    "lost",
    "unknown",
];

/// One target.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) update: RunUpdate,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

/// What arrived of one stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output {
    /// Bytes of the stream that have been seen, so that none is shown twice after a reconnect.
    pub(crate) next_offset: u64,
    /// The bytes, when they are to be kept.
    pub(crate) kept: Vec<u8>,
}

impl Output {
    /// The part of a piece that has not been seen.
    pub(crate) fn fresh(&mut self, offset: u64, data: &Bytes, keep: bool) -> Bytes {
        let seen = self.next_offset.saturating_sub(offset);
        let seen = usize::try_from(seen).unwrap_or(usize::MAX).min(data.len());
        let fresh = data.slice(seen..);
        let end = offset.saturating_add(u64::try_from(data.len()).unwrap_or(0));
        self.next_offset = self.next_offset.max(end);
        if keep {
            self.kept.extend_from_slice(&fresh);
        }
        fresh
    }
}

/// All targets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board {
    runs: BTreeMap<NodeId, Run>,
}

impl Board {
    /// Every target, none of which has been reached yet.
    pub(crate) fn new(targets: Vec<(NodeId, String)>) -> Self {
        let pending = |name: String| Run {
            update: RunUpdate {
                state: "pending".to_owned(),
                ..RunUpdate::default()
            },
            name,
            ..Run::default()
        };
        Self {
            runs: targets
                .into_iter()
                .map(|(node, name)| (node, pending(name)))
                .collect(),
        }
    }

    /// Takes a run's newest state; true when it has just become final.
    pub(crate) fn update(&mut self, node: NodeId, update: RunUpdate) -> bool {
        let run = self.runs.entry(node).or_default();
        let ends = update.r#final && !run.update.r#final;
        if run.name.is_empty() {
            run.name.clone_from(&update.node);
        }
        run.update = update;
        ends
    }

    /// The run of a node, made when it was not known.
    pub(crate) fn run(&mut self, node: NodeId, name: &str) -> &mut Run {
        let run = self.runs.entry(node).or_default();
        if run.name.is_empty() {
            name.clone_into(&mut run.name);
        }
        run
    }

    /// All runs, sorted by the nodes' names.
    pub(crate) fn runs(&self) -> Vec<(NodeId, &Run)> {
        let mut runs: Vec<_> = self.runs.iter().map(|(node, run)| (*node, run)).collect();
        runs.sort_by(|(a, left), (b, right)| (&left.name, a).cmp(&(&right.name, b)));
        runs
    }

    /// How many targets there are.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Targets per state: every final state, and the others that occur. They add up to [`Board::len`].
    pub(crate) fn counts(&self) -> Vec<(String, u64)> {
        let mut counts: Vec<_> = FINAL.iter().map(|state| ((*state).to_owned(), 0)).collect();
        for run in self.runs.values() {
            let state = &run.update.state;
            match counts.iter_mut().find(|(known, _)| known == state) {
                Some((_, count)) => *count += 1,
                None => counts.push((state.clone(), 1)),
            }
        }
        counts
    }

    /// Whether every target succeeded.
    pub(crate) fn all_succeeded(&self) -> bool {
        !self.runs.is_empty()
            && self
                .runs
                .values()
                .all(|run| run.update.state == "succeeded")
    }

    /// The stream of a run.
    pub(crate) fn output(&mut self, node: NodeId, name: &str, stream: Stream) -> &mut Output {
        let run = self.run(node, name);
        match stream {
            Stream::Stdout => &mut run.stdout,
            Stream::Stderr => &mut run.stderr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(state: &str, is_final: bool) -> RunUpdate {
        RunUpdate {
            state: state.to_owned(),
            r#final: is_final,
            ..RunUpdate::default()
        }
    }

    #[test]
    fn counts_add_up() {
        let (a, b, c) = (NodeId::random(), NodeId::random(), NodeId::random());
        let mut board = Board::new(vec![(a, "a".into()), (b, "b".into()), (c, "c".into())]);
        assert!(!board.update(a, state("running", false)));
        assert!(board.update(a, state("succeeded", true)));
        assert!(!board.update(a, state("succeeded", true)));
        assert!(board.update(b, state("failed", true)));
        let counts = board.counts();
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 3);
        assert!(counts.contains(&("pending".to_owned(), 1)));
        assert!(counts.contains(&("lost".to_owned(), 0)));
        assert!(!board.all_succeeded());
        assert!(!Board::default().all_succeeded());
    }

    #[test]
    fn nothing_is_seen_twice() {
        let mut output = Output::default();
        let data = Bytes::from_static(b"hello");
        assert_eq!(output.fresh(0, &data, true), "hello");
        assert_eq!(output.fresh(0, &data, true), "");
        assert_eq!(output.fresh(3, &data, true), "llo");
        assert_eq!(output.fresh(20, &data, true), "hello");
        assert_eq!(output.next_offset, 25);
        assert_eq!(output.kept, b"hellollohello");
    }
}
