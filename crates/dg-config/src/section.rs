//! One table of a cluster's section, with the place of every value.

use crate::field::{Field, FieldValue};
use crate::fields::{self, FIELDS};
use crate::file::{FileError, Reader};
use crate::suggest;
use crate::table::Key;
use crate::units::Address;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;
use toml::Spanned;
use toml::de::DeTable;

/// The checked values of one table.
pub(crate) struct Section<'r, 'a> {
    reader: &'r Reader<'a>,
    name: &'static str,
    at: Range<usize>,
    given: Vec<Given>,
}

struct Given {
    field: &'static Field,
    value: FieldValue,
    at: Range<usize>,
}

/// How the section is headed.
pub(crate) fn header(section: &str) -> String {
    if section == "node" { "[[node]]".into() } else { format!("[{section}]") }
}

impl<'r, 'a> Section<'r, 'a> {
    /// A section that the file does not have.
    pub(crate) fn absent(reader: &'r Reader<'a>, name: &'static str) -> Self {
        Self { reader, name, at: 0..0, given: Vec::new() }
    }

    /// Reads a table whose header, or first line, is at `at`.
    pub(crate) fn read(
        reader: &'r Reader<'a>,
        name: &'static str,
        at: Range<usize>,
        table: &DeTable<'_>,
    ) -> Result<Self, FileError> {
        let mut given = Vec::new();
        for (key, value) in table {
            let Some(field) = fields::named(name, key.get_ref()) else {
                return Err(unknown_key(reader, name, key));
            };
            let checked = field.read(value.get_ref()).map_err(|message| {
                let hint = format!("write for instance `{}`; see docs/cluster.md", field.example());
                reader.error(value.span(), message, Some(hint))
            })?;
            given.push(Given { field, value: checked, at: value.span() });
        }
        Ok(Self { reader, name, at, given })
    }

    /// Its section.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is this section.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.name == name
    }

    /// Line of its header, from 1.
    pub(crate) fn line(&self) -> usize {
        self.reader.line(self.at.start)
    }

    /// Whether the file sets a key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.given.iter().any(|g| g.field.name == key)
    }

    /// The refusal of a value, at the first of these keys that the file sets, or else at the header.
    pub(crate) fn error(&self, keys: &[&str], message: String, hint: impl Into<String>) -> FileError {
        let found = keys.iter().find_map(|key| self.given.iter().find(|g| g.field.name == *key));
        let at = found.map_or_else(|| self.at.clone(), |g| g.at.clone());
        self.reader.error(at, message, Some(hint.into()))
    }

    /// As the file has it, or the default.
    fn value(&self, key: &str) -> Option<FieldValue> {
        if let Some(given) = self.given.iter().find(|g| g.field.name == key) {
            return Some(given.value.clone());
        }
        fields::named(self.name, key)?.built_in()
    }

    pub(crate) fn text(&self, key: &str) -> Option<String> {
        match self.value(key)? {
            FieldValue::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn address(&self, key: &str) -> Option<Address> {
        match self.value(key)? {
            FieldValue::Address(address) => Some(address),
            _ => None,
        }
    }

    pub(crate) fn duration(&self, key: &str) -> Option<Duration> {
        match self.value(key)? {
            FieldValue::Duration(time) => Some(time),
            _ => None,
        }
    }

    /// A whole number within the limits of its key, all of which are far below 2³².
    pub(crate) fn integer(&self, key: &str) -> Option<u32> {
        match self.value(key)? {
            FieldValue::Integer(n) => u32::try_from(n).ok(),
            _ => None,
        }
    }

    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            FieldValue::Number(x) => Some(x),
            _ => None,
        }
    }

    pub(crate) fn bytes(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            FieldValue::Bytes(n) => Some(n),
            _ => None,
        }
    }

    pub(crate) fn switch(&self, key: &str) -> bool {
        matches!(self.value(key), Some(FieldValue::Switch(true)))
    }

    pub(crate) fn indices(&self, key: &str) -> Option<Vec<u32>> {
        match self.value(key)? {
            FieldValue::Indices(list) => Some(list),
            _ => None,
        }
    }

    pub(crate) fn words(&self, key: &str) -> Vec<String> {
        match self.value(key) {
            Some(FieldValue::Words(words)) => words,
            _ => Vec::new(),
        }
    }

    pub(crate) fn env(&self, key: &str) -> BTreeMap<String, String> {
        match self.value(key) {
            Some(FieldValue::Env(env)) => env,
            _ => BTreeMap::new(),
        }
    }
}

fn unknown_key(reader: &Reader<'_>, section: &str, key: &Spanned<toml::de::DeString<'_>>) -> FileError {
    let name = key.get_ref().as_ref();
    let of_section = FIELDS.iter().filter(|f| f.section == section).map(|f| f.name);
    let elsewhere = FIELDS.iter().find(|f| f.name == name).map(|f| f.section);
    let setting = Key::named(name).map(|key| key.setting().section).filter(|s| !s.is_empty());
    let other = OTHER_NAMES.iter().find(|(s, other, _)| (*s, *other) == (section, name));
    let near = other.map(|(_, _, right)| *right).or_else(|| suggest::closest(name, of_section));
    let hint = match (near, elsewhere.or(setting)) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (_, Some(section)) => format!("`{name}` belongs under `{}`", header(section)),
        _ => format!("docs/cluster.md lists the keys of {}", header(section)),
    };
    reader.error(key.span(), format!("unknown key `{name}` in {}", header(section)), Some(hint))
}

/// What other programs call a key.
const OTHER_NAMES: [(&str, &str, &str); 8] = [
    ("cluster", "address", "listen"),
    ("cluster", "lease", "lease_ttl"),
    ("node", "host", "address"),
    ("node", "slots", "ranks"),
    ("node", "num_gpus", "ranks"),
    ("node", "threads", "cpu_threads"),
    ("node", "model", "model_path"),
    ("security", "cert", "certificate"),
];
