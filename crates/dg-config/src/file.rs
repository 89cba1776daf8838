//! TOML → checked values. Every refusal shows the line.

use crate::cluster::ClusterFile;
use crate::fields::CLUSTER_SECTIONS;
use crate::section::{Section, header};
use crate::setting::{Kind, Setting, Value};
use crate::suggest;
use crate::table::{self, Key, SECTIONS};
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One value of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileEntry {
    /// The setting.
    pub key: Key,
    /// Its value.
    pub value: Value,
    /// Line, from 1.
    pub line: usize,
    /// Where its key stands in the text.
    pub(crate) at: Range<usize>,
}

/// A TOML file that cannot be used; displayed with the line and a mark under the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}:{column}: {message}\n{snippet}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The line with the place marked.
    pub snippet: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Reads the settings of a file. The sections of a cluster are checked, and otherwise left alone. A relative `[model]
/// path` starts at the file's folder.
pub fn read(path: &Path, text: &str) -> Result<Vec<FileEntry>, FileError> {
    document(path, text).map(|file| file.entries)
}

/// Reads all sections of a file.
pub(crate) fn document(path: &Path, text: &str) -> Result<ClusterFile, FileError> {
    let reader = Reader { path, text };
    let root = DeTable::parse(text).map_err(|e| {
        let message = e.message().lines().next().unwrap_or("not TOML").to_string();
        let form = "TOML has sections and assignments: `[generate]`, then `height = 512` or `name = \"text\"`; \
                    see docs/cli.md";
        reader.error(e.span().unwrap_or(0..0), message, Some(form.into()))
    })?;
    let (mut entries, mut nodes) = (Vec::new(), Vec::new());
    let mut once = ["cluster", "failure", "security"].map(|name| Section::absent(&reader, name));
    for (section, value) in root.get_ref() {
        let name = section.get_ref().as_ref();
        if name == "node" {
            nodes = reader.nodes(section.span(), value)?;
            continue;
        }
        if !SECTIONS.contains(&name) && !CLUSTER_SECTIONS.contains(&name) {
            return Err(reader.unknown_section(section.span(), name));
        }
        let DeValue::Table(values) = value.get_ref() else {
            let message = format!("`{name}` is a section: expected `[{name}]`");
            let hint = format!("write `[{name}]` on a line of its own, and its keys below");
            return Err(reader.error(section.span(), message, Some(hint)));
        };
        if let Some(place) = once.iter_mut().find(|s| s.is_named(name)) {
            *place = Section::read(&reader, place.name(), section.span(), values)?;
            continue;
        }
        for (key, value) in values {
            let entry = reader.entry(name, key.get_ref(), key.span(), value)?;
            reader.refuse_second(&entries, &entry, key.span())?;
            entries.push(entry);
        }
    }
    let [cluster, failure, security] = &once;
    ClusterFile::build(&reader, entries, [cluster, failure, security], &nodes)
}

pub(crate) struct Reader<'a> {
    pub(crate) path: &'a Path,
    pub(crate) text: &'a str,
}

