//! The folder that keeps keys and certificates.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Admitted, Ca, Identity, IdentityError, Name, Role};

/// A folder that only its owner may enter.
///
/// `ca.key` is the CA with its key, `ca.crt` its certificate alone. `NAME.pem` is an identity, certificates and key in
/// one file, so that a renewal is one rename and the two never disagree. `admitted` has the certificates that count,
/// `tokens` the join tokens that are out.
#[derive(Clone, Debug)]
pub struct State {
    folder: PathBuf,
}

impl State {
    /// Makes the folder if it is not there.
    pub fn create(folder: impl Into<PathBuf>) -> Result<Self, IdentityError> {
        let folder = folder.into();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|e| file_error(&folder, e, "name a folder that can be written (`state_dir`)"))?;
        Self::open(folder)
    }

    /// The folder must be there, and be its owner's alone.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, IdentityError> {
        let folder = folder.into();
        let metadata = folder.metadata();
        let metadata = metadata.map_err(|e| file_error(&folder, e, "`dg-cluster certs init` makes it"))?;
        if !metadata.is_dir() {
            return Err(file_error(&folder, "not a folder", "name another one (`state_dir`)"));
        }
        private(&folder, metadata.permissions().mode(), "chmod 700")?;
        // In a folder of somebody else, root's too, somebody else says which keys there are.
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            let what = format!("it belongs to another user ({})", metadata.uid());
            return Err(file_error(&folder, what, "run as the user who made it"));
        }
        Ok(Self { folder })
    }

    /// Makes the cluster's CA. With `replace` an older one is overwritten, and nothing that it signed counts any more: the
    /// lists of certificates and of join tokens begin anew.
    pub fn init_ca(&self, replace: bool, now: SystemTime) -> Result<Ca, IdentityError> {
        let ca = Ca::create(now)?;
        write_file(&self.ca_path(), &ca.pem(), replace)?;
        write_file(&self.ca_certificate_path(), ca.certificate_pem(), true)?;
        for list in [self.admitted_path(), self.tokens_path()] {
            match std::fs::remove_file(&list) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(file_error(&list, e, "remove it by hand"));
                }
                _ => {}
            }
        }
        Ok(ca)
    }

    /// Whether the cluster's CA is here.
    pub fn has_ca(&self) -> bool {
        self.ca_path().try_exists().unwrap_or(true)
    }

    /// The cluster's CA.
    pub fn ca(&self) -> Result<Ca, IdentityError> {
        let path = self.ca_path();
        Ca::from_pem(&read_text(&path, true)?).map_err(|e| file_error(&path, e, "restore it, or begin anew"))
    }

    /// Issues a certificate, lets it in and saves it. With `replace` it takes the place of an older one, which is let in
    /// until it ends or is revoked: its holder may be at work.
    pub fn issue(
        &self,
        ca: &Ca,
        name: &Name,
        role: Role,
        replace: bool,
        now: SystemTime,
    ) -> Result<Identity, IdentityError> {
        let identity = ca.issue(name, role, now)?;
        self.save(&identity, replace)?;
        self.admitted()?.add(identity.passport())?;
        Ok(identity)
    }

    /// Issues a certificate again, for the role that the one in the folder has. That one is let in until it ends.
    pub fn renew(&self, ca: &Ca, name: &Name, now: SystemTime) -> Result<Identity, IdentityError> {
        let path = self.identity_path(name);
        let role = match path.try_exists().unwrap_or(true) {
            true => self.load(name)?.passport().role(),
            false if name.is_head() => Role::Head,
            false if !self.admitted()?.of(name).is_empty() => {
                let hint = "it joins again: `dg-cluster token create --node` with its name";
                return Err(file_error(&path, "not here: it is where its holder is", hint));
            }
            false => return Err(file_error(&path, "it is not there", "`dg-cluster certs issue` makes it")),
        };
        self.issue(ca, name, role, true, now)
    }

    /// Issues a certificate and lets it in, but saves it in another place: its holder is on another host.
    pub fn issue_to(
        &self,
        path: &Path,
        (ca, name, role): (&Ca, &Name, Role),
        replace: bool,
        now: SystemTime,
    ) -> Result<Identity, IdentityError> {
        let identity = ca.issue(name, role, now)?;
        write_file(path, identity.pem(), replace)?;
        self.admitted()?.add(identity.passport())?;
        Ok(identity)
    }

    /// Saves an identity under its name.
    pub fn save(&self, identity: &Identity, replace: bool) -> Result<(), IdentityError> {
        write_file(&self.identity_path(identity.passport().name()), identity.pem(), replace)
    }

    /// The identity of `name`. Whether it is valid today is for [`Identity::check`] to say.
    pub fn load(&self, name: &Name) -> Result<Identity, IdentityError> {
        let path = self.identity_path(name);
        let identity = Identity::from_pem(&read_text(&path, true)?)
            .map_err(|e| file_error(&path, e, "issue it again (`dg-cluster certs issue`)"))?;
        let holder = identity.passport().name();
        if holder != name {
            let what = format!("it is the certificate of `{holder}`");
            return Err(file_error(&path, what, "files are called by the name in the certificate"));
        }
        Ok(identity)
    }

    /// The certificates that are let in.
    pub fn admitted(&self) -> Result<Admitted, IdentityError> {
        Admitted::open(&self.admitted_path())
    }

    /// The files with identities, by name.
    pub fn identity_files(&self) -> Result<Vec<PathBuf>, IdentityError> {
        let failed = |e: std::io::Error| file_error(&self.folder, e, "is it the right folder (`state_dir`)?");
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)?.take(FILES_MAX) {
            let path = entry.map_err(failed)?.path();
            let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !is_hidden && path.extension().is_some_and(|extension| extension == "pem") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Where the identity of `name` is.
    pub fn identity_path(&self, name: &Name) -> PathBuf {
        self.folder.join(format!("{name}.pem"))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn tokens_path(&self) -> PathBuf {
        self.folder.join("tokens")
    }

    pub(super) fn admitted_path(&self) -> PathBuf {
        self.folder.join("admitted")
    }

    pub(super) fn ca_path(&self) -> PathBuf {
        self.folder.join("ca.key")
    }

    pub(super) fn ca_certificate_path(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }
}

/// Writes a file for its owner's eyes only, at once or not at all.
pub(crate) fn write_file(path: &Path, text: &str, replace: bool) -> Result<(), IdentityError> {
    let failed = |e: std::io::Error| match e.kind() {
        ErrorKind::AlreadyExists => {
            file_error(path, "it exists", "replace it (`--force`) if it is no longer needed")
        }
        _ => file_error(path, e, "is the folder writable, the disk full?"),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        // A leftover of a process that was killed and had the same number.
        let _ = std::fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if replace {
            std::fs::rename(&temporary, path)?;
        } else {
            // Unlike a rename, a link fails if the name is taken.
            std::fs::hard_link(&temporary, path)?;
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
    })();
    // After a rename there is nothing to remove.
    let _ = std::fs::remove_file(&temporary);
    written.map_err(failed)
}

/// Reads a file of the state folder; one with a `key` must be its owner's alone.
pub(crate) fn read_text(path: &Path, key: bool) -> Result<String, IdentityError> {
    let failed = |e: std::io::Error| {
        let hint = match e.kind() {
            ErrorKind::NotFound => "`dg-cluster certs init` and `certs issue` make it",
            ErrorKind::PermissionDenied => "run as the user who made it",
            _ => "is it the file that `dg-cluster` wrote?",
        };
        file_error(path, e, hint)
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if key {
        private(path, metadata.permissions().mode(), "chmod 600")?;
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(file_error(path, "it is too long", "is it the file that `dg-cluster` wrote?"));
    }
    Ok(text)
}

fn private(path: &Path, mode: u32, hint: &'static str) -> Result<(), IdentityError> {
    if mode & 0o077 != 0 {
        let what = format!("others may use it (mode {:03o})", mode & 0o777);
        return Err(file_error(path, what, hint));
    }
    Ok(())
}

pub(super) fn file_error(path: &Path, what: impl ToString, hint: &'static str) -> IdentityError {
    IdentityError::File { path: path.to_owned(), what: what.to_string(), hint }
}

/// The list of those let in may be this long; all other files are far shorter.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// More names than a cluster has certificates.
const FILES_MAX: usize = 20_000;
