//! Prompts files → rows. All bad rows are reported at once, with their lines.

mod csv;
mod json;
mod text;

use crate::failure::Failure;
use dg_config::{Key, Value, suggest};
use std::io::Read;
use std::path::Path;

/// One prompt and what it overrides.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    /// Where it stands, from 1; 0 for a prompt from the command line.
    pub(crate) line: usize,
    /// What to draw.
    pub(crate) prompt: String,
    /// Name of its pictures.
    pub(crate) name: Option<String>,
    /// Settings of its own.
    pub(crate) overrides: Vec<(Key, Value)>,
}

/// What is wrong with one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowError {
    /// Line, from 1.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) message: String,
}

/// Rows, what is wrong with others, and what looks odd.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parsed {
    /// The good rows, in order.
    pub(crate) rows: Vec<Row>,
    /// The bad ones.
    pub(crate) errors: Vec<RowError>,
    /// Columns that look like misspellings.
    pub(crate) warnings: Vec<String>,
}

/// Kind of a prompts file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Json,
    JsonLines,
    Csv,
}

/// Settings that a row may have of its own.
const OVERRIDES: [Key; 7] = [
    Key::NegativePrompt,
    Key::Height,
    Key::Width,
    Key::Seed,
    Key::NumInferenceSteps,
    Key::GuidanceScale,
    Key::TrueCfgScale,
];

/// Largest prompts file in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most rows of a prompts file.
pub(crate) const ROWS_MAX: usize = 1_000_000;
/// Most bad rows that an error lists.
const ERRORS_SHOWN: usize = 20;

/// What a prompts file is called in messages.
pub(crate) fn shown(path: &str) -> &str {
    if path == "-" { "standard input" } else { path }
}

/// Reads the prompts file at `path`, or standard input for `-`. `name_column` names the pictures.
/// Warns of odd columns; bad rows are for the caller to refuse.
pub(crate) fn read(path: &str, name_column: &str) -> Result<Parsed, Failure> {
    let shown = shown(path);
    let bytes = if path == "-" {
        bounded(std::io::stdin().lock(), shown)?
    } else {
        let file = std::fs::File::open(path).map_err(|e| {
            Failure::config(format!("prompts file {path}: {e}")).hint("check the path and its permissions")
        })?;
        bounded(file, shown)?
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Failure::config(format!("prompts file {shown}: line {line} is not UTF-8")).hint("save it as UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let parsed = parse(kind(path, text)?, text, name_column);
    parsed.warnings.iter().for_each(crate::log::warn_once);
    if parsed.rows.is_empty() && parsed.errors.is_empty() {
        return Err(Failure::config(format!("prompts file {shown}: no prompts"))
            .hint("write one prompt per line, or rows with a `prompt` column"));
    }
    Ok(parsed)
}

/// One failure that lists the bad rows of a file.
pub(crate) fn refuse_rows(file: &str, errors: &[RowError]) -> Failure {
    let mut errors = errors.to_vec();
    errors.sort_by_key(|e| e.line);
    let mut message = format!("prompts file {file}: {} bad row{}", errors.len(), plural(errors.len()));
    for e in errors.iter().take(ERRORS_SHOWN) {
        message += &format!("\n  line {}: {}", e.line, e.message);
    }
    if errors.len() > ERRORS_SHOWN {
        message += &format!("\n  and {} more", errors.len() - ERRORS_SHOWN);
    }
    Failure::config(message).hint("nothing was made: correct these rows and run again")
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn bounded(from: impl Read, shown: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    from.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::config(format!("prompts file {shown}: {e}")).hint("check that it is a file"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("prompts file {shown}: larger than {} MiB", FILE_BYTES_MAX >> 20);
        return Err(Failure::config(message).hint("split it"));
    }
    Ok(bytes)
}

fn kind(path: &str, text: &str) -> Result<Kind, Failure> {
    if path == "-" {
        return Ok(if text.trim_start().starts_with('{') { Kind::JsonLines } else { Kind::Text });
    }
    let extension = Path::new(path).extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("txt") => Ok(Kind::Text),
        Some("json") => Ok(Kind::Json),
        Some("jsonl") => Ok(Kind::JsonLines),
        Some("csv") => Ok(Kind::Csv),
        _ => Err(Failure::config(format!("prompts file {path}: unknown kind of file"))
            .hint("name it .txt, .json, .jsonl or .csv, or give it on standard input with `-`")),
    }
}

fn parse(kind: Kind, text: &str, name_column: &str) -> Parsed {
    let mut parsed = match kind {
        Kind::Text => text::parse(text),
        Kind::Json => json::array(text, name_column),
        Kind::JsonLines => json::lines(text, name_column),
        Kind::Csv => csv::parse(text, name_column),
    };
    if parsed.rows.len() > ROWS_MAX {
        let line = parsed.rows[ROWS_MAX].line;
        parsed.errors.push(RowError { line, message: format!("more than {ROWS_MAX} rows") });
    }
    parsed
}

/// What a column of a row means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Prompt,
    Name,
    Setting(Key),
    Other,
}

fn column(name: &str, name_column: &str) -> Column {
    if name == name_column {
        return Column::Name;
    }
    let setting = OVERRIDES.into_iter().find(|key| key.setting().name == name);
    match (name, setting) {
        ("prompt", _) => Column::Prompt,
        (_, Some(key)) => Column::Setting(key),
        _ => Column::Other,
    }
}

/// The warning for a column that means nothing but is nearly one that does.
fn misspelt(name: &str, name_column: &str) -> Option<String> {
    let known = OVERRIDES.iter().map(|key| key.setting().name).chain(["prompt", name_column]);
    let near = suggest::closest(name, known)?;
    Some(format!("column `{name}` of the prompts file is ignored; did you mean `{near}`?"))
}

/// A row while it is read.
#[derive(Default)]
struct Draft {
    row: Row,
    prompt: bool,
    faults: Vec<String>,
}

impl Draft {
    /// Takes a value as text.
    fn take(&mut self, column: Column, text: &str) {
        match column {
            Column::Prompt => match Key::Prompt.setting().parse(text) {
                Ok(_) => {
                    self.row.prompt = text.into();
                    self.prompt = true;
                }
                Err(e) => {
                    self.prompt = true;
                    self.faults.push(e.to_string());
                }
            },
            Column::Name => match crate::names::check(text) {
                Ok(()) => self.row.name = Some(text.into()),
                Err(fault) => self.faults.push(fault),
            },
            Column::Setting(key) => match key.setting().parse(text) {
                Ok(value) => self.row.overrides.push((key, value)),
                Err(e) => self.faults.push(e.to_string()),
            },
            Column::Other => (),
        }
    }

    fn finish(mut self, line: usize, parsed: &mut Parsed) {
        if !self.prompt {
            self.faults.push("no prompt".into());
        }
        if self.faults.is_empty() {
            parsed.rows.push(Row { line, ..self.row });
        } else {
            parsed.errors.push(RowError { line, message: self.faults.join("; ") });
        }
    }
}
