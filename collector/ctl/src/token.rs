//! `nexusctl token create|revoke`: tokens are signed here and registered there.

use nexus_pki::token::{self, JoinToken, Token};
use nexus_proto::{
    ids::TokenId,
    operator::v1::{CreateTokenRequest, GetTrustRequest, RevokeTokenRequest},
};

use crate::{
    cli::TokenCreateArgs,
    connection::{Collector, fault},
    fault::{Context as _, Fault, Outcome},
    label, names, output,
    session::Session,
    signers, terminal,
};

pub(crate) async fn create(session: &Session, args: &TokenCreateArgs) -> Outcome {
    label::pairs(&args.label)?;
    if args.ttl.is_zero() {
        return Err(Fault::usage(
            "token create --ttl",
            "a token must live for some time",
        ));
    }
    for address in &args.address {
        check_address(address)?;
    }
    let mut collector = session.connect().await?;
    let issued = issue(session, args, &mut collector).await?;
    let claims = &issued.claims;
    terminal::say(&format!(
        "token {}, for {}, until {}; nodes join at {}",
        claims.id,
        terminal::counted(claims.uses.into(), "node"),
        claims.expires,
        claims.addresses.join(", ")
    ));
    output::line(&issued.text)
}

/// A token that was signed here and registered there.
pub(crate) struct Issued {
    pub(crate) claims: JoinToken,
    /// The secret itself.
    pub(crate) text: String,
}

/// Signs a token and has it registered.
pub(crate) async fn issue(
    session: &Session,
    args: &TokenCreateArgs,
    collector: &mut Collector,
) -> Outcome<Issued> {
    let labels = label::pairs(&args.label)?;
    signers::update(collector).await?;
    let mut addresses = args.address.clone();
    if addresses.is_empty() {
        let request = collector.request(GetTrustRequest {});
        let trust = collector
            .client
            .get_trust(request)
            .await
            .map_err(fault)?
            .into_inner();
        addresses = trust.agent_addresses;
    }
    if addresses.is_empty() {
        return Err(Fault::new(
            "token create",
            "the collector does not say where agents reach it",
        )
        .hint("give --address HOST:PORT, or set advertise.agents in collector.toml"));
    }
    let now = session.now();
    let profile = &collector.profile;
    let claims = JoinToken {
        id: TokenId::random(),
        root_sha256: profile.root.sha256(),
        policy_digest: profile.policy.digest(),
        addresses,
        labels,
        created: now,
        expires: now.after(args.ttl),
        uses: args.uses,
        trust_domain: profile.trust_domain.clone(),
    };
    let token = token::create(&profile.signing_key()?, &claims).doing("token create")?;
    let text = token.to_string();
    let request = collector.request(CreateTokenRequest {
        token: Some(token.envelope().clone()),
    });
    collector
        .client
        .create_token(request)
        .await
        .map_err(fault)?;
    Ok(Issued { claims, text })
}

pub(crate) async fn revoke(session: &Session, word: &str) -> Outcome {
    let secret = id_of(word)?;
    let mut collector = session.connect().await?;
    let id = match secret {
        Some(id) => id,
        None => {
            let text = names::whole_id(&mut collector, word, "tokens", "token").await?;
            text.parse().doing(format!("token {word}"))?
        }
    };
    let request = collector.request(RevokeTokenRequest {
        token_id: id.to_wire(),
    });
    collector
        .client
        .revoke_token(request)
        .await
        .map_err(fault)?;
    terminal::say(&format!("token {id} revoked"));
    Ok(())
}

/// The id within a token itself, which is not repeated: it is a secret.
fn id_of(word: &str) -> Outcome<Option<TokenId>> {
    let text = word.strip_prefix("token/").unwrap_or(word);
    if !text.starts_with(token::PREFIX) {
        return Ok(None);
    }
    let token = Token::parse(text).map_err(|_| {
        Fault::new("token revoke", "part of the token is missing or changed")
            .hint("`nexusctl get tokens` lists the ids of tokens")
    })?;
    Ok(Some(token.claims().id))
}

/// `HOST:PORT`
fn check_address(address: &str) -> Outcome {
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty());
    if port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Ok(());
    }
    Err(Fault::usage(
        "token create --address",
        format!("`{address}` is not HOST:PORT"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["a:1", "[::1]:7460", "collector.example.org:65535"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in ["a", ":1", "a:", "a:0", "a:65536"] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
