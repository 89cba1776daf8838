//! How ranks are connected: kinds of links and their order from the inside out.

use crate::layout::{Dim, Layout};
use serde::Serialize;

/// A kind of link, with what it does in practice, not on its label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LinkKind {
    /// Name in `--links`.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Seconds until the first byte of a message is there.
    pub latency_s: f64,
    /// Bytes per second in one direction, per rank or, if shared, per group that it joins.
    pub bandwidth: f64,
    /// Whether all ranks of a joined group (a node, a socket) share one such link.
    pub shared: bool,
}

/// One level: groups of the level inside (single ranks, at the innermost) joined by a link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Level {
    /// What joins them.
    pub kind: LinkKind,
    /// How many are joined.
    pub count: u32,
}

/// The links between ranks, from the inside out. Consecutive ranks are together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Links(Vec<Level>);

/// What a message of a group meets at one level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Crossing {
    /// The link.
    pub(crate) kind: LinkKind,
    /// Members of the group that one block of the level inside holds.
    pub(crate) inside: f64,
    /// Ranks of such a block: they share the link if it is shared.
    pub(crate) block: f64,
}

impl Links {
    /// Reads `KIND:COUNT,KIND:COUNT,…` from the inside out: `nvlink:8,eth100:2` is two nodes of eight ranks. The
    /// last count may be left out: as many as there are ranks for.
    ///
    /// # Errors
    /// If a kind is unknown, a count is not a number from 1, or a count is missing before the last.
    pub fn parse(text: &str) -> Result<Self, LinksError> {
        let parts: Vec<&str> = text.split(',').collect();
        let last = parts.len() - 1;
        let level = |(i, part): (usize, &&str)| {
            let (name, count) = match part.trim().split_once(':') {
                Some((name, count)) => (name, Some(count)),
                None => (part.trim(), None),
            };
            let kind = kind(name).ok_or_else(|| LinksError::Kind { name: name.into() })?;
            let count = match count {
                None if i == last => u32::MAX,
                None => return Err(LinksError::NoCount { name: name.into() }),
                Some(count) => count
                    .parse()
                    .ok()
                    .filter(|n| *n >= 1)
                    .ok_or_else(|| LinksError::Count { name: name.into(), count: count.into() })?,
            };
            Ok(Level { kind, count })
        };
        parts.iter().enumerate().map(level).collect::<Result<_, _>>().map(Self)
    }

    /// All ranks joined alike.
    pub fn flat(kind: LinkKind) -> Self {
        Self(vec![Level { kind, count: u32::MAX }])
    }

    /// The levels, from the inside out.
    pub fn levels(&self) -> &[Level] {
        &self.0
    }

    /// Ranks that these links join, saturating.
    pub fn ranks(&self) -> u64 {
        self.0.iter().fold(1, |n, level| n.saturating_mul(u64::from(level.count)))
    }

    /// The level that joins the members of the groups of `dim`, inside out: the first whose blocks hold every such
    /// group whole. Nothing for a group of one.
    pub(crate) fn crossing(&self, layout: &Layout, dim: Dim) -> Option<Crossing> {
        let size = u64::from(layout.degree(dim));
        let stride = layout.stride(dim);
        if size == 1 {
            return None;
        }
        let span = stride.saturating_mul(size);
        let mut inner = 1u64;
        for level in &self.0 {
            let outer = inner.saturating_mul(u64::from(level.count));
            let holds = outer >= layout.ranks() || outer.is_multiple_of(span);
            if holds {
                return Some(Self::at(level.kind, inner, stride, size));
            }
            inner = outer;
        }
        self.0.last().map(|level| Self::at(level.kind, inner / u64::from(level.count), stride, size))
    }

    fn at(kind: LinkKind, inner: u64, stride: u64, size: u64) -> Crossing {
        let inside = (inner as f64 / stride as f64).clamp(1.0, size as f64);
        Crossing { kind, inside, block: inner as f64 }
    }

    /// The link of the level inside the one that joins a group, for the part of its messages that stays there.
    pub(crate) fn innermost(&self) -> LinkKind {
        self.0[0].kind
    }
}

impl std::fmt::Display for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = |l: &Level| match l.count {
            u32::MAX => l.kind.name.to_string(),
            count => format!("{}:{count}", l.kind.name),
        };
        f.write_str(&self.0.iter().map(level).collect::<Vec<_>>().join(","))
    }
}

impl Crossing {
    /// Bytes per second that a sender has when `senders` ranks of its block send through the link at once.
    pub(crate) fn bandwidth(&self, senders: f64) -> f64 {
        if self.kind.shared {
            self.kind.bandwidth / senders.clamp(1.0, self.block)
        } else {
            self.kind.bandwidth
        }
    }
}

/// A kind by its name.
pub fn kind(name: &str) -> Option<LinkKind> {
    KINDS.iter().find(|kind| kind.name == name).copied()
}

/// Why a description of links cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinksError {
    /// No such kind.
    #[error("`{name}` is no kind of link; there are {}", names())]
    Kind {
        /// As given.
        name: String,
    },
    /// Not a number from 1.
    #[error("link `{name}`: the count `{count}` is not a whole number from 1")]
    Count {
        /// The kind.
        name: String,
        /// As given.
        count: String,
    },
    /// Only the outermost count may be left out.
    #[error("link `{name}` has no count; write for instance `{name}:8`")]
    NoCount {
        /// The kind.
        name: String,
    },
}

