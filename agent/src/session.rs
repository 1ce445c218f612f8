//! The agent's side of a session: reach a collector, say Hello, send what the spool holds, take jobs.
//!
//! There is one session at a time; it ends when its connection does, or when a successor took over
//! (`successor`): with a renewed certificate, by a better way, or by the one that new settings say. Between two
//! sessions lies a wait with full jitter, plus what the collector asked for.
//! Nothing is kept here: what was not acked is read from the spool again.

mod open;
mod pace;
mod successor;
mod talk;
mod upload;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nexus_pki::{
    admission::Admission,
    leaf::Leaf,
    tls::{self, Alpn, KeyExchange, LiveLeaf, TlsError},
};
use nexus_proto::agent::v1::{GoodbyeReason, NodeFacts};
use nexus_runtime::{clock::Clock, errors, progress::Progress};
use nexus_transport::{DialTls, Dialer, Judge, Mode, Windows};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    open::{Goodbye, Open, OpenError},
    pace::Backoff,
    successor::Dial,
    talk::End,
};
use crate::{
    identity::{self, Addresses, Member, StateFolder, renew_expired},
    inventory::Wanted,
    runs::Runs,
    spool::Spool,
    trouble::Troubles,
};

/// No attempt at a session takes longer, over however many addresses it goes.
const CONNECTING: Duration = Duration::from_secs(600);

/// What a session is made of.
#[derive(Debug)]
pub struct Surroundings {
    /// The state folder: session counter, certificate, policy.
    pub folder: StateFolder,
    /// Who this is.
    pub member: Member,
    /// The certificate in use.
    pub live: LiveLeaf,
    /// When it was obtained, if that was while this program ran.
    pub obtained: Mutex<Option<Instant>>,
    /// What is sent.
    pub spool: Arc<Spool>,
    /// What runs.
    pub runs: Runs,
    /// Inventory the collector asked for.
    pub wanted: Arc<Wanted>,
    /// What does not work.
    pub troubles: Arc<Troubles>,
    /// What the node table shows at first.
    pub facts: NodeFacts,
    /// The kernel's.
    pub boot_id: String,
    /// Whether the agent before this one did not end by itself.
    pub after_crash: bool,
    /// The time.
    pub clock: Clock,
}

impl Surroundings {
    fn obtained(&self) -> Option<Instant> {
        *self.obtained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses a new certificate from the next handshake on.
    fn take(&self, leaf: Leaf) -> Result<(), TlsError> {
        self.live.replace(leaf)?;
        let mut obtained = self.obtained.lock().unwrap_or_else(PoisonError::into_inner);
        *obtained = Some(self.clock.instant());
        Ok(())
    }
}

/// How to reach collectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// `HOST:PORT`; empty: as the collector says.
    pub addresses: Vec<String>,
    /// What carries a session.
    pub mode: Mode,
    /// Key exchanges that may be used.
    pub key_exchange: KeyExchange,
}

/// For the service manager and people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No session.
    Away(String),
    /// A session, over this.
    Connected(String),
}

/// What a member dials its collectors with.
pub(crate) fn dial_tls(
    live: &LiveLeaf,
    member: &Member,
    key_exchange: KeyExchange,
    clock: &Clock,
) -> Result<DialTls, TlsError> {
    let admission = Admission::new(&member.root, &member.trust_domain);
    let config = |alpn| tls::agent_client(live, &admission, key_exchange, alpn);
    Ok(DialTls {
        quic: config(Alpn::H3)?,
        tcp: config(Alpn::H2)?,
        judge: Some(Judge {
            clock: clock.clone(),
            admission,
        }),
    })
}

/// Keeps a session.
pub struct Keeper {
    around: Surroundings,
    reach: watch::Sender<Reach>,
    tls: DialTls,
    state: watch::Sender<State>,
    progress: Progress,
}

impl Keeper {
    /// Prepares TLS.
    pub fn new(around: Surroundings, reach: Reach) -> Result<Self, TlsError> {
        let tls = dial_tls(
            &around.live,
            &around.member,
            reach.key_exchange,
            &around.clock,
        )?;
        let (state, _) = watch::channel(State::Away("starting".to_owned()));
        Ok(Self {
            around,
            reach: watch::Sender::new(reach),
            tls,
            state,
            progress: Progress::default(),
        })
    }

    /// Says there how it gets on.
    #[must_use]
    pub fn telling(mut self, progress: &Progress) -> Self {
        self.progress = progress.clone();
        self
    }

    /// Where the next session goes is changed here. Key exchanges stay as they are.
    #[must_use]
    pub fn reach(&self) -> watch::Sender<Reach> {
        self.reach.clone()
    }

