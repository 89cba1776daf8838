//! `dg-cluster certs`: the authority of a cluster and the certificates that it signs.

mod show;
mod verify;

use crate::args::Form;
use crate::date::day;
use crate::failure::{Failure, print, warn};
use crate::place::{Place, any_name, name};
use crate::table::{columns, count};
use clap::{Subcommand, ValueHint};
use dg_core::ExitCode;
use dg_net::identity::{Ca, Identity, Name, Role, State};
use dg_net::join::TokenBook;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Make the authority and the head's certificate; with --cluster also those of the nodes on this host.
    Init {
        /// Which cluster.
        #[command(flatten)]
        place: Place,
        /// Replace what is there: nothing that the old authority signed counts any more, nor any join token.
        #[arg(long)]
        force: bool,
    },
    /// Make a certificate with its key for a node or a client, valid for 90 days.
    #[command(group(clap::ArgGroup::new("holder").required(true).args(["node", "client"])))]
    Issue {
        /// Which cluster.
        #[command(flatten)]
        place: Place,
        /// Name of a node. One on another host had better join by a token: then its key never travels.
        #[arg(long, value_name = "NAME", value_parser = name)]
        node: Option<Name>,
        /// Name of a client, who may submit jobs.
        #[arg(long, value_name = "NAME", value_parser = name)]
        client: Option<Name>,
        /// Replace a certificate of this name. The old one is let in until it ends or is revoked.
        #[arg(long)]
        force: bool,
        /// Save it in this file, and not in the state folder.
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        out: Option<PathBuf>,
    },
    /// List all certificates: whose, until when, and whether the head lets them in.
    Show {
        /// Which cluster.
        #[command(flatten)]
        place: Place,
        /// Form of the list.
        #[arg(short = 'o', long, value_name = "FORM", value_enum, default_value_t = Form::Text)]
        output: Form,
    },
    /// Issue certificates again. The old ones are let in until they end or are revoked.
    #[command(group(clap::ArgGroup::new("which").required(true).args(["name", "all"])))]
    Renew {
        /// Which cluster.
        #[command(flatten)]
        place: Place,
        /// Whose; `head` for the head's own.
        #[arg(value_name = "NAME", value_parser = any_name)]
        name: Option<Name>,
        /// All that are in the state folder.
        #[arg(long)]
        all: bool,
    },
    /// Check certificates: signature, dates, purposes, name, who can read them, and whether the head lets them in.
    Verify {
        /// Which cluster.
        #[command(flatten)]
        place: Place,
        /// Files with certificates. Default: all of the state folder.
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        files: Vec<PathBuf>,
    },
    /// Let no certificate of a name in any more, nor join tokens for it.
    Revoke {
        /// Which cluster.
        #[command(flatten)]
        place: Place,
        /// Whose.
        #[arg(value_name = "NAME", value_parser = name)]
        name: Name,
    },
}

/// Does it.
pub(crate) fn run(action: &Action) -> Result<(), Failure> {
    let now = SystemTime::now();
    match action {
        Action::Init { place, force } => init(place, *force, now),
        Action::Issue { place, node, client, force, out } => {
            let holder = node.as_ref().map(|name| (name, Role::Node));
            let holder = holder.or_else(|| client.as_ref().map(|name| (name, Role::Client)));
            let (name, role) = holder.expect("the command line has one of the two");
            issue(&place.state()?, (name, role), *force, out.as_deref(), now)
        }
        Action::Show { place, output } => show::show(&place.state()?, *output, now),
        Action::Renew { place, name, .. } => renew(&place.state()?, name.as_ref(), now),
        Action::Verify { place, files } => verify::verify(&place.state()?, files, now),
        Action::Revoke { place, name } => revoke(&place.state()?, name),
    }
}

