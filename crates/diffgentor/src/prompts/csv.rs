//! CSV with a header. An empty cell is an absent value.

use super::{Column, Draft, Parsed, RowError, column, misspelt};
use ::csv::{Position, ReaderBuilder, StringRecord};

pub(super) fn parse(text: &str, name_column: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut records = reader.records();
    let Some(Ok(header)) = records.next() else { return parsed };
    let columns: Vec<Column> = header.iter().map(|name| column(name.trim(), name_column)).collect();
    for (i, name) in header.iter().enumerate() {
        if columns[i] == Column::Other {
            parsed.warnings.extend(misspelt(name.trim(), name_column));
        }
        if columns[i] != Column::Other && columns[..i].contains(&columns[i]) {
            parsed.errors.push(RowError { line: 1, message: format!("column `{name}` stands twice") });
        }
    }
    if !columns.contains(&Column::Prompt) {
        parsed.errors.push(RowError { line: 1, message: "the header has no column `prompt`".into() });
        return parsed;
    }
    let mut lines = Lines { text, offset: 0, line: 1 };
    for record in records {
        match record {
            Ok(record) => {
                let line = lines.at(record.position());
                row(&record, line, &columns, &mut parsed);
            }
            Err(e) => {
                let line = lines.at(e.position());
                parsed.errors.push(RowError { line, message: e.to_string() });
            }
        }
    }
    parsed
}

/// Lines of growing offsets. The reader's own count is one short after CRLF.
struct Lines<'a> {
    text: &'a str,
    offset: usize,
    line: usize,
}

impl Lines<'_> {
    fn at(&mut self, position: Option<&Position>) -> usize {
        let bytes = self.text.as_bytes();
        let start = position.map_or(self.offset, |p| p.byte() as usize).clamp(self.offset, bytes.len());
        // the record begins behind the line ends that the reader has not skipped yet
        let end = start + bytes[start..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        self.line += bytes[self.offset..end].iter().filter(|b| **b == b'\n').count();
        self.offset = end;
        self.line
    }
}

fn row(record: &StringRecord, line: usize, columns: &[Column], parsed: &mut Parsed) {
    let mut draft = Draft::default();
    if record.len() != columns.len() {
        draft.faults.push(format!("{} cells, but the header has {}", record.len(), columns.len()));
    }
    for (column, cell) in columns.iter().zip(record) {
        if !cell.trim().is_empty() {
            draft.take(*column, cell.trim());
        }
    }
    draft.finish(line, parsed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use dg_config::{Key, Value};

    #[test]
    fn cells_are_overrides() {
        let text = "prompt,height,name,note\r\n\"a, \"\"b\"\"\nc\",64,x,\r\nd,,,y\r\n";
        let parsed = parse(text, "name");
        assert_eq!(parsed.errors, []);
        assert_eq!(parsed.rows[0].prompt, "a, \"b\"\nc");
        assert_eq!(parsed.rows[0].overrides, [(Key::Height, Value::Integer(64))]);
        assert_eq!((parsed.rows[1].line, parsed.rows[1].name.as_deref()), (4, None));
    }

    #[test]
    fn all_bad_rows_are_reported() {
        let parsed = parse("prompt,width,widht\na,0,1\n,64,1\nb,64\nc,64,1\n", "name");
        assert_eq!(parsed.errors.iter().map(|e| e.line).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(parsed.rows.len(), 1);
        assert!(parsed.warnings[0].contains("did you mean `width`"), "{:?}", parsed.warnings);
        assert_eq!(parse("text\na\n", "name").errors[0].line, 1);
        assert_eq!(parse("", "name"), Parsed::default());
        assert_eq!(parse("prompt,prompt\na,b\n", "name").errors[0].line, 1);
    }
}
