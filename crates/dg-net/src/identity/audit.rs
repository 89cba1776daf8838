//! What is wrong with the certificates of a state folder.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::state::read_text;
use super::{Admitted, Ca, Fingerprint, Identity, IdentityError, Passport, State};

/// Looks at files of a state folder.
#[derive(Debug)]
pub struct Auditor {
    /// Of a head; a node is let in by others and has no list.
    admitted: Option<Admitted>,
    /// The certificate beside the key of the CA; a node has neither.
    ca: Option<CertificateDer<'static>>,
    state: State,
}

/// A file with a certificate, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Audit {
    /// The file.
    pub path: PathBuf,
    /// Whether it is the authority.
    pub is_ca: bool,
    /// What the certificate says, if it is one that this program can have made; nothing for the authority.
    pub passport: Option<Passport>,
    /// Hash of the certificate, if it can be read.
    pub fingerprint: Option<Fingerprint>,
    /// When the certificate begins and ends to be valid, if it can be read.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// Whether the head lets it in; nothing for the authority, or where there is no list.
    pub admitted: Option<bool>,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// What is wrong with a certificate or its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub what: String,
    /// What to do.
    pub hint: &'static str,
}

// === impl Auditor ===

impl Auditor {
    /// Of a folder; its list and the certificate of its CA are read here.
    pub fn open(state: &State) -> Result<Self, IdentityError> {
        let list = state.admitted_path();
        let admitted = list.try_exists().unwrap_or(true).then(|| Admitted::open(&list)).transpose()?;
        let path = state.ca_certificate_path();
        let ca = match path.try_exists().unwrap_or(true) {
            true => Some(certificate(&read_text(&path, false)?)?),
            false => None,
        };
        Ok(Self { admitted, ca, state: state.clone() })
    }

    /// All files: the CA if it is here, then identities by name.
    pub fn all(&self, now: SystemTime) -> Result<Vec<Audit>, IdentityError> {
        let identities = self.state.identity_files()?;
        let ca = self.state.has_ca().then(|| self.ca(now));
        Ok(ca.into_iter().chain(identities.iter().map(|path| self.identity(path, now))).collect())
    }

    /// The CA with its key.
    pub fn ca(&self, now: SystemTime) -> Audit {
        let mut audit = Audit::new(&self.state.ca_path(), true);
        let Some(text) = audit.read() else { return audit };
        let ca = match Ca::from_pem(&text) {
            Ok(ca) => ca,
            Err(e) => return audit.found(e.into()),
        };
        if self.ca.as_ref() != Some(ca.certificate()) {
            audit.say("it is not the CA whose certificate is in `ca.crt`", "restore one of the two");
        }
        audit.fingerprint = Some(ca.fingerprint());
        match ca.validity() {
            Ok(validity) => audit.date(validity, now, "begin anew (`dg-cluster certs init --force`)"),
            Err(e) => audit.faults.push(e.into()),
        }
        audit
    }

    /// A certificate with its key, in this folder or elsewhere.
    pub fn identity(&self, path: &Path, now: SystemTime) -> Audit {
        let mut audit = Audit::new(path, false);
        let Some(text) = audit.read() else { return audit };
        let identity = match Identity::from_pem(&text) {
            Ok(identity) => identity,
            Err(e) => return audit.found(e.into()),
        };
        let passport = identity.passport();
        let name = passport.name();
        if path.file_stem().is_none_or(|stem| stem != name.as_str()) {
            audit.say(
                &format!("it is the certificate of `{name}`"),
                "files are called by the name in the certificate",
            );
        }
        audit.date(passport.validity(), now, "renew it (`dg-cluster certs renew`)");
        if self.ca.as_ref().is_some_and(|ca| ca != identity.ca()) {
            audit.say(
                "another CA signed it",
                "was the cluster initialised anew? renew it (`dg-cluster certs renew`)",
            );
        }
        // Dates were looked at: now it is about the signature and the purposes.
        let (begin, end) = passport.validity();
        if let Err(e) = identity.check(now.clamp(begin, end.max(begin))) {
            audit.faults.push(e.into());
        }
        audit.admitted = self.admitted.as_ref().map(|list| list.contains(passport.fingerprint()));
        if audit.admitted == Some(false) {
            audit.say(
                "it is not admitted: it was revoked, or issued elsewhere",
                "make one that is (`dg-cluster certs renew`)",
            );
        }
        audit.fingerprint = Some(passport.fingerprint());
        audit.passport = Some(passport.clone());
        audit
    }
}

// === impl Audit ===

impl Audit {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
    }

    fn new(path: &Path, is_ca: bool) -> Self {
        Self {
            path: path.to_owned(),
            is_ca,
            passport: None,
            fingerprint: None,
            validity: None,
            admitted: None,
            faults: Vec::new(),
        }
    }

    /// The text, whoever else may read it; that too is noted.
    fn read(&mut self) -> Option<String> {
        let mode = self.path.metadata().map(|metadata| metadata.permissions().mode());
        if let Ok(mode) = mode
            && mode & 0o077 != 0
        {
            self.say(&format!("others may use it (mode {:03o})", mode & 0o777), "chmod 600");
        }
        read_text(&self.path, false).map_err(|e| self.faults.push(e.into())).ok()
    }

    fn date(&mut self, (begin, end): (SystemTime, SystemTime), now: SystemTime, hint: &'static str) {
        self.validity = Some((begin, end));
        if let Ok(early) = begin.duration_since(now)
            && !early.is_zero()
        {
            self.say(&format!("it begins to be valid in {}", about(early)), "compare the clocks");
        }
        if let Ok(late) = now.duration_since(end) {
            self.say(&format!("it ended {} ago", about(late)), hint);
        }
    }

    fn say(&mut self, what: &str, hint: &'static str) {
        self.faults.push(Fault { what: what.to_owned(), hint });
    }

    fn found(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }
}

impl From<IdentityError> for Fault {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Certificate { what, hint } => {
                Self { what: format!("the certificate {what}"), hint }
            }
            IdentityError::File { what, hint, .. } => Self { what, hint },
            other => Self { what: other.to_string(), hint: "issue it again (`dg-cluster certs issue`)" },
        }
    }
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, IdentityError> {
    let read = CertificateDer::from_pem_slice(pem.as_bytes());
    read.map_err(|e| IdentityError::crypto("reading the CA's certificate", e))
}

/// A length of time in words.
fn about(time: Duration) -> String {
    let hours = time.as_secs() / 3600;
    match hours {
        0 => "less than an hour".to_owned(),
        1..48 => format!("{hours} h"),
        _ => format!("{} days", hours / 24),
    }
}
