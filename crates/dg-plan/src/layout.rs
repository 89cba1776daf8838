//! Degrees, the order of ranks, coordinates and groups.

use dg_core::report;
use serde::{Deserialize, Serialize};

/// How many ranks each kind of parallelism has. All are at least 1.
///
/// Ranks are numbered `ulysses + U·(ring + R·(pp + P·(cfg + C·dp)))`: Ulysses varies fastest, so that the
/// heaviest traffic is between neighbours, and replicas vary slowest. This is xDiT's order ("sp-pp-cfg-dp",
/// Ulysses inside ring), arXiv 2411.01738.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Layout {
    /// Replicas, each making whole images.
    pub dp: u32,
    /// Ranks that share the two branches of true CFG: 1 or 2.
    pub cfg: u32,
    /// Pipeline stages: consecutive blocks of the transformer.
    pub pp: u32,
    /// Ring degree: K and V of a part of the sequence go round.
    pub ring: u32,
    /// Ulysses degree: heads are exchanged for tokens.
    pub ulysses: u32,
}

/// Where a rank stands in each dimension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Coords {
    /// Replica.
    pub dp: u32,
    /// CFG branch: 0 is negative, 1 positive, when the degree is 2.
    pub cfg: u32,
    /// Pipeline stage.
    pub pp: u32,
    /// Place in the ring.
    pub ring: u32,
    /// Place in the Ulysses group.
    pub ulysses: u32,
}

/// A dimension of a [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dim {
    /// Ulysses, the fastest.
    Ulysses,
    /// Ring.
    Ring,
    /// Pipeline stages.
    Pp,
    /// CFG branches.
    Cfg,
    /// Replicas, the slowest.
    Dp,
}

impl Dim {
    /// All dimensions, the fastest first.
    pub const ALL: [Self; 5] = [Self::Ulysses, Self::Ring, Self::Pp, Self::Cfg, Self::Dp];
}

impl Layout {
    /// One rank.
    pub const SERIAL: Self = Self { dp: 1, cfg: 1, pp: 1, ring: 1, ulysses: 1 };

    /// The degree of a dimension.
    pub fn degree(&self, dim: Dim) -> u32 {
        match dim {
            Dim::Ulysses => self.ulysses,
            Dim::Ring => self.ring,
            Dim::Pp => self.pp,
            Dim::Cfg => self.cfg,
            Dim::Dp => self.dp,
        }
    }

    /// Number of ranks: the product of all degrees, saturating.
    pub fn ranks(&self) -> u64 {
        Dim::ALL.iter().fold(1, |n, dim| n.saturating_mul(u64::from(self.degree(*dim))))
    }

    /// Ranks that share one image: all but the replicas.
    pub fn replica_ranks(&self) -> u64 {
        Self { dp: 1, ..*self }.ranks()
    }

    /// Ranks that share one sequence, U·R. The place of a rank among them is [`Coords::sequence`].
    pub fn sequence_ranks(&self) -> usize {
        self.ulysses as usize * self.ring as usize
    }

    /// Distance between the ranks of neighbouring coordinates in `dim`.
    pub fn stride(&self, dim: Dim) -> u64 {
        let faster = Dim::ALL.iter().take_while(|other| **other != dim);
        faster.fold(1, |n, other| n.saturating_mul(u64::from(self.degree(*other))))
    }

    /// The rank at `coords`.
    pub fn rank(&self, coords: Coords) -> u32 {
        let Coords { dp, cfg, pp, ring, ulysses } = coords;
        ulysses + self.ulysses * (ring + self.ring * (pp + self.pp * (cfg + self.cfg * dp)))
    }

    /// The coordinates of `rank`.
    pub fn coords(&self, rank: u32) -> Coords {
        let mut rest = rank;
        let mut next = |degree: u32| {
            let place = rest % degree;
            rest /= degree;
            place
        };
        let (ulysses, ring, pp) = (next(self.ulysses), next(self.ring), next(self.pp));
        let cfg = next(self.cfg);
        Coords { dp: rest, cfg, pp, ring, ulysses }
    }

    /// The ranks that differ from `rank` in `dim` only, `rank` included, in the order of that coordinate.
    pub fn group(&self, rank: u32, dim: Dim) -> Vec<u32> {
        let coords = self.coords(rank);
        (0..self.degree(dim)).map(|place| self.rank(coords.with(dim, place))).collect()
    }

