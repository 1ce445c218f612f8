//! What a label's key and value may be: Kubernetes' rules.
//!
//! A key is `[prefix/]name`: the prefix a DNS subdomain of at most 253 characters, the name 1 to 63
//! characters of `[A-Za-z0-9_.-]` that begins and ends with a letter or digit. A value is empty or
//! what a key's name may be.

use std::collections::BTreeMap;

use crate::limits;

/// What is wrong with a label.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelError {
    /// The key breaks the rules.
    #[error("label key `{key}` is not valid: {why}")]
    Key {
        /// The key.
        key: String,
        /// Which rule.
        why: &'static str,
    },
    /// The value breaks the rules.
    #[error("label value `{value}` is not valid: {why}")]
    Value {
        /// The value.
        value: String,
        /// Which rule.
        why: &'static str,
    },
    /// More labels than a node may have.
    #[error("{count} labels are more than the {} a node may have", limits::LABELS)]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// Whether `key` can be a label's key.
pub fn check_key(key: &str) -> Result<(), LabelError> {
    let fault = |why| LabelError::Key {
        key: shortened(key),
        why,
    };
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            check_prefix(prefix).map_err(fault)?;
            name
        }
        None => key,
    };
    if name.is_empty() {
        return Err(fault("the name is empty"));
    }
    check_name(name).map_err(fault)
}

/// Whether `value` can be a label's value.
pub fn check_value(value: &str) -> Result<(), LabelError> {
    if value.is_empty() {
        return Ok(());
    }
    check_name(value).map_err(|why| LabelError::Value {
        value: shortened(value),
        why,
    })
}

/// Whether these can be the labels of one node.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), LabelError> {
    if labels.len() > limits::LABELS {
        return Err(LabelError::TooMany {
            count: labels.len(),
        });
    }
    for (key, value) in labels {
        check_key(key)?;
        check_value(value)?;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.len() > limits::LABEL_VALUE_BYTES {
        return Err("it is longer than 63 characters");
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    {
        return Err("it may hold only letters, digits, `-`, `_` and `.`");
    }
    let ends = name
        .bytes()
        .next()
        .into_iter()
        .chain(name.bytes().next_back());
    if !ends.into_iter().all(|b| b.is_ascii_alphanumeric()) {
        return Err("it must begin and end with a letter or digit");
    }
    Ok(())
}

/// RFC 1123 subdomain.
fn check_prefix(prefix: &str) -> Result<(), &'static str> {
    if prefix.is_empty() {
        return Err("the part before `/` is empty");
    }
    if prefix.len() > limits::LABEL_KEY_BYTES {
        return Err("the part before `/` is longer than 253 characters");
    }
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = prefix.split('.').all(|part| {
        part.bytes().all(|b| is_word(b) || b == b'-')
            && part.bytes().next().is_some_and(is_word)
            && part.bytes().next_back().is_some_and(is_word)
    });
    if fits {
        Ok(())
    } else {
        Err("the part before `/` must be a lower-case DNS name")
    }
}

/// Enough of a text to recognize it by.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for good in ["role", "a", "A.b_c-9", "example.com/role", "a-b.c/x", "in"] {
            assert_eq!(check_key(good), Ok(()), "{good}");
        }
        for bad in [
            "", "-a", "a-", ".", "a b", "ä", "/a", "a/", "A/b", "a/b/c", "a..b/c", "-a/b",
        ] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
        assert!(check_key(&"a".repeat(63)).is_ok());
        assert!(check_key(&"a".repeat(64)).is_err());
        assert!(check_key(&format!("{}/a", "a".repeat(254))).is_err());
    }

    #[test]
    fn values() {
        for good in ["", "web", "1.2.3", "a_b-c"] {
            assert_eq!(check_value(good), Ok(()), "{good}");
        }
        assert_eq!(
            check_value("a/b").unwrap_err().to_string(),
            "label value `a/b` is not valid: it may hold only letters, digits, `-`, `_` and `.`"
        );
        assert!(check_value(&"a".repeat(64)).is_err());
    }

    #[test]
    fn sets() {
        let many = |n: usize| (0..n).map(|i| (format!("k{i}"), String::new())).collect();
        assert_eq!(check_labels(&many(limits::LABELS)), Ok(()));
        assert!(check_labels(&many(limits::LABELS + 1)).is_err());
    }
}
