//! The session after this one, opened while this one lasts: with a renewed certificate, over QUIC again where
//! it did not come through before, or over TCP where it stopped coming through.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nexus_pki::certificate::Serial;
use nexus_runtime::errors;
use nexus_transport::{Channel, Connection, Dialer, Mode, TransportKind};

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
pub(super) struct Dial {
    pub(super) dialer: Dialer,
    pub(super) mode: Mode,
}

/// Resolves with the next session when there is a reason for one and it is open.
pub(super) async fn prepare(
    around: &Surroundings,
    dial: &Dial,
    connection: &Connection,
    serial: &Serial,
    handing_over: &AtomicBool,
) -> Open {
    let mut upgrade = UPGRADE_FIRST;
    let auto = dial.mode == Mode::Auto;
    let over_tcp = connection.transport == TransportKind::Tcp;
    let mut pulse = Pulse::default();
    let mut backoff = Backoff::default();
    // Drawn once, however often the rest of this is looked at.
    let chance = rand::random();
    loop {
        let (dialer, silent) = tokio::select! {
            () = renewed(around, serial, &connection.channel, chance) => (dial.dialer.clone(), false),
            () = tokio::time::sleep(jittered(upgrade)), if auto && over_tcp => {
                upgrade = (upgrade * 2).min(UPGRADE_RARELY);
                (dial.dialer.with_mode(Mode::Quic), false)
            }
            () = silence(around, connection, &mut pulse), if auto && !over_tcp => {
                tracing::debug!("the collector does not answer over QUIC, trying TCP");
                (dial.dialer.with_mode(Mode::Tcp), true)
            }
        };
        let next = match dialer.connect().await {
            Ok(next) => next,
            Err(error) => {
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
            Ok(open) => return open,
            Err(error) => {
                handing_over.store(false, Ordering::Relaxed);
                tracing::warn!(error = %errors::chain(&error), "the next session could not be opened");
                let wait = backoff.failed(error.stay_away(), rand::random());
                tokio::time::sleep(wait).await;
            }
        }
    }
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
