//! Which tokens are out. No clock, no file: time and text are arguments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Refusal;
use crate::identity::Name;

/// The tokens of a head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens(Vec<Token>);

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    expires: SystemTime,
    /// SHA-256 of the secret: whoever reads the head's memory dump or its file cannot join by it.
    hash: [u8; 32],
    name: Option<Name>,
    used: bool,
}

/// A token that is as good as used, once [`Tokens::burn`] was called.
#[derive(Debug)]
pub(super) struct Match {
    hash: [u8; 32],
    /// The name that it was made for.
    pub(super) bound: bool,
    pub(super) name: Name,
}

// === impl Tokens ===

impl Tokens {
    /// Notes a new token. `false` if too many are out.
    pub(super) fn add(
        &mut self,
        secret: &str,
        name: Option<Name>,
        expires: SystemTime,
        now: SystemTime,
    ) -> bool {
        // Used and old ones are kept for a while, so that whoever brings them learns why they do not work.
        self.0.retain(|token| token.expires + KEPT > now);
        if self.0.len() >= TOKENS_MAX {
            self.0.retain(|token| token.is_open(now));
        }
        if self.0.len() >= TOKENS_MAX {
            return false;
        }
        self.0.push(Token { expires, hash: hash(secret), name, used: false });
        true
    }

    /// Whether any token can be used.
    pub(super) fn is_open(&self, now: SystemTime) -> bool {
        self.0.iter().any(|token| token.is_open(now))
    }

    /// Looks at what a node brings. The name is looked at last: only who has a token learns about names.
    pub(super) fn find(&self, secret: &str, name: &str, now: SystemTime) -> Result<Match, Refusal> {
        let hash = hash(secret);
        // All are compared, whole, whichever is the one.
        let mut found = None;
        for token in &self.0 {
            if bool::from(token.hash.ct_eq(&hash)) {
                found = Some(token);
            }
        }
        match found {
            None => Err(Refusal::UnknownToken),
            Some(token) if token.used => Err(Refusal::Used),
            Some(token) if token.expires <= now => Err(Refusal::Expired),
            Some(token) => match Name::parse(name) {
                Ok(name) if token.name.as_ref().is_none_or(|bound| *bound == name) => {
                    Ok(Match { hash, bound: token.name.is_some(), name })
                }
                _ => Err(Refusal::Name),
            },
        }
    }

    /// Uses a token up.
    pub(super) fn burn(&mut self, matched: &Match) {
        for token in self.0.iter_mut().filter(|token| token.hash == matched.hash) {
            token.used = true;
        }
    }

    /// Takes tokens off the list; the answer is how many.
    pub(super) fn remove(&mut self, which: impl Fn(&Token) -> bool) -> usize {
        let before = self.0.len();
        self.0.retain(|token| !which(token));
        before - self.0.len()
    }

    pub(super) fn list(&self) -> &[Token] {
        &self.0
    }

    /// A line for each: hash, end in seconds since 1970, whether it was used, and its name or `*`.
    pub(super) fn to_text(&self) -> String {
        let line = |token: &Token| {
            let seconds = token.expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let used = if token.used { USED } else { UNUSED };
            let name = token.name.as_ref().map_or(ANY, Name::as_str);
            format!("{} {seconds} {used} {name}\n", token.hash_text())
        };
        self.0.iter().map(line).collect()
    }

    /// The error is the number of the first line that is none.
    pub(super) fn parse(text: &str) -> Result<Self, usize> {
        let lines = text.lines().take(TOKENS_MAX).enumerate();
        lines.map(|(i, line)| token(line).ok_or(i + 1)).collect::<Result<_, _>>().map(Self)
    }
}

// === impl Token ===

impl Token {
    /// What it is called in lists: the beginning of the hash of its secret.
    pub fn id(&self) -> String {
        let mut id = self.hash_text();
        id.truncate(ID_DIGITS);
        id
    }

    /// The only node that it is for, if it is for one.
    pub const fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    /// When it ends.
    pub const fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Whether a node has joined by it.
    pub const fn is_used(&self) -> bool {
        self.used
    }

