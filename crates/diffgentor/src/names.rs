//! Names of the files that a run writes.

use std::collections::BTreeMap;

/// The file of picture `sub` of prompt `index`: the row's name or its number, a sub-number when a
/// prompt has several pictures, and the extension.
pub(crate) fn file_name(name: Option<&str>, index: usize, sub: Option<u64>, extension: &str) -> String {
    let suffix = format!(".{extension}");
    let stem = match name {
        Some(name) => name.strip_suffix(&suffix).unwrap_or(name).to_string(),
        None => format!("{index:06}"),
    };
    match sub {
        Some(sub) => format!("{stem}_{sub:02}{suffix}"),
        None => stem + &suffix,
    }
}

/// Whether a name from a prompts file can be a file's name in the output folder, and nowhere else.
pub(crate) fn check(name: &str) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("name `{}` {why}", name.escape_debug()));
    if name.trim().is_empty() {
        return refuse("is empty");
    }
    if name.contains(['/', '\\']) {
        return refuse("has a path separator: pictures are written to the output folder itself");
    }
    if name.starts_with('.') {
        return refuse("begins with a dot");
    }
    if name.chars().any(char::is_control) {
        return refuse("has a control character");
    }
    if name.ends_with(['.', ' ']) || name.contains(['<', '>', ':', '"', '|', '?', '*']) {
        return refuse("has a character that some file systems do not allow");
    }
    if name.len() > NAME_BYTES_MAX {
        return refuse("is too long");
    }
    let stem = name.split('.').next().unwrap_or("").to_ascii_uppercase();
    let numbered =
        |s: &str| s.len() == 4 && matches!(&s[..3], "COM" | "LPT") && s.as_bytes()[3].is_ascii_digit();
    if matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL") || (stem.is_ascii() && numbered(&stem)) {
        return refuse("is reserved on some systems");
    }
    Ok(())
}

/// Positions that have the same file name as an earlier one, with the earlier one.
pub(crate) fn duplicates<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(usize, usize)> {
    let mut first = BTreeMap::new();
    let mut found = Vec::new();
    for (i, name) in names.enumerate() {
        match first.get(name) {
            Some(earlier) => found.push((i, *earlier)),
            None => {
                first.insert(name, i);
            }
        }
    }
    found
}

/// Longest name in bytes: file systems allow 255, and sub-number and extension come on top.
const NAME_BYTES_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_convention() {
        assert_eq!(file_name(None, 3, None, "png"), "000003.png");
        assert_eq!(file_name(None, 3, Some(1), "webp"), "000003_01.webp");
        assert_eq!(file_name(Some("cat"), 3, None, "png"), "cat.png");
        assert_eq!(file_name(Some("cat.png"), 3, Some(12), "png"), "cat_12.png");
        assert_eq!(file_name(Some("v1.5"), 3, None, "png"), "v1.5.png");
    }

    #[test]
    fn no_name_leaves_the_folder() {
        for bad in [
            "",
            " ",
            "a/b",
            "../x",
            "..",
            ".",
            "/etc/passwd",
            "a\\b",
            "C:x",
            ".hidden",
            "a\0b",
            "a\nb",
            "nul",
            "COM1.txt",
            "x.",
            &"é".repeat(150),
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for good in ["cat", "a b", "猫", "x..y", "-x", "com", "컴퓨터", "v1.5_final (2)"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn duplicates_are_found() {
        assert_eq!(duplicates(["a", "b", "a", "a"].into_iter()), [(2, 0), (3, 0)]);
    }
}
