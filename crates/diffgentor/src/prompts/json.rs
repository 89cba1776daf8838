//! JSON arrays and JSON lines, of objects or of bare prompts.

use super::{Column, Draft, Parsed, RowError, column, misspelt};
use serde_json::Value;
use std::collections::BTreeSet;

/// One value per line; empty lines are skipped.
pub(super) fn lines(text: &str, name_column: &str) -> Parsed {
    let mut reader = Reader::new(name_column);
    for (i, line) in text.lines().enumerate() {
        if !line.trim().is_empty() {
            match serde_json::from_str(line) {
                Ok(value) => reader.row(i + 1, &value),
                Err(e) => reader.fault(i + 1, format!("not JSON: {}", reason(&e))),
            }
        }
    }
    reader.parsed
}

/// One array. A syntax error ends the reading: what follows cannot be told apart.
pub(super) fn array(text: &str, name_column: &str) -> Parsed {
    let mut reader = Reader::new(name_column);
    let mut at = Cursor { text, offset: 0, line: 1 };
    if at.next_char() != Some('[') {
        reader.fault(at.line, "expected an array: [\"a prompt\", {\"prompt\": \"another\"}]".into());
        return reader.parsed;
    }
    at.skip(1);
    let mut first = true;
    loop {
        match at.next_char() {
            Some(']') => break,
            Some(',') if !first => at.skip(1),
            Some(_) if first => (),
            _ => {
                reader.fault(at.line, "not JSON: expected `,` or `]`".into());
                return reader.parsed;
            }
        }
        first = false;
        at.next_char();
        let line = at.line;
        let mut values = serde_json::Deserializer::from_str(at.rest()).into_iter();
        match values.next() {
            Some(Ok(value)) => reader.row(line, &value),
            Some(Err(e)) => {
                reader.fault(line + e.line().saturating_sub(1), format!("not JSON: {}", reason(&e)));
                return reader.parsed;
            }
            None => {
                reader.fault(line, "not JSON: the array does not end".into());
                return reader.parsed;
            }
        }
        let read = values.byte_offset();
        at.skip(read);
    }
    at.skip(1);
    if at.next_char().is_some() {
        reader.fault(at.line, "not JSON: something follows the array".into());
    }
    reader.parsed
}

/// A place in a text that knows its line.
struct Cursor<'a> {
    text: &'a str,
    offset: usize,
    line: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn skip(&mut self, bytes: usize) {
        self.line += self.rest()[..bytes].matches('\n').count();
        self.offset += bytes;
    }

    /// Skips white space and looks at what follows.
    fn next_char(&mut self) -> Option<char> {
        let rest = self.rest();
        self.skip(rest.len() - rest.trim_start().len());
        self.rest().chars().next()
    }
}

struct Reader<'a> {
    name_column: &'a str,
    parsed: Parsed,
    warned: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn new(name_column: &'a str) -> Self {
        Self { name_column, parsed: Parsed::default(), warned: BTreeSet::new() }
    }

    fn fault(&mut self, line: usize, message: String) {
        self.parsed.errors.push(RowError { line, message });
    }

    fn row(&mut self, line: usize, value: &Value) {
        let mut draft = Draft::default();
        match value {
            Value::String(prompt) => draft.take(Column::Prompt, prompt),
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.field(&mut draft, name, value);
                }
            }
            _ => {
                self.fault(line, "expected a prompt or an object with a prompt".into());
                return;
            }
        }
        draft.finish(line, &mut self.parsed);
    }

    fn field(&mut self, draft: &mut Draft, name: &str, value: &Value) {
        let column = column(name, self.name_column);
        let text_wanted = match column {
            Column::Setting(key) => matches!(key.setting().kind, dg_config::Kind::Text(_)),
            _ => true,
        };
        match (column, value) {
            (Column::Other, _) => {
                if self.warned.insert(name.into())
                    && let Some(warning) = misspelt(name, self.name_column)
                {
                    self.parsed.warnings.push(warning);
                }
            }
            (Column::Setting(_) | Column::Name, Value::Null) => (),
            (_, Value::String(text)) if text_wanted => draft.take(column, text),
            (Column::Name | Column::Setting(_), Value::Number(n))
                if !text_wanted || column == Column::Name =>
            {
                draft.take(column, &n.to_string());
            }
            (_, other) => {
                let wanted = if text_wanted { "text" } else { "a number" };
                draft.prompt |= column == Column::Prompt;
                draft.faults.push(format!("{name} must be {wanted}, not `{}`", short(other)));
            }
        }
    }
}

