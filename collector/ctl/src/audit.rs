//! `nexusctl audit verify`: recomputes the whole chain here, and compares it with what was seen before.
//!
//! Each row's hash covers the row and the hash before it, so one head stands for all rows. The head of
//! the last verification is kept beside the keys: a chain that was rewritten from any row on, however
//! consistently, no longer leads through it.

use std::path::Path;

use nexus_proto::{
    audit,
    operator::v1::{AuditRow, ReadAuditRequest},
};
use serde::{Deserialize, Serialize};

use crate::{
    cli::OutputArgs,
    config,
    connection::fault,
    fault::{Context as _, Fault, Outcome},
    output::Cell,
    profile::folder,
    session::Session,
};

/// Where the head is kept, in the folder of keys.
pub(crate) const HEAD_FILE: &str = "audit.json";

/// A row that stands for all before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// Which fleet's chain, by the SHA-256 of its root certificate.
    root_sha256: String,
    seq: u64,
    hash: String,
}

pub(crate) async fn verify(session: &Session, output: &OutputArgs) -> Outcome {
    let mut collector = session.connect().await?;
    let dir = folder(&session.client_toml);
    let root_sha256 = nexus_pki::hex(&collector.profile.root.sha256());
    let known = load(&dir)?.filter(|head| head.root_sha256 == root_sha256);
    let mut check = Check::new(known.clone());
    let request = collector.request(ReadAuditRequest { from_seq: 0 });
    let mut rows = collector
        .client
        .read_audit(request)
        .await
        .map_err(fault)?
        .into_inner();
    while let Some(row) = rows.message().await.map_err(fault)? {
        check.take(&row)?;
    }
    let (seq, hash) = check.finish()?;
    let head = Head {
        root_sha256,
        seq,
        hash: nexus_pki::hex(&hash),
    };
    store(&dir, &head)?;
    let since = known.map_or(Cell::Null, |head| Cell::Unsigned(head.seq));
    config::one(
        session,
        output,
        vec![
            ("verified_rows", Cell::Unsigned(seq)),
            ("head_hash", Cell::Text(head.hash)),
            ("previous_head_seq", since),
        ],
    )
}

/// Takes rows in order and refuses the first that does not fit.
struct Check {
    known: Option<Head>,
    seq: u64,
    hash: [u8; 32],
}

impl Check {
    fn new(known: Option<Head>) -> Self {
        Self {
            known,
            seq: 0,
            hash: audit::GENESIS,
        }
    }

    fn take(&mut self, row: &AuditRow) -> Outcome {
        let what = "audit verify";
        let expected = self.seq + 1;
        if row.seq != expected {
            return Err(broken(format!(
                "row {expected} is missing: row {} follows",
                row.seq
            )));
        }
        if row.prev_hash.as_ref() != self.hash {
            return Err(broken(format!(
                "row {expected} does not follow the row before it"
            )));
        }
        let hash = audit::row_hash(&self.hash, row);
        if row.hash.as_ref() != hash {
            return Err(broken(format!(
                "row {expected} was changed: its hash is not that of its content"
            )));
        }
        if let Some(known) = &self.known
            && known.seq == row.seq
            && known.hash != nexus_pki::hex(&hash)
        {
            return Err(Fault::new(
                what,
                format!("the chain was rewritten: row {expected} is not the one verified before"),
            )
            .hint("compare with a backup of the collector's audit.db"));
        }
        self.seq = expected;
        self.hash = hash;
        Ok(())
    }

    fn finish(self) -> Outcome<(u64, [u8; 32])> {
        if let Some(known) = self.known
            && known.seq > self.seq
        {
            let (first, last) = (self.seq + 1, known.seq);
            return Err(broken(format!(
                "rows {first} to {last}, verified before, are gone"
            )));
        }
        Ok((self.seq, self.hash))
    }
}

fn broken(why: String) -> Fault {
    Fault::new("audit verify", why).hint("compare with a backup of the collector's audit.db")
}

fn load(dir: &Path) -> Outcome<Option<Head>> {
    let path = dir.join(HEAD_FILE);
    let what = || format!("read {}", path.display());
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).doing(what()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fault::because(what(), &error)),
    }
}

fn store(dir: &Path, head: &Head) -> Outcome {
    let what = format!("remember the head in {}", dir.join(HEAD_FILE).display());
    let text = serde_json::to_vec(head).doing(what.clone())?;
    nexus_pki::files::write_private(dir, HEAD_FILE, &text).doing(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(actions: &[&str]) -> Vec<AuditRow> {
        let mut hash = audit::GENESIS;
        let mut rows = Vec::new();
        for (seq, action) in (1..).zip(actions) {
            let mut row = AuditRow {
                seq,
                action: (*action).to_owned(),
                prev_hash: hash.to_vec().into(),
                ..AuditRow::default()
            };
            hash = audit::row_hash(&hash, &row);
            row.hash = hash.to_vec().into();
            rows.push(row);
        }
        rows
    }

    fn verify(rows: &[AuditRow], known: Option<Head>) -> Outcome<Head> {
        let mut check = Check::new(known);
        rows.iter().try_for_each(|row| check.take(row))?;
        let (seq, hash) = check.finish()?;
        Ok(Head {
            root_sha256: String::new(),
            seq,
            hash: nexus_pki::hex(&hash),
        })
    }

    #[test]
    fn an_honest_chain_may_only_grow() {
        let rows = chain(&["a", "b", "c"]);
        let head = verify(rows.get(..2).unwrap(), None).unwrap();
        assert_eq!(verify(&rows, Some(head)).unwrap().seq, 3);
        assert_eq!(verify(&[], None).unwrap().seq, 0);
    }

    #[test]
    fn every_rewrite_shows() {
        let rows = chain(&["a", "b", "c"]);
        let head = verify(&rows, None).unwrap();
        let mut changed = rows.clone();
        changed[1].actor = "someone else".into();
        assert!(
            verify(&changed, None)
                .unwrap_err()
                .why
                .contains("row 2 was changed")
        );
        let mut gap = rows.clone();
        gap.remove(1);
        assert!(
            verify(&gap, None)
                .unwrap_err()
                .why
                .contains("row 2 is missing")
        );
        let shorter = verify(&rows[..2], Some(head.clone())).unwrap_err();
        assert!(shorter.why.contains("rows 3 to 3"), "{shorter}");
        // Consistent in itself, and still found out.
        let rewritten = chain(&["a", "x", "c", "d"]);
        assert!(verify(&rewritten, None).is_ok());
        assert!(
            verify(&rewritten, Some(head))
                .unwrap_err()
                .why
                .contains("rewritten")
        );
    }
}
