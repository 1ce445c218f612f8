//! What programs can say when something is wrong, read out of their sources: the texts of errors, of faults and their hints,
//! of refusals of calls, of warnings and errors in the log, and every other text of four words or more, since reasons are often
//! put together far from where they are told.

/// What the parser sees of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// Every text of a source that tells of something wrong, with `…` where a value stands; tests' own left out.
pub(super) fn texts(source: &str) -> Vec<String> {
    let mut tokens = tokens(source);
    if let Some(tests) = tests_of(&tokens) {
        tokens.truncate(tests);
    }
    let mut texts = Vec::new();
    let mut at = 0;
    while let Some(rest) = tokens.get(at..).filter(|rest| !rest.is_empty()) {
        at += 1;
        if let Some(length) = opens(rest, &IGNORED) {
            at += length + inside(rest, length).len();
        } else if let Some(length) = opens(rest, &TELLING) {
            let inside = inside(rest, length);
            texts.extend(inside.iter().filter_map(text_of).map(shown));
            at += length + inside.len();
        } else if is_named(rest) {
            let end = rest.iter().position(|token| *token == Token::Sign(';'));
            let inside = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            texts.extend(inside.iter().filter_map(text_of).map(shown));
            at += inside.len();
        } else if let Some(text) = rest.first().and_then(text_of)
            && text.split_whitespace().count() >= 4
            && !is_of_a_key(tokens.get(..at - 1).unwrap_or_default())
            && !is_sql(text)
        {
            texts.push(shown(text));
        }
    }
    // Names of what was being done are words, not messages.
    texts.retain(|text| text.trim_matches(['…', ' ', ':']).contains(' '));
    texts
}

/// What opens a parenthesis in which a text tells of an error; `_` is any word.
const TELLING: [&str; 7] = [
    "# [ error (",
    "Fault : : _ (",
    "Status : : _ (",
    ". doing (",
    ". hint (",
    "tracing : : warn ! (",
    "tracing : : error ! (",
];

/// The same of texts for those who read the code, or for a log without trouble.
const IGNORED: [&str; 6] = [
    "# [ expect (",
    "# [ command (",
    ". expect (",
    "tracing : : info ! (",
    "tracing : : debug ! (",
    "tracing : : trace ! (",
];

/// How many tokens of `rest` open the parenthesis of one of these.
fn opens(rest: &[Token], these: &[&str]) -> Option<usize> {
    let is = |token: Option<&Token>, word: &str| match token {
        Some(Token::Word(own)) => own == word || word == "_",
        Some(Token::Sign(own)) => word.len() == 1 && word.starts_with(*own),
        _ => false,
    };
    these.iter().find_map(|one| {
        let mut words = (0..).zip(one.split(' '));
        words
            .all(|(at, word)| is(rest.get(at), word))
            .then(|| one.split(' ').count())
    })
}

/// `let why = …`: words that are put into a fault a line later.
fn is_named(rest: &[Token]) -> bool {
    let is = |at: usize, words: &[&str]| matches!(rest.get(at), Some(Token::Word(word)) if words.contains(&word.as_str()));
    is(0, &["let"]) && is(1, &["why", "what", "hint"]) && rest.get(2) == Some(&Token::Sign('='))
}

/// What a key of the configuration means: it has a page of its own.
fn is_of_a_key(before: &[Token]) -> bool {
    let end = [Token::Word("about".to_owned()), Token::Sign(':')];
    before.ends_with(&end)
}

fn is_sql(text: &str) -> bool {
    let words = [
        "SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "PRAGMA", "FROM", "WHERE", "JOIN",
        "ALTER", "DROP", "ATTACH", "EXPLAIN",
    ];
    text.split_whitespace().any(|word| words.contains(&word))
}

