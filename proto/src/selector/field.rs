//! Field selectors: `name=web-1,state!=connected`.

use std::fmt;

use super::SelectorError;

/// Conditions on the named fields of a thing, all of which must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector(Vec<FieldRequirement>);

/// One condition on one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field.
    pub field: String,
    /// Whether it must be equal (`=`) or must not (`!=`).
    pub equal: bool,
    /// To what.
    pub value: String,
}

impl FieldSelector {
    /// Reads the text form; `known` are the fields of the thing.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (position, term) in terms(text) {
            let requirement = parse_term(&term, position)?;
            if !known.contains(&requirement.field.as_str()) {
                return Err(SelectorError::UnknownField {
                    field: requirement.field,
                    known: known.join(", "),
                });
            }
            requirements.push(requirement);
        }
        Ok(Self(requirements))
    }

    /// Whether every condition holds, given a field's value by name; an absent one counts as empty.
    pub fn matches<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = value_of(&requirement.field).unwrap_or("");
            (value == requirement.value) == requirement.equal
        })
    }

    /// Its conditions, in the order given.
    #[must_use]
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.0
    }

    /// Whether it asks for nothing and so holds for everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            write!(
                f,
                "{}{}",
                requirement.field,
                if requirement.equal { "=" } else { "!=" }
            )?;
            for c in requirement.value.chars() {
                f.write_str(if matches!(c, '\\' | ',' | '=') {
                    "\\"
                } else {
                    ""
                })?;
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// A character, and whether a backslash stood before it.
type Escaped = (char, bool);

/// The terms between unescaped commas with their positions, in characters from 1; empty ones left out.
fn terms(text: &str) -> Vec<(usize, Vec<Escaped>)> {
    let mut terms = Vec::new();
    let mut term = Vec::new();
    let mut begin = 1;
    let mut chars = text.chars().enumerate();
    while let Some((index, c)) = chars.next() {
        match c {
            '\\' => term.push(chars.next().map_or(('\\', true), |(_, next)| (next, true))),
            ',' => {
                terms.push((begin, std::mem::take(&mut term)));
                begin = index + 2;
            }
            _ => term.push((c, false)),
        }
    }
    terms.push((begin, term));
    terms.retain(|(_, term)| term.iter().any(|(c, _)| !c.is_whitespace()));
    terms
}

fn parse_term(term: &[Escaped], position: usize) -> Result<FieldRequirement, SelectorError> {
    let plain = |chars: &[Escaped]| chars.iter().map(|(c, _)| *c).collect::<String>();
    let expected = || SelectorError::Expected {
        expected: "FIELD=VALUE or FIELD!=VALUE",
        found: format!("`{}`", plain(term)),
        position,
    };
    let equals = term
        .iter()
        .position(|c| *c == ('=', false))
        .ok_or_else(expected)?;
    let (left, right) = term.split_at_checked(equals).ok_or_else(expected)?;
    let (field, equal) = match left.split_last() {
        Some((('!', false), field)) => (field, false),
        _ => (left, true),
    };
    // `==` means `=`.
    let value = match right {
        [_, ('=', false), value @ ..] if equal => value,
        [_, value @ ..] => value,
        [] => return Err(expected()),
    };
    let field = plain(field).trim().to_owned();
    // What stands before the `=` of `>=` is part of an operator that there is not.
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if field.is_empty() || !field.chars().all(named) {
        return Err(expected());
    }
    Ok(FieldRequirement {
        field,
        equal,
        value: plain(value).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIELDS: &[&str] = &["name", "state"];

    fn parse(text: &str) -> Result<FieldSelector, SelectorError> {
        FieldSelector::parse(text, FIELDS)
    }

    #[test]
    fn compares_fields() {
        let node = |field: &str| match field {
            "name" => Some("web-1"),
            "state" => Some("connected"),
            _ => None,
        };
        for holds in [
            "",
            "name=web-1",
            "name==web-1",
            "state!=revoked, name=web-1",
            " name = web-1 ,",
        ] {
            assert!(parse(holds).unwrap().matches(node), "{holds}");
        }
        for fails in [
            "name=web",
            "name!=web-1",
            "state=",
            "name=web-1,state=revoked",
        ] {
            assert!(!parse(fails).unwrap().matches(node), "{fails}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, message) in [
            ("nam=a", "there is no field `nam`; fields are name, state"),
            (
                "name=a,state",
                "expected FIELD=VALUE or FIELD!=VALUE at position 8, found `state`",
            ),
            (
                "name>=a",
                "expected FIELD=VALUE or FIELD!=VALUE at position 1, found `name>=a`",
            ),
            (
                "name gte a",
                "expected FIELD=VALUE or FIELD!=VALUE at position 1, found `name gte a`",
            ),
            (
                "=a",
                "expected FIELD=VALUE or FIELD!=VALUE at position 1, found `=a`",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn shown_form_means_the_same(value in "[a-z,=\\\\!]{0,10}", equal: bool) {
            let requirement = FieldRequirement { field: "name".to_owned(), equal, value };
            let selector = FieldSelector(vec![requirement]);
            prop_assert_eq!(parse(&selector.to_string()).unwrap(), selector);
        }
    }
}
