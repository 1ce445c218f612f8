//! `nexusctl login`: a one-time code becomes two keys, made here.
//!
//! The code pins the fleet's root before anything secret is sent. The first operator also signs version 1
//! of the signer policy; everyone else must be sure of the one there is, since whoever it lists can run code on
//! the nodes this operator's tokens let in. Then the policy is said to be current (its freshness).

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use nexus_pki::{
    certificate::Root,
    csr, files,
    leaf::Leaf,
    operator_code::{OperatorCode, OperatorCodeError},
    policy::{SignerPolicy, TrustedPolicy},
    signing::{Signer, SigningKey},
    tls::{self, KeyExchange},
};
use nexus_proto::{
    operator::v1::{LoginRequest, LoginResponse},
    time::Timestamp,
};

use crate::{
    cli::LoginArgs,
    connection::{self, fault},
    dial::operator_connect,
    fault::{Context as _, Exit, Fault, Outcome, chain},
    profile::{Profile, check_leaf, folder, remove_folder},
    session::{Session, within},
    signers::{self, Voucher},
    terminal,
};

pub(crate) async fn login(session: &Session, args: &LoginArgs) -> Outcome {
    let code = read_code(&args.code)?;
    let voucher = args.policy_sha256.map_or(Voucher::Person, Voucher::Digest);
    let profile = with_code(session, &code, args.address.clone(), voucher, args.timeout).await?;
    signers::show(&profile.policy, &profile.signing_key()?.public_key());
    terminal::say(&format!(
        "logged in to {} as {} until {}",
        profile.trust_domain,
        profile.name,
        profile.leaf.not_after()
    ));
    Ok(())
}

/// Logs in with a code's text; `addresses` stand in for those in the code. `limit` bounds each wait for the
/// collector, not the time a person takes to answer.
pub(crate) async fn with_code(
    session: &Session,
    code: &str,
    addresses: Vec<String>,
    voucher: Voucher,
    limit: Duration,
) -> Outcome<Profile> {
    let code = parse(session, code)?;
    let addresses = addresses_of(&code, addresses)?;
    let old = Profile::load(&session.client_toml)
        .ok()
        .filter(|old| old.root.sha256() == code.root_sha256);
    let pending = pending_folder(&session.client_toml, &code.root_sha256);
    let signing = signing_key(old.as_ref(), &pending)?;
    let made = match (&old, voucher) {
        // What is known, or has a digest already, was made before.
        (Some(_), _) | (None, Voucher::Digest(_)) => None,
        (None, Voucher::Person | Voucher::Collector) => {
            Some(first_policy(session.now(), &code, &signing)?)
        }
    };
    let offered = old.as_ref().map(|old| &old.policy).or(made.as_ref());
    let (key, csr_der) = csr::new_csr().doing("make a key")?;
    let request = LoginRequest {
        code_id: Bytes::copy_from_slice(&code.id),
        code_secret: Bytes::copy_from_slice(code.secret.as_slice()),
        csr_der: csr_der.into(),
        signing_public_key: Bytes::copy_from_slice(&signing.public_key().0),
        policy: offered.map(|policy| policy.envelope().clone()),
        // Said once the collector's clock is known.
        freshness: None,
    };
    let answer = within(limit, "login", ask(session, &code, &addresses, request)).await?;
    let what = "login";
    let certificate = answer
        .certificate
        .ok_or_else(|| Fault::new(what, "the collector answered without a certificate"))?;
    let policy = answer
        .policy
        .ok_or_else(|| Fault::new(what, "the collector answered without a signer policy"))?;
    let root = Root::pinned(&certificate.root_der, &code.root_sha256).doing(what)?;
    let leaf = Leaf::from_wire(key, &certificate.chain_der).doing(what)?;
    check_leaf(
        what,
        &leaf,
        &root,
        &code.trust_domain,
        &code.name,
        session.now(),
    )?;
    let own = signing.public_key();
    let policy = match &old {
        Some(old) => signers::newer(&old.policy, policy, &own)?,
        None => {
            signers::first_seen(policy, made.as_ref(), &own, &code.trust_domain, voucher).await?
        }
    };
    if let Voucher::Digest(pin) = voucher {
        signers::is_pinned(&policy, &pin)?;
    }
    let profile = Profile::assemble(session.client_toml.clone(), addresses, leaf, root, policy)?;
    if !signers::lists(&profile.policy, &profile.name, &own) {
        terminal::warn(
            "your signing key is not in the fleet's signer policy: nodes will refuse your jobs and tokens",
        );
    }
    profile.store(&signing)?;
    remove_folder(&pending).doing("forget the key of unfinished logins")?;
    within(limit, "login", signers::refresh(session, profile, &signing)).await
}

