//! `nexusctl login`: a one-time code becomes two keys, made here.
//!
//! The code pins the fleet's root before anything secret is sent. The first operator also signs version 1
//! of the signer policy; everyone signs that the policy in force is still current (its freshness).

use std::{io::Read as _, path::PathBuf};

use bytes::Bytes;
use nexus_pki::{
    certificate::Root,
    csr,
    leaf::Leaf,
    operator_code::OperatorCode,
    policy::{SignerPolicy, TrustedPolicy},
    sha256,
    signing::{Signer, SigningKey},
    tls::{self, KeyExchange},
};
use nexus_proto::{
    operator::v1::{LoginRequest, LoginResponse, Trust},
    time::Timestamp,
};

use crate::{
    cli::LoginArgs,
    connection::{self, Collector, fault},
    dial::operator_connect,
    fault::{Context as _, Exit, Fault, Outcome},
    profile::{Profile, folder},
    session::{Session, within},
    terminal,
};

pub(crate) async fn login(session: &Session, args: &LoginArgs) -> Outcome {
    let code = read_code(&args.code)?;
    let work = with_code(session, &code, args.address.clone());
    let profile = within(args.timeout, "login", work).await?;
    terminal::say(&format!(
        "logged in to {} as {} until {}",
        profile.trust_domain,
        profile.name,
        profile.leaf.not_after()
    ));
    Ok(())
}

/// Logs in with a code's text; `addresses` stand in for those in the code.
pub(crate) async fn with_code(
    session: &Session,
    code: &str,
    addresses: Vec<String>,
) -> Outcome<Profile> {
    let code = OperatorCode::parse(code.trim()).map_err(|error| {
        Fault::because("read the code", &error)
            .hint("copy it whole, from nxo_ to its end, as `nexus-collector init` or `login-code` printed it")
    })?;
    if session.now() >= code.expires {
        return Err(
            Fault::new("login", format!("the code expired at {}", code.expires))
                .hint("`nexus-collector login-code` on the collector's host prints a new one")
                .exits(Exit::Denied),
        );
    }
    let addresses = if addresses.is_empty() {
        code.addresses.clone()
    } else {
        // As an address stands in `endpoints.json`, too.
        let bare = |address: String| {
            let bare = address.strip_prefix("https://").unwrap_or(&address);
            bare.trim_end_matches('/').to_owned()
        };
        addresses.into_iter().map(bare).collect()
    };
    if addresses.is_empty() {
        return Err(
            Fault::usage("login", "the code does not say where the collector is")
                .hint("give --address HOST:PORT"),
        );
    }
    let pin = code.root_sha256;
    let old = Profile::load(&session.client_toml)
        .ok()
        .filter(|old| old.root.sha256() == pin);
    let signing = signing_key(old.as_ref())?;
    let (key, csr_der) = csr::new_csr().doing("make a key")?;
    let policy = first_policy(session.now(), &code, &signing)?;
    let request = LoginRequest {
        code_id: Bytes::copy_from_slice(&code.id),
        code_secret: Bytes::copy_from_slice(&code.secret),
        csr_der: csr_der.into(),
        signing_public_key: Bytes::copy_from_slice(&signing.public_key().0),
        freshness: Some(policy.sign_freshness(&signing, session.now())),
        policy: Some(policy.envelope().clone()),
    };
    let tls = tls::operator_login_client(pin, &code.trust_domain, KeyExchange::Auto)
        .doing("prepare the connection")?;
    let channel = connection::first_of(session, &addresses, |address| {
        let tls = tls.clone();
        async move { operator_connect(&address, tls).await }
    })
    .await?;
    let request = connection::request(&session.request_id, request);
    let answer = connection::client(channel)
        .login(request)
        .await
        .map_err(fault)?
        .into_inner();
    let profile = accept(
        session.client_toml.clone(),
        addresses,
        answer,
        key,
        pin,
        old.as_ref(),
    )?;
    profile.store(&signing)?;
    refresh(session, profile.clone(), &signing).await?;
    Ok(profile)
}

fn read_code(word: &str) -> Outcome<String> {
    let mut text = String::new();
    if word == "-" {
        std::io::stdin()
            .read_to_string(&mut text)
            .doing("read standard input")?;
    } else if let Some(path) = word.strip_prefix('@') {
        text = std::fs::read_to_string(path).doing(format!("read {path}"))?;
    } else {
        word.clone_into(&mut text);
    }
    // `init` prints the code alone on its last line.
    Ok(text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("")
        .to_owned())
}

