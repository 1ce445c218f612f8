//! Text of nodes and of the collector, as it may reach a terminal.
//!
//! A terminal obeys control characters: they move the cursor over what was said before, set titles and
//! clipboards. Others reorder what stands around them. Whoever writes them, people see them escaped.

use std::borrow::Cow;

/// Whether a terminal does anything but show it: C0, DEL and C1, line and paragraph separators, marks of
/// direction (Unicode's Bidi_Control).
pub(crate) fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// On one line.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, acts)
}

/// Lines stay lines, and tabs tabs.
pub(crate) fn visible_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| acts(c) && !matches!(c, '\n' | '\t'))
}

/// What a program wrote; bytes that are no UTF-8 are escaped too, since some terminals obey those.
pub(crate) fn visible_bytes(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        shown.push_str(&visible_lines(&chunk.valid().replace("\r\n", "\n")));
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

/// JSON's own escapes for what a writer of JSON leaves as it is; outside of strings there is no such thing.
pub(crate) fn visible_json(text: String) -> String {
    // Line breaks of pretty JSON stand between values; within strings they are escaped already.
    if !text.chars().any(|c| acts(c) && c != '\n') {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) && c != '\n' {
            // All of them are in the basic plane.
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            shown.push(c);
        }
    }
    shown
}

fn escaped(text: &str, acts: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_escaped_and_the_rest_stays() {
        assert_eq!(visible("naïve – 漢字 🦀"), "naïve – 漢字 🦀");
        assert_eq!(
            visible("a\u{1b}[2J\r\n\u{7f}\u{9b}\u{202e}\u{2066}z"),
            "a\\u{1b}[2J\\r\\n\\u{7f}\\u{9b}\\u{202e}\\u{2066}z"
        );
        assert_eq!(visible_lines("a\tb\nc\r"), "a\tb\nc\\r");
    }

    #[test]
    fn bytes_are_shown_whatever_they_are() {
        assert_eq!(
            visible_bytes(b"ok \xc3\xa4\r\n\xff\x9b2J\x1b]52;c;x\x07\n"),
            "ok ä\n\\xff\\x9b2J\\u{1b}]52;c;x\\u{7}\n"
        );
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({ "a\u{7f}": "\u{1b}\u{9b}\u{2028}\u{202e}\n" });
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = visible_json(text);
            assert!(!shown.chars().any(|c| acts(c) && c != '\n'), "{shown}");
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
                value
            );
        }
    }
}
