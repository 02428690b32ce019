//! The device group key in a file, and what is remembered beside it.

use std::collections::BTreeMap;
use std::io::Write as _;
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
    files::private()
        .create_new(true)
        .open(path)
        .and_then(|mut file| writeln!(file, "{}", hex::encode(key.dgk().expose())))
        .into_diagnostic()
        .wrap_err_with(|| format!("the group key file {} cannot be written", path.display()))?;
    Ok((key, true))
}

/// Writes an identity of the chat server and its secret key into a new file: the identity, a space, 64 hex digits.
///
/// # Errors
/// When the file cannot be written, for instance because it exists.
pub fn write_identity(path: &Path, identity: Identity, secret: &Secret<32>) -> Result<()> {
    files::private()
        .create_new(true)
        .open(path)
        .and_then(|mut file| writeln!(file, "{identity} {}", hex::encode(secret.expose())))
        .into_diagnostic()
        .wrap_err_with(|| format!("the identity file {} cannot be written", path.display()))
}

/// Reads what [`write_identity`] wrote.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn read_identity(path: &Path) -> Result<(Identity, Secret<32>)> {
    let text = std::fs::read_to_string(path)
        .into_diagnostic()
        .wrap_err_with(|| format!("the identity file {} cannot be read", path.display()))?;
    let parsed = text.trim().split_once(' ').and_then(|(identity, key)| {
        let mut secret = [0; 32];
        hex::decode_to_slice(key, &mut secret).ok()?;
        Some((identity.parse().ok()?, Secret::new(secret)))
    });
    parsed.ok_or_else(|| miette!("the file {} does not hold an identity and its key", path.display()))
}

/// Which devices of a group were admitted, by which mediator. Kept beside the group key as `<key file>.devices`: a device
/// that was admitted has a slot, and must say so the next time.
#[derive(Debug)]
pub struct Remembered {
    path: PathBuf,
    /// By mediator.
    devices: BTreeMap<String, Vec<String>>,
}

impl Remembered {
    /// Reads what is remembered beside a group key file; nothing when there is no such file.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn beside(key_file: &Path) -> Result<Self> {
        let mut name = key_file.as_os_str().to_owned();
        name.push(".devices");
        let path = PathBuf::from(name);
        let devices = match std::fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .into_diagnostic()
                .wrap_err_with(|| format!("{} cannot be understood", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).into_diagnostic().wrap_err_with(|| path.display().to_string()),
        };
        Ok(Self { path, devices })
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
        let devices = self.devices.entry(mediator.to_owned()).or_default();
        let id = device.to_string();
        match (has_slot, devices.iter().position(|known| *known == id)) {
            (true, None) => devices.push(id),
            (false, Some(at)) => drop(devices.remove(at)),
            (true, Some(_)) | (false, None) => return Ok(()),
        }
        let json = serde_json::to_vec_pretty(&self.devices).into_diagnostic()?;
        std::fs::write(&self.path, json)
            .into_diagnostic()
            .wrap_err_with(|| format!("{} cannot be written", self.path.display()))
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
    fn a_device_is_existing_where_it_was_admitted_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("group.key");
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
