//! The threads that look, and what they remember.

use std::{
    collections::BTreeMap,
    error::Error as _,
    sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use nexus_proto::{
    limits,
    record::{Cell, Row, Section},
};
use rustix::time::{ClockId, clock_gettime};

use super::{InventoryConfig, InventoryError, files::Sign, pace::Pace};

/// Parsing needs little depth; what is parsed lies on the heap.
const STACK_BYTES: usize = 256 * 1024;

/// One kind of section: how to see that it may have changed, and how to read it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) kind: &'static str,
    /// Polls after which it is read even if the sign is the same; for signs that do not show everything.
    pub(super) reread_after: Option<u32>,
    pub(super) sign: fn(&InventoryConfig, &mut Sign),
    pub(super) collect: fn(&InventoryConfig) -> Result<Vec<Row>, InventoryError>,
}

/// Kinds to hand out again, with each request for a look; the sections it found.
type Channel = (SyncSender<Vec<String>>, Receiver<Vec<Section>>);

/// A thread with its sources, seen from the agent's thread.
#[derive(Debug)]
pub(super) struct Worker {
    name: &'static str,
    kinds: Vec<&'static str>,
    /// `None` when no thread could be started.
    channel: Option<Channel>,
    busy: bool,
    silent: u32,
    silent_polls: u32,
    resend: Vec<String>,
}

impl Worker {
    pub(super) fn new(
        name: &'static str,
        config: InventoryConfig,
        sources: Vec<Source>,
        known: &BTreeMap<String, [u8; 32]>,
    ) -> Self {
        let silent_polls = config.silent_polls;
        let kinds = sources.iter().map(|source| source.kind).collect();
        let mut watched: Vec<Watched> = sources
            .into_iter()
            .map(|source| Watched::new(source, known.get(source.kind).copied()))
            .collect();
        let (requests, polls) = sync_channel::<Vec<String>>(1);
        let (answers, sections) = sync_channel(1);
        let run = move || {
            for resend in polls {
                let look = |watched: &mut Watched| watched.look(&config, &resend);
                if answers
                    .send(watched.iter_mut().filter_map(look).collect())
                    .is_err()
                {
                    return;
                }
            }
        };
        let builder = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES);
        let channel = match builder.spawn(run) {
            Ok(_ends_with_its_channel) => Some((requests, sections)),
            Err(error) => {
                tracing::error!(name, %error, "no thread for the inventory");
                None
            }
        };
        Self {
            name,
            kinds,
            channel,
            busy: false,
            silent: 0,
            silent_polls,
            resend: Vec::new(),
        }
    }

    /// What was found since the last poll; asks for the next look unless the last still goes on.
    pub(super) fn poll(&mut self, resend: &[String]) -> Vec<Section> {
        self.resend.extend(
            resend
                .iter()
                .filter(|k| self.kinds.contains(&k.as_str()))
                .cloned(),
        );
        let Some((requests, sections)) = &self.channel else {
            return Vec::new();
        };
        let mut found = Vec::new();
        match sections.try_recv() {
            Ok(sections) => {
                if self.silent >= self.silent_polls {
                    tracing::info!(thread = self.name, "the inventory answers again");
                }
                found = sections;
                self.busy = false;
                self.silent = 0;
            }
            Err(TryRecvError::Empty) if self.busy => {
                self.silent = self.silent.saturating_add(1);
                if self.silent == self.silent_polls {
                    tracing::warn!(thread = self.name, kinds = ?self.kinds, "the inventory hangs");
                    let failed = |kind: &&str| Section::failed(kind, "reading it hangs".to_owned());
                    found = self.kinds.iter().map(failed).collect();
                    // After the hang everything is sent again, as the failure took its place.
                    self.resend = self.kinds.iter().map(|kind| (*kind).to_owned()).collect();
                }
            }
            Err(_) => {}
        }
        if !self.busy {
            match requests.try_send(std::mem::take(&mut self.resend)) {
                Ok(()) => self.busy = true,
                Err(TrySendError::Full(resend) | TrySendError::Disconnected(resend)) => {
                    self.resend = resend;
                }
            }
        }
        found
    }
}

/// A source with what was seen of it.
#[derive(Debug)]
struct Watched {
    source: Source,
    /// When it was last read without error.
    sign: Option<[u8; 32]>,
    polls: u32,
    pace: Pace,
    hash: Option<[u8; 32]>,
    error: Option<String>,
}

impl Watched {
    fn new(source: Source, hash: Option<[u8; 32]>) -> Self {
        Self {
            source,
            sign: None,
            polls: 0,
            pace: Pace::default(),
            hash,
            error: None,
        }
    }

    fn look(&mut self, config: &InventoryConfig, resend: &[String]) -> Option<Section> {
        self.polls += 1;
        let asked_for = resend.iter().any(|kind| kind == self.source.kind);
        // What changes while a kind rests shows at the first look after it.
        if !self.pace.poll() && !asked_for {
            return None;
        }
        if asked_for {
            self.sign = None;
            self.hash = None;
            self.error = None;
        }
        // The sign is taken first: what changes while reading shows at the next look.
        let mut sign = Sign::default();
        (self.source.sign)(config, &mut sign);
        let sign = sign.finish();
        let due = self
            .source
            .reread_after
            .is_some_and(|polls| self.polls >= polls);
        if self.sign == Some(sign) && !due {
            return None;
        }
        self.polls = 0;
        let begun = spent();
        let section =
            (self.source.collect)(config).and_then(|rows| section(self.source.kind, rows));
        let took = spent().saturating_sub(begun);
        let changed = |section: &Section| self.hash != Some(section.hash);
        let news = section
            .as_ref()
            .ok()
            .filter(|(section, _)| changed(section));
        self.pace.read(took, news.map_or(0, |(_, bytes)| *bytes));
        match section {
            Ok((section, _)) => {
                self.sign = Some(sign);
                self.error = None;
                (self.hash.replace(section.hash) != Some(section.hash)).then_some(section)
            }
            Err(error) => {
                self.sign = None;
                let mut text = error.to_string();
                if let Some(source) = error.source() {
                    text = format!("{text}: {source}");
                }
                if self.error.as_ref() == Some(&text) {
                    return None;
                }
                tracing::warn!(kind = self.source.kind, error = text, "no inventory");
                self.error = Some(text.clone());
                // Good rows, even the same ones, are told after a failure.
                self.hash = None;
                Some(Section::failed(
                    self.source.kind,
                    text.chars().take(1000).collect(),
                ))
            }
        }
    }
}

/// Processor time of this thread: a busy host does not make a reading dearer.
fn spent() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// The section of these rows, within the limits of the wire, with the bytes it takes there at most.
fn section(kind: &str, rows: Vec<Row>) -> Result<(Section, usize), InventoryError> {
    let check = |what, size, limit| {
        if size <= limit {
            Ok(())
        } else {
            Err(InventoryError::TooLarge { what, size, limit })
        }
    };
    check("the rows are", rows.len(), limits::SECTION_ROWS)?;
    let mut bytes = 1024;
    for row in &rows {
        bytes += 8;
        for cell in &row.0 {
            let length = if let Cell::Text(text) = cell {
                text.len()
            } else {
                10
            };
            check("the bytes of a cell are", length, limits::CELL_BYTES)?;
            bytes += length + 8;
        }
    }
    check("the bytes of the rows are", bytes, limits::RECORD_BYTES)?;
    Ok((Section::new(kind, rows), bytes))
}
