//! The hash chain of the audit file.
//!
//! A row's hash is BLAKE3 (derive-key mode, context [`CONTEXT`]) over the hash of the row before it and
//! the row's own fields: `prev[32] seq[8] time_ms[8]`, then each text as its length in 8 bytes and its
//! UTF-8, in the order actor, action, subject, decision, detail, request id. Integers are big-endian.
//! The first row has seq 1 and follows [`GENESIS`].

use crate::operator::v1::AuditRow;

/// Keeps these hashes apart from any other use of BLAKE3.
const CONTEXT: &str = "nexus audit chain v1";

/// The hash before the first row.
pub const GENESIS: [u8; 32] = [0; 32];

/// The hash of a row that follows `prev`. The row's own `prev_hash` and `hash` are not looked at.
#[must_use]
pub fn row_hash(prev: &[u8; 32], row: &AuditRow) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(prev);
    hasher.update(&row.seq.to_be_bytes());
    hasher.update(&row.time_ms.to_be_bytes());
    let texts = [
        &row.actor,
        &row.action,
        &row.subject,
        &row.decision,
        &row.detail,
        &row.request_id,
    ];
    for text in texts {
        hasher.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(text.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_counts() {
        let row = AuditRow {
            seq: 1,
            actor: "ab".into(),
            ..AuditRow::default()
        };
        let hash = row_hash(&GENESIS, &row);
        let changes: [fn(&mut AuditRow); 9] = [
            |row| row.seq = 2,
            |row| row.time_ms = 1,
            |row| row.actor = "a".into(),
            |row| row.action = "a".into(),
            |row| row.subject = "a".into(),
            |row| row.decision = "a".into(),
            |row| row.detail = "a".into(),
            |row| row.request_id = "a".into(),
            // The same bytes, split elsewhere.
            |row| (row.actor, row.action) = ("a".into(), "b".into()),
        ];
        for change in changes {
            let mut changed = row.clone();
            change(&mut changed);
            assert_ne!(row_hash(&GENESIS, &changed), hash, "{changed:?}");
        }
        assert_ne!(row_hash(&[1; 32], &row), hash);
        let rest = AuditRow {
            hash: vec![1].into(),
            prev_hash: vec![2].into(),
            ..row
        };
        assert_eq!(row_hash(&GENESIS, &rest), hash);
    }
}
