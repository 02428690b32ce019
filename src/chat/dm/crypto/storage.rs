//! What a user's devices share: prekeys, keys of direct messages, and which key belongs to which name (spec 5.2).
//!
//! It lies on the server, sealed under the personal key. There is no compare-and-set: whoever writes it reads it first,
//! [`Storage::merge`]s, and writes; two devices that write at once lose what the slower did not see, and find out when they read again.
//! What other clients keep there beside it stays as it is, and so does a single entry that is not understood.
//!
//! What was taken back has to be said, or the next device that writes brings it back: how often the key of a name was
//! [`Forgotten`], which direct messages are [`Storage::unpaired`] since, and which were [`Storage::left`]. The page writes the same
//! (`web/src/knowledge.js`), and a test has each read what the other wrote.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::crypto::Secret;

use super::{PublicKey, SealKey, SecretKey};

/// How many prekeys that are no longer published are kept: an invitation that used an older one is lost.
pub const OLD_PREKEYS_MAX: usize = 64;
/// How many direct messages that were left are remembered, the newest.
pub const LEFT_MAX: usize = 2_000;

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
    /// Names whose key was forgotten.
    pub forgotten: BTreeMap<String, Forgotten>,
    /// Direct messages that were made for two with a key that was forgotten: who has it is not who is meant by that name now.
    pub unpaired: BTreeSet<i64>,
    /// Direct messages that were left, and [`trace`]s of their keys: neither comes back.
    pub left: BTreeMap<i64, String>,
    /// By whom direct messages were made. The page keeps it of all; this client of those whose setup was not signed.
    pub setups: BTreeMap<i64, Made>,
    /// Whether invitations without a signed setup are refused.
    pub signed_only: SignedOnly,
    /// What other clients keep.
    rest: serde_json::Map<String, Value>,
    /// Single entries that are not understood.
    odd: Odd,
}

/// That somebody took a key back. Of two storages, the one that forgot a name more often is right about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// How often.
    pub times: u32,
    /// The key that was forgotten last, in digits: a client that does not know of this may have written it again. None when it was met
    /// again afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// By whom a direct message was made, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// By whom.
    pub by: String,
    /// Whether the setup was signed: if not, the server could have the key.
    pub signed: bool,
    /// Whether a person took it all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub taken: bool,
}

/// What a person wants, and since when; the later word holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOnly {
    /// What.
    pub value: bool,
    /// In milliseconds since the Unix epoch; 0 when nobody has said anything.
    pub at: u64,
}

impl SignedOnly {
    const fn is_unsaid(&self) -> bool {
        self.at == 0
    }
}

/// What single entries say that are not understood, by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Odd {
    keys: BTreeMap<String, Value>,
    pins: BTreeMap<String, Value>,
    pairs: BTreeMap<String, Value>,
    forgotten: BTreeMap<String, Value>,
    left: BTreeMap<String, Value>,
    setups: BTreeMap<String, Value>,
}

