//! Output of many nodes as whole lines, each after its node's name.
//!
//! A line is held until it ends, per node and stream, so that lines of different nodes never mix; one
//! longer than [`LONGEST`] is passed on in pieces. Bytes go out as they came, but to a terminal: on the machine
//! that holds the signing key no node moves the cursor or speaks under another one's name.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use nexus_proto::ids::NodeId;

use crate::{
    fault::Outcome,
    output::broken,
    terminal::{Colour, Paint},
    visible::{visible, visible_bytes},
};

/// A line that is longer than this is cut into several.
const LONGEST: usize = 64 * 1024;

/// Bytes of lines that are held, of all nodes together. Beyond it a line is cut where it is.
const HELD_BYTES: usize = 32 * 1024 * 1024;

/// One of a program's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// How lines are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// The node's name stands before each line.
    pub(crate) prefix: bool,
    /// Colours of the names.
    pub(crate) paint: Paint,
    /// Standard output shows what acts on a terminal instead of passing it on.
    pub(crate) guard_stdout: bool,
    /// Standard error does.
    pub(crate) guard_stderr: bool,
}

/// Splits, prefixes, writes.
pub(crate) struct Lines<O, E> {
    stdout: O,
    stderr: E,
    manner: Manner,
    held: HashMap<(NodeId, Stream), Vec<u8>>,
    held_bytes: usize,
    order: HashMap<NodeId, usize>,
    deaf: bool,
}

impl<O: Write, E: Write> Lines<O, E> {
    pub(crate) fn new(stdout: O, stderr: E, manner: Manner) -> Self {
        let (held, order) = (HashMap::new(), HashMap::new());
        Self {
            stdout,
            stderr,
            manner,
            held,
            held_bytes: 0,
            order,
            deaf: false,
        }
    }

