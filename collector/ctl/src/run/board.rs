//! What is known of every target of a job: exactly one state each.

use std::collections::BTreeMap;

use bytes::Bytes;
use nexus_proto::{
    ids::{NodeId, is_node_name},
    limits,
    operator::v1::{RunOutputPiece, RunUpdate},
};

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

/// Bytes of output that are kept for `-o json`, of all nodes together.
const KEPT_BYTES: usize = 256 * 1024 * 1024;

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
    next_offset: u64,
    /// The bytes, when they are to be kept.
    pub(crate) kept: Vec<u8>,
    /// Bytes there was no room for.
    pub(crate) omitted: u64,
}

impl Output {
    /// The part of a piece that has not been seen.
    fn fresh(&mut self, offset: u64, data: &Bytes) -> Bytes {
        let seen = self.next_offset.saturating_sub(offset);
        let seen = usize::try_from(seen).unwrap_or(usize::MAX).min(data.len());
        let fresh = data.slice(seen..);
        let end = offset.saturating_add(bytes_of(data.len()));
        self.next_offset = self.next_offset.max(end);
        fresh
    }

    /// Keeps what there is room for; what was left out once leaves out all that follows.
    fn keep(&mut self, fresh: &Bytes, room: &mut usize) {
        let fits = if self.omitted > 0 {
            0
        } else {
            fresh.len().min(*room)
        };
        self.kept.extend_from_slice(&fresh.slice(..fits));
        self.omitted += bytes_of(fresh.len() - fits);
        *room -= fits;
    }
}

/// All targets.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    runs: BTreeMap<NodeId, Run>,
    /// How many there can be: no more than were signed for, when that is known.
    most: usize,
    room: usize,
}

impl Board {
    /// Every target, none of which has been reached yet. Whatever the collector says of other nodes is not
    /// about this job.
    pub(crate) fn new(targets: Vec<(NodeId, String)>) -> Self {
        let pending = |name: String| Run {
            update: RunUpdate {
                state: "pending".to_owned(),
                ..RunUpdate::default()
            },
            name,
            ..Run::default()
        };
        let runs: BTreeMap<_, _> = targets
            .into_iter()
            .map(|(node, name)| (node, pending(name)))
            .collect();
        Self {
            most: runs.len(),
            runs,
            room: KEPT_BYTES,
        }
    }

    /// Targets as the collector names them: of a job that another invocation began.
    pub(crate) fn of_job() -> Self {
        Self {
            runs: BTreeMap::new(),
            most: limits::JOB_TARGETS,
            room: KEPT_BYTES,
        }
    }

    /// Takes a run's newest state.
    pub(crate) fn update(&mut self, node: NodeId, update: RunUpdate) {
        if let Some(run) = self.run(node, &update.node) {
            run.update = update;
        }
    }

    /// Takes a piece of output; gives the node's name and what had not been seen yet.
    pub(crate) fn output(
        &mut self,
        node: NodeId,
        stream: Stream,
        piece: &RunOutputPiece,
        keep: bool,
    ) -> Option<(String, Bytes)> {
        let mut room = self.room;
        let run = self.run(node, &piece.node)?;
        let output = match stream {
            Stream::Stdout => &mut run.stdout,
            Stream::Stderr => &mut run.stderr,
        };
        let fresh = output.fresh(piece.offset, &piece.data);
        if keep {
            output.keep(&fresh, &mut room);
        }
        let name = run.name.clone();
        self.room = room;
        Some((name, fresh))
    }