/// What is remembered of a key that is given up: enough to know it again, too little to open anything.
#[must_use]
pub fn trace(key: &SealKey) -> String {
    let digest = Sha256::new_with_prefix(b"left").chain_update(key.secret().expose()).finalize();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
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
        Ok(document.into_storage())
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

    /// Forgets the key of a name, and what was made for two with it, for every device.
    pub fn forget(&mut self, name: &str) -> Option<PublicKey> {
        let key = self.pins.remove(name)?;
        self.verified.remove(name);
        let forgotten = self.forgotten.entry(name.to_owned()).or_default();
        forgotten.times = forgotten.times.saturating_add(1);
        forgotten.key = Some(key.to_hex());
        self.unpair(|_, with| with == name);
        Some(key)
    }

    /// These are with nobody by name any more.
    fn unpair(&mut self, are: impl Fn(i64, &str) -> bool) {
        let unpaired = &mut self.unpaired;
        self.pairs.retain(|dm, with| {
            let stays = !are(*dm, with);
            if !stays {
                unpaired.insert(*dm);
            }
            stays
        });
    }

    /// The key of a name, as it is met first.
    pub fn pin(&mut self, name: &str, key: PublicKey) {
        // Forgotten, and met again: this is newer than what says that it was forgotten.
        if let Some(forgotten) = self.forgotten.get_mut(name)
            && forgotten.key.as_ref() == Some(&key.to_hex())
        {
            forgotten.times = forgotten.times.saturating_add(1);
            forgotten.key = None;
        }
        self.pins.insert(name.to_owned(), key);
    }

    /// Gives up the key of a direct message, for every device.
    pub fn leave(&mut self, dm: i64) {
        self.pairs.remove(&dm);
        self.unpaired.remove(&dm);
        self.setups.remove(&dm);
        if let Some(key) = self.keys.remove(&dm) {
            self.left.insert(dm, trace(&key));
            self.prune();
        }
    }

    /// Under which number this key is, or was before it was given up.
    #[must_use]
    pub fn number_of(&self, key: &SealKey) -> Option<i64> {
        let here = self.keys.iter().find(|(_, it)| *it == key).map(|(dm, _)| *dm);
        here.or_else(|| {
            let trace = trace(key);
            self.left.iter().find(|(_, it)| **it == trace).map(|(dm, _)| *dm)
        })
    }

    fn prune(&mut self) {
        while self.left.len() > LEFT_MAX {
            self.left.pop_first();
        }
    }

    fn times(&self, name: &str) -> u32 {
        self.forgotten.get(name).map_or(0, |it| it.times)
    }

    /// Takes in what another device wrote. Where both know a key or a pin, this device's stays: it made or checked it. The prekey
    /// is the `published` one if anybody has it. A key has one number only: under another one it is not taken. Returns the names for which
    /// the other pinned another key.
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
        self.merge_forgotten(&other);
        for (dm, trace) in other.left {
            self.keys.remove(&dm);
            self.pairs.remove(&dm);
            self.left.insert(dm, trace);
        }
        let left = &self.left;
        self.unpaired.retain(|dm| !left.contains_key(dm));
        self.setups.retain(|dm, _| !left.contains_key(dm));
        self.prune();
        for (dm, key) in other.keys {
            if !self.left.contains_key(&dm) && !self.keys.contains_key(&dm) && self.number_of(&key).is_none() {
                self.keys.insert(dm, key);
            }
        }
        let times = |name: &str| other.forgotten.get(name).map_or(0, |it| it.times);
        for (dm, name) in other.pairs {
            if !self.keys.contains_key(&dm) || self.unpaired.contains(&dm) {
                continue;
            }
            if times(&name) < self.times(&name) {
                self.unpaired.insert(dm);
            } else {
                self.pairs.entry(dm).or_insert(name);
            }
        }
        let mut contradicted = Vec::new();
        for (name, key) in other.pins {
            let forgotten = self.forgotten.get(&name).and_then(|it| it.key.as_ref()) == Some(&key.to_hex());
            if forgotten || times(&name) < self.times(&name) {
                continue;
            }
            let pinned = *self.pins.entry(name.clone()).or_insert(key);
            if pinned != key {
                contradicted.push(name);
            } else if other.verified.contains(&name) {
                self.verified.insert(name);
            }
        }
        for (dm, made) in other.setups {
            if !self.left.contains_key(&dm) {
                let taken = made.taken;
                self.setups.entry(dm).or_insert(made).taken |= taken;
            }
        }
        if other.signed_only.at > self.signed_only.at {
            self.signed_only = other.signed_only;
        }
        self.rest.extend(other.rest);
        self.odd.keys.extend(other.odd.keys);
        self.odd.pins.extend(other.odd.pins);
        self.odd.pairs.extend(other.odd.pairs);
        self.odd.forgotten.extend(other.odd.forgotten);
        self.odd.left.extend(other.odd.left);
        self.odd.setups.extend(other.odd.setups);
        contradicted
    }

    /// What another device forgot is forgotten here.
    fn merge_forgotten(&mut self, other: &Self) {
        for (name, theirs) in &other.forgotten {
            if theirs.times > self.times(name) {
                self.pins.remove(name);
                self.verified.remove(name);
                self.unpair(|dm, with| with == name && !other.pairs.contains_key(&dm));
            }
            let own = self.forgotten.entry(name.clone()).or_default();
            if theirs.times > own.times {
                own.clone_from(theirs);
            }
        }
        self.unpaired.extend(&other.unpaired);
        let unpaired = &self.unpaired;
        self.pairs.retain(|dm, _| !unpaired.contains(dm));
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
            && self.verified.iter().all(verified)
            && self.forgotten.iter().all(|(name, it)| it.times <= other.times(name))
            && self.unpaired.is_subset(&other.unpaired)
            && self.setups.iter().all(|(dm, made)| other.setups.get(dm).is_some_and(|it| it.taken || !made.taken))
            && self.signed_only.at <= other.signed_only.at
            // What the other forgot already to make room is none of it, either.
            && (other.left.len() >= LEFT_MAX || self.left.keys().all(|dm| other.left.contains_key(dm))))
    }

    pub(super) fn plain(&self) -> Zeroizing<Vec<u8>> {
        let hex = |secret: &Secret<32>| Digits(secret.clone());
        let document = Document {
            prekey: self.prekey.as_ref().map(|prekey| hex(&prekey.seed())),
            keys: with_odd(&self.odd.keys, self.keys.iter().map(|(dm, key)| (dm.to_string(), hex(key.secret())))),
            old_prekeys: self.old_prekeys.iter().map(|prekey| hex(&prekey.seed())).collect(),
            pins: with_odd(&self.odd.pins, self.pins.iter().map(|(name, key)| (name.clone(), key.to_hex()))),
            verified: self.verified.clone(),
            pairs: with_odd(&self.odd.pairs, self.pairs.iter().map(|(dm, name)| (dm.to_string(), name.clone()))),
            forgotten: with_odd(
                &self.odd.forgotten,
                self.forgotten.iter().map(|(name, it)| (name.clone(), it.clone())),
            ),
            unpaired: self.unpaired.clone(),
            left: with_odd(&self.odd.left, self.left.iter().map(|(dm, trace)| (dm.to_string(), trace.clone()))),
            setups: with_odd(&self.odd.setups, self.setups.iter().map(|(dm, made)| (dm.to_string(), made.clone()))),
            signed_only: self.signed_only,
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
    keys: BTreeMap<String, Entry<Digits>>,
    #[serde(rename = "oldSPKs", default, skip_serializing_if = "Vec::is_empty")]
    old_prekeys: Vec<Digits>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pins: BTreeMap<String, Entry<String>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    verified: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pairs: BTreeMap<String, Entry<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    forgotten: BTreeMap<String, Entry<Forgotten>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    unpaired: BTreeSet<i64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    left: BTreeMap<String, Entry<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    setups: BTreeMap<String, Entry<Made>>,
    #[serde(rename = "signedOnly", default, skip_serializing_if = "SignedOnly::is_unsaid")]
    signed_only: SignedOnly,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// One that has the expected form, or any other.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Entry<T> {
    It(T),
    Odd(Value),
}

/// What is understood takes the place of what was not.
fn with_odd<T>(
    odd: &BTreeMap<String, Value>,
    understood: impl Iterator<Item = (String, T)>,
) -> BTreeMap<String, Entry<T>> {
    let odd = odd.iter().map(|(name, value)| (name.clone(), Entry::Odd(value.clone())));
    odd.chain(understood.map(|(name, it)| (name, Entry::It(it)))).collect()
}

/// Those that are understood, and the others.
fn sort<T: Serialize, K: Ord, V>(
    entries: BTreeMap<String, Entry<T>>,
    understand: impl Fn(&str, &T) -> Option<(K, V)>,
) -> (BTreeMap<K, V>, BTreeMap<String, Value>) {
    let (mut out, mut odd) = (BTreeMap::new(), BTreeMap::new());
    for (name, entry) in entries {
        let value = match entry {
            Entry::It(it) => {
                if let Some((key, value)) = understand(&name, &it) {
                    out.insert(key, value);
                    continue;
                }
                serde_json::to_value(it).unwrap_or_default()
            }
            Entry::Odd(value) => value,
        };
        odd.insert(name, value);
    }
    (out, odd)
}

impl Document {
    fn into_storage(self) -> Storage {
        let prekey = |Digits(seed)| SecretKey::new(&seed);
        let (keys, odd_keys) = sort(self.keys, |dm, Digits(key)| Some((dm.parse().ok()?, SealKey::new(key.clone()))));
        let (pins, odd_pins) = sort(self.pins, |name, key| Some((name.to_owned(), PublicKey::from_hex(key)?)));
        let (mut pairs, odd_pairs) = sort(self.pairs, |dm, name| Some((dm.parse().ok()?, name.clone())));
        let (forgotten, odd_forgotten) =
            sort(self.forgotten, |name, it: &Forgotten| Some((name.to_owned(), it.clone())));
        let (left, odd_left) = sort(self.left, |dm, trace| Some((dm.parse().ok()?, trace.clone())));
        let (setups, odd_setups) = sort(self.setups, |dm, made: &Made| Some((dm.parse().ok()?, made.clone())));
        pairs.retain(|dm, _| !self.unpaired.contains(dm));
        Storage {
            prekey: self.prekey.map(prekey),
            old_prekeys: self.old_prekeys.into_iter().map(prekey).collect(),
            keys,
            pins,
            verified: self.verified,
            pairs,
            forgotten,
            unpaired: self.unpaired,
            left,
            setups,
            signed_only: Some(self.signed_only).filter(|it| !it.is_unsaid()).unwrap_or_default(),
            rest: self.rest,
            odd: Odd {
                keys: odd_keys,
                pins: odd_pins,
                pairs: odd_pairs,
                forgotten: odd_forgotten,
                left: odd_left,
                setups: odd_setups,
            },
        }
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
