//! Who owns which tokens, and which keys a rank attends to.
//!
//! The joint sequence is T text tokens, then N image tokens in row-major order. It is never padded: every token
//! has exactly one owner, shares may be uneven and even empty.

use crate::patches::PatchTable;
use crate::split::{Extra, split};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A stream of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// T5 tokens of the prompt. They come first in the joint sequence.
    Text,
    /// Packed latents of the picture.
    Image,
}

/// A run of tokens of one kind with one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Text or image.
    pub kind: Kind,
    /// Tokens, counted from 0 within their kind.
    pub tokens: Range<usize>,
    /// The patch that these tokens travel with: always 0 without PipeFusion, and for text.
    pub patch: usize,
    /// Place among the ranks that share the sequence, [`crate::Coords::sequence`].
    pub owner: usize,
}

impl Segment {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// The owners of all tokens, in canonical order: text before image, each ascending. This order, not that of
/// the owners, is the one in which keys stand after a Ulysses exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentTable {
    segments: Vec<Segment>,
    text: usize,
    image: usize,
    owners: usize,
    patches: usize,
    /// Tokens by owner and patch: `counts[owner][patch]` is (text, image).
    counts: Vec<Vec<(usize, usize)>>,
}

impl SegmentTable {
    /// Even shares: text is cut among the owners, its remainder going to the first ones; every patch is cut
    /// among them too, its remainder going to the last ones. Within patch 0, which takes the text along, the
    /// totals of two owners differ by at most one token.
    ///
    /// An owner has a run of every patch, so a rank's share of a patch is the same while the pipeline is
    /// synchronous and when it is stale, and nothing has to move between the two.
    pub fn even(text: usize, patches: &PatchTable, owners: usize) -> Self {
        let owned = |kind: Kind, patch: usize, start: usize, extra: Extra, count: usize| {
            let shares = split(count, owners, extra).into_iter().enumerate();
            shares.filter(|(_, share)| !share.is_empty()).map(move |(owner, share)| Segment {
                kind,
                tokens: start + share.start..start + share.end,
                patch,
                owner,
            })
        };
        let mut segments: Vec<Segment> = owned(Kind::Text, 0, 0, Extra::First, text).collect();
        for (patch, run) in patches.runs().iter().enumerate() {
            segments.extend(owned(Kind::Image, patch, run.start, Extra::Last, run.len()));
        }
        Self::counted(segments, text, patches.tokens(), owners, patches.runs().len())
    }

    /// A table of one's own, for instance one in proportion to the speed of unequal devices.
    ///
    /// # Errors
    /// If a token has no owner or two, an owner is not below `owners`, or text is not in patch 0.
    pub fn new(
        mut segments: Vec<Segment>,
        text: usize,
        image: usize,
        owners: usize,
    ) -> Result<Self, SegmentError> {
        segments.retain(|s| !s.is_empty());
        segments.sort_by_key(|s| (s.kind, s.tokens.start));
        for (kind, count) in [(Kind::Text, text), (Kind::Image, image)] {
            let mut next = 0;
            for s in segments.iter().filter(|s| s.kind == kind) {
                if s.tokens.start != next {
                    return Err(SegmentError::NotOnce { kind, token: next.min(s.tokens.start) });
                }
                if s.owner >= owners {
                    return Err(SegmentError::Owner { owner: s.owner, owners });
                }
                if kind == Kind::Text && s.patch != 0 {
                    return Err(SegmentError::TextPatch { patch: s.patch });
                }
                next = s.tokens.end;
            }
            if next != count {
                return Err(SegmentError::NotOnce { kind, token: next.min(count) });
            }
        }
        let patches = segments.iter().map(|s| s.patch + 1).max().unwrap_or(1);
        Ok(Self::counted(segments, text, image, owners, patches))
    }

    fn counted(segments: Vec<Segment>, text: usize, image: usize, owners: usize, patches: usize) -> Self {
        let mut counts = vec![vec![(0, 0); patches]; owners];
        for s in &segments {
            let cell = &mut counts[s.owner][s.patch];
            match s.kind {
                Kind::Text => cell.0 += s.len(),
                Kind::Image => cell.1 += s.len(),
            }
        }
        Self { segments, text, image, owners, patches, counts }
    }

    /// All segments in canonical order, none empty.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segments of one owner, in canonical order.
    pub fn of(&self, owner: usize) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |s| s.owner == owner)
    }

    /// T.
    pub fn text_tokens(&self) -> usize {
        self.text
    }

    /// N.
    pub fn image_tokens(&self) -> usize {
        self.image
    }

    /// S = T + N.
    pub fn tokens(&self) -> usize {
        self.text + self.image
    }

    /// Ranks that share the sequence.
    pub fn owners(&self) -> usize {
        self.owners
    }

    /// Number of patches, 1 without PipeFusion.
    pub fn patches(&self) -> usize {
        self.patches
    }

    /// Tokens of `owner` in `patch`, text included (it is in patch 0).
    pub fn tokens_in(&self, owner: usize, patch: usize) -> usize {
        let (text, image) = self.counts[owner][patch];
        text + image
    }

    /// Image tokens of `owner` in `patch`.
    pub fn image_in(&self, owner: usize, patch: usize) -> usize {
        self.counts[owner][patch].1
    }

    /// All tokens of `owner`.
    pub fn tokens_of(&self, owner: usize) -> usize {
        self.counts[owner].iter().map(|(text, image)| text + image).sum()
    }

    /// Text tokens of `owner`.
    pub fn text_of(&self, owner: usize) -> usize {
        self.counts[owner].iter().map(|(text, _)| text).sum()
    }

    /// Image tokens of `owner`.
    pub fn image_of(&self, owner: usize) -> usize {
        self.counts[owner].iter().map(|(_, image)| image).sum()
    }

    /// The keys that a rank at place `ring` attends to, block by block in the order of computing: first what
    /// its own Ulysses group owns, then what comes from the previous place of the ring, and so on. Keys inside a
    /// block stand in canonical order. `ulysses` is the degree; owners are `ulysses` to a block.
    ///
    /// Every key of the sequence is in exactly one block.
    pub fn attended(&self, ulysses: usize, ring: usize) -> Vec<Vec<&Segment>> {
        let degree = self.owners / ulysses;
        let block = |hop: usize| {
            let origin = (ring + degree - hop) % degree;
            self.segments.iter().filter(|s| s.owner / ulysses == origin).collect()
        };
        (0..degree).map(block).collect()
    }
}

