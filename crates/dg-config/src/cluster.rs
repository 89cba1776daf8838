//! A whole file as a cluster reads it: settings, nodes, and what happens when something fails.

use crate::file::{self, FileEntry, FileError, Reader};
use crate::mesh;
use crate::node::{self, Node, NodeDevice};
use crate::section::Section;
use crate::setting::Value;
use crate::table::Key;
use crate::units::{Address, duration_text};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file with its nodes. The settings of a run (`[generate]`, `[model]`, `[parallel]`, `[output]`) are those that
/// `diffgentor` reads from the same file.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterFile {
    /// The file.
    pub path: PathBuf,
    /// Settings of the other sections.
    pub entries: Vec<FileEntry>,
    /// `[cluster]`.
    pub cluster: Cluster,
    /// `[[node]]`, in the order of the file, which is the order of the ranks. One local node if there is none.
    pub nodes: Vec<Node>,
    /// `[failure]`.
    pub failure: Failure,
    /// `[security]`.
    pub security: Security,
}

/// `[cluster]`: the head and its connections.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Name of the cluster.
    pub name: String,
    /// Where the head listens; has a port.
    pub listen: Address,
    /// Folder of the head, if it is not the usual one.
    pub state_dir: Option<PathBuf>,
    /// What joins the hosts: a kind of link.
    pub links: String,
    /// Silence after which a connection sends a sign of life.
    pub keep_alive: Duration,
    /// Silence after which a connection is lost.
    pub idle_timeout: Duration,
    /// Time after which a node that the head did not hear fences its ranks.
    pub lease_ttl: Duration,
}

/// `[failure]`: when something counts as failed, and how often it is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Starts of a job in a row without a new step.
    pub epochs_without_progress: u32,
    /// A rank hangs after this many median steps.
    pub hang_factor: f64,
    /// The least time before a rank is said to hang.
    pub hang_min: Duration,
    /// The same before the first step and after the last.
    pub hang_first: Duration,
    /// Time to answer an abort.
    pub abort_grace: Duration,
    /// Deaths of a rank within [`rank_deaths_within`](Self::rank_deaths_within) that are too many.
    pub rank_deaths: u32,
    /// The time that is looked back.
    pub rank_deaths_within: Duration,
    /// Time that ranks live without a head.
    pub orphan_exit: Duration,
    /// Steps between checkpoints.
    pub checkpoint_every: u32,
}

/// `[security]`: certificates and tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Security {
    /// Certificate of the authority, if it is not the one in the state folder.
    pub ca: Option<PathBuf>,
    /// Certificate and key of the head, if they are not those in the state folder.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Life of a join token.
    pub token_lifetime: Duration,
    /// Whether tensors between hosts are encrypted.
    pub tensor_tls: bool,
}

impl ClusterFile {
    /// Reads the text of the file at `path`. Relative paths start at the file's folder.
    ///
    /// # Errors
    /// The first mistake, with its line and column. Whether degrees suit the nodes is not looked at: flags and the
    /// environment may change them. See [`check_layout`](Self::check_layout).
    pub fn read(path: &Path, text: &str) -> Result<Self, FileError> {
        file::document(path, text)
    }

    /// Checks that the degrees of the file need as many ranks as its nodes have, and that no replica has ranks of two
    /// kinds. `text` is what the file was read from.
    ///
    /// # Errors
    /// What does not fit, at the key or the node that does not.
    pub fn check_layout(&self, text: &str) -> Result<(), FileError> {
        mesh::check(self, &Reader { path: &self.path, text })
    }

    /// Ranks of all nodes.
    pub fn ranks(&self) -> u64 {
        self.nodes.iter().map(|node| u64::from(node.ranks)).sum()
    }

    /// Whether the file names its nodes.
    pub fn has_nodes(&self) -> bool {
        self.nodes.iter().any(|node| node.line.is_some())
    }

    /// Builds the typed sections from their tables.
    pub(crate) fn build(
        reader: &Reader<'_>,
        entries: Vec<FileEntry>,
        [cluster, failure, security]: [&Section<'_, '_>; 3],
        nodes: &[Section<'_, '_>],
    ) -> Result<Self, FileError> {
        let mut nodes = node::build(reader, nodes, &entries)?;
        if nodes.is_empty() {
            nodes.push(node::implied(&entries));
        }
        let cluster = build_cluster(reader, cluster, &nodes)?;
        let failure = build_failure(failure, &cluster)?;
        let security = build_security(reader, security)?;
        Ok(Self { path: reader.path.into(), entries, cluster, nodes, failure, security })
    }
}

/// The value of a setting in the file.
pub(crate) fn setting(entries: &[FileEntry], key: Key) -> Option<&Value> {
    entries.iter().find(|e| e.key == key).map(|e| &e.value)
}