impl<'a> Reader<'a> {
    /// The tables of `[[node]]`.
    fn nodes<'r>(
        &'r self,
        at: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<Section<'r, 'a>>, FileError> {
        let refuse = |at: Range<usize>| {
            let hint = "write `[[node]]`, with two brackets, before the keys of each node".to_string();
            self.error(at, "`node` is a list of sections: expected `[[node]]`".into(), Some(hint))
        };
        let DeValue::Array(list) = value.get_ref() else { return Err(refuse(at)) };
        let one = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
            DeValue::Table(table) => Section::read(self, "node", item.span(), table),
            _ => Err(refuse(item.span())),
        };
        list.iter().map(one).collect()
    }

    fn entry(
        &self,
        section: &str,
        name: &str,
        at: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<FileEntry, FileError> {
        let line = self.line(at.start);
        if (section, name) == ("model", "path") {
            return Ok(FileEntry { key: Key::ModelName, value: self.model_path(value)?, line, at });
        }
        let Some(key) = Key::in_section(section, name) else {
            return Err(self.unknown_key(section, name, at));
        };
        let setting = key.setting();
        let checked = match (literal(value.get_ref()), value.get_ref()) {
            (Some(text), DeValue::String(_)) if !matches!(setting.kind, Kind::Text(_) | Kind::Choice(_)) => {
                Err(setting.bad(&format!("\"{text}\"")))
            }
            (Some(text), _) => setting.parse(&text),
            (None, other) => Err(setting.bad(&format!("a {}", other.type_str()))),
        };
        let value = checked
            .map_err(|e| self.error(value.span(), e.to_string(), Some(form(setting, value.get_ref()))))?;
        Ok(FileEntry { key, value, line, at })
    }

    /// `[model] path` as a name that can only be a path.
    fn model_path(&self, value: &Spanned<DeValue<'_>>) -> Result<Value, FileError> {
        let DeValue::String(text) = value.get_ref() else {
            let hint = "write the folder in quotes: `path = \"models/flux\"`".to_string();
            let message = "path does not accept this: expected text".to_string();
            return Err(self.error(value.span(), message, Some(hint)));
        };
        Ok(Value::Text(self.beside(text).to_string_lossy().into_owned()))
    }

    /// A path that can only be a path: a relative one starts at the file's folder.
    pub(crate) fn beside(&self, text: &str) -> PathBuf {
        if text.starts_with('~') {
            return text.into();
        }
        let path = self.path.parent().unwrap_or_else(|| Path::new("")).join(text);
        if path.is_absolute() { path } else { Path::new(".").join(path) }
    }

    fn refuse_second(
        &self,
        entries: &[FileEntry],
        entry: &FileEntry,
        at: Range<usize>,
    ) -> Result<(), FileError> {
        let Some(first) = entries.iter().find(|e| e.key == entry.key) else { return Ok(()) };
        let message = format!("`{}` is set twice, first in line {}", entry.key.setting().name, first.line);
        Err(self.error(at, message, Some("remove one of the two".into())))
    }

    fn unknown_section(&self, at: Range<usize>, name: &str) -> FileError {
        let all = || SECTIONS.into_iter().chain(CLUSTER_SECTIONS);
        let hint = match (suggest::closest(name, all()), Key::named(name)) {
            (Some(near), _) => format!("did you mean `{}`?", header(near)),
            (None, Some(key)) if !key.setting().section.is_empty() => {
                format!("`{name}` belongs under `[{}]`", key.setting().section)
            }
            _ => format!("the sections are {}", all().map(header).collect::<Vec<_>>().join(", ")),
        };
        self.error(at, format!("unknown section or key `{name}`"), Some(hint))
    }

    fn unknown_key(&self, section: &str, name: &str, at: Range<usize>) -> FileError {
        let known = Key::named(name).map(|key| key.setting());
        let original = table::original(name).map(|key| key.setting());
        let hint = match (known, original, table::similar(section, name)) {
            (Some(s), ..) if s.section.is_empty() && s.flag => {
                format!("give it as `--{name}` or {}: it is no TOML key", s.env[0])
            }
            (Some(s), ..) if !s.section.is_empty() => format!("`{name}` belongs under `[{}]`", s.section),
            (_, Some(s), _) if s.section == section => format!("did you mean `{}`?", s.toml_name()),
            (_, Some(s), _) => format!("did you mean `{}` under `[{}]`?", s.toml_name(), s.section),
            (_, _, Some(near)) => format!("did you mean `{near}`?"),
            _ => "`diffgentor config show` lists the keys of every section".into(),
        };
        self.error(at, format!("unknown key `{name}` in [{section}]"), Some(hint))
    }

    pub(crate) fn error(&self, at: Range<usize>, message: String, hint: Option<String>) -> FileError {
        let at = self.text.floor_char_boundary(at.start)..self.text.floor_char_boundary(at.end);
        let line = self.line(at.start);
        let start = self.text[..at.start].rfind('\n').map_or(0, |i| i + 1);
        let source = self.text[start..].lines().next().unwrap_or("");
        let column = self.text[start..at.start].chars().count() + 1;
        let inside = &self.text[at.start..at.end.min(start + source.len()).max(at.start)];
        let marks = "^".repeat(inside.chars().count().max(1));
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        let snippet =
            format!("{gutter} |\n{number} | {source}\n{gutter} | {}{marks}", " ".repeat(column - 1));
        FileError { path: self.path.into(), line, column, message, snippet, hint }
    }

    /// An error about a whole line.
    pub(crate) fn error_in_line(&self, line: usize, message: String, hint: impl Into<String>) -> FileError {
        let before = self.text.split_inclusive('\n').take(line.saturating_sub(1));
        let start: usize = before.map(str::len).sum();
        let source = self.text[start..].lines().next().unwrap_or("");
        let indent = source.len() - source.trim_start().len();
        self.error(start + indent..start + source.trim_end().len(), message, Some(hint.into()))
    }

    pub(crate) fn line(&self, at: usize) -> usize {
        self.text[..self.text.floor_char_boundary(at)].matches('\n').count() + 1
    }
}

/// How a value of this setting is written.
fn form(setting: &Setting, given: &DeValue<'_>) -> String {
    let name = setting.toml_name();
    let example = match setting.kind {
        Kind::Text(_) => "\"text\"".to_string(),
        Kind::Choice(_) => format!("\"{}\"", setting.choices()[0]),
        Kind::Switch => "true".into(),
        _ if setting.default.is_empty() => "1".into(),
        _ => setting.default.into(),
    };
    let unquoted =
        matches!(given, DeValue::String(_)) && !matches!(setting.kind, Kind::Text(_) | Kind::Choice(_));
    let quotes = if unquoted { ", without quotes" } else { "" };
    format!("write for instance `{name} = {example}`{quotes}; see docs/cli.md")
}

