//! What a device keeps on disk: a directory for its user alone, and sealed with a passphrase on top.
//!
//! | file | holds |
//! |---|---|
//! | `device.json` | name and server in clear; a random key, sealed with what Argon2id makes of the passphrase |
//! | `state` | the identity's seed and everything else, sealed with that key |
//! | `lock` | nothing: of two processes, one has it |
//!
//! `state` is replaced as a whole: what a client of this protocol has to remember is small, because the server keeps what was
//! said. It is written before anything that must not be forgotten is said to anybody, and now and then otherwise: what is forgotten
//! then was heard and is heard again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::chat::dm::crypto::SealKey;
use crate::crypto::{Secret, random};
use crate::files;

/// What a passphrase costs: memory in KiB, rounds, lanes. OWASP's recommendation.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// What a changed `device.json` may ask for at most.
const COST_MAX: (u32, u32, u32) = (1024 * 1024, 64, 16);

/// Why what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadFolder {
    /// It cannot be read or written.
    #[error("{1}: {0}")]
    Io(#[source] io::Error, PathBuf),
    /// There is a device already.
    #[error("there is a device in {0} already")]
    Exists(PathBuf),
    /// There is none.
    #[error("there is no device in {0}")]
    Missing(PathBuf),
    /// It is another account's, or of another server.
    #[error("the device in {dir} is {found}, not {wanted}")]
    Other {
        /// Where.
        dir: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose was asked for.
        wanted: String,
    },
    /// This passphrase does not open it.
    #[error("the passphrase does not open {0}")]
    Passphrase(PathBuf),
    /// Another process has it.
    #[error("another process uses {0}")]
    Busy(PathBuf),
    /// It is not what was written.
    #[error("{0} is damaged: move it away, and recover the account with its words; the server has the rest")]
    Damaged(PathBuf),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    version: u32,
    name: String,
    server: String,
    salt: String,
    cost: (u32, u32, u32),
    sealed: String,
}

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Folder {
    shelf: Arc<Shelf>,
    _lock: files::Held,
}

/// Where `state` lies, for whoever writes it: also a task that goes on when nobody waits for it any more.
#[derive(Debug)]
struct Shelf {
    dir: PathBuf,
    key: SealKey,
    /// Writes that were asked for.
    asked: AtomicU64,
    /// The last of those that were done: an older one is not done after it.
    done: Mutex<u64>,
}

impl Folder {
    fn of(dir: &Path, key: SealKey, lock: files::Held) -> Self {
        let shelf = Shelf { dir: dir.to_owned(), key, asked: AtomicU64::default(), done: Mutex::default() };
        Self { shelf: Arc::new(shelf), _lock: lock }
    }

    /// Whether a device is kept there.
    pub(super) fn exists(dir: &Path) -> bool {
        dir.join("device.json").exists()
    }

    /// Makes one for a new device.
    pub(super) fn create<T: Serialize>(
        dir: &Path,
        name: &str,
        server: &str,
        passphrase: &str,
        state: &T,
    ) -> Result<Self, BadFolder> {
        let fail = |error| BadFolder::Io(error, dir.to_owned());
        files::make_private_dir(dir).map_err(fail)?;
        let lock = hold(dir)?;
        if Self::exists(dir) {
            return Err(BadFolder::Exists(dir.to_owned()));
        }
        let folder = Self::of(dir, SealKey::new(Secret::random()), lock);
        // First what it opens: a directory with `device.json` is whole.
        folder.keep(state)?;
        let salt: [u8; 16] = random::bytes();
        let outer = derive(passphrase, &salt, COST).ok_or_else(|| BadFolder::Damaged(dir.to_owned()))?;
        let device = Device {
            version: 1,
            name: name.to_owned(),
            server: server.to_owned(),
            salt: BASE64_STANDARD.encode(salt),
            cost: COST,
            sealed: BASE64_STANDARD.encode(outer.seal(folder.shelf.key.secret().expose())),
        };
        let text = serde_json::to_string_pretty(&device).map_err(|error| fail(error.into()))?;
        files::write_whole(&dir.join("device.json"), &text, true).map_err(fail)?;
        Ok(folder)
    }

    /// Opens the one of this name on this server.
    pub(super) fn open<T: DeserializeOwned>(
        dir: &Path,
        name: &str,
        server: &str,
        passphrase: &str,
    ) -> Result<(Self, T), BadFolder> {
        let fail = |error| BadFolder::Io(error, dir.to_owned());
        let damaged = || BadFolder::Damaged(dir.to_owned());
        if !Self::exists(dir) {
            return Err(BadFolder::Missing(dir.to_owned()));
        }
        let lock = hold(dir)?;
        let text = std::fs::read(dir.join("device.json")).map_err(fail)?;
        let device: Device = serde_json::from_slice(&text).map_err(|_| damaged())?;
        let (found, wanted) = ((&*device.name, &*device.server), (name, server));
        if found != wanted {
            let said = |(name, server): (&str, &str)| format!("{name} on {server}");
            return Err(BadFolder::Other { dir: dir.to_owned(), found: said(found), wanted: said(wanted) });
        }
        let decode = |text: &str| BASE64_STANDARD.decode(text).map_err(|_| damaged());
        let outer = derive(passphrase, &decode(&device.salt)?, device.cost).ok_or_else(damaged)?;
        let key = outer.open(&decode(&device.sealed)?).ok_or_else(|| BadFolder::Passphrase(dir.to_owned()))?;
        let key = SealKey::new(Secret::new(key[..].try_into().map_err(|_| damaged())?));
        let sealed = std::fs::read(dir.join("state")).map_err(fail)?;
        let plain = BASE64_STANDARD.decode(sealed).ok().and_then(|sealed| key.open(&sealed)).ok_or_else(damaged)?;
        let state = serde_json::from_slice(&plain).map_err(|_| damaged())?;
        Ok((Self::of(dir, key, lock), state))
    }

