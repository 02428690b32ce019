//! The device group key in a file, and what is remembered beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};

use crate::chat::csp::wire::Identity;
use crate::client::GroupKey;
use crate::crypto::Secret;
use crate::files;
use crate::wire::d2m::{DeviceId, SlotState};

/// Reads a device group key: 64 hex digits.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn load(path: &Path) -> Result<GroupKey> {
    load_secret(path).map(GroupKey::new).wrap_err("no group key")
}

/// Reads any secret of 64 hex digits.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn load_secret(path: &Path) -> Result<Secret<32>> {
    let text = std::fs::read_to_string(path)
        .into_diagnostic()
        .wrap_err_with(|| format!("the key file {} cannot be read", path.display()))?;
    let mut secret = [0; 32];
    hex::decode_to_slice(text.trim(), &mut secret)
        .map_err(|_| miette!("the key file {} does not hold 64 hex digits", path.display()))?;
    Ok(Secret::new(secret))
}

/// The same, and a new group when there is no such file. Says whether the group is new.
///
/// # Errors
/// As for [`load`]; also when a new file cannot be written.
pub fn load_or_create(path: &Path) -> Result<(GroupKey, bool)> {
    if path.exists() {
        return Ok((load(path)?, false));
    }
    let key = GroupKey::generate();
    match files::write_new(path, &(hex::encode(key.dgk().expose()) + "\n"), true) {
        Ok(()) => Ok((key, true)),
        // Another device of the group was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok((load(path)?, false)),
        Err(error) => Err(error)
            .into_diagnostic()
            .wrap_err_with(|| format!("the group key file {} cannot be written", path.display())),
    }
}

/// Writes an identity of the chat server and its secret key into a new file: the identity, a space, 64 hex digits.
///
/// # Errors
/// When the file cannot be written, for instance because it exists.
pub fn write_identity(path: &Path, identity: Identity, secret: &Secret<32>) -> Result<()> {
    files::write_new(path, &identity_line(identity, secret), true).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => miette!(
            help = "it may hold the only copy of a key, so it is not replaced: choose another identity, or another file with --out",
            "there is a file {} already",
            path.display()
        ),
        _ => miette!("the identity file {} cannot be written: {error}", path.display()),
    })
}

/// Reads what [`write_identity`] wrote.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn read_identity(path: &Path) -> Result<(Identity, Secret<32>)> {
    match read_identities(path)?.as_slice() {
        [(identity, secret)] => Ok((*identity, secret.clone())),
        _ => Err(miette!("the file {} does not hold one identity and its key", path.display())),
    }
}

/// Reads a file of identities, one in a line.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn read_identities(path: &Path) -> Result<Vec<(Identity, Secret<32>)>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let path = path.display();
        miette!(help = "`heliostat identity new` makes one", "the identity file {path} cannot be read: {error}")
    })?;
    let parse = |line: &str| {
        let (identity, key) = line.trim().split_once(' ')?;
        let mut secret = [0; 32];
        hex::decode_to_slice(key, &mut secret).ok()?;
        Some((identity.parse().ok()?, Secret::new(secret)))
    };
    let parsed: Option<Vec<_>> = text.lines().map(parse).collect();
    parsed.ok_or_else(|| miette!("the file {} does not hold an identity and its key in each line", path.display()))
}

/// Writes a file of identities, one in a line, in place of what was there.
///
/// # Errors
/// When the file cannot be written.
pub fn write_identities<'a>(
    path: &Path,
    identities: impl IntoIterator<Item = (Identity, &'a Secret<32>)>,
) -> Result<()> {
    let text: String = identities.into_iter().map(|(identity, secret)| identity_line(identity, secret)).collect();
    files::write_whole(path, &text, true)
        .into_diagnostic()
        .wrap_err_with(|| format!("the identity file {} cannot be written", path.display()))
}

fn identity_line(identity: Identity, secret: &Secret<32>) -> String {
    format!("{identity} {}\n", hex::encode(secret.expose()))
}

/// Which devices of a group were admitted, by which mediator. Kept beside the group key as `<key file>.devices`: a device
/// that was admitted has a slot, and must say so the next time. Several devices may note at the same time.
#[derive(Debug)]
pub struct Remembered {
    key_file: PathBuf,
    path: PathBuf,
    devices: Devices,
}

/// By mediator.
type Devices = BTreeMap<String, Vec<String>>;

