//! Which jobs this node has taken, begun and ended: the promise that nothing is executed twice.
//!
//! One file, `ledger`, begins with `NXLG` and a version (u16) and is added to: `length u32 | CRC32C u32 |
//! entry`, little endian. An entry is a `u8` for its kind, the run's key (16 bytes and three u32) and what
//! the kind adds. RECEIVED carries the dispatch, so that a run that had not begun when the agent stopped is
//! admitted again; STARTED is fsynced before anything is executed, and says for which node (16 bytes, which earlier
//! versions neither wrote nor read): that may be another one by the time what is left of the run is looked for;
//! PROCESS says which process it became;
//! FINISHED carries the report, fsynced before it goes to the spool; SPOOLED says under which seq; ACKED
//! that the collector has it. A run that was started and not finished when the ledger is opened is never
//! started again.
//!
//! An entry that was cut short at the end had not been acted upon and is cut off. Damage anywhere else is
//! something else: what can be read of the rest is kept, a run whose start may have been among what cannot counts
//! as started, and of jobs signed before that day nothing is run any more, since they may have been.
//!
//! An entry is forgotten when its report is acked and its job has expired for an hour. The latest expiry
//! among what was forgotten is kept as the *horizon*: a job that expires no later counts as expired,
//! whatever the clock says, so forgetting never lets a run happen again.

mod file;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use nexus_pki::files::{self, FileError};
use nexus_proto::{
    ids::{NodeId, RunKey},
    time::Timestamp,
};
use nexus_runtime::errors::chain;

use self::file::{Entry, LedgerFile};

/// A run is remembered this long after its job expired.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Bytes after which the file is written anew.
const COMPACT_BYTES: u64 = 256 * 1024;
/// The copy of a damaged file, for whoever wants to look at it.
const ASIDE: &str = "damaged";

/// Why the ledger could not be read or added to.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file operation failed.
    #[error("cannot {action} {path}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file could not be replaced.
    #[error("cannot replace the ledger")]
    Replace(#[from] FileError),
    /// Written by a later version of the agent.
    #[error("{} was written by a newer version of nexus-agent", .0.display())]
    Newer(PathBuf),
    /// It was damaged and could not be written anew yet, so nothing can be added.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf),
}

/// The process a run became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id, which is also that of its group and session.
    pub pid: u32,
    /// Field 22 of /proc/PID/stat: ticks from boot to its start.
    pub start_ticks: u64,
    /// Which boot.
    pub boot_id: String,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Taken; the encoded dispatch.
    Received(Bytes),
    /// Begun, perhaps executed.
    Started {
        /// When.
        at: Timestamp,
        /// Who this node was then, if that was noted.
        node: Option<NodeId>,
        /// What it became, if it came that far.
        process: Option<Process>,
    },
    /// Over; the encoded `agent.v1.RunFinished`.
    Finished {
        /// The report.
        report: Bytes,
        /// Its seq, once it is in the spool.
        seq: Option<u64>,
    },
    /// The collector has the report.
    Acked(Bytes),
}

/// A run in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// When its job expires.
    pub expires: Timestamp,
    /// How far it is.
    pub stage: Stage,
}

/// The ledger of one agent.
#[derive(Debug)]
pub struct Ledger {
    file: LedgerFile,
    runs: BTreeMap<RunKey, Run>,
    horizon: Timestamp,
    since: Timestamp,
    /// Bytes of the file when it was written last.
    written_bytes: u64,
    found: Option<&'static str>,
}

impl Ledger {
    /// Opens or makes the ledger in `dir`. `used`: whether this node has had sessions, so that a ledger that is not
    /// there is one that was lost.
    pub fn open(dir: &Path, used: bool, now: Timestamp) -> Result<Self, LedgerError> {
        let (mut file, new) = LedgerFile::open(dir)?;
        let (entries, lost) = file.read()?;
        let mut ledger = Self {
            file,
            runs: BTreeMap::new(),
            horizon: Timestamp(i64::MIN),
            since: Timestamp(i64::MIN),
            written_bytes: 0,
            found: None,
        };
        for entry in entries {
            ledger.apply(entry);
        }
        if lost {
            ledger.found = Some("the ledger is damaged");
            let copied = files::write_private(dir, ASIDE, &ledger.file.damaged());
            if let Err(error) = copied {
                tracing::warn!(error = %chain(&error), "no copy of the damaged ledger is kept");
            }
        } else if new && used {
            ledger.found = Some("the ledger is gone");
        }
        if ledger.found.is_some() {
            ledger.doubt(now);
        }
        Ok(ledger)
    }