    /// Keeps this in place of what was kept; it is on disk afterwards.
    pub(super) fn keep<T: Serialize>(&self, state: &T) -> Result<(), BadFolder> {
        self.shelf.keep(self.shelf.next(), state)
    }

    /// The same while the caller's thread does something else.
    pub(super) async fn keep_aside<T: Serialize + Send + 'static>(&self, state: T) -> Result<(), BadFolder> {
        let (shelf, number) = (Arc::clone(&self.shelf), self.shelf.next());
        let kept = tokio::task::spawn_blocking(move || shelf.keep(number, &state)).await;
        kept.unwrap_or_else(|error| Err(BadFolder::Io(io::Error::other(error), self.shelf.dir.clone())))
    }

    /// Removes what is kept of a device that came to nothing; not the directory, which may hold something else.
    pub(super) fn erase(self) -> Result<(), BadFolder> {
        let dir = &self.shelf.dir;
        for file in ["device.json", "state"] {
            std::fs::remove_file(dir.join(file)).map_err(|error| BadFolder::Io(error, dir.clone()))?;
        }
        Ok(())
    }
}

impl Shelf {
    fn next(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn keep<T: Serialize>(&self, number: u64, state: &T) -> Result<(), BadFolder> {
        let fail = |error| BadFolder::Io(error, self.dir.clone());
        let plain = Zeroizing::new(serde_json::to_vec(state).map_err(|error| fail(error.into()))?);
        let text = BASE64_STANDARD.encode(self.key.seal(&plain));
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if *done < number {
            files::write_whole(&self.dir.join("state"), &text, true).map_err(fail)?;
            *done = number;
        }
        Ok(())
    }
}

fn hold(dir: &Path) -> Result<files::Held, BadFolder> {
    let held = files::hold(&dir.join("lock")).map_err(|error| BadFolder::Io(error, dir.to_owned()))?;
    held.ok_or_else(|| BadFolder::Busy(dir.to_owned()))
}

fn derive(passphrase: &str, salt: &[u8], cost: (u32, u32, u32)) -> Option<SealKey> {
    let (memory, rounds, lanes) = cost;
    if memory > COST_MAX.0 || rounds > COST_MAX.1 || lanes > COST_MAX.2 {
        return None;
    }
    let params = Params::new(memory, rounds, lanes, Some(32)).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut key[..])
        .ok()?;
    Some(SealKey::new(Secret::new(*key)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn open(dir: &Path, name: &str, passphrase: &str) -> Result<(Folder, Vec<String>), BadFolder> {
        Folder::open(dir, name, "localhost:5000", passphrase)
    }

    #[test]
    fn what_is_kept_comes_back_with_the_passphrase_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("alice");
        let state = vec!["a secret".to_owned()];
        assert!(matches!(open(&dir, "alice", "one"), Err(BadFolder::Missing(_))));
        let folder = Folder::create(&dir, "alice", "localhost:5000", "one", &state).unwrap();
        assert!(matches!(open(&dir, "alice", "one"), Err(BadFolder::Busy(_))), "one process at a time");
        drop(folder);
        let again = Folder::create(&dir, "alice", "localhost:5000", "two", &state);
        assert!(matches!(again, Err(BadFolder::Exists(_))), "nothing that is kept is replaced");
        for file in ["device.json", "state", "lock"] {
            assert_eq!(std::fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
            assert!(!std::fs::read_to_string(dir.join(file)).unwrap().contains("secret"));
        }
        assert!(matches!(open(&dir, "alice", "two"), Err(BadFolder::Passphrase(_))));
        let other = open(&dir, "bob", "one").unwrap_err().to_string();
        assert!(other.ends_with("is alice on localhost:5000, not bob on localhost:5000"), "{other}");
        let elsewhere = Folder::open::<Vec<String>>(&dir, "alice", "example.org:5000", "one");
        assert!(matches!(elsewhere, Err(BadFolder::Other { .. })));
        let (folder, found) = open(&dir, "alice", "one").unwrap();
        assert_eq!(found, state);
        folder.keep(&vec!["another".to_owned()]).unwrap();
        drop(folder);
        assert_eq!(open(&dir, "alice", "one").unwrap().1, ["another"]);
        // Half way through being written.
        std::fs::write(dir.join("state.new"), "").unwrap();
        assert_eq!(open(&dir, "alice", "one").unwrap().1, ["another"]);
        std::fs::write(dir.join("state"), "AAAA").unwrap();
        assert!(matches!(open(&dir, "alice", "one"), Err(BadFolder::Damaged(_))));
        std::fs::write(dir.join("device.json"), "{}").unwrap();
        assert!(matches!(open(&dir, "alice", "one"), Err(BadFolder::Damaged(_))));
    }

    #[test]
    fn a_device_that_came_to_nothing_leaves_room_for_another() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        Folder::create(dir, "alice", "a:1", "one", &1).unwrap().erase().unwrap();
        assert!(!Folder::exists(dir));
        Folder::create(dir, "alice", "a:1", "two", &2).unwrap();
    }
}
