//! All keys of the config, and which of them has signed a token.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jsonwebtoken::Algorithm;
use tokio::sync::watch;
use tokio::time::timeout;

use super::TokenFault;
use super::jwks::{Jwks, JwksError, Looked, Lookup};
use super::key::Key;
use super::key_file;
use super::rules::Claims;
use crate::config::{Jwt, KeyOrigin, VerificationKey};
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// How long a request waits for a JWKS that it needs.
const PATIENCE: Duration = Duration::from_secs(5);

/// The keys, in the order of the config.
pub(super) struct Keyring {
    entries: Vec<Entry>,
}

/// One `[[auth.key]]`.
struct Entry {
    algorithms: Vec<Algorithm>,
    keys: Keys,
}

enum Keys {
    /// Replaced when its file changes.
    Fixed(watch::Sender<Arc<Key>>),
    Jwks(Jwks),
}

/// A token whose signature is right.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) claims: Claims,
    pub(super) key: KeyName,
}

/// Which key has signed a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyName {
    /// Its place among the keys of the config, from 0.
    pub(super) index: usize,
    /// Its kid in a JWKS.
    pub(super) kid: Option<String>,
}

/// What decides which keys a token is tried with.
pub(super) struct Clue<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<&'a str>,
}

/// A search through all keys that may have signed a token.
struct Search<'a> {
    opened: Option<Result<Opened, TokenFault>>,
    /// A key of the token's kid, or one without kids, was tried.
    was_tried: bool,
    is_undecided: bool,
    /// The sets in which a key may appear that they don't have now.
    lacking: Vec<&'a Jwks>,
}

impl Keyring {
    pub(super) fn new(jwt: &Jwt, metrics: &Metrics) -> Self {
        let entry = |(index, key): (usize, &VerificationKey)| Entry {
            algorithms: key.algorithms.clone(),
            keys: match &key.origin {
                KeyOrigin::Fixed(fixed) => {
                    let key = Key::new(fixed.decoding.clone(), &key.algorithms);
                    Keys::Fixed(watch::Sender::new(Arc::new(key)))
                }
                KeyOrigin::Jwks(jwks) => {
                    Keys::Jwks(Jwks::new(jwks, &key.algorithms, index, metrics))
                }
            },
        };
        Self {
            entries: jwt.keys.iter().enumerate().map(entry).collect(),
        }
    }

    /// Keeps the keys up to date for as long as the process lives, in tasks of `tasks`.
    pub(super) fn start(&self, jwt: &Jwt, tasks: &Tasks, metrics: &Metrics) {
        for (index, (entry, key)) in self.entries.iter().zip(&jwt.keys).enumerate() {
            match (&entry.keys, &key.origin) {
                (Keys::Jwks(jwks), _) => jwks.start(tasks),
                (Keys::Fixed(current), KeyOrigin::Fixed(fixed)) => {
                    let algorithms = &key.algorithms;
                    key_file::watch(fixed, algorithms, index, current.clone(), tasks, metrics);
                }
                (Keys::Fixed(_), KeyOrigin::Jwks(_)) => {}
            }
        }
    }

    /// Whether every JWKS was fetched at least once; `None` if there is none.
    pub(super) fn are_there(&self) -> Option<bool> {
        let all = self.jwks().map(|(_, jwks)| jwks.is_there());
        all.reduce(|all, one| all && one)
    }

