//! What a swarm and its parts say to each other: JSON, one line each. A part hears its [`Orders`] first and
//! commands after them; the end of its standard input ends it. It says what it has counted, and when it has
//! done as it was told. Why it cannot, it says on standard error, and ends.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use nexus_pki::token::Token;
use nexus_transport::Mode;
use serde::{Deserialize, Serialize};

use super::{
    Params,
    answers::Answers,
    host::{Shape, record::ShapeRecord},
    tally::Counts,
};
use crate::fault::{Fault, Outcome};

/// Which agents a part has, and of which kind. On no command line, since the token is a secret.
#[derive(Serialize, Deserialize)]
pub(super) struct Orders {
    agents: usize,
    numbers: RangeInclusive<usize>,
    processes: usize,
    token: String,
    dir: PathBuf,
    name: String,
    transport: String,
    interval: Duration,
    series: usize,
    packages: usize,
    answers: Answers,
    ramp: Duration,
    seed: u64,
    shape: ShapeRecord,
}

impl Orders {
    /// For the agents of these numbers.
    pub(super) fn new(
        params: &Params,
        numbers: RangeInclusive<usize>,
        processes: usize,
        shape: &Shape,
    ) -> Self {
        Self {
            agents: params.agents,
            numbers,
            processes,
            token: params.token.to_string(),
            dir: params.dir.clone(),
            name: params.name.clone(),
            transport: format!("{:?}", params.transport).to_lowercase(),
            interval: params.interval,
            series: params.series,
            packages: params.packages,
            answers: params.answers.clone(),
            ramp: params.ramp,
            seed: params.seed,
            shape: ShapeRecord::from(shape),
        }
    }

    /// The swarm's parameters, the numbers of the part's agents, and what these are made after.
    pub(super) fn take(self) -> Outcome<(Params, RangeInclusive<usize>, Shape)> {
        let token = Token::parse(&self.token);
        let transport = Mode::parse(&self.transport);
        let params = Params {
            agents: self.agents,
            processes: Some(self.processes),
            token: token.map_err(|error| Fault::new(format!("read the token: {error}")))?,
            dir: self.dir,
            name: self.name,
            transport: transport.ok_or_else(|| Fault::new("an unknown transport"))?,
            interval: self.interval,
            series: self.series,
            packages: self.packages,
            answers: self.answers,
            ramp: self.ramp,
            seed: self.seed,
        };
        Ok((params, self.numbers, self.shape.into()))
    }
}

/// What a part is told later. All but a mark are answered once they are done, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    /// Have the agents join.
    Enrol,
    /// Start them.
    Start,
    /// Count anew from here on which agents report.
    Mark(u64),
    /// End them in order, and yourself.
    Stop,
}

/// What a part says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// What it has counted, and what came since it last said so. It says this now and then even when nothing
    /// has changed.
    Counted {
        /// Since it began.
        counts: Counts,
        /// Waits since the last time: [`super::tally::Waits::sparse`].
        waits: Vec<(usize, u64)>,
        /// Why an agent is away, when that is another reason than the last time.
        away: Option<String>,
    },
    /// Another command was done.
    Done,
}

/// A line of it.
pub(super) fn line(said: &impl Serialize) -> Outcome<Vec<u8>> {
    let line = serde_json::to_vec(said);
    let mut line = line.map_err(|error| Fault::new(format!("write JSON: {error}")))?;
    line.push(b'\n');
    Ok(line)
}

/// What a line says.
pub(super) fn read<'a, T: Deserialize<'a>>(line: &'a str) -> Outcome<T> {
    // An error of serde_json shows nothing of a secret but perhaps a word of it: only where it is, is told.
    serde_json::from_str(line).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Fault::new(format!("no message at {line}:{column}"))
    })
}