    /// Whether a node can join by it.
    pub fn is_open(&self, now: SystemTime) -> bool {
        !self.used && self.expires > now
    }

    fn hash_text(&self) -> String {
        self.hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn token(line: &str) -> Option<Token> {
    let mut parts = line.split(' ');
    let (hash, expires, used, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hash: [u8; 32] = hash.parse::<crate::identity::Fingerprint>().ok()?.into();
    let expires = UNIX_EPOCH.checked_add(Duration::from_secs(expires.parse().ok()?))?;
    // What is added to it later must not be too much for the clock.
    expires.checked_add(KEPT)?;
    let used = match used {
        USED => true,
        UNUSED => false,
        _ => return None,
    };
    let name = if name == ANY { None } else { Some(Name::parse(name).ok()?) };
    parts.next().is_none().then_some(Token { expires, hash, name, used })
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

const ANY: &str = "*";
const ID_DIGITS: usize = 8;
const KEPT: Duration = Duration::from_secs(24 * 3600);
const TOKENS_MAX: usize = 4096;
const UNUSED: &str = "unused";
const USED: &str = "used";

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn check(tokens: &mut Tokens, secret: &str, name: &str, now: u64) -> Result<(), Refusal> {
        let matched = tokens.find(secret, name, after(now))?;
        tokens.burn(&matched);
        Ok(())
    }

    #[test]
    fn a_token_works_once_for_its_name_in_its_time() {
        let mut tokens = Tokens::default();
        let bound = Some(Name::parse("node-1").unwrap());
        assert!(!tokens.is_open(after(0)));
        assert!(tokens.add("a", bound, after(100), after(0)));
        assert!(tokens.add("b", None, after(100), after(0)));
        assert_eq!(check(&mut tokens, "c", "node-1", 1), Err(Refusal::UnknownToken));
        assert_eq!(check(&mut tokens, "a", "node-2", 1), Err(Refusal::Name));
        assert_eq!(check(&mut tokens, "a", "head", 1), Err(Refusal::Name));
        assert_eq!(check(&mut tokens, "a", "node-1", 1), Ok(()));
        assert_eq!(check(&mut tokens, "a", "node-1", 1), Err(Refusal::Used));
        assert!(tokens.is_open(after(99)));
        assert!(!tokens.is_open(after(100)));
        assert_eq!(check(&mut tokens, "b", "node-3", 100), Err(Refusal::Expired));
    }

    #[test]
    fn the_list_does_not_grow() {
        let mut tokens = Tokens::default();
        for number in 0..TOKENS_MAX {
            assert!(tokens.add(&number.to_string(), None, after(10), after(0)));
        }
        assert!(!tokens.add("more", None, after(10), after(0)));
        // Old ones make room for new ones, and go by themselves after a day.
        assert!(tokens.add("more", None, after(30), after(20)));
        assert_eq!(tokens.0.len(), 1);
        assert!(tokens.add("last", None, after(200_000), after(100_000)));
        assert_eq!(tokens.0.len(), 1);
    }

    #[test]
    fn text_and_back() {
        let mut tokens = Tokens::default();
        tokens.add("a", Some(Name::parse("node-1").unwrap()), after(100), after(0));
        tokens.add("b", None, after(100), after(0));
        check(&mut tokens, "b", "x", 1).unwrap();
        let text = tokens.to_text();
        assert!(text.contains(" 1000100 unused node-1\n") && text.ends_with(" 1000100 used *\n"), "{text}");
        assert_eq!(Tokens::parse(&text), Ok(tokens.clone()));
        assert_eq!(tokens.list()[0].id(), text[..ID_DIGITS]);
        let line = text.lines().next().unwrap();
        for bad in [
            "",
            &line[1..],
            &line[..line.len() - 7],
            &format!("{line} more"),
            &line.replace("unused", "new"),
            &line.replace("1000100", "18446744073709551615"),
            &line.replace("node-1", "head"),
        ] {
            assert_eq!(Tokens::parse(&format!("{line}\n{bad}\n")), Err(2), "{bad}");
        }
    }
}