    /// Every JWKS with its place.
    fn jwks(&self) -> impl Iterator<Item = (usize, &Jwks)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(index, entry)| match &entry.keys {
            Keys::Jwks(jwks) => Some((index, jwks)),
            Keys::Fixed(_) => None,
        })
    }

    /// Fetches every JWKS once. Says what came of it: place, host and keys.
    pub(super) async fn fetch_all(&self) -> Vec<Fetched> {
        let fetches = self.jwks().map(async |(index, jwks)| Fetched {
            index,
            authority: jwks.authority().to_owned(),
            keys: jwks.fetch_once().await,
        });
        join_all(fetches).await
    }

    /// Finds the key that has signed the token; waits for a JWKS if it may have come up there.
    /// Of keys of the same material, the first decides which issuers it may have.
    pub(super) async fn open(&self, token: &str, clue: &Clue<'_>) -> Result<Opened, TokenFault> {
        let fits = |entry: &Entry| entry.algorithms.contains(&clue.algorithm);
        if !self.entries.iter().any(fits) {
            return Err(TokenFault::Algorithm);
        }
        let search = self.search(token, clue);
        if let Some(opened) = search.opened {
            return opened;
        }
        if search.lacking.is_empty() {
            return Err(search.fault(clue));
        }
        let in_time = timeout(PATIENCE, self.look_again(token, clue, search)).await;
        in_time.unwrap_or(Err(TokenFault::KeysUnavailable))
    }

    /// Twice: the fetch under way, if there is one, and one that begins after it.
    async fn look_again<'a>(
        &'a self,
        token: &str,
        clue: &Clue<'_>,
        mut search: Search<'a>,
    ) -> Result<Opened, TokenFault> {
        for _ in 0..2 {
            let looking = search.lacking.iter().map(|jwks| jwks.look_for(clue.kid));
            let looked = join_all(looking).await;
            search = self.search(token, clue);
            if let Some(opened) = search.opened {
                return opened;
            }
            if !looked.contains(&Looked::NotYet) {
                return Err(search.fault(clue));
            }
        }
        Err(TokenFault::KeysUnavailable)
    }

    fn search(&self, token: &str, clue: &Clue<'_>) -> Search<'_> {
        let mut search = Search {
            opened: None,
            was_tried: false,
            is_undecided: false,
            lacking: Vec::new(),
        };
        for (index, entry) in self.entries.iter().enumerate() {
            if !entry.algorithms.contains(&clue.algorithm) {
                continue;
            }
            match &entry.keys {
                Keys::Fixed(current) => {
                    let key = current.borrow().clone();
                    search.attempt(token, &key, clue, KeyName { index, kid: None });
                    // A config key has no kid: it says nothing about the one that is named.
                    search.was_tried |= clue.kid.is_none();
                }
                Keys::Jwks(jwks) => search.look_into(jwks, token, clue, index),
            }
            if search.opened.is_some() {
                break;
            }
        }
        search
    }
}

/// What a JWKS has brought.
#[derive(Debug)]
pub struct Fetched {
    /// Its place among the keys of the config, from 0.
    pub index: usize,
    /// Host and port of its endpoint.
    pub authority: String,
    /// How many keys can be used, and how many can't.
    pub keys: Result<(usize, usize), JwksError>,
}

impl<'a> Search<'a> {
    fn look_into(&mut self, jwks: &'a Jwks, token: &str, clue: &Clue<'_>, index: usize) {
        match jwks.lookup(clue.kid, clue.algorithm) {
            Lookup::Keys(keys) => {
                for key in &keys {
                    let kid = key.kid.clone();
                    self.attempt(token, &key.key, clue, KeyName { index, kid });
                }
                self.was_tried |= !keys.is_empty();
                // Without a kid there is no telling that the key has been replaced.
                if clue.kid.is_none() {
                    self.lacking.push(jwks);
                }
            }
            Lookup::Undecided => self.is_undecided = true,
            Lookup::Nothing => self.lacking.push(jwks),
        }
    }

    fn attempt(&mut self, token: &str, key: &Key, clue: &Clue<'_>, name: KeyName) {
        if self.opened.is_some() {
            return;
        }
        match key.open(token, clue.algorithm) {
            Ok(claims) => self.opened = Some(Ok(Opened { claims, key: name })),
            Err(TokenFault::Signature) => {}
            Err(fault) => self.opened = Some(Err(fault)),
        }
    }

    /// Why no key has opened the token.
    fn fault(&self, clue: &Clue<'_>) -> TokenFault {
        let only_fixed = self.lacking.is_empty() && !self.is_undecided;
        match clue.kid {
            None if self.is_undecided => TokenFault::KidMissing,
            Some(_) if !self.was_tried && !only_fixed => TokenFault::UnknownKey,
            Some(_) | None => TokenFault::Signature,
        }
    }
}