/// Why a list of segments is no [`SegmentTable`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// A token is missing or owned twice.
    #[error("{kind:?} token {token} does not have exactly one owner")]
    NotOnce {
        /// Of which stream.
        kind: Kind,
        /// The first such token.
        token: usize,
    },
    /// There is no such owner.
    #[error("a segment belongs to rank {owner} of a sequence that {owners} ranks share")]
    Owner {
        /// As given.
        owner: usize,
        /// Ranks that share the sequence.
        owners: usize,
    },
    /// Text travels with patch 0 only.
    #[error("a text segment is in patch {patch}; text travels with patch 0")]
    TextPatch {
        /// As given.
        patch: usize,
    },
}

/// Heads of each member of a Ulysses group while it attends: consecutive, and uneven where the degree does not
/// divide the heads. The first members have one more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadSplit(Vec<Range<usize>>);

impl HeadSplit {
    /// Splits `heads` among `ulysses` members; every member has at least one head if `ulysses` ≤ `heads`.
    pub fn new(heads: usize, ulysses: usize) -> Self {
        Self(split(heads, ulysses, Extra::First))
    }

    /// Heads of one member.
    pub fn of(&self, member: usize) -> Range<usize> {
        self.0[member].clone()
    }

    /// Heads of the members, in order.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Heads of the member that has most.
    pub fn largest(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(kind: Kind, tokens: Range<usize>, patch: usize, owner: usize) -> Segment {
        Segment { kind, tokens, patch, owner }
    }

    #[test]
    fn text_leans_to_the_first_ranks_and_image_to_the_last() {
        let table = SegmentTable::even(2, &PatchTable::new(7, 1).unwrap(), 3);
        let totals: Vec<_> = (0..3).map(|owner| table.tokens_of(owner)).collect();
        assert_eq!(totals, [3, 3, 3]);
        assert_eq!(
            table.of(0).cloned().collect::<Vec<_>>(),
            [segment(Kind::Text, 0..1, 0, 0), segment(Kind::Image, 0..2, 0, 0)]
        );
    }

    #[test]
    fn heads_are_uneven_but_complete() {
        let split = HeadSplit::new(9, 4);
        assert_eq!(split.ranges(), [0..3, 3..5, 5..7, 7..9]);
        assert_eq!((split.of(1), split.largest()), (3..5, 3));
        assert_eq!(HeadSplit::new(24, 8).largest(), 3);
    }

    #[test]
    fn a_token_without_or_with_two_owners_is_refused() {
        let table = |segments: &[Segment]| SegmentTable::new(segments.to_vec(), 2, 4, 2);
        let text = segment(Kind::Text, 0..2, 0, 1);
        let good = table(&[segment(Kind::Image, 2..4, 0, 0), segment(Kind::Image, 0..2, 0, 1), text.clone()]);
        assert_eq!(good.unwrap().image_of(1), 2);
        let missing = table(&[segment(Kind::Image, 0..2, 0, 0), text.clone()]);
        assert_eq!(missing, Err(SegmentError::NotOnce { kind: Kind::Image, token: 2 }));
        let twice = table(&[text.clone(), segment(Kind::Text, 1..2, 0, 0), segment(Kind::Image, 0..4, 0, 0)]);
        assert_eq!(twice, Err(SegmentError::NotOnce { kind: Kind::Text, token: 1 }));
        let stranger = table(&[text, segment(Kind::Image, 0..4, 0, 2)]);
        assert_eq!(stranger, Err(SegmentError::Owner { owner: 2, owners: 2 }));
        let late = table(&[segment(Kind::Text, 0..2, 1, 0), segment(Kind::Image, 0..4, 0, 1)]);
        assert_eq!(late, Err(SegmentError::TextPatch { patch: 1 }));
    }

    #[test]
    fn the_first_block_of_a_ring_is_ones_own() {
        let table = SegmentTable::even(0, &PatchTable::new(6, 1).unwrap(), 6);
        let owners = |ring| -> Vec<Vec<usize>> {
            let blocks = table.attended(2, ring);
            blocks.iter().map(|block| block.iter().map(|s| s.owner).collect()).collect()
        };
        assert_eq!(owners(0), [[0, 1], [4, 5], [2, 3]]);
        assert_eq!(owners(2), [[4, 5], [2, 3], [0, 1]]);
    }
}
