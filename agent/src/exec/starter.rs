//! Starting programs beside the event loop: a folder or a program on a mount whose server is gone holds up
//! whoever starts it, uninterruptibly.
//!
//! Programs are started by threads that live as long as the agent: a program is killed when the thread that
//! started it ends. One that hangs is left to wait; what it starts after the deadline is killed at once.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{sleep, timeout},
};

use super::{
    Execution, Plan,
    process::{self, Running, StartError},
};

/// Threads at most, and so hanging starts after which nothing can be started any more.
const THREADS: usize = 4;
/// Preparing a program takes a few buffers on the stack.
const STACK_BYTES: usize = 256 * 1024;
/// A start takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// A script that was written a moment ago is "busy" while another thread of the agent forks.
const BUSY_TRIES: u32 = 50;
const BUSY_WAIT: Duration = Duration::from_millis(10);

/// Starts programs.
#[derive(Debug)]
pub struct Starter {
    pub(super) places: Arc<Semaphore>,
    idle: Idle,
    deadline: Duration,
    network: Option<Arc<OwnedFd>>,
}

type Idle = Arc<Mutex<Vec<SyncSender<Request>>>>;

#[derive(Debug)]
struct Request {
    plan: Arc<Plan>,
    reply: oneshot::Sender<Result<Running, StartError>>,
    place: OwnedSemaphorePermit,
    runtime: Handle,
    network: Option<Arc<OwnedFd>>,
}

impl Default for Starter {
    fn default() -> Self {
        Self::with_deadline(DEADLINE)
    }
}

impl Starter {
    pub(super) fn with_deadline(deadline: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(THREADS)),
            idle: Idle::default(),
            deadline,
            network: None,
        }
    }

    /// Has programs run in this namespace of the network instead of the present one.
    #[must_use]
    pub fn in_network(mut self, namespace: OwnedFd) -> Self {
        self.network = Some(Arc::new(namespace));
        self
    }

    /// Starts a program. After [`StartError::Hangs`] nobody can tell whether it will have run for a moment.
    pub async fn start(&self, plan: Plan) -> Result<Execution, StartError> {
        let plan = Arc::new(plan);
        let mut tries = 0;
        loop {
            match self.try_once(Arc::clone(&plan)).await {
                Err(StartError::Program { source, .. })
                    if source.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
                {
                    tries += 1;
                    sleep(BUSY_WAIT).await;
                }
                started => return started.map(|running| Execution { running, plan }),
            }
        }
    }

    async fn try_once(&self, plan: Arc<Plan>) -> Result<Running, StartError> {
        let place = timeout(self.deadline, Arc::clone(&self.places).acquire_owned()).await;
        let place = match place {
            Ok(place) => place.map_err(io::Error::other),
            Err(_) => Err(io::Error::other("all of them hang")),
        };
        let (reply, answer) = oneshot::channel();
        let handed_over = place.and_then(|place| {
            self.hand_over(Request {
                plan,
                reply,
                place,
                runtime: Handle::current(),
                network: self.network.clone(),
            })
        });
        handed_over.map_err(StartError::Thread)?;
        match timeout(self.deadline, answer).await {
            Ok(Ok(started)) => started,
            Ok(Err(ended)) => Err(StartError::Thread(io::Error::other(ended))),
            Err(_) => Err(StartError::Hangs(self.deadline)),
        }
    }

    /// Whoever has a place finds an idle thread, or makes one.
    fn hand_over(&self, request: Request) -> io::Result<()> {
        let idle = take(&self.idle);
        let thread = match idle {
            Some(thread) => thread,
            None => self.thread()?,
        };
        thread.try_send(request).map_err(io::Error::other)
    }

    fn thread(&self) -> io::Result<SyncSender<Request>> {
        let (requests, queue) = sync_channel::<Request>(1);
        let (own, idle) = (requests.clone(), Arc::clone(&self.idle));
        let run = move || {
            for request in queue {
                let Request {
                    plan,
                    reply,
                    place,
                    runtime,
                    network,
                } = request;
                let _context = runtime.enter();
                if let Err(Ok(late)) = reply.send(process::start(&plan, network.as_deref())) {
                    tracing::warn!(run = plan.mark, "a program started too late is killed");
                    late.signal_group(Signal::KILL);
                }
                idle.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(own.clone());
                drop(place);
            }
        };
        thread::Builder::new()
            .name("start".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(run)?;
        Ok(requests)
    }
}

fn take(idle: &Idle) -> Option<SyncSender<Request>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
}