    /// What was wrong with it when it was opened.
    #[must_use]
    pub fn found(&self) -> Option<&'static str> {
        self.found
    }

    /// After damage: nothing that may have been started is started again.
    fn doubt(&mut self, now: Timestamp) {
        self.since = self.since.max(now);
        for run in self.runs.values_mut() {
            if let Stage::Received(_) = run.stage {
                run.stage = Stage::Started {
                    at: now,
                    node: None,
                    process: None,
                };
            }
        }
        if let Err(error) = self.compact(now) {
            tracing::error!(error = %chain(&error), "the ledger is damaged and cannot be written anew yet");
        }
    }

    /// What is known of a run.
    #[must_use]
    pub fn get(&self, key: &RunKey) -> Option<&Run> {
        self.runs.get(key)
    }

    /// All runs.
    pub fn runs(&self) -> impl Iterator<Item = (&RunKey, &Run)> {
        self.runs.iter()
    }

    /// Jobs that expire no later than this count as expired.
    #[must_use]
    pub fn horizon(&self) -> Timestamp {
        self.horizon
    }

    /// Of jobs signed no later than this it is not known whether they ran, unless they are in the ledger.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// Whether every run that was begun is in it until its report is acked: it was never lost or damaged.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.since == Timestamp(i64::MIN)
    }

    /// Takes a dispatch. Durable on return.
    pub fn receive(
        &mut self,
        key: RunKey,
        expires: Timestamp,
        dispatch: Bytes,
    ) -> Result<(), LedgerError> {
        self.add(
            Entry::Received {
                key,
                expires,
                dispatch,
            },
            true,
        )
    }

    /// The run is about to be executed for `node`. Durable on return; only then may it be.
    pub fn start(&mut self, key: RunKey, at: Timestamp, node: NodeId) -> Result<(), LedgerError> {
        let node = Some(node);
        self.add(Entry::Started { key, at, node }, true)
    }

    /// What the run became. Not fsynced: a power cut ends the process too.
    pub fn process(&mut self, key: RunKey, process: Process) -> Result<(), LedgerError> {
        self.add(Entry::Process { key, process }, false)
    }

    /// The run is over. Durable on return; the report goes to the spool after that. `expires` counts for runs
    /// that were refused and never received.
    pub fn finish(
        &mut self,
        key: RunKey,
        expires: Timestamp,
        report: Bytes,
    ) -> Result<(), LedgerError> {
        self.add(
            Entry::Finished {
                key,
                expires,
                report,
            },
            true,
        )
    }

    /// The report is in the spool.
    pub fn spooled(&mut self, key: RunKey, seq: u64) -> Result<(), LedgerError> {
        self.add(Entry::Spooled { key, seq }, false)
    }

    /// The collector has committed results up to `seq`.
    pub fn acked(&mut self, seq: u64, now: Timestamp) -> Result<(), LedgerError> {
        let done = |run: &Run| match run.stage {
            Stage::Finished { seq: Some(at), .. } => at <= seq,
            _ => false,
        };
        let keys: Vec<_> = self
            .runs
            .iter()
            .filter(|(_, run)| done(run))
            .map(|(key, _)| *key)
            .collect();
        if keys.is_empty() {
            return Ok(());
        }
        for key in keys {
            self.add(Entry::Acked { key }, false)?;
        }
        // What cannot be forgotten yet is not written anew at every ack.
        if self.file.bytes() > COMPACT_BYTES.max(2 * self.written_bytes) {
            self.compact(now)?;
        }
        Ok(())
    }

    /// Forgets what need not be remembered and writes the file anew.
    pub fn compact(&mut self, now: Timestamp) -> Result<(), LedgerError> {
        let settled = now.before(REMEMBERED);
        let mut horizon = self.horizon;
        self.runs.retain(|_, run| {
            let keep = !matches!(run.stage, Stage::Acked(_)) || run.expires >= settled;
            if !keep {
                horizon = horizon.max(run.expires);
            }
            keep
        });
        self.horizon = horizon;
        let mut entries = vec![Entry::Horizon { at: horizon }];
        if self.since > Timestamp(i64::MIN) {
            entries.push(Entry::Since { at: self.since });
        }
        for (key, run) in &self.runs {
            entries.extend(entries_of(*key, run));
        }
        self.file.replace(&entries)?;
        self.written_bytes = self.file.bytes();
        Ok(())
    }

    /// A disk that takes nothing, or that works again.
    #[cfg(test)]
    pub(crate) fn on_disk(&mut self, works: bool) {
        if works {
            self.file.mend_it();
        } else {
            self.file.break_it();
        }
    }

    fn add(&mut self, entry: Entry, sync: bool) -> Result<(), LedgerError> {
        if self.file.is_damaged() {
            self.compact(Timestamp(i64::MIN))?;
        }
        self.file.append(&entry, sync)?;
        self.apply(entry);
        Ok(())
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Received {
                key,
                expires,
                dispatch,
            } => {
                let stage = Stage::Received(dispatch);
                self.runs.insert(key, Run { expires, stage });
            }
            Entry::Started { key, at, node } => {
                let run = self.runs.entry(key).or_insert_with(|| Run {
                    expires: Timestamp(i64::MAX),
                    stage: Stage::Received(Bytes::new()),
                });
                run.stage = Stage::Started {
                    at,
                    node,
                    process: None,
                };
            }
            Entry::Process {
                key,
                process: became,
            } => {
                if let Some(Run {
                    stage: Stage::Started { process, .. },
                    ..
                }) = self.runs.get_mut(&key)
                {
                    *process = Some(became);
                }
            }
            Entry::Finished {
                key,
                expires,
                report,
            } => {
                self.runs.insert(
                    key,
                    Run {
                        expires,
                        stage: Stage::Finished { report, seq: None },
                    },
                );
            }
            Entry::Spooled { key, seq: at } => {
                if let Some(Run {
                    stage: Stage::Finished { seq, .. },
                    ..
                }) = self.runs.get_mut(&key)
                {
                    *seq = Some(at);
                }
            }
            Entry::Acked { key } => {
                if let Some(run) = self.runs.get_mut(&key)
                    && let Stage::Finished { report, .. } = &run.stage
                {
                    run.stage = Stage::Acked(report.clone());
                }
            }
            Entry::Horizon { at } => self.horizon = self.horizon.max(at),
            Entry::Since { at } => self.since = self.since.max(at),
        }
    }
}

/// What a new file must say for a run to stand as it does.
fn entries_of(key: RunKey, run: &Run) -> Vec<Entry> {
    let expires = run.expires;
    let finished = |report: &Bytes| Entry::Finished {
        key,
        expires,
        report: report.clone(),
    };
    match &run.stage {
        Stage::Received(dispatch) => {
            vec![Entry::Received {
                key,
                expires,
                dispatch: dispatch.clone(),
            }]
        }
        Stage::Started { at, node, process } => {
            let mut entries = vec![
                Entry::Received {
                    key,
                    expires,
                    dispatch: Bytes::new(),
                },
                Entry::Started {
                    key,
                    at: *at,
                    node: *node,
                },
            ];
            entries.extend(
                process
                    .clone()
                    .map(|process| Entry::Process { key, process }),
            );
            entries
        }
        Stage::Finished { report, seq } => {
            let mut entries = vec![finished(report)];
            entries.extend(seq.map(|seq| Entry::Spooled { key, seq }));
            entries
        }
        Stage::Acked(report) => vec![finished(report), Entry::Acked { key }],
    }
}

#[cfg(test)]
mod tests;
