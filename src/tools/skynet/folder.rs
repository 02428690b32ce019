//! What a device keeps on disk, so that it can come back: a directory for its user alone, and sealed with the password on top.
//!
//! | file | holds |
//! |---|---|
//! | `device.json` | a random key, sealed with what the password became: more than once while a password changes |
//! | `journal` | records, each sealed with that key: the session, what was heard, what is to be said |
//! | `lock` | nothing: of two processes, one has it |
//!
//! Going through the journal from its beginning gives back what the device knew, so there is nothing else to be kept in step. Each
//! record is a length (u32, little-endian) and a blob of the protocol's own sort; inside stands the record's number, so that none can be
//! taken out or moved. A record that is not whole is the last one, and was being written when the process ended: what it says
//! was not acted upon. When the journal has become long, one that leads to the same takes its place.
//!
//! *Rejected*: a database, which has more to offer than is needed here, and would have to be sealed row by row; a password in
//! a file, because then nothing is sealed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::talk::Lock;
use crate::chat::skynet::wire::blob::{AccountKeys, ChannelKey};
use crate::chat::skynet::wire::{
    AccountId, ChannelId, FromClient, HEADER, MessageId, SessionId, ToClient, WebToken, read_header,
};
use crate::crypto::Secret;
use crate::files;

/// A journal that is longer is written anew when it is opened, in bytes.
const LONG: u64 = 8 * 1024 * 1024;
/// Longest record, in bytes: the longest packet, and what a blob adds.
const RECORD_MAX: usize = 17 * 1024 * 1024;

/// A journal that is longer than after it was last written anew by this factor is written anew.
const GROWN: u64 = 2;

/// Why what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadFolder {
    /// It cannot be read or written.
    #[error("{1}: {0}")]
    Io(#[source] io::Error, PathBuf),
    /// This password does not open it.
    #[error("the password does not open {0}; it is the one with which the account was last used there")]
    Password(PathBuf),
    /// Another process has it.
    #[error("another process uses {0}")]
    Busy(PathBuf),
    /// It is kept of another server.
    #[error("{dir} is kept of the server {kept}, not of {asked}; if that is the same one, say --moved")]
    OtherServer {
        /// Where.
        dir: PathBuf,
        /// Of which.
        kept: String,
        /// Which is asked for.
        asked: String,
    },
    /// It is kept of another account.
    #[error("{dir} is a device of {kept}, not of {asked}")]
    OtherAccount {
        /// Where.
        dir: PathBuf,
        /// Of which.
        kept: String,
        /// Which is asked for.
        asked: String,
    },
    /// It is not what was written.
    #[error("{0} is damaged: move it away to log in anew; the server has everything")]
    Damaged(PathBuf),
}

/// What a session comes back with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub account: AccountId,
    /// Which.
    pub session: SessionId,
    /// Proves that it is this device's.
    pub token: Secret<32>,
    /// The same for files.
    pub web_token: WebToken,
}

/// Something that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Session(Session),
    Heard(ToClient),
    Said(FromClient),
    /// What was heard from here on was heard on another connection.
    Connected,
    /// This will not be said any more.
    Dropped(MessageId),
    /// Up to there, messages of a channel were forgotten.
    Floor(ChannelId, MessageId),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    version: u32,
    /// Where the account is.
    server: String,
    locks: Vec<Sealed>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    name: String,
    sealed: String,
}

#[derive(Serialize, Deserialize)]
struct SessionJson {
    account: i64,
    session: i64,
    token: String,
    web_token: String,
}

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    server: String,
    key: ChannelKey,
    journal: File,
    next: u64,
    /// How long the journal is, in bytes, and how long it was when it was last written anew.
    len: u64,
    first_len: u64,
    /// Of two processes, the one that has this.
    _lock: files::Held,
}

impl Folder {
    /// Whether a device is kept there.
    pub(super) fn exists(dir: &Path) -> bool {
        dir.join("device.json").exists()
    }

    /// Makes one for a new device. It exists as soon as its session is kept, and not before.
    pub(super) fn create(dir: &Path, server: &str, lock: &Lock, first: &Record) -> Result<Self, BadFolder> {
        let fail = |error| BadFolder::Io(error, dir.to_owned());
        files::make_private_dir(dir).map_err(fail)?;
        let held = hold(dir)?;
        // Of a login that came to nothing.
        let _none = std::fs::remove_file(dir.join("journal"));
        let key = ChannelKey::random();
        let journal = files::private().append(true).create_new(true).open(dir.join("journal")).map_err(fail)?;
        let (dir, server) = (dir.to_owned(), server.to_owned());
        let mut folder = Self { dir, server, key, journal, next: 0, len: 0, first_len: 0, _lock: held };
        folder.append(first)?;
        folder.journal.sync_all().map_err(folder.fail())?;
        folder.seal(std::slice::from_ref(lock))?;
        Ok(folder)
    }

