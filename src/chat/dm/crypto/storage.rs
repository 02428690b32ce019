//! What a user's devices share: prekeys, keys of direct messages, and which key belongs to which name (spec 5.2).
//!
//! It lies on the server, sealed under the personal key. There is no compare-and-set: whoever writes it reads it first,
//! [`Storage::merge`]s, and writes; two devices that write at once lose what the slower did not see, and find out when they read again.
//! What other clients keep there beside it stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::crypto::Secret;

use super::{PublicKey, SealKey, SecretKey};

/// How many prekeys that are no longer published are kept: an invitation that used an older one is lost.
pub const OLD_PREKEYS_MAX: usize = 64;

/// What a user's devices share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Storage {
    /// The prekey that is published.
    pub prekey: Option<SecretKey>,
    /// Prekeys that were, newest first: invitations that used them may still be on their way.
    pub old_prekeys: Vec<SecretKey>,
    /// The keys of direct messages, by their ids.
    pub keys: BTreeMap<i64, SealKey>,
    /// The key that a name had when it was met first.
    pub pins: BTreeMap<String, PublicKey>,
    /// Names whose key was compared by fingerprint.
    pub verified: BTreeSet<String>,
    /// Direct messages that were made for two, and with whom: a group that shrank to two is none of them, because those who left
    /// have its key.
    pub pairs: BTreeMap<i64, String>,
    /// What other clients keep.
    rest: serde_json::Map<String, serde_json::Value>,
}

/// A storage that does not open, or is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadStorage {
    /// It was not sealed under this key.
    #[error("the storage does not open with this key")]
    Sealed,
    /// It opens, and what is in it is not understood.
    #[error("the storage opens, but is not understood")]
    Content,
}

impl Storage {
    /// Opens what the server keeps: hex digits, or nothing yet.
    ///
    /// # Errors
    /// [`BadStorage`] when it was sealed under another key, or has another form.
    pub fn open(key: &SealKey, value: &str) -> Result<Self, BadStorage> {
        if value.is_empty() {
            return Ok(Self::default());
        }
        let plain = hex::decode(value).ok().and_then(|sealed| key.open(&sealed)).ok_or(BadStorage::Sealed)?;
        let document: Document = serde_json::from_slice(&plain).map_err(|_| BadStorage::Content)?;
        document.into_storage().ok_or(BadStorage::Content)
    }

    /// Seals it for the server, as hex digits.
    #[must_use]
    pub fn seal(&self, key: &SealKey) -> String {
        hex::encode(key.seal(&self.plain()))
    }

    /// Every prekey there is, the published one first.
    pub fn prekeys(&self) -> impl Iterator<Item = &SecretKey> {
        self.prekey.iter().chain(&self.old_prekeys)
    }

    /// Publishes another prekey; the one before is kept.
    pub fn rotate(&mut self, prekey: SecretKey) {
        self.old_prekeys.splice(..0, self.prekey.replace(prekey));
        self.old_prekeys.truncate(OLD_PREKEYS_MAX);
    }

    /// Takes in what another device wrote. Where both know a key or a pin, this device's stays: it made or checked it. The prekey
    /// is the `published` one if anybody has it. Returns the names for which the other pinned another key.
    pub fn merge(&mut self, other: Self, published: Option<&PublicKey>) -> Vec<String> {
        let is_published = |prekey: &SecretKey| published == Some(&prekey.public());
        let known: Vec<SecretKey> = self.prekeys().chain(other.prekeys()).cloned().collect();
        self.prekey = known.iter().find(|prekey| is_published(prekey)).or_else(|| known.first()).cloned();
        self.old_prekeys.clear();
        for prekey in known {
            if self.prekey.as_ref() != Some(&prekey) && !self.old_prekeys.contains(&prekey) {
                self.old_prekeys.push(prekey);
            }
        }
        self.old_prekeys.truncate(OLD_PREKEYS_MAX);
        for (dm, key) in other.keys {
            self.keys.entry(dm).or_insert(key);
        }
        for (dm, name) in other.pairs {
            self.pairs.entry(dm).or_insert(name);
        }
        let mut contradicted = Vec::new();
        for (name, key) in other.pins {
            let pinned = *self.pins.entry(name.clone()).or_insert(key);
            if pinned != key {
                contradicted.push(name);
            } else if other.verified.contains(&name) {
                self.verified.insert(name);
            }
        }
        for (name, value) in other.rest {
            self.rest.insert(name, value);
        }
        contradicted
    }

