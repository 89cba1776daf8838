//! Just enough of Rust's grammar to count lines and find words.

/// A function with a body.
pub(crate) struct Function {
    pub(crate) name: String,
    /// Line of `fn`, from 1.
    pub(crate) first_line: usize,
    /// From `fn` to the closing brace.
    pub(crate) lines: usize,
}

/// The source with every character of a comment, string or character literal turned into a blank. Lines stay.
pub(crate) fn without_comments_and_strings(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            code.push(chars[at]);
            at += 1;
        } else {
            code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// The end of the comment or literal that begins at `at`; `at` itself if none does.
fn literal_end(chars: &[char], at: usize) -> usize {
    let starts = |text: &str| text.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    let inside_word = at > 0 && is_word(chars[at - 1]);
    match chars[at] {
        '/' if starts("//") => position(chars, at, |c| c == '\n'),
        '/' if starts("/*") => block_comment_end(chars, at),
        '"' => string_end(chars, at + 1),
        '\'' => char_end(chars, at),
        'r' | 'b' | 'c' if !inside_word => raw_string_end(chars, at).unwrap_or(at),
        _ => at,
    }
}

fn position(chars: &[char], from: usize, found: impl Fn(char) -> bool) -> usize {
    chars[from..].iter().position(|c| found(*c)).map_or(chars.len(), |offset| from + offset)
}

/// Block comments nest.
fn block_comment_end(chars: &[char], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (at, depth) = (at + 2, depth + 1),
            ('*', Some('/')) if depth == 1 => return at + 2,
            ('*', Some('/')) => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at
}

/// Behind the quote that ends a string whose content begins at `at`.
fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `'x'` and `'\n'`, but not the lifetime `'x`.
fn char_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => (position(chars, (at + 3).min(chars.len()), |c| c == '\'') + 1).min(chars.len()),
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

/// `r"…"`, `br#"…"#` and their like; other strings with a prefix lose only the prefix to the code.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let raw = if chars[at] == 'r' { at } else { at + 1 };
    if chars.get(raw) != Some(&'r') {
        return None;
    }
    let open = position(chars, raw + 1, |c| c != '#');
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let hashes = open - raw - 1;
    let closes = |quote: usize| {
        chars[quote] == '"' && chars[quote + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    let close = (open + 1..chars.len()).find(|quote| closes(*quote));
    Some(close.map_or(chars.len(), |quote| quote + 1 + hashes))
}

/// Whether `word` stands in `text` and is not part of a longer word.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All functions with a body, the inner ones too, in source from which comments and strings are gone.
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let chars: Vec<char> = code.chars().collect();
    let mut found = Vec::new();
    let mut line = 1;
    for at in 0..chars.len() {
        if chars[at] == '\n' {
            line += 1;
        }
        let keyword = chars[at..].starts_with(&['f', 'n', ' ']) && (at == 0 || !is_word(chars[at - 1]));
        if !keyword {
            continue;
        }
        let name: String = chars[at + 3..].iter().take_while(|c| is_word(**c)).collect();
        if let Some(end) = body_end(&chars, at)
            && !name.is_empty()
        {
            let lines = chars[at..end].iter().filter(|c| **c == '\n').count() + 1;
            found.push(Function { name, first_line: line, lines });
        }
    }
    found
}

/// Behind the closing brace of a function's body, or nothing for one that ends in `;`.
fn body_end(chars: &[char], from: usize) -> Option<usize> {
    let (mut brackets, mut braces) = (0, 0);
    for (offset, c) in chars[from..].iter().enumerate() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 && braces == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                // A constant argument in braces, as in `[f32; { N }]`, ends inside brackets.
                if braces == 0 && brackets == 0 {
                    return Some(from + offset + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn comments_and_strings_are_blanked() {
    let check = |source: &str, expected: &str| {
        assert_eq!(
            without_comments_and_strings(source).split_whitespace().collect::<Vec<_>>().join(" "),
            expected
        );
    };
    check("a // b\nc", "a c");
    check("a /* b /* c */ d */ e", "a e");
    check(r#"f("b \" c") g"#, "f( ) g");
    check(r##"f(r#"b " c"#, br"x") g"##, "f( , ) g");
    check(r"match c { '\'' => '{', '\u{1}' => 'x' }", "match c { => , => }");
    check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
    check("\"two\nlines\"; x", "; x");
    assert_eq!(without_comments_and_strings("\"two\nlines\"").lines().count(), 2);
}

#[test]
fn functions_are_measured() {
    let source = "trait T {\n    fn a(&self) -> [u8; 2];\n    fn b() {\n        if x {\n        }\n    }\n}\n\
                  fn c(f: fn(u8)) -> [u8; { 1 }] { [0] }\nmacro_rules! m { () => { fn d() {} } }\n";
    let found: Vec<_> = functions(source).into_iter().map(|f| (f.name, f.first_line, f.lines)).collect();
    let expected = [("b", 3, 4), ("c", 8, 1), ("d", 9, 1)];
    assert_eq!(found, expected.map(|(name, line, lines)| (name.to_owned(), line, lines)));
}

#[test]
fn words_are_whole() {
    assert!(has_word("let x = word;", "word"));
    assert!(!has_word("let words = 1; a_word", "word"));
}
