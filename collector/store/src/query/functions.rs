//! Functions of SQL whose own forms can take hours in one call, during which nothing can end a query: what searches a
//! long text for a long text. Here they take time in proportion to their arguments, or look at the deadline
//! themselves. They give what SQLite's give, but for how a real number is written when it is used as text.

use std::{borrow::Cow, collections::HashSet};

use rusqlite::{
    Connection, Error, Result,
    functions::{Context, FunctionFlags},
    types::{Value, ValueRef},
};

/// Bytes of a result; SQLite refuses more as well, but only after it was made.
const RESULT_BYTES: usize = 8 * 1024 * 1024;
/// Steps of a pattern between two looks at the deadline.
const LOOK_STEPS: u32 = 1 << 16;

/// Whether the query has to end.
pub(super) trait Over: Fn() -> bool + Clone + Send + 'static {}

impl<T: Fn() -> bool + Clone + Send + 'static> Over for T {}

/// Puts them in the place of SQLite's.
pub(super) fn register(connection: &Connection, over: &impl Over) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_INNOCUOUS;
    let add = |name: &str, arguments: i32, function: fn(&Context<'_>) -> Result<Value>| {
        let over = over.clone();
        connection.create_scalar_function(name, arguments, flags, move |context| {
            if over() {
                Err(ended())
            } else {
                function(context)
            }
        })
    };
    add("instr", 2, instr)?;
    add("replace", 3, replace)?;
    for arguments in [1, 2] {
        add("trim", arguments, |context| trim(context, true, true))?;
        add("ltrim", arguments, |context| trim(context, true, false))?;
        add("rtrim", arguments, |context| trim(context, false, true))?;
    }
    for arguments in [2, 3] {
        let over = over.clone();
        connection.create_scalar_function("like", arguments, flags, move |context| {
            like(context, &over)
        })?;
    }
    let over = over.clone();
    connection.create_scalar_function("glob", 2, flags, move |context| glob(context, &over))
}

fn ended() -> Error {
    Error::UserFunctionError("the query has to end".into())
}

fn too_big() -> Error {
    Error::UserFunctionError("string or blob too big".into())
}

/// An argument as bytes; `None` for NULL.
fn bytes<'a>(context: &'a Context<'_>, index: usize) -> Option<Cow<'a, [u8]>> {
    match context.get_raw(index) {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string().into_bytes().into()),
        ValueRef::Real(number) => Some(format!("{number:?}").into_bytes().into()),
        ValueRef::Text(text) => Some(text.into()),
        ValueRef::Blob(blob) => Some(blob.into()),
    }
}

fn text<'a>(context: &'a Context<'_>, index: usize) -> Option<Cow<'a, str>> {
    Some(match bytes(context, index)? {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => String::from_utf8_lossy(&bytes).into_owned().into(),
    })
}

fn is_blob(context: &Context<'_>, index: usize) -> bool {
    matches!(context.get_raw(index), ValueRef::Blob(_))
}

fn instr(context: &Context<'_>) -> Result<Value> {
    let (Some(hay), Some(needle)) = (bytes(context, 0), bytes(context, 1)) else {
        return Ok(Value::Null);
    };
    let Some(at) = Search::new(&needle).next_in(&hay, 0) else {
        return Ok(Value::Integer(0));
    };
    let before = hay.get(..at).unwrap_or_default();
    let place = if is_blob(context, 0) && is_blob(context, 1) {
        before.len()
    } else {
        // Characters begin with any byte but those that continue one.
        before.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
    };
    Ok(Value::Integer(i64::try_from(place + 1).unwrap_or(i64::MAX)))
}

fn replace(context: &Context<'_>) -> Result<Value> {
    let parts = (bytes(context, 0), bytes(context, 1), bytes(context, 2));
    let (Some(hay), Some(needle), Some(instead)) = parts else {
        return Ok(Value::Null);
    };
    let mut out = Vec::new();
    let mut rest = 0;
    if !needle.is_empty() {
        let search = Search::new(&needle);
        while let Some(at) = search.next_in(&hay, rest) {
            out.extend_from_slice(hay.get(rest..at).unwrap_or_default());
            out.extend_from_slice(&instead);
            if out.len() > RESULT_BYTES {
                return Err(too_big());
            }
            rest = at + needle.len();
        }
    }
    out.extend_from_slice(hay.get(rest..).unwrap_or_default());
    Ok(Value::Text(String::from_utf8_lossy(&out).into_owned()))
}

fn trim(context: &Context<'_>, left: bool, right: bool) -> Result<Value> {
    let Some(whole) = text(context, 0) else {
        return Ok(Value::Null);
    };
    let set: HashSet<char> = if context.len() == 2 {
        match text(context, 1) {
            Some(set) => set.chars().collect(),
            None => return Ok(Value::Null),
        }
    } else {
        [' '].into()
    };
    let mut rest: &str = &whole;
    if left {
        rest = rest.trim_start_matches(|c| set.contains(&c));
    }
    if right {
        rest = rest.trim_end_matches(|c| set.contains(&c));
    }
    Ok(Value::Text(rest.to_owned()))
}

/// Finds a text in another in one pass (Knuth, Morris, Pratt).
struct Search<'a> {
    needle: &'a [u8],
    /// How much of the needle's beginning the first `i + 1` bytes end with.
    fallback: Vec<u32>,
}

