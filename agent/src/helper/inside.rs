//! What both sides of the helper's socket make of arbitrary bytes, for the fuzz targets and the test that replays their
//! corpora. No interface: everything else goes through [`super::run`] and [`super::Delegate`].

use std::{io, path::Path};

use nexus_pki::{merkle::Target, policy::TrustedPolicy};
use nexus_proto::{agent::v1::Envelope, helper::v1 as wire, ids::RunKey};
use nexus_runtime::{clock::Clock, errors::chain, tasks::Tasks};
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    runtime::Runtime,
};

use super::{
    LEDGER, ROOT, SCRIPTS,
    client::Hearing,
    frame::{self, Received},
    pin::{self, Pins},
    serve,
    works::{Around, Works},
};
use crate::{
    exec::{Ending, Piece, Starter},
    identity::Trust,
    ledger::Ledger,
};

/// The messages in bytes that come so many at a time, up to the first that is none, and whether there was one.
#[must_use]
pub fn read<M: Message + Default>(bytes: &[u8], at_a_time: usize) -> (Vec<M>, bool) {
    let mut received = Received::default();
    let (mut messages, mut come) = (Vec::new(), 0);
    for piece in bytes.chunks(at_a_time.max(1)) {
        received.room().extend_from_slice(piece);
        come += piece.len();
        assert!(received.is_within(come));
        loop {
            match received.message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
        }
    }
    (messages, false)
}

/// As it goes over the socket.
#[must_use]
pub fn frame<M: Message>(message: &M) -> Vec<u8> {
    frame::frame(message).to_vec()
}

/// What an agent that follows a run makes of a helper's words: the pieces it keeps, of those that it has room for, how
/// many answers it gives, and how the run ended.
pub fn hear(
    run: RunKey,
    said: Vec<wire::FromHelper>,
    room: usize,
) -> (Vec<Piece>, usize, Option<Ending>) {
    let (mut hearing, mut kept, mut answers) = (Hearing::default(), Vec::new(), 0);
    for kind in said.into_iter().filter_map(|said| said.kind) {
        let mut sink = |piece: Piece| {
            let fits = kept.len() < room;
            if fits {
                kept.push(piece);
            }
            fits
        };
        match hearing.hear(kind, run, &mut sink) {
            Ok(answer) => answers += usize::from(answer.is_some()),
            Err(_) => break,
        }
        if hearing.over.is_some() {
            break;
        }
    }
    (kept, answers, hearing.over)
}

/// A helper without a socket.
#[derive(Debug)]
pub struct Helper {
    runtime: Runtime,
    works: Works,
}

impl Helper {
    /// One with its state in this folder, pinned to a node.
    pub fn new(
        folder: &Path,
        own: &Target,
        policy: TrustedPolicy,
        freshness: Envelope,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let clock = Clock::system();
        let domain = policy.policy().trust_domain.clone();
        let trust = Trust::new(policy, Some(freshness));
        let failed = |error: &dyn std::error::Error| io::Error::other(chain(error).to_string());
        pin::write(folder, own, &domain, &trust, (clock.now(), None)).map_err(|e| failed(&e))?;
        let ledger = Ledger::open(&folder.join(LEDGER), false, clock.now());
        let around = Around {
            pins: Pins::new(folder),
            policy: folder.join("policy.toml"),
            policy_owner: ROOT,
            starter: Starter::default(),
            scripts: folder.join(SCRIPTS),
            clock,
            tasks: Tasks::new(),
            stop_grace: super::FLUSH,
        };
        let works = Works::resume(ledger.map_err(|e| failed(&e))?, around);
        Ok(Self { runtime, works })
    }

    /// All it says to an agent that says this and nothing more.
    #[must_use]
    pub fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        self.runtime.block_on(async {
            let mut said = Vec::new();
            let Ok((mut agent, helper)) = UnixStream::pair() else {
                return said;
            };
            let asking = async {
                // It may have closed it already.
                agent.write_all(bytes).await.ok();
                agent.shutdown().await.ok();
                agent.read_to_end(&mut said).await.ok();
            };
            tokio::join!(asking, serve::serve(self.works.clone(), helper));
            said
        })
    }

    /// Whether it has begun nothing yet.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.works.is_idle()
    }
}
