//! A service manager's ear: the socket that programs tell of their state (sd_notify(3)).

use std::{
    cell::RefCell,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nexus_runtime::clock::Clock;

use crate::{
    fault::{Fault, Outcome},
    fleet::SOON,
    poll,
};

/// Hears one program.
#[derive(Debug)]
pub struct Manager {
    path: PathBuf,
    socket: UnixDatagram,
    clock: Clock,
    heard: RefCell<Vec<(Instant, String)>>,
}

impl Manager {
    /// Listens in that folder.
    pub fn in_folder(dir: &Path) -> Outcome<Self> {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).map_err(Fault::io("bind"))?;
        socket
            .set_nonblocking(true)
            .map_err(Fault::io("set a socket up"))?;
        Ok(Self {
            path,
            socket,
            clock: Clock::system(),
            heard: RefCell::default(),
        })
    }

    /// What a program is started with. `watchdog`: how often it must say that it gets on.
    #[must_use]
    pub fn env(&self, watchdog: Option<Duration>) -> Vec<(String, String)> {
        let socket = self.path.display().to_string();
        let watchdog = watchdog.map(|limit| {
            let limit = limit.as_micros().to_string();
            ("WATCHDOG_USEC".to_owned(), limit)
        });
        let mut env = vec![("NOTIFY_SOCKET".to_owned(), socket)];
        env.extend(watchdog);
        env
    }

    /// Every line so far.
    #[must_use]
    pub fn heard(&self) -> Vec<String> {
        self.listen();
        let heard = self.heard.borrow();
        heard.iter().map(|(_, line)| line.clone()).collect()
    }

    /// How long ago that line was heard last. It is called often, or lines count as heard later than they were.
    #[must_use]
    pub fn silence(&self, line: &str) -> Duration {
        self.listen();
        let heard = self.heard.borrow();
        let newest = heard.iter().rev().find(|(_, heard)| heard == line);
        let now = self.clock.instant();
        newest.map_or(Duration::ZERO, |(at, _)| now.saturating_duration_since(*at))
    }

    fn listen(&self) {
        let mut message = [0; 4096];
        while let Ok(bytes) = self.socket.recv(&mut message) {
            let text = String::from_utf8_lossy(message.get(..bytes).unwrap_or_default());
            let now = self.clock.instant();
            let mut heard = self.heard.borrow_mut();
            heard.extend(text.lines().map(|line| (now, line.to_owned())));
        }
    }

    /// How often a line that begins like this was heard.
    #[must_use]
    pub fn count(&self, begin: &str) -> usize {
        let heard = self.heard();
        heard.iter().filter(|line| line.starts_with(begin)).count()
    }

    /// The newest `STATUS=`.
    #[must_use]
    pub fn status(&self) -> String {
        let heard = self.heard();
        let mut newest = heard.iter().rev();
        let status = newest.find_map(|line| line.strip_prefix("STATUS="));
        status.unwrap_or_default().to_owned()
    }

    /// Waits until that many lines that begin like this were heard.
    pub async fn hears(&self, begin: &str, times: usize) -> Outcome {
        poll::until_ok(begin, SOON, || {
            let enough = self.count(begin) >= times;
            std::future::ready(if enough {
                Ok(())
            } else {
                Err(format!("{:?}", self.heard()))
            })
        })
        .await
    }

    /// Waits until the status has this in it.
    pub async fn shows(&self, part: &str) -> Outcome {
        poll::until_ok(part, SOON, || {
            let status = self.status();
            std::future::ready(if status.contains(part) {
                Ok(())
            } else {
                Err(status)
            })
        })
        .await
    }
}
