//! "Did you mean".

/// The candidate that `word` is most likely a misspelling of, if any is near enough: at most one
/// edit for every three characters, transpositions counted once.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.to_ascii_lowercase().replace('-', "_");
    let word: Vec<char> = plain(word).chars().take(CHARS_MAX).collect();
    let scored = candidates.into_iter().map(|c| (distance(&word, &plain(c).chars().collect::<Vec<_>>()), c));
    scored
        .filter(|(d, c)| *d <= (word.len().max(c.len()) / 3).clamp(1, 4))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Edits between two words: insert, delete, replace, swap neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                let before: &Vec<usize> = &before;
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// Longer words are compared by their beginning.
const CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found() {
        let known = ["height", "width", "seed", "num_inference_steps"];
        for (word, expect) in [
            ("heigth", Some("height")),
            ("Width", Some("width")),
            ("sede", Some("seed")),
            ("num-inference-step", Some("num_inference_steps")),
            ("category", None),
            ("", None),
        ] {
            assert_eq!(closest(word, known), expect, "{word}");
        }
    }
}
