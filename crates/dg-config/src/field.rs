//! One key of the cluster's sections: what it accepts, its default, its meaning.

use crate::suggest;
use crate::units::{self, Address};
use std::collections::BTreeMap;
use std::time::Duration;
use toml::de::DeValue;

/// A key of `[cluster]`, `[[node]]`, `[failure]` or `[security]`.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// `cluster`, `node`, `failure` or `security`.
    pub section: &'static str,
    /// The key.
    pub name: &'static str,
    /// What it accepts.
    pub kind: FieldKind,
    /// The default as it would be written in TOML without quotes; empty when there is none, or when `otherwise` tells.
    pub default: &'static str,
    /// The default in words, where it follows from something else.
    pub otherwise: &'static str,
    /// One or two sentences.
    pub help: &'static str,
}

/// What a key accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FieldKind {
    /// A host and perhaps a port.
    Address,
    /// An amount of memory within these limits in bytes, both included.
    Bytes(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A length of time within these limits in milliseconds, both included.
    Duration(u64, u64),
    /// A table of environment variables.
    Env,
    /// Different whole numbers up to this one.
    Indices(u64),
    /// A whole number within these limits, both included.
    Integer(u64, u64),
    /// A part of a host name: lower-case letters, digits and hyphens.
    Name,
    /// A number within these limits, both included.
    Number(f64, f64),
    /// A path.
    Path,
    /// A destination for `ssh`.
    Ssh,
    /// Yes or no.
    Switch,
    /// Different names.
    Words,
}

/// A value that a key accepted.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldValue {
    /// A host and perhaps a port.
    Address(Address),
    /// Bytes.
    Bytes(u64),
    /// A length of time.
    Duration(Duration),
    /// Environment variables.
    Env(BTreeMap<String, String>),
    /// Whole numbers.
    Indices(Vec<u32>),
    /// A whole number.
    Integer(u64),
    /// A number.
    Number(f64),
    /// Yes or no.
    Switch(bool),
    /// A name, a word of a choice, a path, a destination.
    Text(String),
    /// Names.
    Words(Vec<String>),
}

impl Field {
    /// What it accepts, in words.
    pub fn accepts(&self) -> String {
        match self.kind {
            FieldKind::Address => "a host name or IP address, with or without `:port`".into(),
            FieldKind::Bytes(low, high) => {
                format!("memory from {} to {}", units::bytes_text(low), units::bytes_text(high))
            }
            FieldKind::Choice(words) => format!("one of {}", words.join(", ")),
            FieldKind::Duration(low, high) => {
                let text = |ms| units::duration_text(Duration::from_millis(ms));
                format!("a time from {} to {}", text(low), text(high))
            }
            FieldKind::Env => "a table of names and texts".into(),
            FieldKind::Indices(high) => format!("a list of different whole numbers from 0 to {high}"),
            FieldKind::Integer(low, high) => format!("a whole number from {low} to {high}"),
            FieldKind::Name => {
                format!("a name of at most {NAME_MAX} lower-case letters, digits and hyphens")
            }
            FieldKind::Number(low, high) => format!("a number from {low} to {high}"),
            FieldKind::Path => format!("a path of at most {PATH_MAX} characters"),
            FieldKind::Ssh => "a destination for ssh".into(),
            FieldKind::Switch => "true or false".into(),
            FieldKind::Words => "a list of different names".into(),
        }
    }

    /// How it is written, for hints.
    pub fn example(&self) -> String {
        let value = match self.kind {
            FieldKind::Address => "\"10.0.0.7:7443\"".into(),
            FieldKind::Bytes(..) => "\"24GiB\"".into(),
            FieldKind::Choice(words) => format!("\"{}\"", words.first().unwrap_or(&"")),
            FieldKind::Duration(..) if self.default.is_empty() => "\"3s\"".into(),
            FieldKind::Duration(..) => format!("\"{}\"", self.default),
            FieldKind::Env => "{ NCCL_SOCKET_IFNAME = \"eth0\" }".into(),
            FieldKind::Indices(_) => "[0, 1]".into(),
            FieldKind::Integer(..) | FieldKind::Number(..) if self.default.is_empty() => "2".into(),
            FieldKind::Integer(..) | FieldKind::Number(..) => self.default.into(),
            FieldKind::Name => "\"node-1\"".into(),
            FieldKind::Path => "\"models/flux\"".into(),
            FieldKind::Ssh => "\"user@gpu-1\"".into(),
            FieldKind::Switch => "true".into(),
            FieldKind::Words => "[\"fast\"]".into(),
        };
        format!("{} = {value}", self.name)
    }

