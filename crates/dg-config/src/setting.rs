//! One setting: its names, what it accepts, what it means.

use crate::Key;
use crate::suggest;

/// A value that a setting accepted.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Integer(u64),
    /// A finite number.
    Number(f64),
    /// Yes or no.
    Switch(bool),
    /// Anything else.
    Text(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(n) => write!(f, "{n}"),
            Self::Number(x) => write!(f, "{x}"),
            Self::Switch(b) => write!(f, "{b}"),
            Self::Text(s) => f.write_str(s),
        }
    }
}

/// What a setting accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number within these limits, both included.
    Integer(u64, u64),
    /// A finite number within these limits, both included.
    Number(f64, f64),
    /// true/1/yes/on or false/0/no/off.
    Switch,
    /// Any text up to this many characters.
    Text(usize),
    /// One of these words; a word may have other spellings, which stand behind it.
    Choice(&'static [&'static [&'static str]]),
}

/// Names and meaning of one setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Which one.
    pub key: Key,
    /// TOML section, `generate` for instance; empty for what only flags and the environment set.
    pub section: &'static str,
    /// Name as TOML key and as flag.
    pub name: &'static str,
    /// Other accepted names.
    pub aliases: &'static [&'static str],
    /// Environment variables; the first is the one that is documented.
    pub env: &'static [&'static str],
    /// Whether `diffgentor t2i` has a flag for it.
    pub flag: bool,
    /// What it accepts.
    pub kind: Kind,
    /// The built-in value as text; empty when there is none.
    pub default: &'static str,
    /// Placeholder of the value in help.
    pub unit: &'static str,
    /// Heading of the flag in help.
    pub heading: &'static str,
    /// One or two sentences.
    pub help: &'static str,
}

/// A value that a setting does not accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} does not accept `{value}`: {expected}")]
pub struct BadValue {
    /// The setting.
    pub name: &'static str,
    /// What was given.
    pub value: String,
    /// What would be right.
    pub expected: String,
}

impl Setting {
    /// The name that a TOML file should use: `[model]` says `name` where flags say `model_name`.
    pub fn toml_name(&self) -> &'static str {
        match self.key {
            Key::ModelName => "name",
            _ => self.name,
        }
    }

    /// Reads and checks a value.
    pub fn parse(&self, text: &str) -> Result<Value, BadValue> {
        let value = match self.kind {
            Kind::Integer(low, high) => {
                text.trim().parse().ok().filter(|n| (low..=high).contains(n)).map(Value::Integer)
            }
            // −0 would be another recorded request than 0 for the same picture
            Kind::Number(low, high) => text
                .trim()
                .parse()
                .ok()
                .filter(|x| (low..=high).contains(x))
                .map(|x: f64| Value::Number(x + 0.0)),
            Kind::Switch => switch(text).map(Value::Switch),
            Kind::Text(longest) => {
                (text.chars().take(longest + 1).count() <= longest).then(|| Value::Text(text.into()))
            }
            Kind::Choice(words) => words
                .iter()
                .find(|spellings| spellings.iter().any(|s| s.eq_ignore_ascii_case(text)))
                .map(|spellings| Value::Text(spellings[0].into())),
        };
        value.ok_or_else(|| self.bad(text))
    }

    /// The first spelling of every word of a [`Kind::Choice`].
    pub fn choices(&self) -> Vec<&'static str> {
        match self.kind {
            Kind::Choice(words) => words.iter().map(|spellings| spellings[0]).collect(),
            _ => Vec::new(),
        }
    }

    /// What it accepts, in words.
    pub fn accepts(&self) -> String {
        match self.kind {
            Kind::Integer(low, u64::MAX) => format!("a whole number from {low}"),
            Kind::Integer(low, high) => format!("a whole number from {low} to {high}"),
            Kind::Number(low, high) => format!("a number from {low} to {high}"),
            Kind::Switch => "true or false".into(),
            Kind::Text(longest) => format!("text of at most {longest} characters"),
            Kind::Choice(_) => format!("one of {}", self.choices().join(", ")),
        }
    }

    /// The refusal of `value`, with a suggestion for a misspelt word.
    pub fn bad(&self, value: &str) -> BadValue {
        let expected = match suggest::closest(value, self.choices()) {
            Some(word) => format!("expected {}; did you mean `{word}`?", self.accepts()),
            None => format!("expected {}", self.accepts()),
        };
        let shown: String = value.chars().take(SHOWN_CHARS).collect();
        let value = if shown.len() < value.len() { shown + "…" } else { shown };
        BadValue { name: self.name, value, expected }
    }
}

fn switch(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Characters of a refused value that an error shows.
const SHOWN_CHARS: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: Key, text: &str, expect: Option<Value>) {
        assert_eq!(key.setting().parse(text).ok(), expect, "{key:?} {text:?}");
    }

    #[test]
    fn values_are_checked() {
        check(Key::Height, "64", Some(Value::Integer(64)));
        for bad in ["0", "15", "8193", "two", "", "-64", "64.0", "99999999999999999999999"] {
            check(Key::Height, bad, None);
        }
        check(Key::Seed, "18446744073709551615", Some(Value::Integer(u64::MAX)));
        check(Key::GuidanceScale, "-0.0", Some(Value::Number(0.0)));
        for bad in ["NaN", "inf", "-1", "101", "x"] {
            check(Key::GuidanceScale, bad, None);
        }
        check(Key::Dtype, "BF16", Some(Value::Text("bfloat16".into())));
        check(Key::Dtype, "float8", None);
        check(Key::MaxSequenceLength, "513", None);
        check(Key::NegativePrompt, "", Some(Value::Text(String::new())));
    }

    #[test]
    fn switches_have_four_spellings_each() {
        for (on, off) in [("true", "false"), ("1", "0"), ("YES", "no"), ("on", "Off")] {
            check(Key::NoResume, on, Some(Value::Switch(true)));
            check(Key::NoResume, off, Some(Value::Switch(false)));
        }
        check(Key::NoResume, "", None);
        check(Key::NoResume, "2", None);
    }

    #[test]
    fn a_misspelt_word_gets_a_suggestion() {
        let e = Key::Dtype.setting().parse("bfloat61").unwrap_err().to_string();
        assert!(e.contains("did you mean `bfloat16`"), "{e}");
    }
}