/// A scalar as the text that [`crate::Setting::parse`] reads.
fn literal(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(n) if n.radix() == 10 => Some(n.as_str().trim_start_matches('+').into()),
        DeValue::Integer(n) => i128::from_str_radix(n.as_str(), n.radix()).ok().map(|n| n.to_string()),
        DeValue::Float(x) => Some(x.as_str().into()),
        DeValue::Boolean(b) => Some(b.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(text: &str, expect: &str, hint: &str) {
        let e = read(Path::new("run.toml"), text).unwrap_err();
        assert!(e.to_string().starts_with(expect), "{text:?} gave\n{e}\nexpected\n{expect}");
        assert!(e.hint.as_deref().unwrap_or("").contains(hint), "{text:?} hint {:?}", e.hint);
    }

    #[test]
    fn every_section_is_read() {
        let text = "[generate]\nheight = 0x200\nguidance_scale = 3\nseed = 18446744073709551615\n\
                    [model]\nname = \"demo\"\ndtype = \"bf16\"\n\
                    [parallel]\npipefusion_parallel_degree = 2\nuse_cfg_parallel = true\n\
                    [output]\noutput_format = \"jpg\"\n";
        let entries = read(Path::new("x.toml"), text).unwrap();
        let of = |key| entries.iter().find(|e| e.key == key).map(|e| (e.value.clone(), e.line)).unwrap();
        assert_eq!(of(Key::Height), (Value::Integer(512), 2));
        assert_eq!(of(Key::GuidanceScale), (Value::Number(3.0), 3));
        assert_eq!(of(Key::Seed).0, Value::Integer(u64::MAX));
        assert_eq!(of(Key::Dtype).0, Value::Text("bfloat16".into()));
        assert_eq!(of(Key::PipefusionDegree).0, Value::Integer(2));
        assert_eq!(of(Key::UseCfgParallel), (Value::Switch(true), 10));
        assert_eq!(of(Key::OutputFormat).0, Value::Text("jpeg".into()));
    }

    #[test]
    fn a_misspelt_key_is_shown_with_its_line() {
        let e = read(Path::new("run.toml"), "[generate]\nseed = 1\n  heigth = 64 # x\n").unwrap_err();
        let shown =
            "run.toml:3:3: unknown key `heigth` in [generate]\n  |\n3 |   heigth = 64 # x\n  |   ^^^^^^";
        assert_eq!(e.to_string(), shown);
        assert_eq!(e.hint.as_deref(), Some("did you mean `height`?"));
    }

    #[test]
    fn wrong_files_are_refused() {
        refuse("[generat]\n", "run.toml:1:2: unknown section", "did you mean `[generate]`");
        refuse("height = 1\n", "run.toml:1:1: unknown section or key `height`", "belongs under `[generate]`");
        refuse("generate = 1\n", "run.toml:1:1: `generate` is a section", "write `[generate]`");
        refuse("[model]\nseed = 1\n", "run.toml:2:1: unknown key `seed` in [model]", "under `[generate]`");
        refuse("[generate]\nprompt = \"x\"\n", "run.toml:2:1: unknown key `prompt`", "--prompt");
        refuse(
            "[generate]\nheight = \"64\"\n",
            "run.toml:2:10: height does not accept `\"64\"`",
            "without quotes",
        );
        refuse("[generate]\nheight = 0\n", "run.toml:2:10: height does not accept `0`", "`height = 1024`");
        refuse("[generate]\nheight = [1]\n", "run.toml:2:10: height does not accept `a array`", "");
        refuse("[generate]\nguidance_scale = nan\n", "run.toml:2:18: guidance_scale does not", "");
        refuse("[generate]\nheight = 64\nheight = 65\n", "run.toml:3:1: duplicate key", "docs/cli.md");
        refuse("[generate\n", "run.toml:1:10:", "docs/cli.md");
        refuse("[model]\nnam = \"x\"\n", "run.toml:2:1: unknown key `nam`", "did you mean `name`");
        refuse("[model]\npahT = \"x\"\n", "run.toml:2:1: unknown key `pahT`", "did you mean `path`");
        refuse(
            "[parallel]\npipefusion_paralel_degree = 2\n",
            "run.toml:2:1:",
            "`pipefusion_parallel_degree`",
        );
        refuse("[generate]\nsteps = 4\n", "run.toml:2:1: unknown key", "did you mean `num_inference_steps`");
        refuse("[generate]\nname = 4\n", "run.toml:2:1: unknown key", "belongs under `[model]`");
        refuse("[generate]\n猫\n", "run.toml:2:2:", "");
    }

    #[test]
    fn name_and_path_are_one_setting() {
        refuse("[model]\nname = \"a\"\npath = \"b\"\n", "run.toml:3:1: `model_name` is set twice", "remove");
        let entries = read(Path::new("conf/run.toml"), "[model]\npath = \"m/dev\"\n").unwrap();
        assert_eq!(entries[0].value, Value::Text("./conf/m/dev".into()));
        let entries = read(Path::new("conf/run.toml"), "[model]\npath = \"/m/dev\"\n").unwrap();
        assert_eq!(entries[0].value, Value::Text("/m/dev".into()));
    }
}
