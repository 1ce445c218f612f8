//! Which nodes are meant: label selectors and field selectors, and what a label may look like.
//!
//! The grammar is Kubernetes': requirements joined by commas, all of which must hold.
//!
//! ```text
//! role=web   a==b         the label has that value
//! role!=web               it has another value, or is absent
//! zone in (a,b)           it has one of the values
//! zone notin (a,b)        it has none of them, or is absent
//! canary   !canary        it is present, it is absent
//! ```
//!
//! An empty selector holds for everything. A field selector knows `=`, `==` and `!=` on the few named
//! fields of a thing (`name=web-1,state!=connected`); `\\`, `\,` and `\=` stand for the plain characters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

pub mod field;
pub mod label;
mod lexer;

pub use field::FieldSelector;
pub use label::{LabelError, check_key, check_value};
use lexer::{Lexer, Token};

/// Why a text is no selector. Positions count characters from 1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectorError {
    /// Something else should stand here.
    #[error("expected {expected} at position {position}, found {found}")]
    Expected {
        /// What the grammar allows here.
        expected: &'static str,
        /// What stands here.
        found: String,
        /// Where.
        position: usize,
    },
    /// An operator of numbers; labels are text.
    #[error("`{operator}` at position {position} is not supported: labels are text")]
    Comparison {
        /// `<` or `>`.
        operator: char,
        /// Where.
        position: usize,
    },
    /// A key or value that no label can have.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// A field that the thing does not have.
    #[error("there is no field `{field}`; fields are {known}")]
    UnknownField {
        /// What was asked for.
        field: String,
        /// What there is, comma-separated.
        known: String,
    },
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// `key in (…)`; `key=value` is a set of one.
    In(String, BTreeSet<String>),
    /// `key notin (…)`; also holds where the label is absent.
    NotIn(String, BTreeSet<String>),
    /// `key`
    Exists(String),
    /// `!key`
    Absent(String),
}

impl Requirement {
    /// Whether it holds for these labels.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => !labels.get(key).is_some_and(|v| values.contains(v)),
            Self::Exists(key) => labels.contains_key(key),
            Self::Absent(key) => !labels.contains_key(key),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, operators, values) = match self {
            Self::In(key, values) => (key, ("=", "in"), values),
            Self::NotIn(key, values) => (key, ("!=", "notin"), values),
            Self::Exists(key) => return f.write_str(key),
            Self::Absent(key) => return write!(f, "!{key}"),
        };
        let mut each = values.iter();
        if let (Some(only), None) = (each.next(), each.next()) {
            return write!(f, "{key}{}{only}", operators.0);
        }
        write!(f, "{key} {} (", operators.1)?;
        for (index, value) in values.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            f.write_str(value)?;
        }
        f.write_str(")")
    }
}

/// A label selector; shown in its normal form, which parses to the same selector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut lexer = Lexer::new(text);
        let mut requirements = Vec::new();
        if lexer.peek()?.token == Token::End {
            return Ok(Self(requirements));
        }
        loop {
            requirements.push(requirement(&mut lexer)?);
            let next = lexer.next()?;
            match next.token {
                Token::End => return Ok(Self(requirements)),
                Token::Comma => {}
                _ => return Err(next.expected("`,` or the end")),
            }
        }
    }

    /// Whether every requirement holds for these labels.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }

    /// Its requirements, in the order given.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// Whether it asks for nothing and so holds for everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

fn requirement(lexer: &mut Lexer<'_>) -> Result<Requirement, SelectorError> {
    let first = lexer.next()?;
    let key = match first.token {
        Token::Bang => return Ok(Requirement::Absent(key(lexer)?)),
        Token::Word(ref word) => {
            check_key(word)?;
            word.clone()
        }
        _ => return Err(first.expected("a label key or `!`")),
    };
    let next = lexer.peek()?;
    match &next.token {
        Token::End | Token::Comma => Ok(Requirement::Exists(key)),
        Token::Equals => {
            lexer.next()?;
            Ok(Requirement::In(key, one_value(lexer)?))
        }
        Token::NotEquals => {
            lexer.next()?;
            Ok(Requirement::NotIn(key, one_value(lexer)?))
        }
        Token::Word(word) if word == "in" => {
            lexer.next()?;
            Ok(Requirement::In(key, value_set(lexer)?))
        }
        Token::Word(word) if word == "notin" => {
            lexer.next()?;
            Ok(Requirement::NotIn(key, value_set(lexer)?))
        }
        _ => Err(lexer
            .next()?
            .expected("one of `=`, `==`, `!=`, `in`, `notin`, `,`")),
    }
}

fn key(lexer: &mut Lexer<'_>) -> Result<String, SelectorError> {
    let next = lexer.next()?;
    let Token::Word(word) = next.token else {
        return Err(next.expected("a label key"));
    };
    check_key(&word)?;
    Ok(word)
}