/// The code, if it is still good.
fn parse(session: &Session, text: &str) -> Outcome<OperatorCode> {
    let code = OperatorCode::parse(text.trim()).map_err(|error| {
        // What a parser of messages says of noise helps nobody.
        let why = match &error {
            OperatorCodeError::Encoding(_) => error.to_string(),
            other => chain(other),
        };
        Fault::new("read the code", why)
            .hint("copy it whole, from nxo_ to its end, as `nexus-collector init` or `login-code` printed it")
    })?;
    if session.now() < code.expires {
        return Ok(code);
    }
    Err(
        Fault::new("login", format!("the code expired at {}", code.expires))
            .hint("`nexus-collector login-code` on the collector's host prints a new one")
            .exits(Exit::Denied),
    )
}

fn addresses_of(code: &OperatorCode, given: Vec<String>) -> Outcome<Vec<String>> {
    let addresses = if given.is_empty() {
        code.addresses.clone()
    } else {
        // As an address stands in `endpoints.json`, too.
        let bare = |address: String| {
            let bare = address.strip_prefix("https://").unwrap_or(&address);
            bare.trim_end_matches('/').to_owned()
        };
        given.into_iter().map(bare).collect()
    };
    if addresses.is_empty() {
        return Err(
            Fault::usage("login", "the code does not say where the collector is")
                .hint("give --address HOST:PORT"),
        );
    }
    Ok(addresses)
}

/// Spends the code at the collector the code pins.
async fn ask(
    session: &Session,
    code: &OperatorCode,
    addresses: &[String],
    request: LoginRequest,
) -> Outcome<LoginResponse> {
    let tls = tls::operator_login_client(code.root_sha256, &code.trust_domain, KeyExchange::Auto)
        .doing("prepare the connection")?;
    let channel = connection::first_of(session, addresses, |address| {
        let tls = tls.clone();
        async move { operator_connect(&address, tls).await }
    })
    .await?;
    let request = connection::request(&session.request_id, request);
    let answer = connection::client(channel).login(request).await;
    Ok(answer.map_err(fault)?.into_inner())
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

/// The key this operator already signs with, so that it stays listed; else a new one. That is kept before the
/// collector hears of it: the policy may list it even though its answer never comes back.
fn signing_key(old: Option<&Profile>, pending: &Path) -> Outcome<SigningKey> {
    let dirs = old.map(|old| folder(&old.client_toml));
    for dir in dirs.iter().map(PathBuf::as_path).chain([pending]) {
        if let Ok(key) = SigningKey::load(dir) {
            return Ok(key);
        }
    }
    let what = "make a signing key";
    let key = SigningKey::generate().doing(what)?;
    files::create_folder(pending).doing(what)?;
    key.save(pending).doing(what)?;
    Ok(key)
}

/// Beside the folder of keys, one for every fleet by its root.
fn pending_folder(client_toml: &Path, root_sha256: &[u8; 32]) -> PathBuf {
    let (begin, _) = root_sha256.split_at(8);
    folder(client_toml).with_extension(format!("login-{}", nexus_pki::hex(begin)))
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