impl<'a> Search<'a> {
    fn new(needle: &'a [u8]) -> Self {
        let mut fallback: Vec<u32> = Vec::with_capacity(needle.len());
        let mut held = 0;
        for (index, byte) in needle.iter().enumerate() {
            if index > 0 {
                held = advance(needle, &fallback, held, *byte);
            }
            fallback.push(u32::try_from(held).unwrap_or(0));
        }
        Self { needle, fallback }
    }

    /// Where it stands next, from `from` on.
    fn next_in(&self, hay: &[u8], from: usize) -> Option<usize> {
        if self.needle.is_empty() {
            return Some(from);
        }
        let mut held = 0;
        for (index, byte) in hay.iter().enumerate().skip(from) {
            held = advance(self.needle, &self.fallback, held, *byte);
            if held == self.needle.len() {
                return Some(index + 1 - held);
            }
        }
        None
    }
}

/// How much of the needle's beginning is held after one byte more.
fn advance(needle: &[u8], fallback: &[u32], mut held: usize, byte: u8) -> usize {
    loop {
        if needle.get(held) == Some(&byte) {
            return held + 1;
        }
        let Some(shorter) = held.checked_sub(1).and_then(|last| fallback.get(last)) else {
            return 0;
        };
        held = usize::try_from(*shorter).unwrap_or(0);
    }
}

/// What one place of a pattern takes.
enum Token {
    /// Any text.
    Any,
    /// Any character.
    One,
    /// This one; letters of ASCII in either case for LIKE.
    Char(char),
    /// One in these ranges, or in none of them.
    Set(bool, Vec<(char, char)>),
}

fn like(context: &Context<'_>, over: &impl Over) -> Result<Value> {
    let (Some(pattern), Some(text)) = (text(context, 0), text(context, 1)) else {
        return Ok(Value::Null);
    };
    let escape = if context.len() == 3 {
        let Some(escape) = self::text(context, 2) else {
            return Ok(Value::Null);
        };
        let mut chars = escape.chars();
        match (chars.next(), chars.next()) {
            (Some(only), None) => Some(only),
            _ => {
                let why = "ESCAPE expression must be a single character";
                return Err(Error::UserFunctionError(why.into()));
            }
        }
    } else {
        None
    };
    let mut tokens = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        tokens.push(if Some(c) == escape {
            match chars.next() {
                Some(plain) => Token::Char(plain),
                // Nothing can match it.
                None => return Ok(Value::Integer(0)),
            }
        } else {
            match c {
                '%' => Token::Any,
                '_' => Token::One,
                plain => Token::Char(plain),
            }
        });
    }
    matches(&tokens, &text, true, over).map(|found| Value::Integer(found.into()))
}

fn glob(context: &Context<'_>, over: &impl Over) -> Result<Value> {
    let (Some(pattern), Some(text)) = (text(context, 0), text(context, 1)) else {
        return Ok(Value::Null);
    };
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Any,
            '?' => Token::One,
            '[' => {
                let inverted = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                // Whether the newest range is a character that one may begin with.
                let (mut single, mut closed) = (false, false);
                if let Some(first) = chars.next_if_eq(&']') {
                    ranges.push((first, first));
                }
                while let Some(c) = chars.next() {
                    if c == ']' {
                        closed = true;
                        break;
                    }
                    let to = (c == '-' && single).then(|| chars.next_if(|next| *next != ']'));
                    match (to.flatten(), ranges.last_mut()) {
                        (Some(to), Some((_, end))) => (*end, single) = (to, false),
                        _ => {
                            ranges.push((c, c));
                            single = true;
                        }
                    }
                }
                if !closed {
                    return Ok(Value::Integer(0));
                }
                Token::Set(inverted, ranges)
            }
            plain => Token::Char(plain),
        });
    }
    matches(&tokens, &text, false, over).map(|found| Value::Integer(found.into()))
}

/// Goes back to the newest [`Token::Any`] alone, which is enough.
fn matches(tokens: &[Token], text: &str, any_case: bool, over: &impl Over) -> Result<bool> {
    let takes = |token: &Token, c: char| match token {
        Token::Any => false,
        Token::One => true,
        Token::Char(own) if any_case => own.eq_ignore_ascii_case(&c),
        Token::Char(own) => *own == c,
        Token::Set(inverted, ranges) => {
            ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *inverted
        }
    };
    let char_at = |at: usize| text.get(at..).and_then(|rest| rest.chars().next());
    let (mut at, mut token, mut steps) = (0, 0, 0_u32);
    let mut back: Option<(usize, usize)> = None;
    loop {
        steps = steps.wrapping_add(1);
        if steps % LOOK_STEPS == 1 && over() {
            return Err(ended());
        }
        let next = char_at(at);
        match (tokens.get(token), next) {
            (Some(Token::Any), _) => {
                token += 1;
                if token == tokens.len() {
                    return Ok(true);
                }
                back = Some((token, at));
            }
            (None, None) => return Ok(true),
            (Some(own), Some(c)) if takes(own, c) => {
                token += 1;
                at += c.len_utf8();
            }
            (_, None) => return Ok(false),
            (_, Some(_)) => {
                let Some((after, begin)) = back else {
                    return Ok(false);
                };
                let Some(skipped) = char_at(begin) else {
                    return Ok(false);
                };
                let begin = begin + skipped.len_utf8();
                back = Some((after, begin));
                (token, at) = (after, begin);
            }
        }
    }
}
