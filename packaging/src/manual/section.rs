//! The sections of a manual page that no help text has, as man-pages(7) names and orders them.

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// Something to try, or to write into a file.
pub(crate) struct Example {
    /// What it does, in a sentence.
    pub(crate) about: &'static str,
    pub(crate) lines: Vec<String>,
}

/// Files and what they are.
pub(crate) type Files = Vec<(String, String)>;

pub(super) fn exit_status(roff: &mut Roff, codes: &[(u8, &str)]) {
    roff.control("SH", ["EXIT STATUS"]);
    for (code, about) in codes {
        entry(roff, vec![bold(code.to_string())], about);
    }
}

pub(super) fn files(roff: &mut Roff, files: &[(String, String)]) {
    roff.control("SH", ["FILES"]);
    for (path, about) in files {
        entry(roff, vec![italic(path)], about);
    }
}

pub(super) fn examples(roff: &mut Roff, examples: &[Example]) {
    roff.control("SH", ["EXAMPLES"]);
    for (at, example) in examples.iter().enumerate() {
        if at > 0 {
            roff.control("PP", []);
        }
        roff.text(words(example.about));
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        roff.control("nf", []);
        for line in &example.lines {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
        roff.control("RE", []);
    }
}

/// Pages and their sections.
pub(super) fn see_also(roff: &mut Roff, pages: &[(String, &str)]) {
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (name, section) in pages {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.push(bold(name));
        line.push(roman(format!("({section})")));
    }
    roff.text(line);
}

/// A term, and what there is to say of it.
pub(super) fn entry(roff: &mut Roff, term: Vec<Inline>, about: &str) {
    roff.control("TP", []);
    roff.text(term);
    roff.text(words(about));
}

/// What stands between backticks is bold.
pub(super) fn words(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    let parts = parts.filter(|(_, part)| !part.is_empty());
    parts
        .map(|(at, part)| match at % 2 {
            0 => roman(part),
            _ => bold(part),
        })
        .collect()
}