/// The value after `=`: nothing at all is the empty value.
fn one_value(lexer: &mut Lexer<'_>) -> Result<BTreeSet<String>, SelectorError> {
    let value = match &lexer.peek()?.token {
        Token::End | Token::Comma => String::new(),
        _ => {
            let next = lexer.next()?;
            let Token::Word(word) = next.token else {
                return Err(next.expected("a label value"));
            };
            word
        }
    };
    check_value(&value)?;
    Ok(BTreeSet::from([value]))
}

fn value_set(lexer: &mut Lexer<'_>) -> Result<BTreeSet<String>, SelectorError> {
    let open = lexer.next()?;
    if open.token != Token::Open {
        return Err(open.expected("`(`"));
    }
    let mut values = BTreeSet::new();
    loop {
        // As in Kubernetes, `(a,)` holds the empty value too.
        let value = match &lexer.peek()?.token {
            Token::Comma | Token::Close => String::new(),
            _ => {
                let next = lexer.next()?;
                let Token::Word(word) = next.token else {
                    return Err(next.expected("a label value"));
                };
                word
            }
        };
        check_value(&value)?;
        values.insert(value);
        let next = lexer.next()?;
        match next.token {
            Token::Close => return Ok(values),
            Token::Comma => {}
            _ => return Err(next.expected("`,` or `)`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn matches(selector: &str, pairs: &[(&str, &str)]) -> bool {
        Selector::parse(selector).unwrap().matches(&labels(pairs))
    }

    #[test]
    fn follows_kubernetes() {
        let node = [("role", "web"), ("zone", "a"), ("canary", "")];
        for holds in [
            "",
            "role=web",
            "role==web",
            "role!=db",
            "rack!=1",
            "zone in (a,b)",
            "zone in(a)",
            "zone notin (c)",
            "rack notin (c, d)",
            "canary",
            "canary=",
            "canary in (,x)",
            "!rack",
            "! rack",
            " role = web , zone in ( a , b ) ,canary,!rack ",
            "in!=x",
            "!in,!notin",
        ] {
            assert!(matches(holds, &node), "{holds}");
        }
        for fails in [
            "role=db",
            "role!=web",
            "zone notin (a)",
            "rack",
            "!canary",
            "rack in (1)",
            "rack=",
        ] {
            assert!(!matches(fails, &node), "{fails}");
        }
        assert!(matches("in in (in),notin notin (in)", &[("in", "in")]));
        assert!(matches(
            "example.com/role=web_1.x-y",
            &[("example.com/role", "web_1.x-y")]
        ));
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        for (text, message) in [
            (
                "role=web,",
                "expected a label key or `!` at position 10, found the end",
            ),
            (
                ",role",
                "expected a label key or `!` at position 1, found `,`",
            ),
            ("zone in a", "expected `(` at position 9, found `a`"),
            (
                "zone in (a",
                "expected `,` or `)` at position 11, found the end",
            ),
            (
                "zone in (a b)",
                "expected `,` or `)` at position 12, found `b`",
            ),
            ("a=b c", "expected `,` or the end at position 5, found `c`"),
            (
                "a b",
                "expected one of `=`, `==`, `!=`, `in`, `notin`, `,` at position 3, found `b`",
            ),
            ("a=(b)", "expected a label value at position 3, found `(`"),
            ("!", "expected a label key at position 2, found the end"),
            ("a>1", "`>` at position 2 is not supported: labels are text"),
        ] {
            assert_eq!(
                Selector::parse(text).unwrap_err().to_string(),
                message,
                "{text}"
            );
        }
        assert!(matches!(
            Selector::parse("ä=b"),
            Err(SelectorError::Label(_))
        ));
        assert!(matches!(
            Selector::parse("a=-b"),
            Err(SelectorError::Label(_))
        ));
    }

    #[test]
    fn shows_its_normal_form() {
        let selector =
            Selector::parse("a==b, c in (e,d),!f,g, h notin (i,j),k!=l,m in (n)").unwrap();
        assert_eq!(
            selector.to_string(),
            "a=b,c in (d,e),!f,g,h notin (i,j),k!=l,m=n"
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ignored = Selector::parse(&text);
            let _ignored = FieldSelector::parse(&text, &["name"]);
        }

        #[test]
        fn normal_form_means_the_same(text in "(!?[a-c]|[a-c](=|==|!=)[x-z]?|[a-c] (in|notin) \\([x-z]?(,[x-z]){0,3}\\))(,(!?[a-c]|[a-c](!=|=)[x-z])){0,4}") {
            let once = Selector::parse(&text).unwrap();
            prop_assert_eq!(&Selector::parse(&once.to_string()).unwrap(), &once);
        }

        #[test]
        fn a_requirement_and_its_opposite(value in "[x-z]?", set in proptest::collection::btree_set("[x-z]", 1..3)) {
            let node = if value.is_empty() { labels(&[]) } else { labels(&[("k", &value)]) };
            let values = set.into_iter().collect::<Vec<_>>().join(",");
            let inside = Selector::parse(&format!("k in ({values})")).unwrap();
            let outside = Selector::parse(&format!("k notin ({values})")).unwrap();
            prop_assert_ne!(inside.matches(&node), outside.matches(&node));
        }
    }
}
