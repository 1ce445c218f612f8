//! Output of many nodes as whole lines, each after its node's name.
//!
//! A line is held until it ends, per node and stream, so that lines of different nodes never mix; one
//! longer than [`LONGEST`] is passed on in pieces. Bytes go out as they came.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use nexus_proto::ids::NodeId;

use crate::{
    fault::Outcome,
    output::broken,
    terminal::{Colour, Paint},
};

/// A line that is longer than this is cut into several.
const LONGEST: usize = 64 * 1024;

/// One of a program's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Splits, prefixes, writes.
pub(crate) struct Lines<O, E> {
    stdout: O,
    stderr: E,
    prefix: bool,
    paint: Paint,
    held: HashMap<(NodeId, Stream), Vec<u8>>,
    order: HashMap<NodeId, usize>,
    deaf: bool,
}

impl<O: Write, E: Write> Lines<O, E> {
    pub(crate) fn new(stdout: O, stderr: E, prefix: bool, paint: Paint) -> Self {
        let (held, order) = (HashMap::new(), HashMap::new());
        Self {
            stdout,
            stderr,
            prefix,
            paint,
            held,
            order,
            deaf: false,
        }
    }

    /// Takes a piece of output and writes the lines it completes.
    pub(crate) fn take(
        &mut self,
        node: NodeId,
        name: &str,
        stream: Stream,
        data: &[u8],
    ) -> Outcome {
        let mut held = self.held.remove(&(node, stream)).unwrap_or_default();
        held.extend_from_slice(data);
        let mut rest = held.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at_checked(end + 1).unwrap_or((rest, &[]));
            self.write(node, name, stream, line)?;
            rest = after;
        }
        while let Some((piece, after)) = rest.split_at_checked(LONGEST) {
            self.write(node, name, stream, piece)?;
            self.write_raw(stream, b"\n")?;
            rest = after;
        }
        if !rest.is_empty() {
            self.held.insert((node, stream), rest.to_vec());
        }
        self.flush()
    }

    /// Ends the lines a node has begun.
    pub(crate) fn end(&mut self, node: NodeId, name: &str) -> Outcome {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(mut line) = self.held.remove(&(node, stream)) {
                if self.prefix {
                    line.push(b'\n');
                }
                self.write(node, name, stream, &line)?;
            }
        }
        self.flush()
    }

    fn write(&mut self, node: NodeId, name: &str, stream: Stream, line: &[u8]) -> Outcome {
        if self.prefix {
            let next = self.order.len();
            let number = *self.order.entry(node).or_insert(next);
            let name = self.paint.apply(Colour::numbered(number), name);
            self.write_raw(stream, format!("{name}: ").as_bytes())?;
        }
        self.write_raw(stream, line)
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
    use super::*;

    #[test]
    fn lines_never_mix() {
        let (a, b) = (NodeId::random(), NodeId::random());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut lines = Lines::new(&mut out, &mut err, true, Paint::PLAIN);
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
        let mut lines = Lines::new(&mut out, io::sink(), false, Paint::PLAIN);
        lines.take(a, "a", Stream::Stdout, b"no end").unwrap();
        lines.end(a, "a").unwrap();
        drop(lines);
        assert_eq!(out, b"no end");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let a = NodeId::random();
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out, io::sink(), true, Paint::PLAIN);
        lines
            .take(a, "a", Stream::Stdout, &vec![b'x'; LONGEST + 1])
            .unwrap();
        lines.end(a, "a").unwrap();
        drop(lines);
        assert_eq!(out.len(), LONGEST + 1 + 2 * "a: \n".len());
    }
}
