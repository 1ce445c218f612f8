//! A further process with agents of a swarm, as the first one holds it: told what to do, listened to, and killed
//! with its handle.

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nexus_runtime::tasks::Tasks;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    Params,
    host::Shape,
    tally::{Counts, Tally, Waits},
    words::{self, Command, Orders, Said},
};
use crate::{
    fault::{Fault, Outcome},
    programs::Programs,
};

/// The program that has agents.
const PROGRAM: &str = "nexus-swarm";
/// Its one word when it is a part.
pub const PART: &str = "part";
/// A part says something every second; one that is silent for so long does not work any more.
const SILENCE: Duration = Duration::from_secs(60);
/// From the end of what it says to its own end.
const ENDING: Duration = Duration::from_secs(10);
/// Bytes of what it said on standard error that are kept, the last ones.
const ERRORS: usize = 4096;
/// Commands that wait to be written; there is never more than one at a time.
const COMMANDS: usize = 4;

/// Why a swarm cannot go on; nothing as long as it can.
pub(super) type Failure = watch::Sender<Option<String>>;

/// A running part.
#[derive(Debug)]
pub(super) struct Part {
    group: Option<Pid>,
    /// Set once it was waited for, when its number may be that of another process.
    gone: Arc<AtomicBool>,
    commands: mpsc::Sender<(Command, oneshot::Sender<()>)>,
}

impl Part {
    /// Starts it. Its counts become part of `tally`; why it ended, unless it was told to stop, is the `failure`.
    pub(super) async fn start(
        (number, processes): (usize, usize),
        numbers: RangeInclusive<usize>,
        params: &Params,
        shape: &Shape,
        tally: &Arc<Tally>,
        failure: &Failure,
        tasks: &Tasks,
    ) -> Outcome<Self> {
        let (first, last) = (numbers.start(), numbers.end());
        let name = format!("process {number} of {processes} (agents {first} to {last})");
        let orders = words::line(&Orders::new(params, numbers, processes, shape))?;
        let child = Programs::built()
            .await?
            .command(PROGRAM)
            .arg(PART)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = child.map_err(Fault::io(format!("{name}: start {PROGRAM}")))?;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Fault::new(format!("{name}: no pipes")));
        };
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let gone = Arc::new(AtomicBool::new(false));
        let (commands, told) = mpsc::channel(COMMANDS);
        let talk = Talk {
            input,
            output: BufReader::new(output).lines(),
            tally: Arc::clone(tally),
            counts: Counts::default(),
            marks: tally.watch_marks(),
            told,
            asked: VecDeque::new(),
            stopping: false,
        };
        let minder = Minder {
            name,
            child,
            gone: Arc::clone(&gone),
            failure: failure.clone(),
        };
        tasks.spawn("part of a swarm", minder.run(talk, orders, errors));
        Ok(Self {
            group: group.and_then(Pid::from_raw),
            gone,
            commands,
        })
    }

    /// Its process id, as long as it runs.
    pub(super) fn id(&self) -> Option<u32> {
        let id = self.group?.as_raw_nonzero().get();
        u32::try_from(id)
            .ok()
            .filter(|_| !self.gone.load(Ordering::Acquire))
    }

    /// Tells it to do something, which has been done when what this gives has a value. One that fails instead
    /// says so as the swarm's failure, and nothing comes.
    pub(super) async fn tell(&self, command: Command) -> oneshot::Receiver<()> {
        let (done, when_done) = oneshot::channel();
        // When it has ended, there is a failure already.
        drop(self.commands.send((command, done)).await);
        when_done
    }
}

impl Drop for Part {
    /// Ends it for good before the folder of its agents is removed.
    fn drop(&mut self) {
        if let (Some(group), false) = (self.group, self.gone.load(Ordering::Acquire)) {
            // It may have ended in between. Only who minds it takes its status.
            let _gone = kill_process_group(group, Signal::KILL);
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let _gone = waitid(WaitId::Pid(group), options);
        }
    }
}

