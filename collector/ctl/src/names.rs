//! SQL texts and the ids of jobs and tokens, given whole or by their beginning.

use nexus_proto::ids::JobId;

use crate::{
    connection::Collector,
    fault::{Fault, Outcome},
    output::Cell,
};

/// A text as an SQL literal.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name as an SQL identifier.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The job a user means: `job/ID`, `ID`, or the first characters of one.
pub(crate) async fn job(collector: &mut Collector, word: &str) -> Outcome<JobId> {
    let text = whole_id(collector, word, "jobs", "job").await?;
    text.parse()
        .map_err(|error| Fault::because(format!("job {word}"), &error))
}

/// The id in `view` that begins with `word`.
pub(crate) async fn whole_id(
    collector: &mut Collector,
    word: &str,
    view: &str,
    singular: &str,
) -> Outcome<String> {
    let prefixes = [format!("{singular}/"), format!("{view}/")];
    let text = prefixes
        .iter()
        .find_map(|prefix| word.strip_prefix(prefix.as_str()))
        .unwrap_or(word);
    let text = text.to_ascii_lowercase();
    if text.parse::<JobId>().is_ok() {
        return Ok(text);
    }
    let what = format!("{singular} {word}");
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        return Err(Fault::new(what, "that is no id, nor the beginning of one")
            .hint(format!("`nexusctl get {view}` lists them")));
    }
    let sql = format!(
        "SELECT id FROM {view} WHERE id LIKE {} ORDER BY id",
        quoted(&format!("{text}%"))
    );
    let ids: Vec<_> = collector
        .rows(&sql)
        .await?
        .rows
        .into_iter()
        .flatten()
        .collect();
    match ids.as_slice() {
        [Cell::Text(only)] => Ok(only.clone()),
        [] => Err(
            Fault::new(what, format!("there is no {singular} whose id begins so"))
                .hint(format!("`nexusctl get {view}` lists them")),
        ),
        several => {
            let ids: Vec<_> = several.iter().take(5).map(Cell::plain).collect();
            Err(Fault::new(
                what,
                format!("{} ids begin so: {}", several.len(), ids.join(", ")),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        assert_eq!(quoted("it's"), "'it''s'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
