//! The log: one line an event on stderr, as text for people or as JSON for machines.
//!
//! `log.filter` filters by module: `info`, `warn,nexus_agent=debug`; the variable `NEXUS_LOG` comes before it. Output of a
//! program proper goes to stdout; nothing here ever writes there.

use std::{fmt, io::IsTerminal, str::FromStr};

use tracing::Subscriber;
use tracing_subscriber::{
    Layer, Registry, fmt::MakeWriter, layer::SubscriberExt, registry::LookupSpan, reload,
    util::SubscriberInitExt,
};

pub use tracing_subscriber::filter::Targets;

/// The environment variable that filters the log.
pub const FILTER_VARIABLE: &str = "NEXUS_LOG";

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, the event's fields at its top level.
    Json,
}

impl Format {
    /// The names `log.format` takes.
    pub const NAMES: &[&str] = &["text", "json"];
}

impl FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogError::Format(text.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No such format.
    #[error("`{0}` is no log format; choose text or json")]
    Format(String),
    /// No such filter.
    #[error("`{text}` is no filter such as `info` or `warn,nexus_agent=debug`")]
    Filter {
        /// As it was given.
        text: String,
        /// Why not.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The log is gone.
    #[error("the filter cannot be changed")]
    Change(#[source] reload::Error),
    /// The process has a subscriber already.
    #[error("the log is set up already")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Changes what is logged.
#[derive(Debug, Clone)]
pub struct Filter(reload::Handle<Targets, Registry>);

impl Filter {
    /// Logs by this filter from now on, unless `NEXUS_LOG` is set.
    pub fn set(&self, wanted: &Targets) -> Result<(), LogError> {
        match by_variable() {
            Some(_) => Ok(()),
            None => self.0.reload(wanted.clone()).map_err(LogError::Change),
        }
    }
}

/// What the setting `log.filter` says; `default` when it says nothing.
pub fn filter(setting: &str, default: &Targets) -> Result<Targets, LogError> {
    match setting.trim() {
        "" => Ok(default.clone()),
        text => text.parse().map_err(|source| LogError::Filter {
            text: text.to_owned(),
            source,
        }),
    }
}

/// What `NEXUS_LOG` says, if anything.
fn by_variable() -> Option<String> {
    let wanted = std::env::var(FILTER_VARIABLE).ok()?;
    (!wanted.trim().is_empty()).then_some(wanted)
}

/// Sends the process's events to stderr. `wanted` is the filter when `NEXUS_LOG` is unset or empty; a variable that cannot
/// be read is reported in the log and `wanted` used, since a typo should not stop a daemon.
pub fn init(format: Format, wanted: &Targets) -> Result<Filter, LogError> {
    let (targets, fault) = match by_variable() {
        None => (wanted.clone(), None),
        Some(text) => match filter(&text, wanted) {
            Ok(targets) => (targets, None),
            Err(error) => (wanted.clone(), Some(error)),
        },
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (targets, handle) = reload::Layer::new(targets);
    tracing_subscriber::registry()
        .with(layer(format, colour, std::io::stderr).with_filter(targets))
        .try_init()
        .map_err(LogError::Twice)?;
    if let Some(error) = fault {
        tracing::warn!(error = %crate::errors::chain(&error), "{FILTER_VARIABLE} cannot be read");
    }
    Ok(Filter(handle))
}

/// `level` for our own modules and `warn` for everybody else's.
#[must_use]
pub fn ours_at(level: tracing::Level) -> Targets {
    Targets::new()
        .with_default(tracing::Level::WARN)
        .with_target("nexus", level)
}

fn layer<S, W>(format: Format, colour: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        Format::Text => Box::new(layer.with_ansi(colour)),
        Format::Json => Box::new(layer.json().flatten_event(true).with_span_list(true)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format, filter: Targets) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::registry()
            .with(layer(format, false, move || writer.clone()).with_filter(filter));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "nexus_agent::session", request_id = "r1", "session opened");
            tracing::debug!(target: "nexus_agent::session", "frame");
            tracing::info!(target: "h3::server", "stream");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_has_one_line_an_event_and_no_colour() {
        let text = written(Format::Text, ours_at(tracing::Level::INFO));
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.contains(" INFO nexus_agent::session: session opened"),
            "{text}"
        );
        assert!(text.contains("request_id=\"r1\""), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn json_has_the_fields_at_the_top() {
        let text = written(Format::Json, "debug,h3=off".parse().unwrap());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with('{') && lines[0].ends_with('}'),
            "{text}"
        );
        assert!(lines[0].contains("\"request_id\":\"r1\""), "{text}");
        assert!(
            lines[0].contains("\"message\":\"session opened\""),
            "{text}"
        );
    }

    #[test]
    fn formats_have_names() {
        for name in Format::NAMES {
            assert_eq!(name.parse::<Format>().unwrap().to_string(), *name);
        }
        assert!("xml".parse::<Format>().is_err());
    }
}