    /// The server it is kept of.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// The same server is somewhere else now.
    pub(super) fn move_to(&mut self, server: &str) -> Result<(), BadFolder> {
        server.clone_into(&mut self.server);
        let text = std::fs::read(self.dir.join("device.json")).map_err(self.fail())?;
        let device: Device = serde_json::from_slice(&text).map_err(|_| BadFolder::Damaged(self.dir.clone()))?;
        self.write(&Device { server: self.server.clone(), ..device })
    }

    /// Opens one. Also what opened it, and what is in it.
    pub(super) fn open(dir: &Path, password: &str) -> Result<(Self, Lock, Vec<Record>), BadFolder> {
        let fail = |error| BadFolder::Io(error, dir.to_owned());
        let damaged = || BadFolder::Damaged(dir.to_owned());
        let held = hold(dir)?;
        let text = std::fs::read(dir.join("device.json")).map_err(fail)?;
        let device: Device = serde_json::from_slice(&text).map_err(|_| damaged())?;
        let unlocked = device.locks.iter().find_map(|it| {
            let lock = Lock { name: it.name.clone(), keys: AccountKeys::derive(&it.name, password) };
            let opened = lock.keys.account_key.open(&BASE64_STANDARD.decode(&it.sealed).ok()?).ok()?;
            Some((lock, ChannelKey(Secret::new(opened[..].try_into().ok()?))))
        });
        let Some((lock, key)) = unlocked else { return Err(BadFolder::Password(dir.to_owned())) };
        let path = dir.join("journal");
        let mut bytes = Vec::new();
        File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(fail)?;
        let (records, whole) = read_records(&key, &bytes).ok_or_else(damaged)?;
        let journal = files::private().append(true).open(&path).map_err(fail)?;
        journal.set_len(whole).map_err(fail)?;
        let next = u64::try_from(records.len()).unwrap_or(u64::MAX);
        let (dir, server) = (dir.to_owned(), device.server);
        Ok((Self { dir, server, key, journal, next, len: whole, first_len: 0, _lock: held }, lock, records))
    }

    fn fail(&self) -> impl Fn(io::Error) -> BadFolder + use<> {
        let dir = self.dir.clone();
        move |error| BadFolder::Io(error, dir.clone())
    }

    /// Lets these open what is kept, and nothing else.
    pub(super) fn seal(&self, locks: &[Lock]) -> Result<(), BadFolder> {
        let sealed = |lock: &Lock| Sealed {
            name: lock.name.clone(),
            sealed: BASE64_STANDARD.encode(lock.keys.account_key.seal(self.key.0.expose())),
        };
        self.write(&Device { version: 1, server: self.server.clone(), locks: locks.iter().map(sealed).collect() })
    }

    fn write(&self, device: &Device) -> Result<(), BadFolder> {
        let text = serde_json::to_string_pretty(device).map_err(|error| self.fail()(error.into()))?;
        files::write_whole(&self.dir.join("device.json"), &text, true).map_err(self.fail())
    }

    /// Keeps something. When that fails, nothing is kept of it: what is kept afterwards stands behind what was kept before.
    ///
    /// Not forced to the disk, which would cost more than it gives: of what a loss of power takes, the server has what was heard, and what
    /// was said and answered.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), BadFolder> {
        let bytes = encode(&self.key, self.next, record).map_err(self.fail())?;
        if let Err(error) = self.journal.write_all(&bytes) {
            self.journal.set_len(self.len).map_err(self.fail())?;
            return Err(self.fail()(error));
        }
        self.len = self.len.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.next += 1;
        Ok(())
    }

    /// Whether it has become long since it was last written anew.
    pub(super) const fn is_long(&self) -> bool {
        self.len > LONG && self.len > self.first_len.saturating_mul(GROWN)
    }

    /// Keeps these in place of everything that was kept.
    pub(super) fn replace(&mut self, records: &[Record]) -> Result<(), BadFolder> {
        let (path, beside) = (self.dir.join("journal"), self.dir.join("journal.new"));
        let _none = std::fs::remove_file(&beside);
        let mut file = files::private().append(true).create_new(true).open(&beside).map_err(self.fail())?;
        let (mut next, mut len) = (0, 0_u64);
        for record in records {
            let bytes = encode(&self.key, next, record).map_err(self.fail())?;
            file.write_all(&bytes).map_err(self.fail())?;
            len = len.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            next += 1;
        }
        file.sync_all().map_err(self.fail())?;
        std::fs::rename(&beside, &path).and_then(|()| files::sync_parent(&path)).map_err(self.fail())?;
        (self.journal, self.next, self.len, self.first_len) = (file, next, len, len);
        Ok(())
    }

    /// Removes what is kept; not the directory, which may hold something else.
    pub(super) fn erase(&self) -> Result<(), BadFolder> {
        for file in ["journal", "device.json"] {
            std::fs::remove_file(self.dir.join(file)).map_err(self.fail())?;
        }
        Ok(())
    }
}

