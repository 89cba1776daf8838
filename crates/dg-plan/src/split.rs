//! Cutting a count into parts that differ by at most one.

use std::ops::Range;

/// Where the parts go that are one larger than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// The first parts are larger.
    First,
    /// The last parts are larger.
    Last,
}

/// Cuts `0..count` into `parts` consecutive ranges whose lengths differ by at most one. With fewer
/// things than parts some ranges are empty. `parts` of 0 gives no range.
pub fn split(count: usize, parts: usize, extra: Extra) -> Vec<Range<usize>> {
    let mut start = 0;
    let one = |part: usize| {
        let end = start + share(count, parts, part, extra);
        let range = start..end;
        start = end;
        range
    };
    (0..parts).map(one).collect()
}

/// Length of part `part` of [`split`].
pub(crate) fn share(count: usize, parts: usize, part: usize, extra: Extra) -> usize {
    let (each, larger) = (count / parts, count % parts);
    let is_larger = match extra {
        Extra::First => part < larger,
        Extra::Last => part >= parts - larger,
    };
    each + usize::from(is_larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_parts_stand_where_asked() {
        assert_eq!(split(7, 3, Extra::First), [0..3, 3..5, 5..7]);
        assert_eq!(split(7, 3, Extra::Last), [0..2, 2..4, 4..7]);
        assert_eq!(split(1, 3, Extra::First), [0..1, 1..1, 1..1]);
        assert_eq!(split(0, 2, Extra::Last), [0..0, 0..0]);
    }
}