impl Remembered {
    /// Reads what is remembered beside a group key file; nothing when there is no such file.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn beside(key_file: &Path) -> Result<Self> {
        let mut name = key_file.as_os_str().to_owned();
        name.push(".devices");
        let path = PathBuf::from(name);
        let devices = Self::read(&path)?;
        Ok(Self { key_file: key_file.to_owned(), path, devices })
    }

    fn read(path: &Path) -> Result<Devices> {
        match std::fs::read(path) {
            Ok(json) => serde_json::from_slice(&json).into_diagnostic().wrap_err_with(|| {
                format!("{} is no list of devices; move it away, or mend it by hand", path.display())
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Devices::new()),
            Err(error) => Err(error).into_diagnostic().wrap_err_with(|| format!("{} cannot be read", path.display())),
        }
    }

    /// What a device has to expect from a mediator.
    #[must_use]
    pub fn expected(&self, mediator: &str, device: DeviceId) -> SlotState {
        let known = self.devices.get(mediator).is_some_and(|devices| devices.contains(&device.to_string()));
        if known { SlotState::Existing } else { SlotState::New }
    }

    /// The device of this mediator that was remembered first: the one a person means who does not say.
    #[must_use]
    pub fn first(&self, mediator: &str) -> Option<DeviceId> {
        let id = self.devices.get(mediator)?.first()?;
        u64::from_str_radix(id, 16).ok().map(DeviceId)
    }

    /// Notes that a device has a slot, or has none any more.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note(&mut self, mediator: &str, device: DeviceId, has_slot: bool) -> Result<()> {
        let failed = || format!("{} cannot be written", self.path.display());
        // The list is replaced, so the lock is on what stays: the key. It is given back when the file is closed.
        let lock = File::open(&self.key_file).into_diagnostic().wrap_err_with(failed)?;
        lock.lock().into_diagnostic().wrap_err_with(failed)?;
        self.devices = Self::read(&self.path)?;
        let devices = self.devices.entry(mediator.to_owned()).or_default();
        let id = device.to_string();
        match (has_slot, devices.iter().position(|known| *known == id)) {
            (true, None) => devices.push(id),
            (false, Some(at)) => drop(devices.remove(at)),
            (true, Some(_)) | (false, None) => return Ok(()),
        }
        let json = serde_json::to_string_pretty(&self.devices).into_diagnostic()?;
        files::write_whole(&self.path, &json, false).into_diagnostic().wrap_err_with(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("group.key");
        assert!(load(&path).is_err(), "reading does not make one");
        let (made, new) = load_or_create(&path).unwrap();
        let (read, second) = load_or_create(&path).unwrap();
        assert!(new && !second);
        assert_eq!(made.dgk(), read.dgk());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        std::fs::write(&path, "abc").unwrap();
        assert!(load_or_create(&path).is_err(), "what is not a key is not replaced");
    }

    #[test]
    fn of_those_who_make_a_key_at_once_one_does_and_the_others_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("group.key");
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| load_or_create(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|(_, new)| *new).count(), 1);
        let kept = load(&path).unwrap();
        assert!(made.iter().all(|(key, _)| key.dgk() == kept.dgk()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside");
    }

    #[test]
    fn devices_that_note_at_once_are_all_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("group.key");
        load_or_create(&key).unwrap();
        std::thread::scope(|scope| {
            for device in 0..8 {
                let mut remembered = Remembered::beside(&key).unwrap();
                scope.spawn(move || remembered.note("wss://a/", DeviceId(device), true).unwrap());
            }
        });
        let remembered = Remembered::beside(&key).unwrap();
        for device in 0..8 {
            assert_eq!(remembered.expected("wss://a/", DeviceId(device)), SlotState::Existing);
        }
    }

    #[test]
    fn an_identity_is_written_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, many) = (dir.path().join("one"), dir.path().join("many"));
        let (identity, secret) = (Identity::random(), Secret::random());
        write_identity(&path, identity, &secret).unwrap();
        assert!(write_identity(&path, identity, &Secret::random()).is_err(), "what exists is not replaced");
        assert_eq!(read_identity(&path).unwrap(), (identity, secret.clone()));
        write_identities(&many, [(identity, &secret), (identity, &secret)]).unwrap();
        assert_eq!(read_identities(&many).unwrap().len(), 2);
        assert!(read_identity(&many).is_err());
        std::fs::write(&path, format!("{identity} abc")).unwrap();
        assert!(read_identity(&path).is_err());
    }

    #[test]
    fn a_device_is_existing_where_it_was_admitted_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("group.key");
        load_or_create(&key).unwrap();
        let mut remembered = Remembered::beside(&key).unwrap();
        remembered.note("wss://a/", DeviceId(7), true).unwrap();
        remembered.note("wss://a/", DeviceId(8), true).unwrap();
        remembered.note("wss://a/", DeviceId(8), false).unwrap();
        let again = Remembered::beside(&key).unwrap();
        assert_eq!(again.expected("wss://a/", DeviceId(7)), SlotState::Existing);
        assert_eq!(again.expected("wss://a/", DeviceId(8)), SlotState::New);
        assert_eq!(again.expected("wss://b/", DeviceId(7)), SlotState::New);
        assert_eq!((again.first("wss://a/"), again.first("wss://b/")), (Some(DeviceId(7)), None));
    }
}
