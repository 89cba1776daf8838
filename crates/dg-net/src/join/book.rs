//! Where the tokens are kept.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::JoinToken;
use super::token::SECRET_BYTES;
use super::tokens::{Token, Tokens};
use crate::endpoint::tls::provider;
use crate::identity::{Fingerprint, IdentityError, Name, State, lock, read_text, write_file};

/// The join tokens that are out: in memory, or in the file `tokens` of a [`State`] folder.
///
/// A file outlives its head and is shared: what `dg-cluster token create` writes beside a running head, the head reads
/// when somebody knocks. Only hashes of the secrets are kept.
#[derive(Debug)]
pub struct TokenBook {
    known: Mutex<Known>,
    path: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Known {
    stamp: Option<Stamp>,
    tokens: Tokens,
}

/// Which state of the file was read. Every change makes a new file.
type Stamp = (u64, i64, i64, u64);

impl TokenBook {
    /// One that ends with the program.
    pub fn in_memory() -> Self {
        Self { known: Mutex::default(), path: None }
    }

    /// That of a state folder; empty if there is no file yet.
    pub fn open(state: &State) -> Result<Self, IdentityError> {
        let book = Self { known: Mutex::default(), path: Some(state.tokens_path()) };
        book.refresh(&mut book.known())?;
        Ok(book)
    }

    /// Makes a token for the node `name`, or for any name that is free. `host` and `port` are where nodes reach the head,
    /// and `ca` is what it must have.
    pub fn create(
        &self,
        ca: Fingerprint,
        (host, port): (&str, u16),
        name: Option<Name>,
        life: Duration,
        now: SystemTime,
    ) -> Result<JoinToken, IdentityError> {
        let failed = |reason: &dyn ToString| IdentityError::Crypto {
            what: "making a join token",
            reason: reason.to_string(),
        };
        let mut secret = [0; SECRET_BYTES];
        provider().secure_random.fill(&mut secret).map_err(|_| failed(&"no random bytes"))?;
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = JoinToken::new(host, port, ca, secret).map_err(|e| failed(&e))?;
        let expires = now.checked_add(life).filter(|_| life <= LIFE_MAX);
        let expires = expires.ok_or_else(|| failed(&"it would live for more than a year"))?;
        if !self.change(|tokens| tokens.add(&token.secret, name, expires, now))? {
            return Err(failed(&"too many tokens are out"));
        }
        Ok(token)
    }

    /// The tokens, without their secrets. Used and old ones stay for a day.
    pub fn list(&self) -> Result<Vec<Token>, IdentityError> {
        let mut known = self.known();
        self.refresh(&mut known)?;
        Ok(known.tokens.list().to_vec())
    }

    /// Takes the token that is called `id` off the list; the answer is whether there was one.
    pub fn revoke(&self, id: &str) -> Result<bool, IdentityError> {
        self.change(|tokens| tokens.remove(|token| token.id() == id) > 0)
    }

    /// Takes the tokens for the node `name` off the list; the answer is how many there were.
    pub fn revoke_name(&self, name: &Name) -> Result<usize, IdentityError> {
        self.change(|tokens| tokens.remove(|token| token.name() == Some(name)))
    }

    /// Whether there is a token that can be used. If nobody has changed the file, this is one look at its date.
    pub fn is_open(&self, now: SystemTime) -> Result<bool, IdentityError> {
        let mut known = self.known();
        self.refresh(&mut known)?;
        Ok(known.tokens.is_open(now))
    }

    /// Changes the tokens while nobody else does, in this process or another. It counts if it could be saved.
    pub(super) fn change<T>(&self, edit: impl FnOnce(&mut Tokens) -> T) -> Result<T, IdentityError> {
        let mut known = self.known();
        let _lock = self.path.as_deref().map(lock).transpose()?;
        self.refresh(&mut known)?;
        let mut tokens = known.tokens.clone();
        let done = edit(&mut tokens);
        if tokens == known.tokens {
            return Ok(done);
        }
        if let Some(path) = &self.path {
            write_file(path, &tokens.to_text(), true)?;
        }
        // The stamp stays that of the old file: what was written is read at the next look.
        known.tokens = tokens;
        Ok(done)
    }

    fn refresh(&self, known: &mut Known) -> Result<(), IdentityError> {
        let Some(path) = &self.path else { return Ok(()) };
        let stamp = stamp(path);
        if stamp.is_none() || stamp != known.stamp {
            // Nothing of an older state counts if the new one cannot be read.
            *known = Known::default();
            known.tokens = read(path)?;
            known.stamp = stamp;
        }
        Ok(())
    }

    /// What is known is sound after a panic: every change of it is one statement.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = path.metadata().ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

fn read(path: &Path) -> Result<Tokens, IdentityError> {
    if !path.try_exists().unwrap_or(true) {
        return Ok(Tokens::default());
    }
    Tokens::parse(&read_text(path, true)?).map_err(|line| IdentityError::File {
        path: path.to_owned(),
        what: format!("line {line} is not a token"),
        hint: "take the line out, or the whole file, and make again what is missing",
    })
}

const LIFE_MAX: Duration = Duration::from_secs(366 * 86_400);
