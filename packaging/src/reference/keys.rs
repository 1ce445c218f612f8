//! Every key of a program's configuration.

use std::fmt::Write as _;

use nexus_runtime::settings;

use crate::{Program, Settings};

pub(super) fn page(program: &Program, settings: &Settings) -> String {
    let mut out = format!(
        "# {name}.toml\n\n`{file}`, then the files in `{file}.d/` in the order of their names, then variables of the environment, then \
         flags (`--set KEY=VALUE`): what comes later counts. A key that stands nowhere has its default. `{name} check-config` finds \
         every mistake, `{name} config` prints what is in force.\n\nA dot is a section: `log.format` is `format` in `[log]`. \
         `NEXUS_LOG` filters the log.\n\n| key | default | meaning | variable |\n| --- | --- | --- | --- |\n",
        name = program.name,
        file = settings.file,
    );
    for key in settings.keys {
        let default = match key.default {
            "" => String::new(),
            text => format!("`{text}`"),
        };
        let variable = key.name.replace('.', "_").to_uppercase();
        let _always_fits = writeln!(
            out,
            "| `{}` | {default} | {} | `{}_{variable}` |",
            key.name,
            settings::describe(key).replace('|', "\\|"),
            settings.env_prefix,
        );
    }
    out
}
