//! `diffgentor config show`: every setting with its value and its origin.

use crate::args::{ConfigAction, ConfigArgs};
use crate::failure::Failure;
use crate::hub::HubAsk;
use crate::output::printer::print;
use crate::{layout, log, models, recorded, remote, setup};
use dg_config::table::SECTIONS;
use dg_config::{Key, Origin, SETTINGS, Setting, Settings, Value};
use dg_core::ExitCode;
use serde_json::json;
use std::num::NonZeroUsize;

/// Prints the settings as TOML with comments, or as JSON.
pub(crate) fn show(args: &ConfigArgs) -> Result<ExitCode, Failure> {
    let ConfigAction::Show(args) = &args.action;
    let file = remote::file(&args.cluster)?;
    let mut layers = setup::layers((&args.flags, &args.common), file.as_ref())?;
    let settings = layers.resolve();
    let recipe = settings.text(Key::FromImage).map(recorded::read).transpose()?;
    if let Some(recipe) = &recipe {
        layers.add_picture(recipe);
    }
    let name = settings.text(Key::ModelName).unwrap_or(models::DEMO);
    let ask = HubAsk { local_files_only: true, silent: true, revision: settings.text(Key::Revision) };
    let flagged = settings.origin(Key::ModelName) == Some(&Origin::Flag);
    let opened = match &recipe {
        Some(recipe) if !flagged => models::open_recorded(recipe, &ask),
        _ => models::open(name, &ask),
    };
    match opened {
        Ok(repo) => layers
            .add_model(repo.shape().transformer.guidance_embeds, repo.defaults())
            .map_err(|e| Failure::config(e.to_string()).hint("correct the model's generation_config.json"))?,
        Err(e) => log::warn_once(format!("without the model's own defaults: {}", e.message)),
    }
    let settings = layers.resolve();
    print(&if settings.switch(Key::Json) { as_json(&settings) } else { as_toml(&settings) });
    Ok(ExitCode::Ok)
}

fn as_toml(settings: &Settings) -> String {
    let sections = SECTIONS.map(|section| {
        let of_section = SETTINGS.iter().filter(|s| s.section == section);
        let lines: Vec<String> = of_section.map(|s| line(s, settings)).collect();
        format!("[{section}]\n{}", lines.join("\n"))
    });
    let others = SETTINGS.iter().filter(|s| s.section.is_empty());
    let others: Vec<String> =
        others.map(|s| format!("# {}", line(s, settings).trim_start_matches("# "))).collect();
    format!("{}\n\n# only flags and environment\n{}", sections.join("\n\n"), others.join("\n"))
}

fn line(s: &Setting, settings: &Settings) -> String {
    let entry = |prefix: &str, value: &str, origin: &str| {
        let assignment = format!("{prefix}{} = {value}", s.toml_name());
        format!("{assignment:<40} # {origin}")
    };
    match (settings.value(s.key), settings.origin(s.key)) {
        (Some(value), Some(origin)) => entry("", &literal(value), &origin.to_string()),
        _ if s.key == Key::Threads => entry("# ", &threads(settings).to_string(), CORES),
        _ => format!("# {} is not set", s.toml_name()),
    }
}

/// Threads of a rank when nobody set them.
fn threads(settings: &Settings) -> NonZeroUsize {
    setup::threads(settings, layout::ranks(settings))
}

fn literal(value: &Value) -> String {
    match value {
        // JSON's escapes are TOML's, but TOML wants one more
        Value::Text(text) => json!(text).to_string().replace('\u{7f}', "\\u007f"),
        Value::Number(x) => format!("{x:?}"),
        other => other.to_string(),
    }
}

fn as_json(settings: &Settings) -> String {
    let entry = |s: &Setting| {
        let value = match settings.value(s.key) {
            Some(Value::Integer(n)) => json!(n),
            Some(Value::Number(x)) => json!(x),
            Some(Value::Switch(b)) => json!(b),
            Some(Value::Text(text)) => json!(text),
            None if s.key == Key::Threads => json!(threads(settings).get()),
            None => json!(null),
        };
        let cores = (s.key == Key::Threads).then(|| CORES.to_string());
        let origin = settings.origin(s.key).map(ToString::to_string).or(cores);
        (s.name.to_string(), json!({"section": s.section, "value": value, "origin": origin}))
    };
    let all: serde_json::Map<String, serde_json::Value> = SETTINGS.iter().map(entry).collect();
    serde_json::Value::Object(all).to_string()
}

/// Where the number of threads comes from when nobody set it.
const CORES: &str = "the physical cores that this process may use, shared out among the ranks";

#[cfg(test)]
mod tests {
    use super::*;
    use dg_config::Layers;
    use std::path::Path;

    #[test]
    fn what_is_shown_can_be_read_again() {
        let mut layers = Layers::default();
        layers.add_flags([
            (Key::NegativePrompt, Value::Text("a \"b\"\n\u{7f}猫".into())),
            (Key::Seed, Value::Integer(u64::MAX)),
            (Key::GuidanceScale, Value::Number(1e-7)),
        ]);
        let settings = layers.resolve();
        let text = as_toml(&settings);
        let mut again = Layers::default();
        again.add_file(Path::new("x.toml"), &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let again = again.resolve();
        for s in SETTINGS.iter().filter(|s| !s.section.is_empty()) {
            assert_eq!(again.value(s.key), settings.value(s.key), "{}", s.name);
        }
        assert!(text.contains("\nname = \"demo\"") && text.contains("# threads = "), "{text}");
        assert!(text.contains("# flag") && text.contains("# built in"), "{text}");
    }
}
