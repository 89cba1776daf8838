//! One prompt per line. Empty lines are skipped; nothing is a comment.

use super::{Column, Draft, Parsed};

pub(super) fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for (i, line) in text.lines().enumerate() {
        let prompt = line.trim();
        if !prompt.is_empty() {
            let mut draft = Draft::default();
            draft.take(Column::Prompt, prompt);
            draft.finish(i + 1, &mut parsed);
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_prompts() {
        let parsed = parse("red apple\r\n\n  # house \n");
        let rows: Vec<_> = parsed.rows.iter().map(|r| (r.line, r.prompt.as_str())).collect();
        assert_eq!(rows, [(1, "red apple"), (3, "# house")]);
        assert_eq!(parse(&format!("a\n{}\n", "x".repeat(32_001))).errors[0].line, 2);
    }
}
