//! The session after this one, opened while this one lasts: with a renewed certificate, over QUIC again where
//! it did not come through before, over TCP where it stopped coming through, or by the way that new settings say, which so
//! costs no session when it leads nowhere.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nexus_pki::certificate::Serial;
use nexus_runtime::errors;
use nexus_transport::{Channel, Connection, Dialer, Mode, TransportKind};
use tokio::sync::watch;

use super::{
    Surroundings,
    open::{self, Open},
    pace::{Backoff, Pulse},
};
use crate::identity::{RenewalClock, renew};

/// The first look whether QUIC comes through by now.
const UPGRADE_FIRST: Duration = Duration::from_secs(30);
/// Looks become as rare as this.
const UPGRADE_RARELY: Duration = Duration::from_secs(600);
/// Between tries to renew, or to use what was renewed.
const RENEW_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// A renewal that was not answered by then is tried again.
const RENEW_TIMEOUT: Duration = Duration::from_secs(15);

/// How collectors are reached.
#[derive(Clone)]
pub(super) struct Dial {
    pub(super) dialer: Dialer,
    pub(super) mode: Mode,
}

/// What a successor is opened by: the way of this session, or another one.
enum Way {
    Same(Dialer),
    /// This one's collector is silent.
    Around(Dialer),
    New(Dial),
}

/// Resolves with the next session and its way when there is a reason for one and it is open. `news` has the way that new
/// settings say; it stays unseen until a session was opened by it.
pub(super) async fn prepare(
    around: &Surroundings,
    (dial, news): (&Dial, &mut watch::Receiver<Dial>),
    connection: &Connection,
    serial: &Serial,
    handing_over: &AtomicBool,
) -> (Open, Dial) {
    let mut upgrade = UPGRADE_FIRST;
    let auto = dial.mode == Mode::Auto;
    let over_tcp = connection.transport == TransportKind::Tcp;
    let mut pulse = Pulse::default();
    let mut backoff = Backoff::default();
    let mut again = None;
    // Drawn once, however often the rest of this is looked at.
    let chance = rand::random();
    loop {
        let way = tokio::select! {
            () = renewed(around, serial, &connection.channel, chance) => Way::Same(dial.dialer.clone()),
            () = tokio::time::sleep(jittered(upgrade)), if auto && over_tcp => {
                upgrade = (upgrade * 2).min(UPGRADE_RARELY);
                Way::Same(dial.dialer.with_mode(Mode::Quic))
            }
            () = silence(around, connection, &mut pulse), if auto && !over_tcp => {
                tracing::debug!("the collector does not answer over QUIC, trying TCP");
                Way::Around(dial.dialer.with_mode(Mode::Tcp))
            }
            new = new_settings(news, again) => Way::New(new),
        };
        let (dialer, silent) = match &way {
            Way::Same(dialer) => (dialer, false),
            Way::Around(dialer) => (dialer, true),
            Way::New(dial) => (&dial.dialer, false),
        };
        let next = match dialer.connect().await {
            Ok(next) => next,
            Err(error) => {
                if let Way::New(_) = way {
                    tracing::warn!(%error, "no session by the new settings yet; the one there is goes on");
                    news.mark_changed();
                    again = Some(backoff.failed(Duration::ZERO, rand::random()));
                    continue;
                }
                tracing::debug!(%error, "no better connection yet");
                if silent || around.live.current().serial() != serial {
                    let wait = backoff.failed(Duration::ZERO, rand::random());
                    tokio::time::sleep(wait).await;
                }
                continue;
            }
        };
        if silent {
            if !is_silent(around, connection, &mut pulse) {
                // It was slow, not gone.
                next.close("QUIC answers again");
                continue;
            }
            dial.dialer.note_udp_blocked();
        }
        handing_over.store(true, Ordering::Relaxed);
        match open::open(around, next).await {
            Ok(open) => {
                let dial = match way {
                    Way::New(new) => new,
                    _ => dial.clone(),
                };
                return (open, dial);
            }
            Err(error) => {
                if let Way::New(_) = way {
                    news.mark_changed();
                }
                handing_over.store(false, Ordering::Relaxed);
                tracing::warn!(error = %errors::chain(&error), "the next session could not be opened");
                let wait = backoff.failed(error.stay_away(), rand::random());
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Resolves with the way that settings say since this session was opened, at once or `again` after that.
async fn new_settings(news: &mut watch::Receiver<Dial>, again: Option<Duration>) -> Dial {
    if news.changed().await.is_err() {
        // Nobody changes any.
        std::future::pending::<()>().await;
    }
    // Should this be dropped meanwhile.
    news.mark_changed();
    tokio::time::sleep(again.unwrap_or_default()).await;
    news.borrow_and_update().clone()
}

/// Resolves when the collector no longer answers on this connection.
async fn silence(around: &Surroundings, connection: &Connection, pulse: &mut Pulse) {
    while !is_silent(around, connection, pulse) {
        tokio::time::sleep(pulse.next_look(around.clock.instant())).await;
    }
}

fn is_silent(around: &Surroundings, connection: &Connection, pulse: &mut Pulse) -> bool {
    connection
        .pulse()
        .is_some_and(|(rtt, asked)| pulse.is_silent(rtt, asked, around.clock.instant()))
}

/// Resolves when the agent holds another certificate than the one this session was opened with.
async fn renewed(around: &Surroundings, serial: &Serial, channel: &Channel, chance: f64) {
    let leaf = around.live.current();
    if leaf.serial() != serial {
        return;
    }
    let obtained = around.obtained();
    let due = RenewalClock::of(leaf.not_before(), leaf.not_after(), obtained, chance);
    loop {
        if let Some(wait) = due.wait(around.clock.now(), around.clock.instant()) {
            tokio::time::sleep(wait).await;
            continue;
        }
        let renewal = renew(&around.folder, &around.member, channel.clone());
        match tokio::time::timeout(RENEW_TIMEOUT, renewal).await {
            Err(_) => tracing::warn!("the collector does not answer the call to renew"),
            Ok(Ok(leaf)) => {
                let expires = leaf.not_after();
                match around.take(leaf) {
                    Ok(()) => {
                        tracing::info!(%expires, "certificate renewed");
                        return;
                    }
                    Err(error) => {
                        tracing::error!(error = %errors::chain(&error), "the new certificate cannot be used")
                    }
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(error = %errors::chain(&error), "the certificate could not be renewed yet");
            }
        }
        let left = leaf.not_after().since(around.clock.now());
        let (least, most) = RENEW_AGAIN;
        tokio::time::sleep(jittered((left / 10).clamp(least, most))).await;
    }
}

/// Half to all of it, so that a fleet does not move in step.
fn jittered(span: Duration) -> Duration {
    span.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}