    /// Takes a piece of output and writes the lines it completes. Each byte is looked at once, however small
    /// the pieces are.
    pub(crate) fn take(
        &mut self,
        node: NodeId,
        name: &str,
        stream: Stream,
        data: &[u8],
    ) -> Outcome {
        let key = (node, stream);
        let mut held = self.held.remove(&key).unwrap_or_default();
        self.held_bytes -= held.len();
        let mut rest = data;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at_checked(end + 1).unwrap_or((rest, &[]));
            held.extend_from_slice(line);
            self.write(node, name, stream, &held)?;
            held.clear();
            rest = after;
        }
        held.extend_from_slice(rest);
        let whole = if self.held_bytes + held.len() % LONGEST > HELD_BYTES {
            held.len()
        } else {
            held.len() - held.len() % LONGEST
        };
        for piece in held.drain(..whole).as_slice().chunks(LONGEST) {
            self.write(node, name, stream, piece)?;
            self.write_raw(stream, b"\n")?;
        }
        if !held.is_empty() {
            self.held_bytes += held.len();
            self.held.insert(key, held);
        }
        self.flush()
    }

    /// Ends the lines a node has begun.
    pub(crate) fn end(&mut self, node: NodeId, name: &str) -> Outcome {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(mut line) = self.held.remove(&(node, stream)) {
                self.held_bytes -= line.len();
                if self.manner.prefix {
                    line.push(b'\n');
                }
                self.write(node, name, stream, &line)?;
            }
        }
        self.flush()
    }

    fn write(&mut self, node: NodeId, name: &str, stream: Stream, line: &[u8]) -> Outcome {
        if self.manner.prefix {
            let next = self.order.len();
            let number = *self.order.entry(node).or_insert(next);
            let name = self
                .manner
                .paint
                .apply(Colour::numbered(number), &visible(name));
            self.write_raw(stream, format!("{name}: ").as_bytes())?;
        }
        let guarded = match stream {
            Stream::Stdout => self.manner.guard_stdout,
            Stream::Stderr => self.manner.guard_stderr,
        };
        if guarded {
            self.write_raw(stream, visible_bytes(line).as_bytes())
        } else {
            self.write_raw(stream, line)
        }
    }

    fn write_raw(&mut self, stream: Stream, bytes: &[u8]) -> Outcome {
        let result = match stream {
            Stream::Stdout if self.deaf => Ok(()),
            Stream::Stdout => self.stdout.write_all(bytes),
            Stream::Stderr => self.stderr.write_all(bytes),
        };
        self.note(result)
    }

    fn flush(&mut self) -> Outcome {
        let result = if self.deaf {
            Ok(())
        } else {
            self.stdout.flush()
        };
        let result = result.and_then(|()| self.stderr.flush());
        self.note(result)
    }

    /// A reader that has gone is no failure of the job: its end still decides the exit code.
    fn note(&mut self, result: io::Result<()>) -> Outcome {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.deaf = true;
                Ok(())
            }
            other => other.map_err(broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nexus_runtime::clock::Clock;

    use super::*;

    const PREFIXED: Manner = Manner {
        prefix: true,
        paint: Paint::PLAIN,
        guard_stdout: false,
        guard_stderr: false,
    };
    const BARE: Manner = Manner {
        prefix: false,
        ..PREFIXED
    };

    #[test]
    fn lines_never_mix() {
        let (a, b) = (NodeId::random(), NodeId::random());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut lines = Lines::new(&mut out, &mut err, PREFIXED);
        lines.take(a, "a", Stream::Stdout, b"one\ntw").unwrap();
        lines.take(b, "b", Stream::Stdout, b"three\n").unwrap();
        lines.take(a, "a", Stream::Stderr, b"oops\n").unwrap();
        lines.take(a, "a", Stream::Stdout, b"o\n\n\xff").unwrap();
        lines.end(a, "a").unwrap();
        lines.end(b, "b").unwrap();
        drop(lines);
        assert_eq!(out, b"a: one\nb: three\na: two\na: \na: \xff\n");
        assert_eq!(err, b"a: oops\n");
    }

    #[test]
    fn without_names_bytes_stay_as_they_are() {
        let a = NodeId::random();
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out, io::sink(), BARE);
        lines.take(a, "a", Stream::Stdout, b"no end").unwrap();
        lines.end(a, "a").unwrap();
        drop(lines);
        assert_eq!(out, b"no end");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let a = NodeId::random();
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out, io::sink(), PREFIXED);
        lines
            .take(a, "a", Stream::Stdout, &vec![b'x'; LONGEST + 1])
            .unwrap();
        lines.end(a, "a").unwrap();
        drop(lines);
        assert_eq!(out.len(), LONGEST + 1 + 2 * "a: \n".len());
    }

    #[test]
    fn a_terminal_is_not_moved_by_what_nodes_write() {
        let a = NodeId::random();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let manner = Manner {
            guard_stdout: true,
            ..PREFIXED
        };
        let mut lines = Lines::new(&mut out, &mut err, manner);
        let evil = b"ok\rb: fine\x1b[1A\x9b2K\t.\r\n";
        lines.take(a, "a\x1b[7m", Stream::Stdout, evil).unwrap();
        lines.take(a, "a", Stream::Stderr, evil).unwrap();
        drop(lines);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "a\\u{1b}[7m: ok\\rb: fine\\u{1b}[1A\\x9b2K\t.\n"
        );
        assert_eq!(err, [b"a: ".as_slice(), evil].concat());
    }

    #[test]
    fn lines_that_do_not_end_are_held_up_to_a_sum() {
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out, io::sink(), PREFIXED);
        let begin = vec![b'x'; LONGEST - 1];
        for _ in 0..(HELD_BYTES / LONGEST + 10) {
            lines
                .take(NodeId::random(), "a", Stream::Stdout, &begin)
                .unwrap();
        }
        let held: usize = lines.held.values().map(Vec::len).sum();
        assert_eq!(held, lines.held_bytes);
        assert!(held <= HELD_BYTES, "{held}");
        drop(lines);
        let cut = out.iter().filter(|byte| **byte == b'\n').count();
        assert!((1..=10).contains(&cut), "{cut}");
    }

    #[test]
    fn bytes_that_come_one_by_one_are_looked_at_once() {
        let a = NodeId::random();
        let mut lines = Lines::new(io::sink(), io::sink(), PREFIXED);
        let clock = Clock::system();
        let begin = clock.instant();
        for _ in 0..(4 * LONGEST) {
            lines.take(a, "a", Stream::Stdout, b"x").unwrap();
        }
        // Looked at again with every byte they take minutes.
        let took = clock.instant() - begin;
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}