    /// The run of a node. One that was not known is made, if there can be another.
    fn run(&mut self, node: NodeId, name: &str) -> Option<&mut Run> {
        if !self.runs.contains_key(&node) && self.runs.len() >= self.most {
            return None;
        }
        Some(self.runs.entry(node).or_insert_with(|| Run {
            name: if is_node_name(name) {
                name.to_owned()
            } else {
                node.to_string()
            },
            ..Run::default()
        }))
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
}

fn bytes_of(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(state: &str) -> RunUpdate {
        RunUpdate {
            state: state.to_owned(),
            ..RunUpdate::default()
        }
    }

    fn piece(offset: u64, data: &'static [u8]) -> RunOutputPiece {
        RunOutputPiece {
            offset,
            data: Bytes::from_static(data),
            node: "a".to_owned(),
            ..RunOutputPiece::default()
        }
    }

    #[test]
    fn counts_add_up() {
        let (a, b, c) = (NodeId::random(), NodeId::random(), NodeId::random());
        let mut board = Board::new(vec![(a, "a".into()), (b, "b".into()), (c, "c".into())]);
        board.update(a, state("running"));
        board.update(a, state("succeeded"));
        board.update(b, state("failed"));
        let counts = board.counts();
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 3);
        assert!(counts.contains(&("pending".to_owned(), 1)));
        assert!(counts.contains(&("lost".to_owned(), 0)));
        assert!(!board.all_succeeded());
        assert!(!Board::of_job().all_succeeded());
    }

    #[test]
    fn nothing_is_seen_twice() {
        let a = NodeId::random();
        let mut board = Board::new(vec![(a, "a".into())]);
        let mut fresh = |offset| {
            let piece = piece(offset, b"hello");
            board.output(a, Stream::Stdout, &piece, true).unwrap().1
        };
        assert_eq!(fresh(0), "hello");
        assert_eq!(fresh(0), "");
        assert_eq!(fresh(3), "llo");
        assert_eq!(fresh(20), "hello");
        let output = &board.runs()[0].1.stdout;
        assert_eq!(output.next_offset, 25);
        assert_eq!(output.kept, b"hellollohello");
    }

    #[test]
    fn nodes_that_are_no_targets_are_not_heard() {
        let (a, other) = (NodeId::random(), NodeId::random());
        let mut board = Board::new(vec![(a, "a".into())]);
        board.update(other, state("succeeded"));
        let heard = board.output(other, Stream::Stdout, &piece(0, b"x"), true);
        assert!(heard.is_none());
        board.update(a, state("succeeded"));
        assert_eq!((board.len(), board.all_succeeded()), (1, true));
    }

    #[test]
    fn a_job_of_others_has_bounds_too() {
        let mut board = Board::of_job();
        board.most = 2;
        for name in ["a", "\u{1b}[2J", "c"] {
            let update = RunUpdate {
                node: name.to_owned(),
                ..state("succeeded")
            };
            board.update(NodeId::random(), update);
        }
        let names: Vec<_> = board
            .runs()
            .iter()
            .map(|(id, run)| (id.to_string(), &run.name))
            .collect();
        assert_eq!(names.len(), 2);
        assert!(
            names.iter().all(|(id, name)| *name == "a" || *name == id),
            "{names:?}"
        );
    }

    #[test]
    fn output_is_kept_up_to_a_sum_and_counted_beyond() {
        let (a, b) = (NodeId::random(), NodeId::random());
        let mut board = Board::new(vec![(a, "a".into()), (b, "b".into())]);
        board.room = 8;
        board.output(a, Stream::Stdout, &piece(0, b"hello"), true);
        // It is still handed on, and the next piece leaves no hole in the middle.
        let (_, fresh) = board
            .output(b, Stream::Stderr, &piece(0, b"hello"), true)
            .unwrap();
        assert_eq!(fresh, "hello");
        board.room += 1;
        board.output(b, Stream::Stderr, &piece(5, b"!"), true);
        let runs = board.runs();
        let (a, b) = (&runs[0].1.stdout, &runs[1].1.stderr);
        assert_eq!((a.kept.as_slice(), a.omitted), (b"hello".as_slice(), 0));
        assert_eq!((b.kept.as_slice(), b.omitted), (b"hel".as_slice(), 3));
    }
}