    /// Whether there is something here that `other` does not have. What the two know otherwise is none of it: two devices that both
    /// insist would write for ever.
    #[must_use]
    pub fn is_beyond(&self, other: &Self) -> bool {
        let verified = |name: &String| other.verified.contains(name) || other.pins.get(name) != self.pins.get(name);
        !(self.prekey.iter().all(|prekey| other.prekeys().any(|it| it == prekey))
            && self.keys.keys().all(|dm| other.keys.contains_key(dm))
            && self.pairs.keys().all(|dm| other.pairs.contains_key(dm))
            && self.pins.keys().all(|name| other.pins.contains_key(name))
            && self.verified.iter().all(verified))
    }

    pub(super) fn plain(&self) -> Zeroizing<Vec<u8>> {
        let hex = |secret: &Secret<32>| Digits(secret.clone());
        let document = Document {
            prekey: self.prekey.as_ref().map(|prekey| hex(&prekey.seed())),
            keys: self.keys.iter().map(|(dm, key)| (dm.to_string(), hex(key.secret()))).collect(),
            old_prekeys: self.old_prekeys.iter().map(|prekey| hex(&prekey.seed())).collect(),
            pins: self.pins.iter().map(|(name, key)| (name.clone(), key.to_hex())).collect(),
            verified: self.verified.clone(),
            pairs: self.pairs.iter().map(|(dm, name)| (dm.to_string(), name.clone())).collect(),
            rest: self.rest.clone(),
        };
        #[expect(clippy::expect_used, reason = "text keys and a growing buffer: nothing in it fails")]
        let plain = serde_json::to_vec(&document).expect("it is JSON");
        Zeroizing::new(plain)
    }
}

/// How it lies there.
#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(rename = "privSPK", default, skip_serializing_if = "Option::is_none")]
    prekey: Option<Digits>,
    #[serde(rename = "sharedKeys", default)]
    keys: BTreeMap<String, Digits>,
    #[serde(rename = "oldSPKs", default, skip_serializing_if = "Vec::is_empty")]
    old_prekeys: Vec<Digits>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pins: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    verified: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pairs: BTreeMap<String, String>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Document {
    fn into_storage(self) -> Option<Storage> {
        let prekey = |Digits(seed)| SecretKey::new(&seed);
        Some(Storage {
            prekey: self.prekey.map(prekey),
            old_prekeys: self.old_prekeys.into_iter().map(prekey).collect(),
            keys: self
                .keys
                .into_iter()
                .map(|(dm, Digits(key))| Some((dm.parse().ok()?, SealKey::new(key))))
                .collect::<Option<_>>()?,
            pins: self
                .pins
                .into_iter()
                .map(|(name, key)| Some((name, PublicKey::from_hex(&key)?)))
                .collect::<Option<_>>()?,
            verified: self.verified,
            pairs: self.pairs.into_iter().map(|(dm, name)| Some((dm.parse().ok()?, name))).collect::<Option<_>>()?,
            rest: self.rest,
        })
    }
}

/// A secret in 64 digits.
struct Digits(Secret<32>);

impl Serialize for Digits {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut digits = Zeroizing::new([0; 64]);
        hex::encode_to_slice(self.0.expose(), &mut digits[..]).map_err(serde::ser::Error::custom)?;
        to.serialize_str(std::str::from_utf8(&digits[..]).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Digits {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Digits;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("64 hexadecimal digits")
            }

            fn visit_str<E: de::Error>(self, digits: &str) -> Result<Digits, E> {
                let mut secret = Zeroizing::new([0; 32]);
                // Without the digits: an error may be printed.
                hex::decode_to_slice(digits, &mut secret[..]).map_err(|_| E::custom("not 64 hexadecimal digits"))?;
                Ok(Digits(Secret::new(*secret)))
            }
        }
        from.deserialize_str(Visitor)
    }
}
