//! The way to each collector: its name, then a handshake over each transport that the settings allow.

use std::time::Duration;

use nexus_pki::tls::LiveLeaf;
use nexus_runtime::{clock::Clock, errors::chain};
use nexus_transport::{DialError, Dialer, Mode, Windows};
use tokio::{net::lookup_host, time::timeout};

use super::{Findings, Verdict};
use crate::{config::Config, identity::Member, session};

/// What is not there by then is not there for people.
const PATIENCE: Duration = Duration::from_secs(5);

/// One thing that was tried.
struct Tried {
    what: &'static str,
    came: Result<String, Miss>,
}

/// Why it came to nothing, and what mends it.
struct Miss {
    text: String,
    hint: &'static str,
    /// Somebody was there, and said no.
    refused: bool,
}

pub(super) async fn examine(config: &Config, member: &Member, clock: &Clock, found: &mut Findings) {
    let addresses = match config.addresses.is_empty() {
        true => member.addresses.all(),
        false => config.addresses.clone(),
    };
    let tls = LiveLeaf::new(member.leaf.clone(), &member.root)
        .and_then(|live| session::dial_tls(&live, member, config.key_exchange, clock));
    let tls = match tls {
        Ok(tls) => tls,
        Err(error) => {
            let hint = "enrol anew: `nexus-agent enroll TOKEN --force`";
            found.bad("tls", chain(&error).to_string(), hint);
            return;
        }
    };
    let mut all = Vec::new();
    for address in addresses {
        let name = resolve(&address).await;
        let resolved = name.came.is_ok();
        all.push(name);
        if resolved {
            let dialer = Dialer::new(vec![address], tls.clone(), Mode::Auto, Windows::agent());
            let (udp, tcp) = tokio::join!(
                shake("udp", Mode::Quic, config.transport, &dialer, clock),
                shake("tcp", Mode::Tcp, config.transport, &dialer, clock),
            );
            all.extend(udp.into_iter().chain(tcp));
        }
    }
    // An agent needs one way to one collector.
    let any = all
        .iter()
        .any(|tried| tried.what != "dns" && tried.came.is_ok());
    for Tried { what, came } in all {
        match came {
            Ok(text) => found.good(what, text),
            Err(miss) => {
                let verdict = match any && !miss.refused {
                    true => Verdict::Doubt,
                    false => Verdict::Bad,
                };
                found.add(what, verdict, miss.text, miss.hint);
            }
        }
    }
}

async fn resolve(address: &str) -> Tried {
    let what = "dns";
    let miss = |text| {
        Err(Miss {
            text,
            hint: "see /etc/resolv.conf and the name's records, or name another host with `addresses`",
            refused: false,
        })
    };
    if address.parse::<std::net::SocketAddr>().is_ok() {
        let came = Ok(format!("{address} needs no name server"));
        return Tried { what, came };
    }
    let came = match timeout(PATIENCE, lookup_host(address)).await {
        Ok(Ok(hosts)) => {
            let hosts: Vec<String> = hosts.map(|host| host.ip().to_string()).collect();
            match hosts.is_empty() {
                true => miss(format!("{address}: the name has no address")),
                false => Ok(format!("{address} is {}", hosts.join(", "))),
            }
        }
        Ok(Err(error)) => miss(format!("{address}: {error}")),
        Err(_) => miss(format!(
            "{address}: no name server answered within {}s",
            PATIENCE.as_secs()
        )),
    };
    Tried { what, came }
}

/// `None`: the settings do not allow that transport.
async fn shake(
    what: &'static str,
    over: Mode,
    allowed: Mode,
    dialer: &Dialer,
    clock: &Clock,
) -> Option<Tried> {
    if allowed != Mode::Auto && allowed != over {
        return None;
    }
    let begun = clock.instant();
    let dialer = dialer.with_mode(over);
    let address = dialer.addresses().join(" ");
    let came = match timeout(PATIENCE, dialer.connect()).await {
        Ok(Ok(connection)) => {
            let took = clock.instant().saturating_duration_since(begun).as_millis();
            connection.close("the agent's doctor has seen enough");
            Ok(format!(
                "{address}: a handshake with {} took {took} ms, {}",
                connection.remote, connection.key_exchange
            ))
        }
        Ok(Err(error)) => Err(miss(&error)),
        Err(_) => Err(Miss {
            text: format!("{address}: no answer within {}s", PATIENCE.as_secs()),
            hint: match over {
                Mode::Quic => {
                    "see that the collector runs and that no firewall drops UDP on the way; TCP is used meanwhile, where it comes through"
                }
                _ => "see that the collector runs and that no firewall drops TCP on the way",
            },
            refused: false,
        }),
    };
    Some(Tried { what, came })
}

fn miss(error: &DialError) -> Miss {
    let refused = error.is_refusal();
    let hint = match refused {
        true => {
            "compare the clocks of both sides; `nexusctl get nodes` and `nexusctl get identities` say whether this node is still one"
        }
        false => "see that the collector runs, and listens at that address and port",
    };
    Miss {
        text: error.to_string(),
        hint,
        refused,
    }
}