    /// The degrees as the report has them.
    pub fn reported(&self, patches: u32, warmup: u32) -> report::Layout {
        let Self { dp, cfg, pp, ring, ulysses } = *self;
        report::Layout { dp, cfg, pp, ring, ulysses, patches, warmup }
    }
}

impl From<report::Layout> for Layout {
    fn from(l: report::Layout) -> Self {
        let report::Layout { dp, cfg, pp, ring, ulysses, .. } = l;
        Self { dp, cfg, pp, ring, ulysses }
    }
}

/// `ulysses 4 · ring 2 · pipefusion 1 · cfg 1 · data 2`, degrees of 1 left out; `serial` for one rank.
impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            ("ulysses", self.ulysses),
            ("ring", self.ring),
            ("pipefusion", self.pp),
            ("cfg", self.cfg),
            ("data", self.dp),
        ];
        let parts: Vec<String> =
            names.iter().filter(|(_, n)| *n != 1).map(|(name, n)| format!("{name} {n}")).collect();
        f.write_str(if parts.is_empty() { "serial" } else { "" })?;
        f.write_str(&parts.join(" × "))
    }
}

impl Coords {
    /// The same but for one coordinate.
    pub fn with(self, dim: Dim, place: u32) -> Self {
        match dim {
            Dim::Ulysses => Self { ulysses: place, ..self },
            Dim::Ring => Self { ring: place, ..self },
            Dim::Pp => Self { pp: place, ..self },
            Dim::Cfg => Self { cfg: place, ..self },
            Dim::Dp => Self { dp: place, ..self },
        }
    }

    /// Place among the ranks that share the sequence: `ulysses + U·ring`, the owner in a
    /// [`SegmentTable`](crate::SegmentTable).
    pub fn sequence(self, layout: &Layout) -> usize {
        self.ulysses as usize + layout.ulysses as usize * self.ring as usize
    }

    /// `[dp, cfg, pp, ring, ulysses]`, as the report has them.
    pub fn reported(self) -> [u32; 5] {
        [self.dp, self.cfg, self.pp, self.ring, self.ulysses]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that xDiT's documentation works out for 16 ranks, with ulysses 2.
    const SIXTEEN: Layout = Layout { dp: 2, cfg: 2, pp: 2, ring: 1, ulysses: 2 };

    #[test]
    fn groups_are_those_of_the_published_example() {
        let group = |rank, dim| SIXTEEN.group(rank, dim);
        assert_eq!(group(0, Dim::Ulysses), [0, 1]);
        assert_eq!(group(3, Dim::Ulysses), [2, 3]);
        assert_eq!(group(0, Dim::Pp), [0, 2]);
        assert_eq!(group(5, Dim::Pp), [5, 7]);
        assert_eq!(group(9, Dim::Cfg), [9, 13]);
        assert_eq!(group(12, Dim::Cfg), [8, 12]);
        assert_eq!(group(1, Dim::Dp), [1, 9]);
    }

    #[test]
    fn ulysses_is_inside_ring() {
        let layout = Layout { ring: 2, ulysses: 4, ..Layout::SERIAL };
        assert_eq!(layout.group(5, Dim::Ulysses), [4, 5, 6, 7]);
        assert_eq!(layout.group(5, Dim::Ring), [1, 5]);
        assert_eq!(layout.coords(5).sequence(&layout), 5);
    }

    #[test]
    fn coordinates_and_ranks_are_inverse() {
        let layout = Layout { dp: 2, cfg: 2, pp: 3, ring: 5, ulysses: 4 };
        for rank in 0..layout.ranks() as u32 {
            assert_eq!(layout.rank(layout.coords(rank)), rank);
            for dim in Dim::ALL {
                let group = layout.group(rank, dim);
                assert!(group.contains(&rank) && group.len() as u32 == layout.degree(dim));
                assert!(group.windows(2).all(|w| u64::from(w[1] - w[0]) == layout.stride(dim)));
            }
        }
    }

    #[test]
    fn the_name_leaves_out_what_is_one() {
        assert_eq!(Layout::SERIAL.to_string(), "serial");
        assert_eq!(SIXTEEN.to_string(), "ulysses 2 × pipefusion 2 × cfg 2 × data 2");
    }
}