/// What stands up to the parenthesis that closes.
fn inside(rest: &[Token], length: usize) -> &[Token] {
    let after = rest.get(length..).unwrap_or_default();
    let mut depth = 1_usize;
    let end = after.iter().position(|token| {
        match token {
            Token::Sign('(') => depth += 1,
            Token::Sign(')') => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    after.get(..end.unwrap_or(after.len())).unwrap_or_default()
}

fn text_of(token: &Token) -> Option<&str> {
    match token {
        Token::Text(text) => Some(text),
        _ => None,
    }
}

/// Where the tests begin: `#[cfg(test)] mod …`.
fn tests_of(tokens: &[Token]) -> Option<usize> {
    let sign = Token::Sign;
    let word = |word: &str| Token::Word(word.to_owned());
    let begin = [
        sign('#'),
        sign('['),
        word("cfg"),
        sign('('),
        word("test"),
        sign(')'),
        sign(']'),
        word("mod"),
    ];
    tokens
        .windows(begin.len())
        .position(|window| window == begin)
}

/// A format as the reader meets it.
fn shown(format: &str) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = brace
            .strip_prefix("{{")
            .or_else(|| brace.strip_prefix("}}"))
        {
            out.extend(brace.chars().next());
            rest = after;
        } else {
            out.push('…');
            rest = brace.split_once('}').map_or("", |(_, after)| after);
        }
    }
    out.push_str(rest);
    out.trim().to_owned()
}

fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let after = rest.get(first.len_utf8()..).unwrap_or_default();
        if let Some(comment) = rest.strip_prefix("//") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else if first == '"' {
            let (text, after) = text(after);
            tokens.push(Token::Text(text));
            rest = after;
        } else if let Some((text, after)) = raw(rest) {
            tokens.push(Token::Text(text));
            rest = after;
        } else if first == '\'' {
            rest = character(after);
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            tokens.push(Token::Word(word.to_owned()));
            rest = after;
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Sign(first));
            }
            rest = after;
        }
    }
    tokens
}

/// A text whose opening quote has been read, and what comes after it.
fn text(mut rest: &str) -> (String, &str) {
    let mut text = String::new();
    loop {
        let Some(at) = rest.find(['"', '\\']) else {
            return (text, "");
        };
        let (before, special) = rest.split_at(at);
        text.push_str(before);
        let Some(escape) = special.strip_prefix('\\') else {
            return (text, special.get(1..).unwrap_or_default());
        };
        rest = match escape.strip_prefix('\n') {
            Some(next) => next.trim_start(),
            None => {
                let mut chars = escape.chars();
                match chars.next() {
                    Some('n' | 'r' | 't') => text.push(' '),
                    Some(c) => text.push(c),
                    None => {}
                }
                chars.as_str()
            }
        };
    }
}

/// `r"…"` and `r#"…"#`.
fn raw(source: &str) -> Option<(String, &str)> {
    let rest = source.strip_prefix('r')?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let rest = rest.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    rest.split_once(end.as_str())
        .map(|(text, after)| (text.to_owned(), after))
}

/// What comes after a character, or after the quote of a lifetime.
fn character(after: &str) -> &str {
    if let Some(escape) = after.strip_prefix('\\') {
        let rest = escape.get(1..).unwrap_or_default();
        return rest.split_once('\'').map_or("", |(_, after)| after);
    }
    let mut chars = after.chars();
    chars.next();
    chars.as_str().strip_prefix('\'').unwrap_or(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_said() {
        let source = r##"
            // #[error("a comment's own")]
            #[error("{path} has no {what}, {{really}}", path = path.display())]
            fn a<'a>(x: &'a str) { let c = '"'; Fault::new("open the store", format!("no {x} there")); }
            fn b() { thing.doing(format!("read {}", x))?.hint("give \
                another one"); Status::not_found(r#"no "such" node"#); }
            fn c() { tracing::warn!(error, "cannot listen"); tracing::info!("all is well with us today"); let why = "it is too long"; }
            fn d() { other("three words only"); Fault::new("word", x); format!("a reason of {} words", 4); }
            #[expect(lint, reason = "a reason of four words")] fn f() { x.expect("that it is not so"); }
            const KEY: Key = Key { about: "what a key really means" }; fn q() { sql("SELECT a, b FROM c"); }
            #[cfg(test)]
            mod tests { fn e() { Fault::new("of a test", "as well"); } }
        "##;
        assert_eq!(
            texts(source),
            [
                "… has no …, {really}",
                "open the store",
                "no … there",
                "give another one",
                "no \"such\" node",
                "cannot listen",
                "it is too long",
                "a reason of … words",
            ]
        );
    }
}
