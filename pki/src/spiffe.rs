//! SPIFFE ids: the one name in a certificate, compared byte for byte.
//!
//! `spiffe://<trust-domain>/agent/<uuid>`, `/collector/<region>/<id>`, `/operator/<name>`, in the
//! character sets of the SPIFFE ID specification (section 2). Every id has exactly one spelling:
//! parsing refuses whatever its `Display` would not write.

use std::{fmt, str::FromStr};

use nexus_proto::{ids::NodeId, limits};

/// Bytes of a trust domain's name (SPIFFE ID 2.1).
const TRUST_DOMAIN_BYTES: usize = 255;

/// A text that is no SPIFFE id of ours.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SpiffeError {
    /// Does not begin with `spiffe://`.
    #[error("it does not begin with `spiffe://`")]
    Scheme,
    /// The trust domain is empty, too long or has other characters.
    #[error("the trust domain `{0}` must be 1 to 255 of a-z, 0-9, `.`, `-` and `_`")]
    TrustDomain(String),
    /// A part of the path is empty, too long, `.`, `..` or has other characters.
    #[error("`{0}` must be 1 to 253 of a-z, A-Z, 0-9, `.`, `-` and `_`, and neither `.` nor `..`")]
    Segment(String),
    /// An agent's path that does not end in a node id in its normal form.
    #[error("`{0}` is no lower-case UUID")]
    Node(String),
    /// A path of none of the three shapes.
    #[error("its path `{0}` is none of /agent/ID, /collector/REGION/ID, /operator/NAME")]
    Path(String),
}

/// What a peer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// On a managed node.
    Agent,
    /// Keeps the fleet's state.
    Collector,
    /// A person or program that drives the fleet.
    Operator,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Agent, Self::Collector, Self::Operator];

    /// As in the path of an id.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Collector => "collector",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who a certificate was issued to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SpiffeId {
    /// `spiffe://<trust-domain>/agent/<uuid>`
    Agent {
        /// The fleet.
        trust_domain: String,
        /// The node.
        node: NodeId,
    },
    /// `spiffe://<trust-domain>/collector/<region>/<id>`
    Collector {
        /// The fleet.
        trust_domain: String,
        /// Where it serves.
        region: String,
        /// Its name there.
        id: String,
    },
    /// `spiffe://<trust-domain>/operator/<name>`
    Operator {
        /// The fleet.
        trust_domain: String,
        /// Who.
        name: String,
    },
}

impl SpiffeId {
    /// An agent's id.
    pub fn agent(trust_domain: &str, node: NodeId) -> Result<Self, SpiffeError> {
        check_trust_domain(trust_domain)?;
        Ok(Self::Agent {
            trust_domain: trust_domain.to_owned(),
            node,
        })
    }

    /// A collector's id.
    pub fn collector(trust_domain: &str, region: &str, id: &str) -> Result<Self, SpiffeError> {
        check_trust_domain(trust_domain)?;
        check_segment(region)?;
        check_segment(id)?;
        Ok(Self::Collector {
            trust_domain: trust_domain.to_owned(),
            region: region.to_owned(),
            id: id.to_owned(),
        })
    }

    /// An operator's id.
    pub fn operator(trust_domain: &str, name: &str) -> Result<Self, SpiffeError> {
        check_trust_domain(trust_domain)?;
        check_segment(name)?;
        Ok(Self::Operator {
            trust_domain: trust_domain.to_owned(),
            name: name.to_owned(),
        })
    }

    /// From a certificate's URI.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
        let (trust_domain, path) = rest
            .split_once('/')
            .ok_or_else(|| SpiffeError::Path(String::new()))?;
        let segments: Vec<&str> = path.split('/').collect();
        match segments.as_slice() {
            ["agent", node] => {
                let id = NodeId::from_str(node).map_err(|_| SpiffeError::Node(shown(node)))?;
                // UUIDs have several spellings; only one of them names a node.
                if id.to_string() != *node {
                    return Err(SpiffeError::Node(shown(node)));
                }
                Self::agent(trust_domain, id)
            }
            ["collector", region, id] => Self::collector(trust_domain, region, id),
            ["operator", name] => Self::operator(trust_domain, name),
            _ => {
                check_trust_domain(trust_domain)?;
                Err(SpiffeError::Path(format!("/{}", shown(path))))
            }
        }
    }

    /// The fleet it belongs to.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        match self {
            Self::Agent { trust_domain, .. }
            | Self::Collector { trust_domain, .. }
            | Self::Operator { trust_domain, .. } => trust_domain,
        }
    }

    /// What it is.
    #[must_use]
    pub fn role(&self) -> Role {
        match self {
            Self::Agent { .. } => Role::Agent,
            Self::Collector { .. } => Role::Collector,
            Self::Operator { .. } => Role::Operator,
        }
    }

    /// The node of an agent.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Agent { node, .. } => Some(*node),
            Self::Collector { .. } | Self::Operator { .. } => None,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { trust_domain, node } => write!(f, "spiffe://{trust_domain}/agent/{node}"),
            Self::Collector {
                trust_domain,
                region,
                id,
            } => write!(f, "spiffe://{trust_domain}/collector/{region}/{id}"),
            Self::Operator { trust_domain, name } => {
                write!(f, "spiffe://{trust_domain}/operator/{name}")
            }
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        Self::parse(text)
    }
}