/// serde_json's message without its position, which counts from the start of the value.
fn reason(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_string()
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(39).collect::<String>() + "…" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dg_config::{Key, Value as Setting};

    fn faults(parsed: &Parsed) -> Vec<(usize, &str)> {
        parsed.errors.iter().map(|e| (e.line, e.message.as_str())).collect()
    }

    #[test]
    fn lines_have_overrides() {
        let text = "{\"prompt\": \"a\", \"height\": 64, \"guidance_scale\": 2, \"name\": \"x\", \"id\": 3}\n\n\
                    \"b\"\r\n{\"prompt\": \"\", \"negative_prompt\": \"n\", \"seed\": null}\n";
        let parsed = lines(text, "name");
        assert_eq!(faults(&parsed), []);
        assert_eq!(parsed.rows.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(parsed.rows[0].name.as_deref(), Some("x"));
        let mut overrides = parsed.rows[0].overrides.clone();
        overrides.sort_by_key(|(key, _)| *key);
        assert_eq!(
            overrides,
            [(Key::Height, Setting::Integer(64)), (Key::GuidanceScale, Setting::Number(2.0))]
        );
        assert_eq!(parsed.rows[2].overrides, [(Key::NegativePrompt, Setting::Text("n".into()))]);
        assert_eq!(lines(text, "id").rows[0].name.as_deref(), Some("3"));
    }

    #[test]
    fn all_bad_lines_are_reported() {
        let text =
            "{\"prompt\": 3}\n{\n{\"height\": \"64\"}\n7\n{\"prompt\": \"a\", \"width\": 0, \"seed\": -1}\n";
        let parsed = lines(text, "name");
        assert_eq!(parsed.errors.iter().map(|e| e.line).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let all = format!("{:?}", parsed.errors);
        for expect in [
            "prompt must be text, not `3`",
            "not JSON",
            "height must be a number",
            "no prompt",
            "width does",
            "seed does",
        ] {
            assert!(all.contains(expect), "{expect} in {all}");
        }
    }

    #[test]
    fn arrays_know_their_lines() {
        let parsed =
            array("[\"a\",\n {\"prompt\":\n  \"b\"},\n {\"prompt\": \"c\", \"width\": 1}\n]\n", "name");
        assert_eq!(
            parsed.rows.iter().map(|r| (r.line, r.prompt.as_str())).collect::<Vec<_>>(),
            [(1, "a"), (2, "b")]
        );
        assert_eq!(parsed.errors[0].line, 4);
        assert!(array("[]", "name") == Parsed::default());
        for (bad, line) in [
            ("{}", 1),
            ("", 1),
            ("[\n\"a\" \"b\"]", 2),
            ("[\"a\",\n]", 2),
            ("[\"a\"", 1),
            ("[\"a\"]\n x", 2),
            ("[\"a\",\n{\"prompt\"\n}]", 3),
            ("[,\"a\"]", 1),
        ] {
            assert_eq!(array(bad, "name").errors.first().map(|e| e.line), Some(line), "{bad:?}");
        }
    }

    #[test]
    fn a_misspelt_column_is_a_warning() {
        let parsed = lines("{\"prompt\": \"a\", \"heigth\": 64, \"category\": 1}\n", "name");
        assert_eq!(parsed.warnings.len(), 1);
        assert!(parsed.warnings[0].contains("did you mean `height`"));
    }
}
