//! `DG_*` → checked values.

use crate::setting::Value;
use crate::suggest;
use crate::table::{self, Key, SETTINGS};

/// One value of the environment.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvEntry {
    /// The setting.
    pub key: Key,
    /// Its value.
    pub value: Value,
    /// The variable.
    pub name: String,
}

/// A variable that cannot be followed: its setting does not accept the value, or it asks for a kind
/// of parallelism that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("environment variable {name}: {reason}")]
pub struct EnvError {
    /// The variable.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
}

/// Variables of the family that are no settings: where settings come from, and how much to log.
pub const OTHERS: [&str; 2] = ["DG_CONFIG", "DG_LOG"];

/// Reads the settings out of an environment, sorted by variable, and collects a warning for every
/// variable of the family that means nothing.
pub fn read(
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<(Vec<EnvEntry>, Vec<String>), EnvError> {
    let mut env: Vec<_> = env.into_iter().filter(|(name, _)| name.starts_with("DG_")).collect();
    env.sort();
    let (mut entries, mut warnings) = (Vec::new(), Vec::new());
    for (name, text) in env {
        if let Some(setting) = SETTINGS.iter().find(|s| s.env.contains(&name.as_str())) {
            let value = setting.parse(&text).map_err(|bad| EnvError {
                name: name.clone(),
                reason: bad.to_string(),
                hint: format!("correct {name} or unset it"),
            })?;
            entries.push(EnvEntry { key: setting.key, value, name });
        } else if name.starts_with("DG_XDIT_") && !is_neutral(&text) {
            return Err(unsupported(name, &text));
        } else if name.starts_with("DG_T2I_") || name.starts_with("DG_XDIT_") {
            warnings.push(unknown(&name));
        }
    }
    Ok((entries, warnings))
}

/// Whether a value of an unknown degree or switch asks for nothing.
fn is_neutral(text: &str) -> bool {
    matches!(text.trim().to_ascii_lowercase().as_str(), "" | "0" | "1" | "false" | "no" | "off")
}

/// The refusal of a variable that asks for a layout that would silently not be used.
fn unsupported(name: String, text: &str) -> EnvError {
    let hint = match near(&name) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("unset {name}"),
    };
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    EnvError { reason: format!("`{shown}` is not supported: there is no such setting"), name, hint }
}

/// The variable that `name` is likely a misspelling of.
fn near(name: &str) -> Option<&'static str> {
    let known = SETTINGS.iter().flat_map(|s| s.env).copied().chain(OTHERS);
    let original = name.strip_prefix("DG_T2I_").and_then(|rest| table::original(&rest.to_ascii_lowercase()));
    original.map(|key| key.setting().env[0]).or_else(|| suggest::closest(name, known))
}

/// Characters of a value that an error shows.
const SHOWN_CHARS: usize = 60;

fn unknown(name: &str) -> String {
    match near(name) {
        Some(near) => format!("environment variable {name} means nothing here; did you mean {near}?"),
        None => format!("environment variable {name} means nothing here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(name: &str, value: &str) -> Result<(Vec<EnvEntry>, Vec<String>), EnvError> {
        read([(name.to_string(), value.to_string()), ("PATH".into(), "/bin".into())])
    }

    #[test]
    fn both_families_are_read() {
        for (name, value, key, expect) in [
            ("DG_T2I_HEIGHT", "512", Key::Height, Value::Integer(512)),
            ("DG_XDIT_ULYSSES_DEGREE", "2", Key::UlyssesDegree, Value::Integer(2)),
            ("DG_XDIT_PIPEFUSION_PARALLEL_DEGREE", "2", Key::PipefusionDegree, Value::Integer(2)),
            ("DG_XDIT_USE_CFG_PARALLEL", "on", Key::UseCfgParallel, Value::Switch(true)),
            ("DG_DEBUG", "1", Key::Debug, Value::Switch(true)),
            ("DG_NO_PROGRESS", "yes", Key::NoProgress, Value::Switch(true)),
        ] {
            let (entries, warnings) = read_one(name, value).unwrap();
            assert_eq!((entries[0].key, &entries[0].value), (key, &expect), "{name}");
            assert!(warnings.is_empty());
        }
    }

    #[test]
    fn a_bad_value_names_the_variable() {
        for value in ["0", "two", ""] {
            let e = read_one("DG_XDIT_RING_DEGREE", value).unwrap_err().to_string();
            assert!(
                e.starts_with("environment variable DG_XDIT_RING_DEGREE: ring_degree does not accept"),
                "{e}"
            );
        }
    }

    #[test]
    fn an_unknown_degree_is_an_error_unless_it_asks_for_nothing() {
        let e = read_one("DG_XDIT_TENSOR_PARALLEL_DEGREE", "2").unwrap_err();
        assert!(e.to_string().contains("DG_XDIT_TENSOR_PARALLEL_DEGREE: `2` is not supported"), "{e}");
        let e = read_one("DG_XDIT_RING_DEGRE", "2").unwrap_err();
        assert_eq!(e.hint, "did you mean DG_XDIT_RING_DEGREE?");
        for value in ["1", "false", "0", ""] {
            let (entries, warnings) = read_one("DG_XDIT_TENSOR_PARALLEL_DEGREE", value).unwrap();
            assert!(entries.is_empty() && warnings.len() == 1, "{value}");
        }
    }

    #[test]
    fn an_unknown_variable_is_a_warning() {
        let (entries, warnings) = read_one("DG_T2I_HEIGTH", "x").unwrap();
        assert!(entries.is_empty() && warnings[0].contains("did you mean DG_T2I_HEIGHT"), "{warnings:?}");
        assert!(read_one("DG_T2I_STEPS", "4").unwrap().1[0].contains("DG_T2I_NUM_INFERENCE_STEPS"));
        assert!(read_one("DG_SERVE_PORT", "x").unwrap().1.is_empty());
        assert!(read_one("DG_LOG", "x").unwrap().1.is_empty());
    }
}
