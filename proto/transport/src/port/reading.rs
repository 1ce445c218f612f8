//! The thread that takes packets off the agents' socket.
//!
//! All connections share that socket. Were it read by one task among those of all sessions, packets would wait behind a
//! crowd of handshakes until they are dropped, or until who sent them has given up. So a thread does nothing else than
//! tell packets apart, and decide whose handshake begins; what connections do with their packets is done on the
//! program's own threads.

use std::{
    io, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The thread. It ends when this is dropped.
pub(super) struct Reading {
    handle: Handle,
    _end: DropGuard,
}

impl Reading {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone();
        thread::Builder::new()
            .name("agents-port".to_owned())
            .spawn(move || runtime.block_on(ended.cancelled()))
            .map(mem::drop)?;
        Ok(Self {
            handle,
            _end: end.drop_guard(),
        })
    }

    /// Where its tasks run.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// What an endpoint runs on; connections run where this is called.
    pub(super) fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(Divided {
            endpoint: self.handle.clone(),
            connections: Handle::current(),
            has_endpoint: AtomicBool::new(false),
        })
    }
}

#[derive(Debug)]
struct Divided {
    endpoint: Handle,
    connections: Handle,
    has_endpoint: AtomicBool,
}

impl Runtime for Divided {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        // An endpoint's own task is the first that it spawns; all others are those of connections.
        let is_endpoint = !self.has_endpoint.swap(true, Ordering::Relaxed);
        let handle = if is_endpoint {
            &self.endpoint
        } else {
            &self.connections
        };
        handle.spawn(task);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _there = self.endpoint.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}
