//! `DG_*` → checked values.

use crate::setting::{BadValue, Value};
use crate::suggest;
use crate::table::{Key, SETTINGS};

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

/// A variable with a value that its setting does not accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("environment variable {name}: {reason}")]
pub struct EnvError {
    /// The variable.
    pub name: String,
    /// What is wrong with it.
    pub reason: BadValue,
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
            let value = setting.parse(&text).map_err(|reason| EnvError { name: name.clone(), reason })?;
            entries.push(EnvEntry { key: setting.key, value, name });
        } else if name.starts_with("DG_T2I_") || name.starts_with("DG_XDIT_") {
            warnings.push(unknown(&name));
        }
    }
    Ok((entries, warnings))
}

fn unknown(name: &str) -> String {
    let known = SETTINGS.iter().flat_map(|s| s.env).copied().chain(OTHERS);
    match suggest::closest(name, known) {
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
    fn an_unknown_variable_is_a_warning() {
        let (entries, warnings) = read_one("DG_T2I_HEIGTH", "x").unwrap();
        assert!(entries.is_empty() && warnings[0].contains("did you mean DG_T2I_HEIGHT"), "{warnings:?}");
        assert!(read_one("DG_SERVE_PORT", "x").unwrap().1.is_empty());
        assert!(read_one("DG_LOG", "x").unwrap().1.is_empty());
    }
}
