//! `config --defaults`: every key with its default, unit and meaning, as a file that could be loaded.

use std::fmt::Write;

use super::Key;

/// The text. Keys without a section come first, then each section in the order the table names it.
#[must_use]
pub fn print_defaults(keys: &[Key]) -> String {
    let mut sections: Vec<&str> = keys.iter().map(section).collect();
    sections.sort_by_key(|name| {
        let first = keys.iter().position(|key| section(key) == *name);
        (!name.is_empty(), first)
    });
    sections.dedup();
    let mut out = String::new();
    for name in sections {
        if !name.is_empty() {
            line(&mut out, &format!("[{name}]"));
        }
        for key in keys.iter().filter(|key| section(key) == name) {
            line(&mut out, &format!("# {}", describe(key)));
            let own = key.name.strip_prefix(name).unwrap_or(key.name);
            let own = own.strip_prefix('.').unwrap_or(own);
            if let Ok(value) = key.kind.parse(key.default) {
                line(&mut out, &format!("{own} = {value}\n"));
            }
        }
    }
    // One newline at the end, not the blank line between keys.
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn line(out: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _always_fits = writeln!(out, "{text}");
}

/// What a key means, what it may be, and in which unit.
#[must_use]
pub fn describe(key: &Key) -> String {
    let choices = match key.kind {
        super::Kind::Choice(names) => format!(" ({})", names.join(" | ")),
        super::Kind::Integer { min, max } => match (min, max) {
            (_, i64::MAX) => format!(" (at least {min})"),
            _ => format!(" ({min} to {max})"),
        },
        _ => String::new(),
    };
    match key.unit {
        "" => format!("{}{choices}", key.about),
        unit => format!("{}{choices} [{unit}]", key.about),
    }
}

fn section(key: &Key) -> &'static str {
    key.name.split_once('.').map_or("", |(section, _)| section)
}
