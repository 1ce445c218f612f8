//! How many agents a process can have: as many as its limit of open files allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fault::{Fault, Outcome};

/// Descriptors an agent holds at most: its lock, its ledger, of each of three lanes a cursor, a file that is
/// written and one that is read, and a socket, or two while it tries both transports.
const DESCRIPTORS: u64 = 13;
/// Those that a process has besides.
const OTHERS: u64 = 256;

/// Raises the limit of open files as far as so many agents need and it goes; for how many it is enough then.
pub(super) fn raise(agents: usize) -> usize {
    let agents = u64::try_from(agents).unwrap_or(u64::MAX);
    let needed = agents.saturating_mul(DESCRIPTORS).saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    let enough = |current: Option<u64>| current.is_none_or(|current| current >= needed);
    if enough(limit.current) {
        return usize::try_from(agents).unwrap_or(usize::MAX);
    }
    // The maximum may be raised by those who may do anything; else it stays.
    let wanted = Rlimit {
        current: Some(needed),
        maximum: limit.maximum.map(|most| most.max(needed)),
    };
    let as_it_goes = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        // Where this fails too, the limit stays what it was.
        let _kept = setrlimit(Resource::Nofile, as_it_goes);
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(needed);
    let fit = current.min(needed).saturating_sub(OTHERS) / DESCRIPTORS;
    usize::try_from(fit).unwrap_or(usize::MAX)
}

/// Makes room for so many agents.
pub(super) fn make(agents: usize) -> Outcome {
    let fit = raise(agents);
    if fit >= agents {
        return Ok(());
    }
    Err(Fault::new(format!(
        "the limit of open files (ulimit -Hn) is enough for {fit} agents, not for {agents}"
    )))
}
