//! A new key and certificate for the same node: at half of the old one's life, or after it ran out.

use std::time::{Duration, Instant};

use nexus_pki::{
    certificate::Root,
    csr,
    leaf::Leaf,
    renewal,
    tls::{self, KeyExchange},
};
use nexus_proto::{
    agent::v1::{self as wire, agent_client::AgentClient, enrolment_client::EnrolmentClient},
    ids::NodeId,
    limits,
    time::Timestamp,
};
use nexus_transport::{Channel, enrol_connect};

use super::{
    IdentityError, StateFolder,
    enrol::{check_leaf, refused},
    member::Member,
};

/// When a certificate is to be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenewalClock {
    /// By the wall clock.
    due: Timestamp,
    /// Not before this, by the monotonic one.
    rest: Option<Instant>,
}

impl RenewalClock {
    /// Half of its life, give or take a tenth of that, by `chance` (0 to 1), so that a fleet that was enrolled at
    /// once does not renew at once. One that was `obtained` while this program ran rests for a quarter of its life
    /// first: a clock that is hours ahead makes every certificate look old.
    #[must_use]
    pub fn of(
        not_before: Timestamp,
        not_after: Timestamp,
        obtained: Option<Instant>,
        chance: f64,
    ) -> Self {
        let life = not_after.since(not_before);
        Self {
            due: not_before.after(life.mul_f64(0.45 + 0.1 * chance.clamp(0.0, 1.0))),
            rest: obtained.and_then(|at| at.checked_add(life / 4)),
        }
    }

    /// How long to wait before looking again, `None` when it is time. A step of the wall clock is noticed within
    /// a minute.
    #[must_use]
    pub fn wait(&self, now: Timestamp, instant: Instant) -> Option<Duration> {
        let rest = self.rest.map_or(Duration::ZERO, |rest| {
            rest.saturating_duration_since(instant)
        });
        let left = self.due.since(now).max(rest);
        (!left.is_zero()).then(|| left.clamp(Duration::from_secs(1), Duration::from_secs(60)))
    }
}

/// Who renews.
#[derive(Debug, Clone, Copy)]
struct Holder<'a> {
    /// The fleet's root.
    root: &'a Root,
    /// The fleet's name.
    trust_domain: &'a str,
    /// The node.
    node: NodeId,
}

impl<'a> From<&'a Member> for Holder<'a> {
    fn from(member: &'a Member) -> Self {
        Self {
            root: &member.root,
            trust_domain: &member.trust_domain,
            node: member.node,
        }
    }
}

/// Over a session's connection. The new leaf is stored; connections made from then on use it.
pub async fn renew(
    folder: &StateFolder,
    member: &Member,
    channel: Channel,
) -> Result<Leaf, IdentityError> {
    let (key, csr_der) = csr::new_csr()?;
    let request = wire::RenewRequest {
        csr_der: csr_der.into(),
    };
    let answer = AgentClient::new(channel).renew(request).await;
    let identity = answer.map_err(|status| refused(&status))?.into_inner();
    take(
        folder,
        member.into(),
        Leaf::from_wire(key, &identity.chain_der)?,
        &identity,
    )
}

/// With a certificate that has run out, within 30 days of that.
pub async fn renew_expired(
    folder: &StateFolder,
    member: &Member,
    old: &Leaf,
    addresses: &[String],
    key_exchange: KeyExchange,
    now: Timestamp,
) -> Result<Leaf, IdentityError> {
    if now.since(old.not_after()) > limits::RENEW_EXPIRED {
        return Err(IdentityError::ExpiredForGood {
            expired: old.not_after(),
            now,
        });
    }
    let (key, csr_der) = csr::new_csr()?;
    let request = renewal::sign(old, &csr_der, now)?;
    let tls = tls::enrol_client(member.root.sha256(), &member.trust_domain, key_exchange)?;
    let mut failure = IdentityError::Dial(nexus_transport::DialError::NoAddress);
    for address in addresses {
        match enrol_connect(address, tls.clone()).await {
            Ok(connection) => {
                let mut client = EnrolmentClient::new(connection.channel.clone());
                let answer = client.renew_expired(request.clone()).await;
                let identity = answer.map_err(|status| refused(&status))?.into_inner();
                let leaf = Leaf::from_wire(key, &identity.chain_der)?;
                return take(folder, member.into(), leaf, &identity);
            }
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

fn take(
    folder: &StateFolder,
    holder: Holder<'_>,
    leaf: Leaf,
    identity: &wire::Identity,
) -> Result<Leaf, IdentityError> {
    let at = Timestamp(identity.time_ms);
    check_leaf(&leaf, holder.root, holder.trust_domain, holder.node, at)?;
    Member::store_leaf(folder.path(), &leaf)?;
    Ok(leaf)
}
