//! The pages in `docs/reference/`, made from the code: commands, configuration, metrics, errors.

mod commands;
mod errors;
mod explained;
mod host;
mod keys;
mod metrics;
mod source;

use std::path::Path;

use nexus_runtime::fault::Outcome;

/// What remakes them.
const COMMAND: &str = "cargo run --bin nexus-packaging -- --reference docs/reference";

pub(crate) fn write(folder: &Path) -> Outcome {
    for (name, text) in pages()? {
        crate::write(&folder.join(name), text)?;
    }
    Ok(())
}

fn pages() -> Outcome<Vec<(String, String)>> {
    let mut pages = vec![
        ("errors.md".to_owned(), errors::page()?),
        ("metrics.md".to_owned(), metrics::page()?),
    ];
    for program in crate::programs() {
        pages.push((format!("{}.md", program.name), commands::page(&program)));
        if let Some(settings) = &program.settings {
            let name = program.name.strip_prefix("nexus-").unwrap_or(program.name);
            pages.push((format!("{name}.toml.md"), keys::page(&program, settings)));
        }
    }
    for (_, text) in &mut pages {
        text.insert_str(0, &format!("<!-- Made from the code: {COMMAND} -->\n\n"));
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    #[test]
    fn the_pages_are_what_the_code_says() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference");
        let mut kept: BTreeSet<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        for (name, text) in pages().unwrap() {
            let there = fs::read_to_string(folder.join(&name)).unwrap_or_default();
            assert!(
                there == text,
                "docs/reference/{name} is stale: run `{COMMAND}`"
            );
            kept.remove(&name);
        }
        assert!(kept.is_empty(), "nobody makes {kept:?}");
    }
}
