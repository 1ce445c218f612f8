//! The one authorization function: who may have which effect on what. Deny by default.
//!
//! There is one role, `admin`: an operator admitted with a certificate may do everything. A caller
//! without a certificate may only log in. What is not listed here, or has no effect class, is refused.

use nexus_pki::{
    admission::PeerIdentity,
    spiffe::{Role, SpiffeId},
};
use nexus_proto::operator::v1::Effect;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Nobody yet: no certificate was presented.
    Anonymous,
    /// An operator with a certificate that admission let in.
    Operator {
        /// As in the certificate.
        spiffe: SpiffeId,
        /// Its last part.
        name: String,
    },
    /// Somebody with a certificate of another kind.
    Other(SpiffeId),
}

impl Caller {
    /// By the connection's identity, never by a message.
    pub(crate) fn of(identity: Option<&PeerIdentity>) -> Self {
        match identity {
            None => Self::Anonymous,
            Some(peer) => match (&peer.role, &peer.spiffe) {
                (Role::Operator, SpiffeId::Operator { name, .. }) => Self::Operator {
                    spiffe: peer.spiffe.clone(),
                    name: name.clone(),
                },
                (_, spiffe) => Self::Other(spiffe.clone()),
            },
        }
    }

    /// For the audit chain and the log.
    pub(crate) fn actor(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".to_owned(),
            Self::Operator { spiffe, .. } | Self::Other(spiffe) => spiffe.to_string(),
        }
    }
}

/// On what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The whole fleet, or what belongs to no node.
    Fleet,
}

/// No.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The call is none of ours.
    #[error("this call does not exist, so nobody may make it")]
    UnknownCall,
    /// No certificate.
    #[error("it needs an operator's certificate, and none was presented")]
    Anonymous,
    /// Another kind of certificate.
    #[error("{0} is no operator")]
    NoOperator(SpiffeId),
}

/// Decides.
pub(crate) fn authorize(
    caller: &Caller,
    effect: Option<Effect>,
    scope: Scope,
) -> Result<(), Denied> {
    let effect = effect.ok_or(Denied::UnknownCall)?;
    let Scope::Fleet = scope;
    match (effect, caller) {
        (Effect::Unspecified, _) => Err(Denied::UnknownCall),
        (_, Caller::Other(spiffe)) => Err(Denied::NoOperator(spiffe.clone())),
        // It proves itself by a one-time code, which the call itself checks.
        (Effect::Login, Caller::Anonymous | Caller::Operator { .. }) => Ok(()),
        (_, Caller::Anonymous) => Err(Denied::Anonymous),
        (
            Effect::Self_
            | Effect::Read
            | Effect::Label
            | Effect::Execute
            | Effect::Enrol
            | Effect::Trust
            | Effect::Audit,
            Caller::Operator { .. },
        ) => Ok(()),
    }
}

/// The effects an operator may have, for `WhoAmI`.
pub(crate) fn effects_of(caller: &Caller) -> Vec<Effect> {
    ALL.into_iter()
        .filter(|effect| authorize(caller, Some(*effect), Scope::Fleet).is_ok())
        .collect()
}

/// Whether an act of this effect stands in the audit chain even when it is allowed.
pub(crate) fn is_privileged(effect: Effect) -> bool {
    !matches!(effect, Effect::Read | Effect::Self_)
}

const ALL: [Effect; 8] = [
    Effect::Login,
    Effect::Self_,
    Effect::Read,
    Effect::Label,
    Effect::Execute,
    Effect::Enrol,
    Effect::Trust,
    Effect::Audit,
];

#[cfg(test)]
mod tests {
    use nexus_proto::{
        ids::NodeId,
        operator::{EFFECTS, effect_of},
    };

    use super::*;

    #[test]
    fn every_call_is_decided_for_every_caller() {
        let operator = Caller::Operator {
            spiffe: SpiffeId::operator("fleet.test", "ann").unwrap(),
            name: "ann".to_owned(),
        };
        let agent = Caller::Other(SpiffeId::agent("fleet.test", NodeId::random()).unwrap());
        let collector = Caller::Other(SpiffeId::collector("fleet.test", "r", "c").unwrap());
        assert!(EFFECTS.len() >= 16);
        for (path, _) in EFFECTS {
            let effect = effect_of(path);
            assert!(
                effect.is_some_and(|effect| effect != Effect::Unspecified),
                "{path}"
            );
            assert_eq!(authorize(&operator, effect, Scope::Fleet), Ok(()), "{path}");
            for other in [&agent, &collector] {
                assert!(
                    matches!(
                        authorize(other, effect, Scope::Fleet),
                        Err(Denied::NoOperator(_))
                    ),
                    "{path}"
                );
            }
            let anonymous = authorize(&Caller::Anonymous, effect, Scope::Fleet);
            assert_eq!(
                anonymous.is_ok(),
                path.ends_with("/Login"),
                "{path}: {anonymous:?}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let operator = Caller::Operator {
            spiffe: SpiffeId::operator("fleet.test", "ann").unwrap(),
            name: "ann".to_owned(),
        };
        for effect in [
            effect_of("/nexus.operator.v1.Operator/Shutdown"),
            Some(Effect::Unspecified),
        ] {
            assert_eq!(
                authorize(&operator, effect, Scope::Fleet),
                Err(Denied::UnknownCall)
            );
        }
        assert_eq!(effects_of(&operator).len(), ALL.len());
        assert_eq!(effects_of(&Caller::Anonymous), [Effect::Login]);
    }
}
