//! Which certificates still count.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::state::{read_text, write_file};
use super::{Fingerprint, IdentityError, Name, Passport, lock};

/// The certificates that are let in; clones are the same list.
///
/// The head's list has what the CA signed and nobody revoked, and is a file of its [`State`](super::State). A node talks
/// to the head only, and trusts [all](Self::everyone) that the CA signed. When an entry goes, the endpoint closes the
/// connections that used it.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Where every change is written before it counts.
    path: Option<PathBuf>,
    table: Arc<watch::Sender<Table>>,
}

#[derive(Clone, Debug, Default)]
struct Table {
    entries: BTreeMap<Fingerprint, Name>,
    everyone: bool,
}

impl Admitted {
    /// A list in memory.
    pub fn only(entries: impl IntoIterator<Item = (Fingerprint, Name)>) -> Self {
        Self::with(Table { entries: entries.into_iter().collect(), everyone: false }, None)
    }

    /// Whoever has a valid certificate of the CA.
    pub fn everyone() -> Self {
        Self::with(Table { everyone: true, ..Table::default() }, None)
    }

    /// The list in `path`, which is empty if there is no such file.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        Ok(Self::with(read(path)?, Some(path.to_owned())))
    }

    /// Reads the file again, for when another process has changed it.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut done = Ok(());
        // Read under the lock of the table, so that what this process writes meanwhile is not taken back.
        self.table.send_if_modified(|table| match read(path) {
            Ok(now) => {
                let is_other = now.entries != table.entries;
                *table = now;
                is_other
            }
            Err(error) => {
                done = Err(error);
                false
            }
        });
        done
    }

    /// Lets a certificate in.
    pub fn add(&self, passport: &Passport) -> Result<(), IdentityError> {
        if self.table.borrow().everyone {
            return Ok(());
        }
        let (fingerprint, name) = (passport.fingerprint(), passport.name().clone());
        self.change(|entries| {
            if entries.len() >= ENTRIES_MAX {
                return Err(IdentityError::Certificate {
                    what: format!("of `{name}` would be one of more than {ENTRIES_MAX}"),
                    hint: "revoke those that are not needed",
                });
            }
            entries.insert(fingerprint, name);
            Ok(())
        })
    }

    /// Takes a certificate off the list; the answer is whether it was on it.
    pub fn revoke(&self, fingerprint: Fingerprint) -> Result<bool, IdentityError> {
        let mut was = false;
        self.change(|entries| {
            was = entries.remove(&fingerprint).is_some();
            Ok(())
        })?;
        Ok(was)
    }

    /// Takes all certificates of a name off the list; the answer is how many there were.
    pub fn revoke_name(&self, name: &Name) -> Result<usize, IdentityError> {
        let mut count = 0;
        self.change(|entries| {
            let before = entries.len();
            entries.retain(|_, holder| holder != name);
            count = before - entries.len();
            Ok(())
        })?;
        Ok(count)
    }

    /// All that are on the list.
    pub fn entries(&self) -> Vec<(Fingerprint, Name)> {
        self.table.borrow().entries.iter().map(|(print, name)| (*print, name.clone())).collect()
    }

    /// Whether a certificate is let in.
    pub fn contains(&self, fingerprint: Fingerprint) -> bool {
        self.table.borrow().contains(fingerprint)
    }

    /// The certificates of a name.
    pub fn of(&self, name: &Name) -> Vec<Fingerprint> {
        let table = self.table.borrow();
        table.entries.iter().filter(|(_, holder)| *holder == name).map(|(print, _)| *print).collect()
    }

    /// Waits until a certificate is not let in.
    pub(crate) async fn refuses(&self, fingerprint: Fingerprint) {
        let mut table = self.table.subscribe();
        // The sender lives as long as `self`, so the wait ends by the condition only.
        let _ = table.wait_for(|table| !table.contains(fingerprint)).await;
    }

    fn with(table: Table, path: Option<PathBuf>) -> Self {
        Self { path, table: Arc::new(watch::Sender::new(table)) }
    }

    fn change(
        &self,
        edit: impl FnOnce(&mut BTreeMap<Fingerprint, Name>) -> Result<(), IdentityError>,
    ) -> Result<(), IdentityError> {
        let _lock = self.path.as_deref().map(lock).transpose()?;
        let mut done = Ok(());
        self.table.send_if_modified(|table| {
            let changed = match &self.path {
                // What another process wrote meanwhile (`certs issue` beside a running head) stays.
                Some(path) => read(path).and_then(|mut table| {
                    edit(&mut table.entries)?;
                    write_file(path, &text(&table.entries), true)?;
                    Ok(table.entries)
                }),
                None => {
                    let mut entries = table.entries.clone();
                    edit(&mut entries).map(|()| entries)
                }
            };
            done = changed.map(|entries| table.entries = entries);
            done.is_ok()
        });
        done
    }
}

// === impl Table ===

impl Table {
    fn contains(&self, fingerprint: Fingerprint) -> bool {
        self.everyone || self.entries.contains_key(&fingerprint)
    }
}

fn read(path: &Path) -> Result<Table, IdentityError> {
    let mut table = Table::default();
    if !path.try_exists().unwrap_or(true) {
        return Ok(table);
    }
    for (number, line) in read_text(path, false)?.lines().enumerate().take(ENTRIES_MAX) {
        let entry = line.split_once(' ').and_then(|(fingerprint, name)| {
            let name = if name == Name::head().as_str() { Name::head() } else { Name::parse(name).ok()? };
            Some((fingerprint.parse().ok()?, name))
        });
        let Some((fingerprint, name)) = entry else {
            return Err(IdentityError::File {
                path: path.to_owned(),
                what: format!("line {} is not a fingerprint and a name", number + 1),
                hint: "take the line out, or the whole file, and issue again what is missing",
            });
        };
        table.entries.insert(fingerprint, name);
    }
    Ok(table)
}

fn text(entries: &BTreeMap<Fingerprint, Name>) -> String {
    entries.iter().map(|(fingerprint, name)| format!("{fingerprint} {name}\n")).collect()
}

const ENTRIES_MAX: usize = 20_000;
