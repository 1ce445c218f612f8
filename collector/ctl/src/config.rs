//! `nexusctl config` and `version`: where things are. Keys are never shown.

use serde_json::json;

use crate::{
    cli::OutputArgs,
    fault::Outcome,
    output::{self, Cell, Field, Format, Printer, Shown},
    profile::{Profile, folder},
    session::Session,
};

pub(crate) fn config(session: &Session, output: &OutputArgs) -> Outcome {
    let mut entries = vec![
        (
            "client_toml",
            Cell::text(session.client_toml.display().to_string()),
        ),
        (
            "operator_dir",
            Cell::text(folder(&session.client_toml).display().to_string()),
        ),
    ];
    let profile = match Profile::load(&session.client_toml) {
        Ok(profile) => Some(profile),
        // Not being logged in is an answer; a broken file is a failure.
        Err(_) if !session.client_toml.exists() => None,
        Err(fault) => return Err(fault),
    };
    entries.push(("logged_in", Cell::Json(json!(profile.is_some()))));
    if let Some(profile) = profile {
        let key_id = profile
            .signing_key()
            .map(|key| key.key_id())
            .unwrap_or_default();
        entries.extend([
            ("addresses", Cell::Json(json!(profile.addresses))),
            ("operator", Cell::text(profile.name.clone())),
            ("trust_domain", Cell::text(profile.trust_domain.clone())),
            ("spiffe_id", Cell::text(profile.leaf.spiffe().to_string())),
            (
                "certificate_expires_at",
                Cell::Text(profile.leaf.not_after().to_string()),
            ),
            (
                "root_sha256",
                Cell::text(nexus_pki::hex(&profile.root.sha256())),
            ),
            ("signing_key_id", Cell::text(key_id)),
            ("policy_version", Cell::Unsigned(profile.policy.version())),
            (
                "policy_sha256",
                Cell::text(nexus_pki::hex(&profile.policy.digest())),
            ),
        ]);
    }
    one(session, output, entries)
}

pub(crate) fn version(output: &OutputArgs) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    let (low, high) = nexus_proto::PROTOCOL;
    let value = json!({ "version": version, "protocol_min": low, "protocol_max": high });
    match output::document(output.output, &value) {
        Some(text) => output::line(&text?),
        None => output::line(&format!("nexusctl {version}")),
    }
}

/// One thing with its fields: lines of `KEY value` for people, one object otherwise.
pub(crate) fn one(session: &Session, output: &OutputArgs, entries: Vec<(&str, Cell)>) -> Outcome {
    let object: serde_json::Map<_, _> = entries
        .iter()
        .map(|(key, cell)| ((*key).to_owned(), output::json_of(cell)))
        .collect();
    if let Some(text) = output::document(output.output, &object.into()) {
        return output::line(&text?);
    }
    if output.output == Format::Csv {
        let fields = entries
            .iter()
            .map(|(key, _)| Field::new(key, Shown::Always))
            .collect();
        let mut printer = Printer::new(session.style(output), fields, output::stdout())?;
        let row: Vec<_> = entries.into_iter().map(|(_, cell)| cell).collect();
        printer.row(&row)?;
        return printer.finish().map(drop);
    }
    let fields = vec![
        Field::new("key", Shown::Always),
        Field::new("value", Shown::Always),
    ];
    let style = output::Style {
        headers: false,
        name_fields: vec![1],
        ..session.style(output)
    };
    let mut printer = Printer::new(style, fields, output::stdout())?;
    for (key, cell) in entries {
        printer.row(&[Cell::text(key), cell])?;
    }
    printer.finish().map(drop)
}