fn hold(dir: &Path) -> Result<files::Held, BadFolder> {
    let held = files::hold(&dir.join("lock")).map_err(|error| BadFolder::Io(error, dir.to_owned()))?;
    held.ok_or_else(|| BadFolder::Busy(dir.to_owned()))
}

fn encode(key: &ChannelKey, number: u64, record: &Record) -> io::Result<Vec<u8>> {
    let mut plain = Zeroizing::new(number.to_le_bytes().to_vec());
    match record {
        Record::Session(session) => {
            plain.push(0);
            let json = SessionJson {
                account: session.account.0,
                session: session.session.0,
                token: hex::encode(session.token.expose()),
                web_token: session.web_token.0.clone(),
            };
            serde_json::to_writer(&mut *plain, &json)?;
        }
        Record::Heard(packet) => {
            plain.push(1);
            plain.extend_from_slice(&packet.encode().map_err(io::Error::other)?);
        }
        Record::Said(packet) => {
            plain.push(2);
            plain.extend_from_slice(&packet.encode().map_err(io::Error::other)?);
        }
        Record::Connected => plain.push(3),
        Record::Dropped(temp) => {
            plain.push(4);
            plain.extend_from_slice(&temp.0.to_le_bytes());
        }
        Record::Floor(channel, floor) => {
            plain.push(5);
            plain.extend_from_slice(&channel.0.to_le_bytes());
            plain.extend_from_slice(&floor.0.to_le_bytes());
        }
    }
    let blob = key.seal(&plain);
    let len = u32::try_from(blob.len()).map_err(io::Error::other)?;
    Ok([&len.to_le_bytes()[..], &blob].concat())
}

/// The records, and how many bytes those that are whole take; nothing when one is not what was written.
fn read_records(key: &ChannelKey, bytes: &[u8]) -> Option<(Vec<Record>, u64)> {
    let (mut records, mut rest) = (Vec::new(), bytes);
    // A file system that lost its power may have made room and not filled it.
    while let Some((len, behind)) = rest.split_first_chunk::<4>().filter(|_| rest.iter().any(|byte| *byte != 0)) {
        let len = usize::try_from(u32::from_le_bytes(*len)).ok().filter(|len| *len <= RECORD_MAX)?;
        let Some((blob, behind)) = behind.split_at_checked(len) else { break };
        records.push(decode(key, u64::try_from(records.len()).ok()?, blob)?);
        rest = behind;
    }
    Some((records, u64::try_from(bytes.len() - rest.len()).ok()?))
}

