//! Messages on standard error. They share the terminal with progress bars.

use crate::failure::Failure;
use dg_config::{Key, Settings};
use indicatif::MultiProgress;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, OnceLock};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Form of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

static FORM: OnceLock<Form> = OnceLock::new();
static BARS: OnceLock<MultiProgress> = OnceLock::new();
static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Starts logging as the settings say. `filter` is `DG_LOG`, or else `RUST_LOG`.
pub(crate) fn start(settings: &Settings, verbose: u8, filter: Option<Targets>) {
    let form = if settings.text(Key::LogFormat) == Some("json") { Form::Json } else { Form::Text };
    let level = match (verbose, settings.switch(Key::Quiet)) {
        (_, true) => LevelFilter::ERROR,
        (0, _) if settings.switch(Key::Debug) => LevelFilter::DEBUG,
        (0, _) => LevelFilter::WARN,
        (1, _) => LevelFilter::INFO,
        (2, _) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(level));
    let json =
        tracing_subscriber::fmt::layer().json().flatten_event(true).with_target(false).with_writer(|| Stderr);
    let text = tracing_subscriber::fmt::layer().event_format(Plain).with_writer(|| Stderr);
    let registry = tracing_subscriber::registry().with(filter);
    // a second start keeps the first one's subscriber
    let _ = FORM.set(form);
    let _ = match form {
        Form::Json => registry.with(json).try_init(),
        Form::Text => registry.with(text).try_init(),
    };
}

/// Lets messages appear above these bars.
pub(crate) fn share_terminal(bars: &MultiProgress) {
    let _ = BARS.set(bars.clone());
}

/// Runs `f` while no bar is on the terminal.
pub(crate) fn above_bars<R>(f: impl FnOnce() -> R) -> R {
    match BARS.get() {
        Some(bars) => bars.suspend(f),
        None => f(),
    }
}

/// A warning, unless the same one was shown before.
pub(crate) fn warn_once(message: impl Into<String>) {
    let message = message.into();
    if WARNED.lock().is_ok_and(|mut seen| seen.insert(message.clone())) {
        tracing::warn!("{message}");
    }
}

/// Progress, and what the user left open: no warning, and shown whatever the level.
pub(crate) fn note(message: &str) {
    let text = match FORM.get() {
        Some(Form::Json) => serde_json::json!({"level": "INFO", "message": message}).to_string(),
        _ => message.to_string(),
    };
    let _ = above_bars(|| writeln!(std::io::stderr().lock(), "{text}"));
}

/// One error, then what to do about it.
pub(crate) fn print_failure(failure: &Failure) {
    let text = match FORM.get() {
        Some(Form::Json) => {
            let hint = failure.hint.as_deref();
            serde_json::json!({"level": "ERROR", "message": failure.message, "hint": hint}).to_string()
        }
        _ => {
            let error = if colored() { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
            let hint = failure.hint.as_ref().map(|h| format!("\n\nhint: {h}")).unwrap_or_default();
            format!("{error} {}{hint}", failure.message)
        }
    };
    // nobody reads standard error: nothing else can be done
    let _ = above_bars(|| writeln!(std::io::stderr().lock(), "{text}"));
}

fn colored() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Standard error above the bars, a whole message at a time.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        above_bars(|| std::io::stderr().lock().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `warning: message`.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let (word, color) = match *event.metadata().level() {
            Level::ERROR => ("error", "31"),
            Level::WARN => ("warning", "33"),
            Level::INFO => ("info", "32"),
            Level::DEBUG => ("debug", "34"),
            Level::TRACE => ("trace", "35"),
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        if colored() {
            write!(to, "\x1b[1;{color}m{word}:\x1b[0m ")?;
        } else {
            write!(to, "{word}: ")?;
        }
        writeln!(to, "{}{}", fields.message, fields.rest)
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
}
