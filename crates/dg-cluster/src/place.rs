//! Which state folder a command is about.

use crate::failure::Failure;
use crate::load::load;
use clap::{Args, ValueHint};
use dg_config::{ClusterFile, state_folder};
use dg_net::identity::{BadName, Name, State};
use std::path::PathBuf;

/// The state folder, by the file of the cluster or by its path.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The cluster's file: the state folder is the one that it names, or the usual one. Default: the only cluster that
    /// is up on this host.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cluster: Option<PathBuf>,
    /// The state folder, whatever the file says.
    #[arg(long = "state_dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
}

/// What a [`Place`] stands for.
pub(crate) struct Found {
    /// The cluster's file, if one was named.
    pub(crate) file: Option<ClusterFile>,
    /// The state folder, which need not be there.
    pub(crate) folder: PathBuf,
}

impl Place {
    /// Reads the file, if one is named.
    pub(crate) fn find(&self) -> Result<Found, Failure> {
        let file = self.cluster.as_deref().map(load).transpose()?.map(|loaded| loaded.file);
        let folder = match (&self.state_dir, &file) {
            (Some(folder), _) => folder.clone(),
            (None, Some(file)) => state_folder(file),
            (None, None) => crate::live::only_running()?,
        };
        Ok(Found { file, folder })
    }

    /// The state folder, which must be there.
    pub(crate) fn state(&self) -> Result<State, Failure> {
        Ok(State::open(self.find()?.folder)?)
    }
}

impl Found {
    /// Names of the nodes that are on the head's host.
    pub(crate) fn local_nodes(&self) -> Result<Vec<Name>, Failure> {
        let nodes = self.file.iter().flat_map(|file| &file.nodes).filter(|node| node.local);
        let name = |text: &str| {
            Name::parse(text).map_err(|e| Failure::from(dg_net::identity::IdentityError::from(e)))
        };
        nodes.map(|node| name(&node.name)).collect()
    }
}

/// The name of a node or client, for the command line.
pub(crate) fn name(text: &str) -> Result<Name, String> {
    Name::parse(text).map_err(|BadName { reason, .. }| {
        format!("{reason}; a name has lower-case letters, digits and inner hyphens, as in node-1")
    })
}

/// The same, and `head`.
pub(crate) fn any_name(text: &str) -> Result<Name, String> {
    if text == Name::head().as_str() { Ok(Name::head()) } else { name(text) }
}