    /// Checks a value of a file. The error is what is wrong with it.
    pub(crate) fn read(&self, value: &DeValue<'_>) -> Result<FieldValue, String> {
        match (self.kind, value) {
            (FieldKind::Indices(high), DeValue::Array(list)) => self.indices(high, list),
            (FieldKind::Words, DeValue::Array(list)) => self.words(list),
            (FieldKind::Env, DeValue::Table(table)) => self.env(table),
            (FieldKind::Switch, DeValue::Boolean(b)) => Ok(FieldValue::Switch(*b)),
            (FieldKind::Integer(low, high), DeValue::Integer(n)) => {
                let number = u64::from_str_radix(n.as_str().trim_start_matches('+'), n.radix()).ok();
                let number = number.filter(|n| (low..=high).contains(n));
                number.map(FieldValue::Integer).ok_or_else(|| self.bad(n.as_str()))
            }
            (FieldKind::Number(..), DeValue::Integer(n)) if n.radix() == 10 => self.number(n.as_str()),
            (FieldKind::Number(..), DeValue::Float(x)) => self.number(x.as_str()),
            (_, DeValue::String(text)) => self.text(text),
            (_, DeValue::Integer(n)) => Err(self.bad(n.as_str())),
            (_, DeValue::Float(x)) => Err(self.bad(x.as_str())),
            (_, DeValue::Boolean(b)) => Err(self.bad(&b.to_string())),
            (_, other) => Err(self.bad(&format!("a {}", other.type_str()))),
        }
    }

    /// The default that the table names.
    pub(crate) fn built_in(&self) -> Option<FieldValue> {
        match self.kind {
            _ if self.default.is_empty() => None,
            FieldKind::Integer(..) => self.default.parse().ok().map(FieldValue::Integer),
            FieldKind::Number(..) => self.default.parse().ok().map(FieldValue::Number),
            FieldKind::Switch => self.default.parse().ok().map(FieldValue::Switch),
            _ => self.text(self.default).ok(),
        }
    }

    /// Checks a text, be it from a file or the default.
    pub(crate) fn text(&self, text: &str) -> Result<FieldValue, String> {
        if text.contains("${") {
            return Err(format!(
                "{} does not accept `{}`: variables are not expanded",
                self.name,
                short(text)
            ));
        }
        let owned = |ok: bool| ok.then(|| FieldValue::Text(text.to_string()));
        let value = match self.kind {
            FieldKind::Address => Address::parse(text).map(FieldValue::Address),
            FieldKind::Bytes(low, high) => {
                units::bytes(text).filter(|n| (low..=high).contains(n)).map(FieldValue::Bytes)
            }
            FieldKind::Choice(words) => owned(words.contains(&text)),
            FieldKind::Duration(low, high) => {
                let (low, high) = (Duration::from_millis(low), Duration::from_millis(high));
                units::duration(text).filter(|t| (low..=high).contains(t)).map(FieldValue::Duration)
            }
            FieldKind::Name => owned(is_name(text)),
            FieldKind::Path => owned(is_path(text)),
            FieldKind::Ssh => owned(is_ssh(text)),
            _ => None,
        };
        value.ok_or_else(|| self.bad(&format!("\"{text}\"")))
    }

    fn number(&self, text: &str) -> Result<FieldValue, String> {
        let FieldKind::Number(low, high) = self.kind else { return Err(self.bad(text)) };
        let number: Option<f64> = text.parse().ok().filter(|x| (low..=high).contains(x));
        number.map(FieldValue::Number).ok_or_else(|| self.bad(text))
    }