/// Sees a part to its end.
struct Minder {
    name: String,
    child: Child,
    gone: Arc<AtomicBool>,
    failure: Failure,
}

impl Minder {
    async fn run(mut self, mut talk: Talk, orders: Vec<u8>, errors: ChildStderr) {
        let (talked, errors) = tokio::join!(
            async {
                let talked = talk.run(&orders).await;
                // Nothing more of it is there.
                let away = Counts {
                    connected: 0,
                    ..talk.counts
                };
                talk.tally.follow(&talk.counts, &away);
                let status = self.end().await;
                (talked, status, talk.stopping)
            },
            last_words(errors)
        );
        let (talked, status, stopping) = talked;
        let how = match (talked, status) {
            (Ok(()), Ok(status)) if stopping && status.success() => return,
            (Ok(()), Ok(status)) => format!("ended: {status}"),
            (Err(fault), Ok(status)) => format!("{fault}; {status}"),
            (_, Err(fault)) => fault.to_string(),
        };
        let said = if errors.is_empty() {
            "nothing".to_owned()
        } else {
            errors
        };
        let text = format!("{} {how}; it said: {said}", self.name);
        // The first one is the cause of others.
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(text);
            first
        });
    }

    /// Waits for its end, and brings it about where that takes too long.
    async fn end(&mut self) -> Outcome<ExitStatus> {
        if timeout(ENDING, self.child.wait()).await.is_err() {
            // It may have ended in between.
            let _gone = self.child.start_kill();
        }
        let status = self.child.wait().await;
        self.gone.store(true, Ordering::Release);
        status.map_err(Fault::io("wait"))
    }
}

/// The end of what it says on standard error.
async fn last_words(mut errors: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut piece = vec![0; ERRORS];
    while let Ok(bytes @ 1..) = errors.read(&mut piece).await {
        kept.extend(piece.iter().take(bytes));
        kept.drain(..kept.len().saturating_sub(ERRORS));
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

/// What goes in and comes out.
struct Talk {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    tally: Arc<Tally>,
    counts: Counts,
    marks: watch::Receiver<super::tally::Reporting>,
    told: mpsc::Receiver<(Command, oneshot::Sender<()>)>,
    /// Who waits for what it was told, in that order.
    asked: VecDeque<oneshot::Sender<()>>,
    stopping: bool,
}

impl Talk {
    /// Until it says nothing more.
    async fn run(&mut self, orders: &[u8]) -> Outcome {
        // One that ends without reading them says why on standard error.
        drop(self.input.write_all(orders).await);
        loop {
            tokio::select! {
                line = timeout(SILENCE, self.output.next_line()) => {
                    let line = line.map_err(|_| Fault::new(format!("was silent for {SILENCE:?}")))?;
                    match line.map_err(Fault::io("read"))? {
                        Some(line) => self.hear(words::read(&line)?),
                        None => return Ok(()),
                    }
                }
                Some((command, done)) = self.told.recv() => {
                    self.stopping |= command == Command::Stop;
                    self.asked.push_back(done);
                    self.say(command).await?;
                }
                Ok(()) = self.marks.changed() => {
                    let mark = self.marks.borrow_and_update().mark;
                    self.say(Command::Mark(mark)).await?;
                }
            }
        }
    }

    async fn say(&mut self, command: Command) -> Outcome {
        // That it reads no more shows in what it writes.
        drop(self.input.write_all(&words::line(&command)?).await);
        Ok(())
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Counted {
                counts,
                waits,
                away,
            } => {
                self.tally.follow(&self.counts, &counts);
                self.tally.add_waits(&Waits::from_sparse(&waits));
                if let Some(why) = away {
                    self.tally.away(&why);
                }
                self.counts = counts;
            }
            Said::Done => {
                if let Some(asker) = self.asked.pop_front() {
                    // Nobody may wait any more.
                    let _heard = asker.send(());
                }
            }
        }
    }
}
