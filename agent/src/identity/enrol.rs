//! A join token becomes an identity. Root and signers are pinned by the token before anything is sent;
//! the key is made here; what comes back is checked against the token before anything is stored.

use std::{io::Read as _, path::PathBuf};

use nexus_pki::{
    certificate::Root,
    csr,
    leaf::Leaf,
    policy::TrustedPolicy,
    tls::{self, KeyExchange},
    token::Token,
};
use nexus_proto::{
    agent::v1::{self as wire, enrolment_client::EnrolmentClient},
    ids::{NodeId, is_node_name},
    limits,
    time::Timestamp,
};
use nexus_transport::enrol_connect;
use tonic::Status;

use super::{
    IdentityError, StateFolder,
    member::{Addresses, Member, told},
};

/// What an enrolment takes.
#[derive(Debug)]
pub struct Enrolment {
    /// From an operator.
    pub token: Token,
    /// The name to be known by.
    pub name: String,
    /// What the node table shows at first.
    pub facts: wire::NodeFacts,
    /// Which key exchange may be used.
    pub key_exchange: KeyExchange,
    /// Whether an identity that is there is replaced.
    pub force: bool,
}

/// Reads a token as given on the command line: itself, `@FILE`, or `-` for standard input.
pub fn read_token(argument: &str) -> Result<Token, IdentityError> {
    let text = if argument == "-" {
        let mut text = String::new();
        let limit = u64::try_from(limits::TOKEN_BYTES * 2).unwrap_or(u64::MAX);
        std::io::stdin()
            .take(limit)
            .read_to_string(&mut text)
            .map_err(|source| IdentityError::TokenFile {
                path: PathBuf::from("standard input"),
                source,
            })?;
        text
    } else if let Some(path) = argument.strip_prefix('@') {
        std::fs::read_to_string(path).map_err(|source| IdentityError::TokenFile {
            path: path.into(),
            source,
        })?
    } else {
        argument.to_owned()
    };
    Ok(Token::parse(text.trim())?)
}

/// Enrols: asks the collectors the token names, one after the other, and stores what the first one that
/// answers gives.
pub async fn enrol(
    folder: &StateFolder,
    enrolment: Enrolment,
    now: Timestamp,
) -> Result<Member, IdentityError> {
    let claims = enrolment.token.claims();
    check_name(&enrolment.name)?;
    match Member::load(folder.path()) {
        Ok(member) if !enrolment.force => {
            let node = member.node.to_string();
            return Err(IdentityError::Enrolled {
                name: member.name,
                node,
            });
        }
        _ => {}
    }
    if now >= claims.expires {
        return Err(IdentityError::TokenExpired {
            expires: claims.expires,
            now,
        });
    }
    let (key, csr_der) = csr::new_csr()?;
    let request = wire::EnrolRequest {
        token: enrolment.token.to_bytes(),
        csr_der: csr_der.into(),
        incarnation: folder.incarnation().to_wire(),
        name: enrolment.name.clone(),
        facts: Some(enrolment.facts.clone()),
    };
    let tls = tls::enrol_client(
        claims.root_sha256,
        &claims.trust_domain,
        enrolment.key_exchange,
    )?;
    let mut failure = IdentityError::Dial(nexus_transport::DialError::NoAddress);
    for address in &claims.addresses {
        let connection = match enrol_connect(address, tls.clone()).await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(address, %error, "no collector");
                failure = error.into();
                continue;
            }
        };
        let answer = EnrolmentClient::new(connection.channel.clone())
            .enrol(request.clone())
            .await;
        let identity = answer.map_err(|status| refused(&status))?.into_inner();
        let leaf = Leaf::from_wire(key, &identity.chain_der)?;
        let member = verify(&enrolment, leaf, identity)?;
        member.store(folder.path())?;
        return Ok(member);
    }
    Err(failure)
}

fn verify(
    enrolment: &Enrolment,
    leaf: Leaf,
    identity: wire::Identity,
) -> Result<Member, IdentityError> {
    let claims = enrolment.token.claims();
    let root = Root::pinned(&identity.root_der, &claims.root_sha256)?;
    let policy = identity
        .policy
        .ok_or_else(|| IdentityError::Answer("it has no signer policy".to_owned()))?;
    let pinned = TrustedPolicy::establish(policy, &claims.policy_digest, &claims.trust_domain)?;
    enrolment.token.check_signed_by(&pinned)?;
    let node = NodeId::from_wire(&identity.node_id)?;
    check_leaf(
        &leaf,
        &root,
        &claims.trust_domain,
        node,
        Timestamp(identity.time_ms),
    )?;
    Member::assemble(
        leaf,
        root,
        enrolment.name.clone(),
        Addresses {
            enrolled: claims.addresses.clone(),
            told: told(identity.addresses),
        },
        pinned.envelope().clone(),
        identity.freshness,
    )
}

/// That an identity is what a token promises: of its fleet, with the signers it names. Needs no collector and costs the
/// token no use.
pub fn check_held(member: &Member, token: &Token, now: Timestamp) -> Result<(), IdentityError> {
    let claims = token.claims();
    if now >= claims.expires {
        return Err(IdentityError::TokenExpired {
            expires: claims.expires,
            now,
        });
    }
    let root = Root::pinned(member.root.der(), &claims.root_sha256)?;
    let policy = member.trust.documents().policy.unwrap_or_default();
    let policy = TrustedPolicy::establish(policy, &claims.policy_digest, &claims.trust_domain)?;
    token.check_signed_by(&policy)?;
    let at = member.leaf.not_before();
    check_leaf(&member.leaf, &root, &claims.trust_domain, member.node, at)
}

/// That a certificate is this node's and the fleet's. The collector's clock decides on its dates: this
/// machine's may be wrong, and each handshake judges them again.
pub(super) fn check_leaf(
    leaf: &Leaf,
    root: &Root,
    trust_domain: &str,
    node: NodeId,
    at: Timestamp,
) -> Result<(), IdentityError> {
    let admission = nexus_pki::admission::Admission::new(root, trust_domain);
    let peer = admission
        .admit(leaf.chain(), &[nexus_pki::spiffe::Role::Agent], at)
        .map_err(|refusal| IdentityError::Answer(refusal.to_string()))?;
    if peer.spiffe.node() == Some(node) {
        Ok(())
    } else {
        Err(IdentityError::Answer(format!(
            "it names node {node}, the certificate {}",
            peer.spiffe
        )))
    }
}

pub(super) fn refused(status: &Status) -> IdentityError {
    let hint = status
        .metadata()
        .get(nexus_proto::HINT)
        .and_then(|hint| hint.to_str().ok());
    IdentityError::Refused {
        message: status.message().to_owned(),
        hint: hint.map(str::to_owned),
    }
}

pub(super) fn check_name(name: &str) -> Result<(), IdentityError> {
    if is_node_name(name) {
        Ok(())
    } else {
        Err(IdentityError::Name(name.chars().take(300).collect()))
    }
}
