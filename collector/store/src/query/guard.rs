//! What a statement may do: read our views, and nothing else.
//!
//! The authorizer sees every table a statement reads together with the view it is read through. A view may
//! read the tables it is made of; nothing else may be read. Because a WITH clause can give itself a view's
//! name, that alone is not enough: the attached files have unguessable schema names, and every table's name
//! is shadowed by an empty view, so the tables cannot be named at all outside of our views.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{
    Connection,
    hooks::{AuthAction, AuthContext, Authorization},
    limits::Limit,
};

use super::{live, views::View};

/// Why anything else than a question is refused.
pub(super) const READ_ONLY: &str = "only one read-only SELECT over the views is allowed";

/// Functions a statement may call.
const FUNCTIONS: &[&str] = &[
    "abs",
    "avg",
    "ceil",
    "ceiling",
    "char",
    "coalesce",
    "concat",
    "concat_ws",
    "count",
    "cume_dist",
    "date",
    "datetime",
    "dense_rank",
    "exp",
    "first_value",
    "floor",
    "format",
    "glob",
    "group_concat",
    "hex",
    "ifnull",
    "iif",
    "if",
    "instr",
    "json",
    "json_array",
    "json_array_length",
    "json_each",
    "json_extract",
    "json_group_array",
    "json_group_object",
    "json_object",
    "json_quote",
    "json_tree",
    "json_type",
    "json_valid",
    "julianday",
    "lag",
    "last_value",
    "lead",
    "length",
    "like",
    "likelihood",
    "likely",
    "ln",
    "log",
    "log10",
    "log2",
    "lower",
    "ltrim",
    "max",
    "median",
    "min",
    "mod",
    live::HEARD,
    live::RECORDS,
    live::SEQ,
    "nth_value",
    "ntile",
    "nullif",
    "octet_length",
    "percent_rank",
    "pow",
    "power",
    "printf",
    "quote",
    "rank",
    "replace",
    "round",
    "row_number",
    "rtrim",
    "sign",
    "sqrt",
    "strftime",
    "string_agg",
    "substr",
    "substring",
    "sum",
    "time",
    "timediff",
    "total",
    "trim",
    "trunc",
    "typeof",
    "unhex",
    "unicode",
    "unixepoch",
    "unlikely",
    "upper",
    "->",
    "->>",
];

/// Why the newest statement was refused, for people.
pub(super) type Refusal = Arc<Mutex<Option<String>>>;

/// Sets the guard; from here on the connection runs nothing but reads of the views.
pub(super) fn set(connection: &Connection, views: &[View]) -> rusqlite::Result<Refusal> {
    let limits = [
        (Limit::SQLITE_LIMIT_LENGTH, 8 * 1024 * 1024),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 64 * 1024),
        (Limit::SQLITE_LIMIT_COLUMN, 256),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 200),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 64),
        (Limit::SQLITE_LIMIT_VDBE_OP, 500_000),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 64),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1024),
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 1),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ];
    for (limit, value) in limits {
        connection.set_limit(limit, value)?;
    }
    let mut readable: HashMap<&'static str, HashSet<String>> = HashMap::new();
    for view in views {
        let mut tables: HashSet<String> = view.tables.iter().cloned().collect();
        tables.insert("nexus_permitted".to_owned());
        readable.insert(view.name, tables);
    }
    let refusal = Refusal::default();
    let noted = Arc::clone(&refusal);
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        match judge(&context, &readable) {
            Ok(()) => Authorization::Allow,
            Err(why) => {
                noted
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(why);
                Authorization::Deny
            }
        }
    }))?;
    Ok(refusal)
}

fn judge(
    context: &AuthContext<'_>,
    readable: &HashMap<&'static str, HashSet<String>>,
) -> Result<(), String> {
    match context.action {
        AuthAction::Select | AuthAction::Recursive => Ok(()),
        AuthAction::Read {
            table_name,
            column_name,
        } => {
            let view = readable.contains_key(table_name)
                && context.database_name.is_none_or(|name| name == "temp");
            let within = context
                .accessor
                .and_then(|accessor| readable.get(accessor))
                .is_some_and(|tables| tables.contains(table_name));
            let json = matches!(table_name, "json_each" | "json_tree");
            // Rows that are only counted come without a column, and, like the names of WITH clauses, without
            // saying through which view. SQLite's own tables are the only ones a statement could mean.
            let internal = table_name.starts_with("sqlite_") || table_name.starts_with("pragma_");
            let counted = column_name.is_empty() && !internal;
            if view || within || json || counted {
                Ok(())
            } else {
                Err(format!(
                    "there is no view `{table_name}`; `nexusctl query --schema` lists them"
                ))
            }
        }
        AuthAction::Function { function_name } => {
            if FUNCTIONS
                .iter()
                .any(|known| known.eq_ignore_ascii_case(function_name))
            {
                Ok(())
            } else {
                Err(format!("the function `{function_name}` is not available"))
            }
        }
        AuthAction::Pragma { .. } => Err("PRAGMA is not allowed".to_owned()),
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
            Err("databases cannot be attached or detached".to_owned())
        }
        _ => Err(READ_ONLY.to_owned()),
    }
}
