//! What a further process of a swarm does: the agents it was told of, until it is told to stop or nobody is there
//! any more who could tell it.

use std::{fs::File, io, os::fd::AsFd, sync::Arc, time::Duration};

use nexus_runtime::tasks::Tasks;
use rustix::process::nice;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::unix::pipe,
    sync::{Mutex, mpsc},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    crowd::Crowd,
    room,
    tally::{Counts, Tally},
    words::{self, Command, Orders, Said},
};
use crate::fault::{Fault, Outcome};

/// From one look at what has changed to the next.
const LOOK: Duration = Duration::from_millis(50);
/// What is loaded goes first on the processors that it shares with its load, as on a machine of its own.
const NICE: i32 = 10;
/// At least so often something is said.
const ALIVE: Duration = Duration::from_secs(1);

/// Is a part of a swarm: standard input and output are pipes to its first process.
pub async fn serve() -> Outcome {
    nice(NICE).map_err(|error| Fault::io("give way to others")(error.into()))?;
    let input = pipe(io::stdin().as_fd()).and_then(pipe::Receiver::from_file);
    let input = input.map_err(Fault::io("standard input"))?;
    let output = pipe(io::stdout().as_fd()).and_then(pipe::Sender::from_file);
    let output = output.map_err(Fault::io("standard output"))?;

    let mut lines = BufReader::new(input).lines();
    let orders = lines.next_line().await.map_err(Fault::io("read orders"))?;
    let orders: Orders = words::read(&orders.unwrap_or_default())?;
    let (params, numbers, shape) = orders.take()?;
    room::make(numbers.clone().count())?;
    let crowd = Crowd::new(params, numbers, Arc::new(shape));
    let tally = Arc::clone(crowd.tally());
    let teller = Teller {
        output,
        tally: Arc::clone(&tally),
        told: Counts::default(),
        away: String::new(),
        last: Instant::now(),
    };
    let teller = Arc::new(Mutex::new(teller));
    let (commands, to_do) = mpsc::channel(1);

    // In tasks of their own, so that starting thousands of agents holds up none of them.
    let tasks = Tasks::new();
    let hearing = tasks.spawn("commands", hear(lines, tally, commands));
    let telling = tasks.spawn("counts", tell(Arc::clone(&teller)));
    let ended = tokio::select! {
        done = work(crowd, to_do, &teller) => Ok(done),
        heard = hearing => heard,
        told = telling => told,
    };
    ended.map_err(|error| Fault::new(format!("a task: {error}")))?
}

/// A descriptor of its own that ends with its handle.
fn pipe(of: impl AsFd) -> io::Result<File> {
    of.as_fd().try_clone_to_owned().map(File::from)
}

/// Until nobody says anything more.
async fn hear(
    mut lines: Lines<BufReader<pipe::Receiver>>,
    tally: Arc<Tally>,
    commands: mpsc::Sender<Command>,
) -> Outcome {
    while let Some(line) = lines.next_line().await.map_err(Fault::io("read"))? {
        match words::read(&line)? {
            // Whatever else is being done.
            Command::Mark(mark) => tally.mark_as(mark),
            // Nobody takes it once all is done.
            command => drop(commands.send(command).await),
        }
    }
    Ok(())
}

/// Until nobody listens any more.
async fn tell(teller: Arc<Mutex<Teller>>) -> Outcome {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        teller.lock().await.counted().await?;
    }
}

/// Until it was told to stop.
async fn work(
    mut crowd: Crowd,
    mut commands: mpsc::Receiver<Command>,
    teller: &Mutex<Teller>,
) -> Outcome {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Enrol => crowd.enrol().await?,
            Command::Start => crowd.start().await?,
            Command::Stop => crowd.stop().await?,
            Command::Mark(_) => {}
        }
        teller.lock().await.done().await?;
        if command == Command::Stop {
            return Ok(());
        }
    }
    // Who hears them has ended, and says why.
    std::future::pending().await
}

struct Teller {
    output: pipe::Sender,
    tally: Arc<Tally>,
    told: Counts,
    away: String,
    last: Instant,
}

impl Teller {
    /// What has changed.
    async fn counted(&mut self) -> Outcome {
        let counts = self.tally.counts();
        if counts == self.told && self.last.elapsed() < ALIVE {
            return Ok(());
        }
        let why = self.tally.why_away();
        let away = (why != self.away).then(|| why.clone());
        let waits = self.tally.take_waits().sparse();
        (self.told, self.away, self.last) = (counts, why, Instant::now());
        let said = Said::Counted {
            counts,
            waits,
            away,
        };
        self.say(&said).await
    }

    /// What has changed, and that a command was done.
    async fn done(&mut self) -> Outcome {
        self.counted().await?;
        self.say(&Said::Done).await
    }

    async fn say(&mut self, said: &Said) -> Outcome {
        let line = words::line(said)?;
        let written = self.output.write_all(&line).await;
        written.map_err(Fault::io("write"))
    }
}
