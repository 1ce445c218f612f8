//! The agent's side: an executor that has jobs run by the helper, or by the agent itself where there is none.
//!
//! A run is one connection. When that breaks, the run is asked for over another one: the helper, or the one after it,
//! knows what became of it. Only what it knows nothing of is lost.

mod run;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nexus_proto::{
    HELPER_PROTOCOL,
    agent::v1::TrustUpdate,
    helper::v1::{self as wire, from_helper, to_helper},
    ids::RunKey,
    limits,
};
use nexus_runtime::tasks::Tasks;
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

pub(super) use self::run::Hearing;
use self::run::HelperRun;
use super::frame::Frames;
use crate::exec::{Boxed, Executing, Executor, Order, Plan, StartError, Starter, Stop};

/// Between tries to reach the helper.
const AGAIN: Duration = Duration::from_millis(500);
/// Tries to begin something with it, or to pass something on.
const TRIES: u32 = 20;
/// A helper that starts beside the agent has its socket by then.
const APPEARS: Duration = Duration::from_secs(10);

/// Whether jobs go to the helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Use {
    /// When its socket is there.
    Auto,
    /// In any case.
    Always,
    /// In none.
    #[default]
    Never,
}

impl Use {
    /// As the setting says it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "auto" => Self::Auto,
            "always" => Self::Always,
            "never" => Self::Never,
            _ => return None,
        })
    }
}

/// Has jobs run by the helper, or by this process.
#[derive(Debug)]
pub struct Delegate {
    used: Use,
    own: Starter,
    link: Arc<Link>,
    tasks: Tasks,
}

impl Delegate {
    /// With the helper at `socket`.
    #[must_use]
    pub fn new(used: Use, socket: &Path, tasks: &Tasks) -> Self {
        Self {
            used,
            own: Starter::default(),
            link: Arc::new(Link {
                socket: socket.to_owned(),
                trust: Mutex::default(),
                over: Mutex::default(),
            }),
            tasks: tasks.clone(),
        }
    }

    fn has_helper(&self) -> bool {
        match self.used {
            Use::Always => true,
            Use::Never => false,
            Use::Auto => self.link.socket.exists(),
        }
    }

    async fn will_have_helper(&self) -> bool {
        let appears = async {
            while !self.has_helper() {
                sleep(AGAIN).await;
            }
        };
        self.used != Use::Never && timeout(APPEARS, appears).await.is_ok()
    }
}

impl Executor for Delegate {
    fn start(
        &self,
        order: Order,
        plan: Plan,
        stop: Boxed<'static, Stop>,
    ) -> Boxed<'_, Result<Box<dyn Executing>, StartError>> {
        if !order.judged {
            return self.own.start_plan(plan);
        }
        self.link.learn(order.trust.clone());
        let link = Arc::clone(&self.link);
        Box::pin(async move {
            let run = HelperRun::start(link, order, stop).await?;
            Ok(Box::new(run) as Box<dyn Executing>)
        })
    }

    fn judges(&self) -> bool {
        self.has_helper()
    }

    fn attach(&self, run: RunKey) -> Boxed<'_, Option<Box<dyn Executing>>> {
        Box::pin(async move {
            if !self.will_have_helper().await {
                return None;
            }
            let attached = HelperRun::attach(Arc::clone(&self.link), run).await;
            attached.map(|run| Box::new(run) as Box<dyn Executing>)
        })
    }

    fn reported(&self, run: RunKey) {
        self.link.reported(&run);
    }

    fn trust(&self, update: TrustUpdate) {
        self.link.learn(update);
        if !self.has_helper() {
            return;
        }
        // Each change in its turn: the helper believes the next one by this one.
        let link = Arc::clone(&self.link);
        self.tasks.spawn("helper trust", async move {
            for _ in 0..TRIES {
                match link.reach().await {
                    Ok(_) => return,
                    Err(error) => {
                        tracing::debug!(%error, "the helper was not told of the signer policy")
                    }
                }
                sleep(AGAIN).await;
            }
        });
    }
}

/// The way to the helper.
#[derive(Debug)]
struct Link {
    socket: PathBuf,
    /// What it is told of at each greeting.
    trust: Mutex<Option<TrustUpdate>>,
    /// Connections of runs that are over, until the agent has stored that.
    over: Mutex<BTreeMap<RunKey, Frames>>,
}

impl Link {
    fn learn(&self, update: TrustUpdate) {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = Some(update);
    }

    /// A connection on which the helper has said that it serves this agent.
    async fn reach(&self) -> io::Result<Frames> {
        let trust = self
            .trust
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (frames, _) = greeted(&self.socket, trust).await?;
        Ok(frames)
    }

    fn keep(&self, run: RunKey, frames: Frames) {
        self.over().insert(run, frames);
    }

    /// Lets the helper forget a run. Should it not hear of it, it keeps an ending that nobody asks for.
    fn reported(&self, run: &RunKey) {
        if let Some(frames) = self.over().remove(run)
            && let Err(error) =
                frames.send_now(&to_helper(to_helper::Kind::Reported(wire::Reported {})))
        {
            tracing::debug!(job = %run.job, %error, "the helper was not told of a report");
        }
    }

    fn over(&self) -> MutexGuard<'_, BTreeMap<RunKey, Frames>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the helper says to the agent's user who has nothing to ask, once it was told who may sign.
pub(crate) async fn greet(socket: &Path, trust: Option<TrustUpdate>) -> io::Result<wire::Welcome> {
    let (_, welcome) = greeted(socket, trust).await?;
    Ok(welcome)
}

async fn greeted(socket: &Path, trust: Option<TrustUpdate>) -> io::Result<(Frames, wire::Welcome)> {
    let greeting = async {
        let mut frames = Frames::new(UnixStream::connect(socket).await?);
        let (protocol_min, protocol_max) = HELPER_PROTOCOL;
        let hello = wire::Hello {
            protocol_min,
            protocol_max,
            trust,
        };
        ask(&mut frames, to_helper::Kind::Hello(hello)).await?;
        match answer(&mut frames).await? {
            from_helper::Kind::Welcome(welcome) => Ok((frames, welcome)),
            from_helper::Kind::Refused(refused) => Err(io::Error::other(refused.reason)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    };
    match timeout(limits::HELPER_HELLO, greeting).await {
        Ok(greeted) => greeted,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn to_helper(kind: to_helper::Kind) -> wire::ToHelper {
    wire::ToHelper { kind: Some(kind) }
}

async fn ask(frames: &mut Frames, kind: to_helper::Kind) -> io::Result<()> {
    frames.send(&to_helper(kind)).await
}

/// What the helper says next. Cancel-safe.
async fn answer(frames: &mut Frames) -> io::Result<from_helper::Kind> {
    let said = frames.next::<wire::FromHelper>().await;
    match said.map_err(io::Error::other)? {
        Some(wire::FromHelper { kind: Some(kind) }) => Ok(kind),
        Some(wire::FromHelper { kind: None }) => Err(io::ErrorKind::InvalidData.into()),
        // What it does to those it does not serve.
        None => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it closed the connection: it serves the user that helper.user names and nobody else, on at most 32 connections",
        )),
    }
}

#[cfg(test)]
mod tests;