    fn indices(&self, high: u64, list: &toml::de::DeArray<'_>) -> Result<FieldValue, String> {
        let mut found: Vec<u32> = Vec::new();
        for item in list.iter() {
            let DeValue::Integer(n) = item.get_ref() else { return Err(self.bad("this list")) };
            let number = u32::from_str_radix(n.as_str(), n.radix()).ok().filter(|n| u64::from(*n) <= high);
            let number = number.ok_or_else(|| self.bad(n.as_str()))?;
            if found.contains(&number) {
                return Err(format!("{} has {number} twice", self.name));
            }
            found.push(number);
        }
        if found.is_empty() { Err(self.bad("[]")) } else { Ok(FieldValue::Indices(found)) }
    }

    fn words(&self, list: &toml::de::DeArray<'_>) -> Result<FieldValue, String> {
        let mut found: Vec<String> = Vec::new();
        for item in list.iter() {
            let DeValue::String(word) = item.get_ref() else { return Err(self.bad("this list")) };
            if !is_name(word) || found.len() == WORDS_MAX {
                return Err(self.bad(&format!("\"{word}\"")));
            }
            if found.iter().any(|other| other == word) {
                return Err(format!("{} has `{word}` twice", self.name));
            }
            found.push(word.to_string());
        }
        Ok(FieldValue::Words(found))
    }

    fn env(&self, table: &toml::de::DeTable<'_>) -> Result<FieldValue, String> {
        let mut found = BTreeMap::new();
        for (name, value) in table {
            let name = name.get_ref().as_ref();
            let DeValue::String(text) = value.get_ref() else {
                return Err(format!("{}: `{name}` is no text: put its value in quotes", self.name));
            };
            if !is_variable(name) {
                return Err(format!("{}: `{}` is no name of a variable", self.name, short(name)));
            }
            if name == GPUS_VARIABLE {
                return Err(format!("{}: {name} follows from `gpus`", self.name));
            }
            if text.contains("${") || text.contains('\0') || text.chars().count() > PATH_MAX {
                return Err(format!(
                    "{}: {name} does not accept `{}`: variables are not expanded, and {PATH_MAX} characters are the \
                     most",
                    self.name,
                    short(text)
                ));
            }
            found.insert(name.to_string(), text.to_string());
        }
        if found.len() > ENV_MAX {
            return Err(format!("{} has {} variables, more than {ENV_MAX}", self.name, found.len()));
        }
        Ok(FieldValue::Env(found))
    }

    fn bad(&self, value: &str) -> String {
        let words = match self.kind {
            FieldKind::Choice(words) => words,
            _ => &[],
        };
        let near = suggest::closest(value.trim_matches('"'), words.iter().copied());
        let near = near.map(|word| format!("; did you mean `{word}`?")).unwrap_or_default();
        format!("{} does not accept `{}`: expected {}{near}", self.name, short(value), self.accepts())
    }
}

fn short(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() { shown + "…" } else { shown }
}

/// What may stand in a certificate as part of a host name.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= NAME_MAX
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_path(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0') && text.chars().take(PATH_MAX + 1).count() <= PATH_MAX
}

/// A destination that ssh takes for nothing but a destination.
fn is_ssh(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@:[]/".contains(&b);
    !text.is_empty() && text.len() <= SSH_MAX && text.bytes().all(plain) && !text.starts_with('-')
}

fn is_variable(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && text.len() <= SSH_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Characters of a refused value that an error shows.
const SHOWN_CHARS: usize = 60;
/// The longest label of a host name.
const NAME_MAX: usize = 63;
const PATH_MAX: usize = 4096;
const SSH_MAX: usize = 255;
const WORDS_MAX: usize = 32;
const ENV_MAX: usize = 64;
/// The variable by which a process is given its GPUs.
const GPUS_VARIABLE: &str = "CUDA_VISIBLE_DEVICES";