fn build_cluster(reader: &Reader<'_>, s: &Section<'_, '_>, nodes: &[Node]) -> Result<Cluster, FileError> {
    let listen = s.address("listen").expect(DEFAULT);
    if listen.port.is_none() {
        let message = format!("listen `{listen}` has no port");
        return Err(s.error(&["listen"], message, format!("write `listen = \"{listen}:7443\"`")));
    }
    let remote = nodes.iter().find(|node| !node.local);
    if let Some(node) = remote.filter(|_| listen.is_loopback() || listen.is_unspecified()) {
        let message =
            format!("listen `{listen}` is no address that node `{}` on {} can reach", node.name, node.host());
        let hint = "set `listen` under `[cluster]` to an address of the head that the other hosts reach, such as \
                    \"10.0.0.1:7443\"";
        return Err(match s.has("listen") {
            true => s.error(&["listen"], message, hint),
            false => reader.error_in_line(node.line.unwrap_or(1), message, hint),
        });
    }
    let slow = nodes.iter().any(|node| node.device == NodeDevice::Cpu);
    let usual = Duration::from_secs(if slow { 3 } else { 1 });
    let keep_alive = s.duration("keep_alive").expect(DEFAULT);
    let idle_timeout = s.duration("idle_timeout").unwrap_or(usual);
    let lease_ttl = s.duration("lease_ttl").expect(DEFAULT);
    let text = duration_text;
    if idle_timeout < 2 * keep_alive {
        let message = format!(
            "idle_timeout {} is less than twice keep_alive {}: one lost packet would end a connection",
            text(idle_timeout),
            text(keep_alive)
        );
        return Err(s.error(
            &["idle_timeout", "keep_alive"],
            message,
            "raise idle_timeout or lower keep_alive",
        ));
    }
    if lease_ttl <= idle_timeout {
        let message = format!(
            "lease_ttl {} is not more than idle_timeout {}: a node would stop its ranks while its connection is good",
            text(lease_ttl),
            text(idle_timeout)
        );
        return Err(s.error(
            &["lease_ttl", "idle_timeout"],
            message,
            "raise lease_ttl or lower idle_timeout",
        ));
    }
    Ok(Cluster {
        name: s.text("name").expect(DEFAULT),
        listen,
        state_dir: s.text("state_dir").map(|dir| reader.beside(&dir)),
        links: s.text("links").expect(DEFAULT),
        keep_alive,
        idle_timeout,
        lease_ttl,
    })
}

fn build_failure(s: &Section<'_, '_>, cluster: &Cluster) -> Result<Failure, FileError> {
    let failure = Failure {
        epochs_without_progress: s.integer("epochs_without_progress").expect(DEFAULT),
        hang_factor: s.number("hang_factor").expect(DEFAULT),
        hang_min: s.duration("hang_min").expect(DEFAULT),
        hang_first: s.duration("hang_first").expect(DEFAULT),
        abort_grace: s.duration("abort_grace").expect(DEFAULT),
        rank_deaths: s.integer("rank_deaths").expect(DEFAULT),
        rank_deaths_within: s.duration("rank_deaths_within").expect(DEFAULT),
        orphan_exit: s.duration("orphan_exit").expect(DEFAULT),
        checkpoint_every: s.integer("checkpoint_every").expect(DEFAULT),
    };
    if failure.orphan_exit < cluster.lease_ttl {
        let message = format!(
            "orphan_exit {} is less than lease_ttl {}: ranks would end while their node may still hold its lease",
            duration_text(failure.orphan_exit),
            duration_text(cluster.lease_ttl)
        );
        return Err(s.error(&["orphan_exit"], message, "raise orphan_exit under `[failure]`"));
    }
    Ok(failure)
}

fn build_security(reader: &Reader<'_>, s: &Section<'_, '_>) -> Result<Security, FileError> {
    let path = |key: &str| s.text(key).map(|path| reader.beside(&path));
    let certificate = match (path("certificate"), path("key")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (given, _) => {
            let (has, lacks) = if given.is_some() { ("certificate", "key") } else { ("key", "certificate") };
            let message = format!("{has} is of no use without {lacks}");
            return Err(s.error(
                &[has],
                message,
                format!("add `{lacks}` under `[security]`, or remove `{has}`"),
            ));
        }
    };
    Ok(Security {
        ca: path("ca"),
        certificate,
        token_lifetime: s.duration("token_lifetime").expect(DEFAULT),
        tensor_tls: s.switch("tensor_tls"),
    })
}

/// Why a value is there that the file does not set.
pub(crate) const DEFAULT: &str = "the table of keys has a default for it";

#[cfg(test)]
mod tests;