/// Whether a text can name a fleet.
pub fn check_trust_domain(text: &str) -> Result<(), SpiffeError> {
    let valid = (1..=TRUST_DOMAIN_BYTES).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
    if valid {
        Ok(())
    } else {
        Err(SpiffeError::TrustDomain(shown(text)))
    }
}

/// Whether a text can be a region, a collector's id or an operator's name.
pub fn check_segment(text: &str) -> Result<(), SpiffeError> {
    let valid = (1..=limits::NAME_BYTES).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(
            |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_'),
        );
    if valid {
        Ok(())
    } else {
        Err(SpiffeError::Segment(shown(text)))
    }
}

/// What a peer sent, fit for a log line.
fn shown(text: &str) -> String {
    text.escape_debug().take(100).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NODE: &str = "3f1c2d4e-5a6b-4c7d-8e9f-0a1b2c3d4e5f";

    #[test]
    fn every_role_has_one_spelling() {
        for (text, role) in [
            (format!("spiffe://example.org/agent/{NODE}"), Role::Agent),
            (
                "spiffe://example.org/collector/eu-1/c_1".to_owned(),
                Role::Collector,
            ),
            (
                "spiffe://example.org/operator/Alice.B".to_owned(),
                Role::Operator,
            ),
        ] {
            let id = SpiffeId::parse(&text).unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(id.role(), role);
            assert_eq!(id.trust_domain(), "example.org");
        }
    }

    #[test]
    fn refuses_every_other_spelling() {
        let upper = NODE.to_uppercase();
        let simple = NODE.replace('-', "");
        for text in [
            String::new(),
            "https://example.org/operator/a".to_owned(),
            "SPIFFE://example.org/operator/a".to_owned(),
            "spiffe://Example.org/operator/a".to_owned(),
            "spiffe://example.org".to_owned(),
            "spiffe://example.org/".to_owned(),
            "spiffe:///operator/a".to_owned(),
            "spiffe://example.org/Operator/a".to_owned(),
            "spiffe://example.org/operator/".to_owned(),
            "spiffe://example.org/operator/a/".to_owned(),
            "spiffe://example.org//operator/a".to_owned(),
            "spiffe://example.org/operator/..".to_owned(),
            "spiffe://example.org/operator/a%20b".to_owned(),
            "spiffe://example.org/operator/a?x".to_owned(),
            "spiffe://example.org/operator/a#x".to_owned(),
            "spiffe://example.org:443/operator/a".to_owned(),
            "spiffe://u@example.org/operator/a".to_owned(),
            "spiffe://example.org/operator/ä".to_owned(),
            "spiffe://example.org/collector/c1".to_owned(),
            "spiffe://example.org/collector/eu/c1/x".to_owned(),
            "spiffe://example.org/root/a".to_owned(),
            format!("spiffe://example.org/agent/{upper}"),
            format!("spiffe://example.org/agent/{simple}"),
            format!("spiffe://example.org/agent/{{{NODE}}}"),
            format!("spiffe://example.org/agent/urn:uuid:{NODE}"),
            format!("spiffe://example.org/agent/{NODE} "),
            format!("spiffe://{}/operator/a", "a".repeat(256)),
            format!("spiffe://example.org/operator/{}", "a".repeat(254)),
        ] {
            assert!(SpiffeId::parse(&text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_is_written_the_same(text in "spiffe://[a-zA-Z.]{0,4}/(agent|collector|operator|x)(/[a-zA-Z0-9.%-]{0,4}){0,3}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn never_panics(text in "\\PC{0,60}") {
            let _ignored = SpiffeId::parse(&text);
        }
    }
}