fn init(place: &Place, force: bool, now: SystemTime) -> Result<(), Failure> {
    let found = place.find()?;
    let local = found.local_nodes()?;
    let state = State::create(found.folder)?;
    let before = state.identity_files()?;
    let (ca, made) = make(&state, &local, force, now)?;
    print(&made_text(state.folder(), Some(&ca), &made))?;
    let is_old = |path: &&PathBuf| !made.iter().any(|m| state.identity_path(m.passport().name()) == **path);
    for path in before.iter().filter(is_old) {
        warn(&format!("{} is of the old authority: `dg-cluster certs renew` makes it anew", path.display()));
    }
    Ok(())
}

/// Makes the authority of a cluster, and the certificates of its head and of the nodes `local`.
pub(crate) fn make(
    state: &State,
    local: &[Name],
    force: bool,
    now: SystemTime,
) -> Result<(Ca, Vec<Identity>), Failure> {
    let ca = state.init_ca(force, now)?;
    let mut made = vec![state.issue(&ca, &Name::head(), Role::Head, force, now)?];
    for name in local {
        made.push(state.issue(&ca, name, Role::Node, force, now)?);
    }
    Ok((ca, made))
}

fn issue(
    state: &State,
    (name, role): (&Name, Role),
    force: bool,
    out: Option<&Path>,
    now: SystemTime,
) -> Result<(), Failure> {
    let ca = state.ca()?;
    let (at, made) = match out {
        Some(path) => (path, state.issue_to(path, (&ca, name, role), force, now)?),
        None => (state.folder(), state.issue(&ca, name, role, force, now)?),
    };
    print(&made_text(at, None, &[made]))
}

fn renew(state: &State, name: Option<&Name>, now: SystemTime) -> Result<(), Failure> {
    let ca = state.ca()?;
    let names = match name {
        Some(name) => vec![name.clone()],
        None => names(state)?,
    };
    let renewed: Result<Vec<_>, _> = names.iter().map(|name| state.renew(&ca, name, now)).collect();
    print(&made_text(state.folder(), None, &renewed?))
}

/// Names of all identities in the folder; the head's first.
fn names(state: &State) -> Result<Vec<Name>, Failure> {
    let files = state.identity_files()?;
    let stems = files.iter().filter_map(|path| path.file_stem()?.to_str());
    let mut names: Vec<Name> = stems.filter_map(|stem| any_name(stem).ok()).collect();
    names.sort_by_key(|name| (!name.is_head(), name.clone()));
    Ok(names)
}

fn revoke(state: &State, name: &Name) -> Result<(), Failure> {
    let revoked = state.admitted()?.revoke_name(name)?;
    let tokens = TokenBook::open(state)?.revoke_name(name)?;
    if revoked + tokens == 0 {
        return Err(Failure::new(
            ExitCode::Config,
            format!("`{name}` has no certificate that the head lets in, and no token is for it"),
            "`dg-cluster certs show` lists those that it lets in",
        ));
    }
    let tokens = if tokens > 0 { format!(", {}", count(tokens, "token")) } else { String::new() };
    print(&format!("revoked {} of {name}{tokens}", count(revoked, "certificate")))
}

/// Where it was saved, and a table of what was made.
fn made_text(at: &Path, ca: Option<&Ca>, made: &[Identity]) -> String {
    let mut rows = vec![["name", "role", "until", "fingerprint"].map(String::from).to_vec()];
    if let Some(ca) = ca {
        rows.push(
            ["-", "CA", "in 10 years", &short(&ca.fingerprint().to_string())].map(String::from).to_vec(),
        );
    }
    for identity in made {
        let passport = identity.passport();
        rows.push(vec![
            passport.name().to_string(),
            passport.role().to_string(),
            day(passport.validity().1),
            short(&passport.fingerprint().to_string()),
        ]);
    }
    format!("saved in {}\n\n{}", at.display(), columns(&rows, &[]).trim_end())
}

/// As much of a fingerprint as tells certificates apart.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(16).collect()
}