/// The key this operator already signs with, so that it stays listed; else a new one.
fn signing_key(old: Option<&Profile>) -> Outcome<SigningKey> {
    if let Some(old) = old
        && let Ok(key) = SigningKey::load(&folder(&old.client_toml))
    {
        return Ok(key);
    }
    SigningKey::generate().doing("make a signing key")
}

/// Version 1, for a fleet that has no policy yet: this operator alone may sign.
fn first_policy(now: Timestamp, code: &OperatorCode, key: &SigningKey) -> Outcome<TrustedPolicy> {
    let what = "make the signer policy";
    let policy = SignerPolicy {
        version: 1,
        trust_domain: code.trust_domain.clone(),
        threshold: 1,
        signers: vec![Signer {
            name: code.name.clone(),
            public_key: key.public_key(),
        }],
        created: now,
    };
    TrustedPolicy::first(policy.sign(key).doing(what)?, &code.trust_domain).doing(what)
}

/// Checks what came back against the pin, and against what was trusted before.
fn accept(
    client_toml: PathBuf,
    addresses: Vec<String>,
    answer: LoginResponse,
    key: csr::PrivateKey,
    pin: [u8; 32],
    old: Option<&Profile>,
) -> Outcome<Profile> {
    let what = "login";
    let certificate = answer
        .certificate
        .ok_or_else(|| Fault::new(what, "the collector answered without a certificate"))?;
    let policy = answer
        .policy
        .ok_or_else(|| Fault::new(what, "the collector answered without a signer policy"))?;
    let root = Root::pinned(&certificate.root_der, &pin).doing(what)?;
    let leaf = Leaf::from_wire(key, &certificate.chain_der).doing(what)?;
    let policy = match old.map(|old| &old.policy) {
        Some(known) if known.digest() == sha256(&policy.payload) => known.clone(),
        Some(known) => known.update(policy).map_err(|error| {
            Fault::because("believe the collector's signer policy", &error)
                .hint("find out who changed the signers before you trust this collector again")
        })?,
        // The code's pin has led to this collector; what it says of signers is believed from now on.
        None => {
            let pin = sha256(&policy.payload);
            TrustedPolicy::establish(policy, &pin, leaf.spiffe().trust_domain()).doing(what)?
        }
    };
    let profile = Profile::assemble(client_toml, addresses, leaf, root, policy)?;
    if !answer.signer {
        terminal::warn(
            "your signing key is not in the fleet's signer policy: nodes will refuse your jobs and tokens",
        );
    }
    Ok(profile)
}

/// Says anew that the policy is current. Only a listed signer can, and nothing fails when it cannot.
pub(crate) async fn refresh(session: &Session, profile: Profile, key: &SigningKey) -> Outcome {
    let own = key.public_key();
    if !profile
        .policy
        .signers()
        .iter()
        .any(|signer| signer.public_key == own)
    {
        return Ok(());
    }
    let statement = profile.policy.sign_freshness(key, session.now());
    let mut collector = Collector::plain(session, profile).await?;
    let trust = Trust {
        policy: Some(collector.profile.policy.envelope().clone()),
        freshness: Some(statement),
        ..Trust::default()
    };
    let request = collector.request(trust);
    collector
        .client
        .put_trust(request)
        .await
        .map_err(fault)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_the_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("code");
        std::fs::write(&path, "state made\n\n nxo_abc \n").unwrap();
        assert_eq!(
            read_code(&format!("@{}", path.display())).unwrap(),
            "nxo_abc"
        );
        assert_eq!(read_code("nxo_x").unwrap(), "nxo_x");
        assert!(read_code("@/nowhere").is_err());
    }

    #[test]
    fn the_first_policy_lists_its_maker() {
        let key = SigningKey::generate().unwrap();
        let code = OperatorCode::generate(
            "admin",
            "example.org",
            [7; 32],
            vec!["localhost:7461".to_owned()],
            Timestamp(9),
        )
        .unwrap();
        let policy = first_policy(Timestamp(5), &code, &key).unwrap();
        assert_eq!(policy.version(), 1);
        let statement = policy.sign_freshness(&key, Timestamp(5));
        assert!(policy.verify_freshness(&statement, Timestamp(6)).is_ok());
    }
}