    /// What there is to tell of it.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut addresses = self.around.member.addresses.clone();
        let mut reach = self.reach.subscribe();
        let dials = watch::Sender::new(self.dial(&reach.borrow_and_update(), &addresses));
        let mut news = dials.subscribe();
        let mut backoff = Backoff::of_start(self.around.after_crash);
        if self.around.after_crash {
            let wait = backoff.failed(Duration::ZERO, rand::random());
            tracing::info!(
                wait_ms = wait.as_millis(),
                "waiting to connect: others may have crashed at the same moment"
            );
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
        let progress = |within| {
            let by = self.around.clock.instant() + within;
            self.progress.due("session", by);
        };
        loop {
            if reach.has_changed().unwrap_or(false) {
                dials.send_replace(self.dial(&reach.borrow_and_update(), &addresses));
                backoff = Backoff::default();
            }
            progress(CONNECTING);
            let dial = news.borrow_and_update().clone();
            let connected = tokio::select! {
                () = stop.cancelled() => return,
                // On the heap, for as long as they last: the loop itself stays small.
                connected = Box::pin(self.connect(&dial)) => connected,
            };
            let retry_after = match connected {
                Ok(open) => {
                    let begun = open.since;
                    self.progress.rests("session");
                    let hold = async {
                        let changes = self.new_ways(&mut reach, &dials);
                        tokio::select! {
                            biased;
                            end = self.hold((open, dial), &mut addresses, &mut news, &stop) => end,
                            never = changes => match never {},
                        }
                    };
                    let end = Box::pin(hold).await;
                    backoff.held(self.around.clock.instant().saturating_duration_since(begun));
                    match end {
                        End::Stopped => return,
                        End::Lost(reason) => {
                            tracing::warn!(reason, "the session ended");
                            self.away(reason);
                            Duration::ZERO
                        }
                        End::Goodbye(goodbye) => self.dismissed(&goodbye),
                    }
                }
                Err(OpenError::Goodbye(goodbye)) => self.dismissed(&goodbye),
                Err(error) => {
                    let reason = errors::chain(&error).to_string();
                    let hint = match &error {
                        OpenError::State(error) => error.hint(),
                        _ => None,
                    };
                    tracing::warn!(reason, hint, "no session");
                    self.away(reason);
                    Duration::ZERO
                }
            };
            if reach.borrow().addresses.is_empty() {
                // What the collector said last holds for the next try.
                dials.send_modify(|dial| {
                    dial.dialer = dial.dialer.with_addresses(addresses.all());
                });
            }
            let wait = backoff.failed(retry_after, rand::random());
            tracing::debug!(wait_ms = wait.as_millis(), "waiting to connect again");
            progress(wait);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                // There may be a way now.
                Ok(()) = reach.changed() => reach.mark_changed(),
            }
        }
    }

    /// A session and those that take over from it, until there is none.
    async fn hold(
        &self,
        (mut open, mut dial): (Open, Dial),
        addresses: &mut Addresses,
        news: &mut watch::Receiver<Dial>,
        stop: &CancellationToken,
    ) -> End {
        loop {
            self.welcomed(&mut open, addresses);
            match talk::talk(&self.around, &mut open, (&dial, news), stop).await {
                Ok(next) => {
                    open.connection.close("another session took over");
                    (open, dial) = *next;
                }
                Err(end) => {
                    open.connection.close("the agent ended the session");
                    return end;
                }
            }
        }
    }

    /// Says by which way new settings would have it, for as long as a session lasts.
    async fn new_ways(
        &self,
        reach: &mut watch::Receiver<Reach>,
        dials: &watch::Sender<Dial>,
    ) -> Infallible {
        while reach.changed().await.is_ok() {
            let known = self.around.member.addresses.clone();
            dials.send_replace(self.dial(&reach.borrow_and_update(), &known));
        }
        std::future::pending().await
    }

    async fn connect(&self, dial: &Dial) -> Result<Open, OpenError> {
        let around = &self.around;
        let now = around.clock.now();
        let leaf = around.live.current();
        // A certificate that was just obtained and has run out already shows that the clock is ahead.
        let rest = leaf.not_after().since(leaf.not_before()) / 4;
        let rested = around.obtained().is_none_or(|obtained| {
            around.clock.instant().saturating_duration_since(obtained) >= rest
        });
        if now >= leaf.not_after() && rested {
            tracing::info!(expired = %leaf.not_after(), "the certificate ran out, renewing it with the old key");
            let key_exchange = self.reach.borrow().key_exchange;
            let leaf = renew_expired(
                &around.folder,
                &around.member,
                &leaf,
                dial.dialer.addresses(),
                key_exchange,
                now,
            )
            .await?;
            tracing::info!(expires = %leaf.not_after(), "certificate renewed");
            around
                .take(leaf)
                .map_err(crate::identity::IdentityError::from)?;
        }
        let connection = dial.dialer.connect().await?;
        open::open(around, connection).await
    }

    fn welcomed(&self, open: &mut Open, addresses: &mut Addresses) {
        let connection = &open.connection;
        self.state.send_replace(State::Connected(format!(
            "{} over {}, {}",
            connection.remote, connection.transport, connection.key_exchange
        )));
        self.around.wanted.ask(std::mem::take(&mut open.resend));
        let told = identity::told(std::mem::take(&mut open.addresses));
        if !told.is_empty() && told != addresses.told {
            match Member::store_addresses(self.around.folder.path(), &told) {
                Ok(()) => {
                    tracing::info!(
                        addresses = told.join(" "),
                        "the collector's addresses changed"
                    );
                    addresses.told = told;
                }
                Err(error) => {
                    tracing::error!(error = %errors::chain(&error), "new addresses cannot be stored");
                }
            }
        }
    }

    fn dismissed(&self, goodbye: &Goodbye) -> Duration {
        let reason = goodbye.message.as_str();
        self.away(reason.to_owned());
        match goodbye.reason {
            GoodbyeReason::Quarantined | GoodbyeReason::Revoked | GoodbyeReason::Protocol => {
                tracing::error!(reason, "the collector does not want this agent");
            }
            _ => tracing::info!(reason, "the collector ended the session"),
        }
        goodbye.stay_away()
    }

    fn away(&self, reason: String) {
        self.state.send_replace(State::Away(reason));
    }

    fn dial(&self, reach: &Reach, known: &Addresses) -> Dial {
        let given = &reach.addresses;
        let addresses = if given.is_empty() {
            known.all()
        } else {
            given.clone()
        };
        let mode = reach.mode;
        Dial {
            dialer: Dialer::new(addresses, self.tls.clone(), mode, Windows::agent()),
            mode,
        }
    }
}
