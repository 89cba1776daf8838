//! Messages on standard error. They share the terminal with progress bars.

use crate::failure::Failure;
use dg_config::{Key, Settings};
use indicatif::MultiProgress;
use std::collections::BTreeSet;
use std::ffi::OsString;
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

/// What the environment says about logging.
#[derive(Clone, Debug)]
pub(crate) enum EnvFilter {
    /// `DG_LOG`, which is meant for this program.
    Own(Targets),
    /// `RUST_LOG`, which may be meant for others: without a target it never silences this program.
    Shared(Targets),
}

/// Takes the form of messages from the command line or the environment, before either is checked,
/// so that errors in them have the right form already.
pub(crate) fn choose_form(argv: &[OsString], env: Option<&str>) {
    let argv: Vec<&str> = argv.iter().map(|t| t.to_str().unwrap_or("")).take_while(|t| *t != "--").collect();
    let behind = argv.windows(2).filter(|pair| pair[0] == "--log_format").map(|pair| pair[1]);
    let inside = argv.iter().filter_map(|t| t.strip_prefix("--log_format="));
    let flag = behind.chain(inside).last();
    if let Some(name) = flag.or(env)
        && name.eq_ignore_ascii_case("json")
    {
        let _ = FORM.set(Form::Json);
    }
}

/// Starts logging as the settings say.
pub(crate) fn start(settings: &Settings, verbose: u8, env: Option<EnvFilter>) {
    let form = if settings.text(Key::LogFormat) == Some("json") { Form::Json } else { Form::Text };
    let filter = filter(settings.switch(Key::Quiet), verbose, settings.switch(Key::Debug), env);
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

/// Flags win over the environment, which comes on top of warnings.
fn filter(quiet: bool, verbose: u8, debug: bool, env: Option<EnvFilter>) -> Targets {
    let flags = match (quiet, verbose) {
        (true, _) => Some(LevelFilter::ERROR),
        (_, 0) => None,
        (_, 1) => Some(LevelFilter::INFO),
        (_, 2) => Some(LevelFilter::DEBUG),
        _ => Some(LevelFilter::TRACE),
    };
    if let Some(level) = flags {
        return Targets::new().with_default(level);
    }
    let base = if debug { LevelFilter::DEBUG } else { LevelFilter::WARN };
    let (ours, targets) = match env {
        // what it says about ends of connections is said better by those who know why
        None => return Targets::new().with_default(base).with_target("ractor_cluster", LevelFilter::ERROR),
        Some(EnvFilter::Own(targets)) => (targets.default_level().unwrap_or(base), targets),
        Some(EnvFilter::Shared(targets)) => (targets.default_level().unwrap_or(base).max(base), targets),
    };
    let others = targets.default_level().unwrap_or(base);
    OUR_CRATES
        .into_iter()
        .fold(Targets::new().with_default(others), |all, name| all.with_target(name, ours))
        .with_targets(targets.iter().filter(|(name, _)| !name.is_empty()))
}

/// Beginnings of the targets of this program's messages.
const OUR_CRATES: [&str; 2] = ["diffgentor", "dg_"];

/// Text in which nothing moves the cursor, changes colours or turns the direction of reading. Line
/// feeds stay where a message may have several lines.
fn harmless(text: &str, lines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let bidi = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let separator = matches!(c, '\u{2028}' | '\u{2029}');
        match c {
            '\t' => out.push(c),
            '\n' if lines => out.push(c),
            _ if c.is_control() || bidi || separator => out.extend(c.escape_default()),
            _ => out.push(c),
        }
    }
    out
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
        _ => harmless(message, false),
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
            let hint = failure.hint.as_ref().map(|h| format!("\n\nhint: {}", harmless(h, true)));
            format!("{error} {}{}", harmless(&failure.message, true), hint.unwrap_or_default())
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
        writeln!(to, "{}{}", harmless(&fields.message, false), harmless(&fields.rest, false))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_adds_to_warnings_and_flags_win() {
        let own = |text: &str| Some(EnvFilter::Own(text.parse().unwrap()));
        let shared = |text: &str| Some(EnvFilter::Shared(text.parse().unwrap()));
        let (warn, info) = (Level::WARN, Level::INFO);
        for (quiet, verbose, env, level, expect) in [
            (false, 0, None, warn, true),
            (false, 0, None, info, false),
            (false, 0, shared("other=debug"), warn, true),
            (false, 0, shared("other=debug"), info, false),
            (false, 0, shared("off"), warn, true),
            (false, 0, shared("debug"), info, true),
            (false, 0, shared("diffgentor=error"), warn, false),
            (false, 0, own("error"), warn, false),
            (false, 0, own("info"), info, true),
            (false, 0, own("diffgentor::run=info"), info, true),
            (true, 0, own("trace"), warn, false),
            (true, 0, own("trace"), Level::ERROR, true),
            (true, 0, own("off"), Level::ERROR, true),
            (false, 1, shared("error"), info, true),
            (false, 1, own("trace"), Level::DEBUG, false),
        ] {
            let filter = filter(quiet, verbose, false, env.clone());
            let enabled = filter.would_enable("diffgentor::run", &level);
            assert_eq!(enabled, expect, "{quiet} {verbose} {env:?} {level}");
        }
        assert!(filter(false, 0, true, None).would_enable("dg_hub", &Level::DEBUG));
    }

    #[test]
    fn text_of_others_cannot_move_the_cursor() {
        let shown = harmless("a\u{1b}[31m\u{202e}b\r\nc\u{85}\td 猫", false);
        assert_eq!(shown, "a\\u{1b}[31m\\u{202e}b\\r\\nc\\u{85}\td 猫");
        assert_eq!(harmless("a\nb", true), "a\nb");
    }
}