fn names() -> String {
    KINDS.map(|kind| kind.name).join(", ")
}

const fn per_rank(name: &'static str, about: &'static str, latency_us: f64, gb: f64) -> LinkKind {
    LinkKind { name, about, latency_s: latency_us * 1e-6, bandwidth: gb * 1e9, shared: false }
}

const fn shared(name: &'static str, about: &'static str, latency_us: f64, gb: f64) -> LinkKind {
    LinkKind { shared: true, ..per_rank(name, about, latency_us, gb) }
}

/// All kinds. Bandwidths are what large messages reach: about 0.65 of the label for NVLink and PCIe, 0.95 for
/// networks.
pub const KINDS: [LinkKind; 14] = [
    per_rank("memory", "threads of one process: a copy in memory", 2.0, 8.0),
    per_rank("shm", "processes of one host: shared memory", 10.0, 4.0),
    per_rank("nvlink", "NVLink 4 with switch (H100)", 8.0, 300.0),
    per_rank("nvlink3", "NVLink 3 with switch (A100)", 8.0, 200.0),
    per_rank("pcie5", "PCIe 5 x16, peer to peer", 10.0, 40.0),
    per_rank("pcie4", "PCIe 4 x16, peer to peer", 10.0, 20.0),
    per_rank("pcie4host", "PCIe 4 x16 without peer to peer: every byte crosses twice", 15.0, 10.0),
    shared("socket", "between the sockets of a host, for all ranks of a socket", 15.0, 20.0),
    per_rank("ib400", "InfiniBand NDR, a port per rank", 15.0, 47.0),
    per_rank("ib200", "InfiniBand HDR, a port per rank", 15.0, 23.0),
    shared("eth100", "100 Gbit/s Ethernet per node", 30.0, 11.8),
    shared("eth25", "25 Gbit/s Ethernet per node", 30.0, 3.0),
    shared("eth10", "10 Gbit/s Ethernet per node", 50.0, 1.2),
    shared("eth1", "1 Gbit/s Ethernet per node", 100.0, 0.118),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_read_and_written() {
        for text in ["nvlink:8,eth100:2", "nvlink:8,eth100", "pcie4:4,socket:2,eth10:3", "memory"] {
            assert_eq!(Links::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Links::parse(" nvlink:8 , eth100:2").unwrap().ranks(), 16);
        for (text, part) in [
            ("nvlink:8,ether", "`ether` is no kind of link; there are memory, shm, nvlink"),
            ("nvlink:0", "`0` is not a whole number from 1"),
            ("nvlink:x", "`x` is not"),
            ("nvlink,eth100:2", "write for instance `nvlink:8`"),
            ("", "`` is no kind"),
        ] {
            let e = Links::parse(text).unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }

    #[test]
    fn a_group_meets_the_innermost_link_that_holds_it() {
        let links = Links::parse("nvlink:8,eth100:2").unwrap();
        let kind = |layout: Layout, dim| links.crossing(&layout, dim).map(|c| (c.kind.name, c.inside));
        let one = Layout::SERIAL;
        assert_eq!(kind(Layout { ulysses: 8, pp: 2, ..one }, Dim::Ulysses), Some(("nvlink", 1.0)));
        assert_eq!(kind(Layout { ulysses: 8, pp: 2, ..one }, Dim::Pp), Some(("eth100", 1.0)));
        assert_eq!(kind(Layout { ulysses: 4, pp: 4, ..one }, Dim::Pp), Some(("eth100", 2.0)));
        assert_eq!(kind(Layout { ulysses: 16, ..one }, Dim::Ulysses), Some(("eth100", 8.0)));
        assert_eq!(kind(Layout { ulysses: 3, ..one }, Dim::Ulysses), Some(("nvlink", 1.0)));
        // groups of three do not fit into nodes of eight without one that crosses
        assert_eq!(kind(Layout { ulysses: 3, dp: 5, ..one }, Dim::Ulysses), Some(("eth100", 3.0)));
        assert_eq!(kind(one, Dim::Ring), None);
    }

    #[test]
    fn the_manual_has_the_table() {
        let page = include_str!("../../../docs/parallel.md");
        for k in KINDS {
            let row = format!("| `{}` | {:.0} | {} |", k.name, k.latency_s * 1e6, k.bandwidth / 1e9);
            let line = page.lines().find(|line| line.starts_with(&row));
            assert!(line.is_some_and(|line| line.ends_with("shared |") == k.shared), "{row}");
        }
    }

    #[test]
    fn a_shared_link_is_shared_by_those_who_send() {
        let links = Links::parse("nvlink:8,eth100:2").unwrap();
        let eth = links.crossing(&Layout { ulysses: 8, pp: 2, ..Layout::SERIAL }, Dim::Pp).unwrap();
        assert_eq!(eth.bandwidth(8.0), 11.8e9 / 8.0);
        assert_eq!(eth.bandwidth(64.0), 11.8e9 / 8.0);
        let nvlink = links.crossing(&Layout { ulysses: 8, ..Layout::SERIAL }, Dim::Ulysses).unwrap();
        assert_eq!(nvlink.bandwidth(8.0), 300e9);
    }
}