fn decode(key: &ChannelKey, number: u64, blob: &[u8]) -> Option<Record> {
    let plain = key.open(blob).ok()?;
    let (found, plain) = plain.split_first_chunk::<8>()?;
    let (tag, plain) = plain.split_first()?;
    if u64::from_le_bytes(*found) != number {
        return None;
    }
    let packet = || {
        let (header, payload) = plain.split_first_chunk::<HEADER>()?;
        let (id, len) = read_header(*header);
        Some((id, Bytes::copy_from_slice(payload.get(..len)?)))
    };
    match tag {
        0 => {
            let json: SessionJson = serde_json::from_slice(plain).ok()?;
            let mut token = [0; 32];
            hex::decode_to_slice(json.token, &mut token).ok()?;
            let (account, session, web_token) =
                (AccountId(json.account), SessionId(json.session), WebToken(json.web_token));
            Some(Record::Session(Session { account, session, token: Secret::new(token), web_token }))
        }
        1 => packet().and_then(|(id, payload)| ToClient::decode(id, &payload).ok()).map(Record::Heard),
        2 => packet().and_then(|(id, payload)| FromClient::decode(id, &payload).ok()).map(Record::Said),
        3 => Some(Record::Connected),
        4 => plain.try_into().ok().map(|temp| Record::Dropped(MessageId(i64::from_le_bytes(temp)))),
        5 => {
            let (channel, floor) = plain.split_first_chunk::<8>()?;
            let floor = MessageId(i64::from_le_bytes(floor.try_into().ok()?));
            Some(Record::Floor(ChannelId(i64::from_le_bytes(*channel)), floor))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn lock(password: &str) -> Lock {
        Lock { name: "alice@example.com".into(), keys: AccountKeys::derive("alice@example.com", password) }
    }

    fn records() -> Vec<Record> {
        let session = Session {
            account: AccountId(-1),
            session: SessionId(i64::MIN),
            token: Secret::random(),
            web_token: WebToken("web".into()),
        };
        vec![
            Record::Session(session),
            Record::Heard(ToClient::SyncFinished {}),
            Record::Said(FromClient::DeviceListRequest {}),
            Record::Connected,
            Record::Dropped(MessageId(-7)),
            Record::Floor(ChannelId(-8), MessageId(9)),
        ]
    }

    #[test]
    fn what_is_kept_comes_back_with_the_password_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("alice");
        let (first, second) = (lock("one"), lock("two"));
        let records = records();
        let mut folder = Folder::create(&dir, "server", &first, &records[0]).unwrap();
        for record in &records[1..] {
            folder.append(record).unwrap();
        }
        assert!(matches!(Folder::open(&dir, "one"), Err(BadFolder::Busy(_))), "one process at a time");
        for file in ["device.json", "journal", "lock"] {
            assert_eq!(std::fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        }
        // While the password changes, both open it; then the new one alone.
        folder.seal(&[first, second.clone()]).unwrap();
        drop(folder);
        assert!(Folder::open(&dir, "one").is_ok());
        let (folder, opened_by, found) = Folder::open(&dir, "two").unwrap();
        assert_eq!((found, &opened_by), (records.clone(), &second));
        folder.seal(&[second]).unwrap();
        drop(folder);
        assert!(matches!(Folder::open(&dir, "one"), Err(BadFolder::Password(_))));

        let (mut folder, ..) = Folder::open(&dir, "two").unwrap();
        folder.replace(&records[..1]).unwrap();
        folder.append(&records[2]).unwrap();
        drop(folder);
        assert_eq!(Folder::open(&dir, "two").unwrap().2, [records[0].clone(), records[2].clone()]);
        assert_eq!(std::fs::metadata(dir.join("journal")).unwrap().permissions().mode() & 0o777, 0o600);
        Folder::open(&dir, "two").unwrap().0.erase().unwrap();
        assert!(!Folder::exists(&dir));
    }

    #[test]
    fn a_torn_end_is_forgotten_and_anything_else_is_damage() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let records = records();
        let mut folder = Folder::create(dir, "server", &lock("one"), &records[0]).unwrap();
        let end = || usize::try_from(std::fs::metadata(dir.join("journal")).unwrap().len()).unwrap();
        let mut ends = vec![0, end()];
        for record in &records[1..] {
            folder.append(record).unwrap();
            ends.push(end());
        }
        let key = folder.key.clone();
        drop(folder);
        let bytes = std::fs::read(dir.join("journal")).unwrap();
        for len in 0..=bytes.len() {
            let whole = ends.iter().rposition(|end| *end <= len).unwrap();
            let (found, at) = read_records(&key, &bytes[..len]).unwrap();
            assert_eq!((&found[..], usize::try_from(at).unwrap()), (&records[..whole], ends[whole]), "{len}");
        }
        // Or room was made for more, and power was lost.
        let (found, at) = read_records(&key, &[&bytes[..], &[0; 100]].concat()).unwrap();
        assert_eq!((found.len(), usize::try_from(at).unwrap()), (records.len(), bytes.len()));
        let mut changed = bytes.clone();
        changed[ends[1] + 10] ^= 1;
        assert!(read_records(&key, &changed).is_none());
        // Taken out, or moved.
        let without = [&bytes[..ends[1]], &bytes[ends[2]..]].concat();
        assert!(read_records(&key, &without).is_none());
        std::fs::write(dir.join("journal"), &bytes[..bytes.len() - 1]).unwrap();
        let (mut folder, _, found) = Folder::open(dir, "one").unwrap();
        assert_eq!(found, records[..5]);
        folder.append(&records[5]).unwrap();
        drop(folder);
        assert_eq!(Folder::open(dir, "one").unwrap().2, records);
    }
}
