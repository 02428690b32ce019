//! What a device knows, and what follows from it: which key belongs to whom, what opens what came, under what is sealed what is said.
//! Pure: it is handed what the server says, and believes of it what can be checked.
//!
//! **Whose key.** The key a name has when it is met first is the known one for good. Another one is told and not used, until a person
//! says to forget it, which also ends the use of what was agreed on with it.
//!
//! **What is shown.** Nothing that was not signed by the known key of its sender, sealed under the key of its direct message, and seen
//! for the first time as what it is now.
//!
//! **What is said** goes to a direct message that this device took into its hands: a server that says a message were in another one, or that a
//! group were two people, finds nothing sealed for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::event::{Doubt, Event, Reacted, Said, Shown};
use super::seen::{Seen, Sight, Thing};
use crate::chat::dm::crypto::seal::nonce_of;
use crate::chat::dm::crypto::storage::{BadStorage, Made, SignedOnly};
use crate::chat::dm::crypto::tree::{self, CreateError, Created, Invitation, MEMBERS_MAX, ReceiveError};
use crate::chat::dm::crypto::x3dh::Bundle;
use crate::chat::dm::crypto::{PublicKey, SealKey, SecretKey, Storage, fingerprint};
use crate::chat::dm::wire::{Dm, InCall, MESSAGE_MAX, Message, REACTION_MAX, Scheduled, User, X3dh};
use crate::crypto::Secret;

/// Direct messages that are known at most: as many as a server lets one have.
pub(super) const DMS_MAX: usize = 2_000;
/// Keys that are kept: with those of direct messages that the server does not show at the moment. The server keeps no more than some 3 400
/// of them for other devices.
const KEYS_MAX: usize = DMS_MAX + 500;
/// Messages that wait to be taken by the server.
const OUTBOX_MAX: usize = 1_000;
/// Invitations that wait to be looked at: some 20 KB each.
const INVITATIONS_MAX: usize = 500;
/// Direct messages that the server does not show any more, of which is remembered what was seen.
const GONE_MAX: usize = 500;
/// Messages of each direct message that are remembered as told, or as shown, while the process runs.
const TOLD_MAX: usize = 1_000;

/// A direct message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    users: Vec<String>,
    name: Option<String>,
    #[serde(skip)]
    call: BTreeMap<String, String>,
    /// The newest message that was looked at, and that was one: a server that shows what is none under the highest number does not have
    /// the last word.
    last: i64,
    seen: Seen,
    /// Newer ones that were told and are none.
    #[serde(skip)]
    doubted: BTreeSet<i64>,
    /// Who said what was shown of the history.
    #[serde(skip)]
    leafed: VecDeque<(i64, String)>,
}

/// What is remembered of a direct message that the server does not show any more: it may show it again, and with it what was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Gone {
    last: i64,
    seen: Seen,
}

/// Something that was said here and that the server has not said to have taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) dm: i64,
    /// Sealed, in digits.
    pub(super) message: String,
    pub(super) signature: String,
    pub(super) later_s: i64,
    pub(super) vanish_s: i64,
    /// It may have been asked for. What was kept while the process ended may have been.
    #[serde(skip, default = "yes")]
    pub(super) asked: bool,
    /// Connections that ended while it was asked for.
    #[serde(skip)]
    pub(super) tries: u32,
}

const fn yes() -> bool {
    true
}

/// Why something cannot be said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSealed {
    /// There is no such direct message.
    #[error("there is no #{0}")]
    NoDm(i64),
    /// There is no key for it (yet).
    #[error("there is no key for #{0} yet")]
    NoKey(i64),
    /// The server says that others are in it than those it was made for.
    #[error("#{0} was made with {1}, and the server says that others are in it: nothing is said there")]
    Strangers(i64, String),
    /// It was agreed on with a key that was forgotten, by somebody who is not who is meant by that name now.
    #[error("#{0} was made with a key that was forgotten: /leave it, and begin another with /dm")]
    Stale(i64),
    /// It is longer than a server takes.
    #[error("that is longer than {0} bytes")]
    TooLong(usize),
    /// Too much waits to be taken by the server.
    #[error("too much waits to be said")]
    Full,
    /// This device has not seen that message there.
    #[error("[{0}] was not seen in #{1}: /history shows what is there")]
    NotSeen(i64, i64),
    /// It is somebody else's.
    #[error("[{0}] is not yours")]
    NotOwn(i64),
}

/// Why a user is not who they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stranger {
    /// What the server gives is no key, or somebody else's.
    NoKey,
    /// It is another one than the known one.
    Changed,
}

/// Why an invitation is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotInvited {
    /// The sender's key is not known.
    #[error("nobody knows the sender's key")]
    Unknown,
    /// Something in it is no key.
    #[error("something in it is no key")]
    Malformed,
    /// Something in it is wrong.
    #[error("{0}")]
    Wrong(ReceiveError),
    /// There is a key already, and it is another one.
    #[error("there is another key already")]
    Other,
    /// It was the invitation to another one.
    #[error("it is the invitation to #{0} once more")]
    Again(i64),
    /// There is no room.
    #[error("there are too many")]
    TooMany,
}

/// The server says that something new has the number of something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server gives what was made the number of something else, #{0}: it is not used")]
pub(super) struct Taken(i64);

impl NotInvited {
    /// Whether another device of this account may know better.
    pub(super) const fn is_prekey(self) -> bool {
        matches!(self, Self::Wrong(ReceiveError::Prekey))
    }
}

/// See the top of this file.
pub struct Book {
    name: String,
    identity: SecretKey,
    personal: SealKey,
    pub(super) storage: Storage,
    /// Something in the storage may not be on the server.
    pub(super) unshared: bool,
    /// What lies on the server is not understood: nothing is written over it before a person says so.
    pub(super) unreadable: bool,
    dms: BTreeMap<i64, Known>,
    gone: BTreeMap<i64, Gone>,
    /// What is to be looked at: the server does not say it again.
    invitations: VecDeque<X3dh>,
    pub(super) outbox: VecDeque<Waiting>,
    /// A direct message that was asked for and whose number is not known yet.
    pub(super) making: Option<Making>,
    pub(super) registered: bool,
    /// Everything was looked at once.
    pub(super) synced: bool,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Book({}, {} direct messages, {} wait)", self.name, self.dms.len(), self.outbox.len())
    }
}

/// How it is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    seed: String,
    registered: bool,
    synced: bool,
    making: Option<Making>,
    /// Sealed once more: it has a form for that already.
    storage: String,
    dms: BTreeMap<i64, Known>,
    #[serde(default)]
    gone: BTreeMap<i64, Gone>,
    #[serde(default)]
    invitations: VecDeque<X3dh>,
    outbox: VecDeque<Waiting>,
}

/// A direct message in the making: who is in it, oneself first, and its key in digits.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Making {
    users: Vec<String>,
    key: String,
}

impl Drop for Making {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.seed);
    }
}

impl Book {
    /// Of somebody who is nobody yet.
    #[must_use]
    pub(super) fn new(name: &str, identity: SecretKey, registered: bool) -> Self {
        Self {
            name: name.to_owned(),
            personal: identity.personal(),
            identity,
            storage: Storage::default(),
            unshared: false,
            unreadable: false,
            dms: BTreeMap::new(),
            gone: BTreeMap::new(),
            invitations: VecDeque::new(),
            outbox: VecDeque::new(),
            making: None,
            registered,
            synced: false,
        }
    }

    pub(super) fn kept(&self) -> Kept {
        Kept {
            seed: hex::encode(self.identity.seed().expose()),
            registered: self.registered,
            synced: self.synced,
            making: self.making.clone(),
            storage: self.storage.seal(&self.personal),
            dms: self.dms.clone(),
            gone: self.gone.clone(),
            invitations: self.invitations.clone(),
            outbox: self.outbox.clone(),
        }
    }

    pub(super) fn restore(name: &str, mut kept: Kept) -> Option<Self> {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        hex::decode_to_slice(&kept.seed, &mut seed[..]).ok()?;
        let mut book = Self::new(name, SecretKey::new(&Secret::new(*seed)), kept.registered);
        book.storage = Storage::open(&book.personal, &kept.storage).ok()?;
        book.dms = std::mem::take(&mut kept.dms);
        book.gone = std::mem::take(&mut kept.gone);
        book.invitations = std::mem::take(&mut kept.invitations);
        book.outbox = std::mem::take(&mut kept.outbox);
        book.making = kept.making.take();
        book.synced = kept.synced;
        Some(book)
    }

    /// The account's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The account's key.
    #[must_use]
    pub const fn identity(&self) -> &SecretKey {
        &self.identity
    }

    /// The key of a direct message.
    #[must_use]
    pub fn key(&self, dm: i64) -> Option<&SealKey> {
        self.storage.keys.get(&dm)
    }

    /// The known key of a name.
    #[must_use]
    pub fn pinned(&self, name: &str) -> Option<PublicKey> {
        if name == self.name { Some(self.identity.public()) } else { self.storage.pins.get(name).copied() }
    }

    /// The direct messages, by their ids.
    pub fn dms(&self) -> impl Iterator<Item = i64> {
        self.dms.keys().copied()
    }

    /// The digits that this device compares for a name: of its own key as it has it, and of the known one, whatever the server says.
    #[must_use]
    pub fn fingerprint(&self, name: &str) -> Option<(String, bool)> {
        let theirs = self.storage.pins.get(name)?;
        Some((fingerprint(&self.identity.public(), theirs), self.storage.verified.contains(name)))
    }

    // --- The storage.

    /// Whether setups have to be signed: for all devices, from this moment on.
    pub(super) fn wants_signed(&mut self, value: bool, at: u64) {
        if self.storage.signed_only.value != value {
            self.storage.signed_only = SignedOnly { value, at };
            self.unshared = true;
        }
    }

    pub(super) fn sealed_storage(&self) -> String {
        self.storage.seal(&self.personal)
    }

    /// Forgets keys of people that nobody compared, and with whom there is no direct message: a stranger who makes groups and leaves
    /// them could fill everything with such.
    pub(super) fn make_room(&mut self) {
        let members: BTreeSet<&String> = self.dms.values().flat_map(|known| &known.users).collect();
        let Storage { pins, verified, forgotten, pairs, .. } = &mut self.storage;
        let partners: BTreeSet<&String> = pairs.values().collect();
        pins.retain(|name, _| {
            members.contains(name) || verified.contains(name) || partners.contains(name) || forgotten.contains_key(name)
        });
    }

    /// Takes in what lies on the server. Returns the names whose key another device knows otherwise.
    pub(super) fn merge(&mut self, value: &str, published: Option<&PublicKey>) -> Result<Vec<String>, BadStorage> {
        let other = Storage::open(&self.personal, value);
        self.unreadable = other.is_err();
        let other = other?;
        let contradicted = self.storage.merge(other.clone(), published);
        self.unshared |= self.storage.is_beyond(&other);
        Ok(contradicted)
    }

    /// A prekey that was not there before, and its signature.
    pub(super) fn rotate(&mut self) -> (PublicKey, [u8; 64]) {
        let prekey = SecretKey::random();
        let public = prekey.public();
        self.storage.rotate(prekey);
        self.unshared = true;
        (public, self.identity.sign(public.as_bytes()))
    }

    // --- People.

    /// Looks at the key the server gives for a name. The digits, if it was seen for the first time.
    pub(super) fn meet(&mut self, name: &str, user: &User) -> Result<Option<String>, Stranger> {
        let key = PublicKey::from_hex(&user.public_key).filter(|_| user.username == name).ok_or(Stranger::NoKey)?;
        match self.pinned(name) {
            Some(known) if known == key => Ok(None),
            Some(_) => Err(Stranger::Changed),
            None => {
                self.storage.pin(name, key);
                self.unshared = true;
                Ok(Some(fingerprint(&self.identity.public(), &key)))
            }
        }
    }

    /// Says that the known key of a name was compared.
    pub(super) fn verified(&mut self, name: &str) -> bool {
        let known = self.storage.pins.contains_key(name);
        if known {
            self.storage.verified.insert(name.to_owned());
            self.unshared = true;
        }
        known
    }

    /// Forgets the key of a name, and what two agreed on with it.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        let known = self.storage.forget(name).is_some();
        self.unshared |= known;
        known
    }

    /// With what somebody is invited.
    pub(super) fn bundle(&self, name: &str, user: &User) -> Option<Bundle> {
        let mut signature = [0; 64];
        hex::decode_to_slice(user.sig.as_ref()?, &mut signature).ok()?;
        let prekey = PublicKey::from_hex(user.spk.as_ref()?)?;
        Some(Bundle { identity: self.pinned(name)?, prekey, signature })
    }

    // --- Direct messages.

    /// Makes a direct message with these.
    pub(super) fn create(&self, invitees: &[Bundle]) -> Result<Created, CreateError> {
        tree::create(&self.identity, invitees, Secret::random)
    }

    /// It will be asked for: kept before, so that its key is not lost with the answer.
    pub(super) fn making(&mut self, with: &[String], key: &SealKey) {
        let users = std::iter::once(&self.name).chain(with).cloned().collect();
        self.making = Some(Making { users, key: hex::encode(key.secret().expose()) });
    }

    /// What was asked for is there, under this id. If something else has it, others may have the key of that: what was made is given up, because
    /// what is said in it would be said there.
    pub(super) fn created(&mut self, id: i64) -> Result<(), Taken> {
        let Some(making) = self.making.take() else { return Ok(()) };
        let mut key = zeroize::Zeroizing::new([0; 32]);
        if self.is_known(id) || hex::decode_to_slice(&making.key, &mut key[..]).is_err() {
            return Err(Taken(id));
        }
        if let [_, one] = &making.users[..] {
            self.storage.pairs.insert(id, one.clone());
        }
        self.storage.keys.insert(id, SealKey::new(Secret::new(*key)));
        self.unshared = true;
        self.dms.insert(id, Known { users: making.users.clone(), ..Known::default() });
        Ok(())
    }

    fn is_known(&self, id: i64) -> bool {
        let Storage { keys, left, .. } = &self.storage;
        keys.contains_key(&id) || left.contains_key(&id) || self.dms.contains_key(&id) || self.gone.contains_key(&id)
    }

    /// Whether this is what was asked for when the answer was lost.
    pub(super) fn is_making(&self, dm: &Dm) -> bool {
        !self.is_known(dm.id) && self.making.as_ref().is_some_and(|it| it.users == dm.users)
    }

    /// Whether one with these is in the making.
    pub(super) fn makes(&self, with: &[String]) -> bool {
        self.making.as_ref().and_then(|it| it.users.split_first()).is_some_and(|(_, others)| others == with)
    }

    /// Keeps an invitation until it is [`Self::decided`]. Whether there was room.
    pub(super) fn hold(&mut self, notice: X3dh) -> bool {
        if self.invitations.contains(&notice) {
            return true;
        }
        let fits = self.invitations.len() < INVITATIONS_MAX && notice.key_tree.len() <= 2 * MEMBERS_MAX;
        if fits {
            self.invitations.push_back(notice);
        }
        fits
    }

    /// What waits to be decided.
    pub(super) fn held(&self) -> Vec<X3dh> {
        self.invitations.iter().cloned().collect()
    }

    /// An invitation was believed, or not.
    pub(super) fn decided(&mut self, notice: &X3dh) {
        self.invitations.retain(|it| it != notice);
    }

    /// Looks at an invitation; nothing when it says what is known.
    pub(super) fn invited(&mut self, notice: &X3dh) -> Result<Option<Event>, NotInvited> {
        let key = |digits: &str| PublicKey::from_hex(digits).ok_or(NotInvited::Malformed);
        let pinned = self.pinned(&notice.sender).ok_or(NotInvited::Unknown)?;
        let mut signature = [0; 64];
        let setup_sig = match &notice.setup_sig {
            None => None,
            Some(digits) => {
                hex::decode_to_slice(digits, &mut signature).map_err(|_| NotInvited::Malformed)?;
                Some(signature)
            }
        };
        if notice.key_tree.len() > 2 * MEMBERS_MAX {
            return Err(NotInvited::Wrong(ReceiveError::Tree));
        }
        let invitation = Invitation {
            creator: key(&notice.ik)?,
            spk: key(&notice.spk)?,
            ek: key(&notice.ek)?,
            position: notice.position,
            tree: notice.key_tree.iter().map(|it| key(it)).collect::<Result<_, _>>()?,
            setup_sig,
        };
        let prekeys: Vec<SecretKey> = self.storage.prekeys().cloned().collect();
        let received = tree::receive(&self.identity, &prekeys, &pinned, &invitation, self.storage.signed_only.value)
            .map_err(NotInvited::Wrong)?;
        match self.storage.keys.get(&notice.id) {
            Some(known) if *known == received.key => return Ok(None),
            Some(_) => return Err(NotInvited::Other),
            None => {}
        }
        // The creator does not sign which number it has: under another one, whatever was said under this key could be said again.
        if let Some(known) = self.storage.number_of(&received.key) {
            return Err(NotInvited::Again(known));
        }
        if self.storage.left.contains_key(&notice.id) {
            return Err(NotInvited::Other);
        }
        if self.storage.keys.len() >= KEYS_MAX {
            return Err(NotInvited::TooMany);
        }
        if Some(invitation.tree.len()) == tree::published(2) {
            self.storage.pairs.insert(notice.id, notice.sender.clone());
        }
        self.storage.keys.insert(notice.id, received.key);
        let signed = received.members.is_some();
        if !signed {
            let made = Made { by: notice.sender.clone(), signed, taken: false };
            self.storage.setups.insert(notice.id, made);
        }
        self.unshared = true;
        Ok(Some(Event::Key { dm: notice.id, from: notice.sender.clone(), signed }))
    }

    /// Takes in what the server says about a direct message. Whether it is new here; nothing when there is no room.
    pub(super) fn update(&mut self, dm: &Dm) -> Option<bool> {
        if self.dms.len() >= DMS_MAX && !self.dms.contains_key(&dm.id) {
            return None;
        }
        let fresh = !self.dms.contains_key(&dm.id);
        let known = self.dms.entry(dm.id).or_default();
        if let Some(Gone { last, seen }) = self.gone.remove(&dm.id) {
            (known.last, known.seen) = (last, seen);
        }
        known.users.clone_from(&dm.users);
        known.name.clone_from(&dm.name);
        known.call = match &dm.users_in_call {
            InCall::Peers(peers) => peers.clone(),
            InCall::Names(names) => {
                let at = |name: &String| dm.call_peers.get(name).cloned().unwrap_or_default();
                names.iter().map(|name| (name.clone(), at(name))).collect()
            }
        };
        Some(fresh)
    }

    /// One's own place there is gone, says the server.
    pub(super) fn left(&mut self, dm: i64) -> bool {
        self.outbox.retain(|waiting| waiting.dm != dm);
        let Some(Known { last, seen, .. }) = self.dms.remove(&dm) else { return false };
        self.gone.insert(dm, Gone { last, seen });
        if self.gone.len() > GONE_MAX {
            self.gone.pop_first();
        }
        true
    }

    /// One's own place there was given up: so is the key, or strangers who invite would fill what devices share.
    pub(super) fn gave_up(&mut self, dm: i64) {
        self.storage.leave(dm);
        self.gone.remove(&dm);
        self.unshared = true;
    }

    /// A direct message as people are shown it.
    #[must_use]
    pub fn shown(&self, dm: i64) -> Option<Shown> {
        let known = self.dms.get(&dm)?;
        Some(Shown {
            dm,
            name: known.name.clone(),
            users: known.users.clone(),
            pair: self.storage.pairs.contains_key(&dm),
            ready: self.storage.keys.contains_key(&dm),
            unsigned: self.storage.setups.get(&dm).is_some_and(|made| !made.signed),
            call: known.call.keys().cloned().collect(),
        })
    }

    pub(super) fn is_member(&self, dm: i64) -> bool {
        self.dms.get(&dm).is_some_and(|known| known.users.contains(&self.name))
    }

    /// Which one somebody means: `#` and a number, or the name of the one it was made for two with.
    ///
    /// # Errors
    /// In words.
    pub fn find(&self, who: &str) -> Result<i64, String> {
        if let Some(digits) = who.strip_prefix('#') {
            let dm = digits.parse().map_err(|_| format!("{who} is no number"))?;
            return if self.dms.contains_key(&dm) { Ok(dm) } else { Err(format!("there is no {who}")) };
        }
        let here = |(dm, with): (&i64, &String)| (with == who && self.dms.contains_key(dm)).then_some(*dm);
        let found: Vec<i64> = self.storage.pairs.iter().filter_map(here).collect();
        match found[..] {
            [dm] => Ok(dm),
            [] => Err(format!(
                "there is nothing that was made for you and {who} alone: /dm makes it, /dms lists what there is"
            )),
            _ => Err(format!("there are several with {who}: name one by # and its number")),
        }
    }

    /// The newest message that was looked at.
    pub(super) fn last(&self, dm: i64) -> i64 {
        self.dms.get(&dm).map_or(0, |known| known.last)
    }

    /// That everything up to there was looked at.
    pub(super) fn looked(&mut self, dm: i64, last: i64) {
        if let Some(known) = self.dms.get_mut(&dm) {
            known.last = known.last.max(last);
        }
    }

    /// Whether a message was told.
    pub(super) fn is_told(&self, message: &Message) -> bool {
        let known = self.dms.get(&message.dm_id);
        known.is_some_and(|known| message.id <= known.last || known.doubted.contains(&message.id))
    }

    /// A message was told.
    pub(super) fn told(&mut self, said: &Said) {
        if matches!(said.doubt, None | Some(Doubt::NoText)) {
            self.looked(said.dm, said.id);
        } else if let Some(known) = self.dms.get_mut(&said.dm) {
            known.doubted.insert(said.id);
            if known.doubted.len() > TOLD_MAX {
                known.doubted.pop_first();
            }
        }
    }

    /// A message of the history was shown: it may be older than what [`Seen`] remembers.
    pub(super) fn leafed(&mut self, said: &Said) {
        if said.text.is_none() {
            return;
        }
        if let Some(known) = self.dms.get_mut(&said.dm) {
            known.leafed.push_back((said.id, said.from.clone()));
            if known.leafed.len() > TOLD_MAX {
                known.leafed.pop_front();
            }
        }
    }

    /// Where a message was seen.
    pub(super) fn dm_of(&self, message: i64) -> Option<i64> {
        self.dms.iter().find(|(_, known)| known.seen.sender(message).is_some()).map(|(dm, _)| *dm)
    }

    /// Who has to be known before this can be looked at.
    pub(super) fn unknown<'a>(&self, message: &'a Message) -> Vec<&'a str> {
        let senders = std::iter::once(&message.sender).chain(message.reactions.iter().map(|it| &it.sender));
        let mut out: Vec<&str> = senders.map(String::as_str).filter(|name| self.pinned(name).is_none()).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    // --- What is said.

    /// Seals and signs a text for a direct message.
    pub(super) fn seal(&self, dm: i64, text: &str, limit: usize) -> Result<(Vec<u8>, [u8; 64]), NotSealed> {
        let known = self.dms.get(&dm).ok_or(NotSealed::NoDm(dm))?;
        let key = self.storage.keys.get(&dm).ok_or(NotSealed::NoKey(dm))?;
        if let Some(with) = self.storage.pairs.get(&dm)
            && known.users.iter().any(|user| *user != self.name && user != with)
        {
            return Err(NotSealed::Strangers(dm, with.clone()));
        }
        if self.storage.unpaired.contains(&dm) {
            return Err(NotSealed::Stale(dm));
        }
        let sealed = key.seal(text.as_bytes());
        if sealed.len() > limit {
            return Err(NotSealed::TooLong(limit));
        }
        let signature = self.identity.sign(&sealed);
        Ok((sealed, signature))
    }

    /// Something to be said: it waits until the server has taken it.
    pub(super) fn say(&mut self, dm: i64, text: &str, later_s: i64, vanish_s: i64) -> Result<(), NotSealed> {
        if self.outbox.len() >= OUTBOX_MAX {
            return Err(NotSealed::Full);
        }
        let (message, signature) = self.seal(dm, text, MESSAGE_MAX)?;
        let (message, signature) = (hex::encode(message), hex::encode(signature));
        self.outbox.push_back(Waiting { dm, message, signature, later_s, vanish_s, asked: false, tries: 0 });
        Ok(())
    }

    /// Another text for one's own message, which has to have been seen in this direct message: the server does not choose what it is
    /// sealed under.
    pub(super) fn edit(&self, dm: i64, id: i64, text: &str) -> Result<(Vec<u8>, [u8; 64]), NotSealed> {
        if self.seen_there(dm, id)? != self.name {
            return Err(NotSealed::NotOwn(id));
        }
        self.seal(dm, text, MESSAGE_MAX)
    }

    /// A reaction to a message that was seen there.
    pub(super) fn react(&self, dm: i64, id: i64, text: &str) -> Result<(Vec<u8>, [u8; 64]), NotSealed> {
        self.seen_there(dm, id)?;
        self.seal(dm, text, REACTION_MAX)
    }

    /// Who said a message that was seen there.
    pub(super) fn seen_there(&self, dm: i64, id: i64) -> Result<&str, NotSealed> {
        let known = self.dms.get(&dm).ok_or(NotSealed::NoDm(dm))?;
        let leafed = || known.leafed.iter().rev().find(|(it, _)| *it == id).map(|(_, sender)| &**sender);
        known.seen.sender(id).or_else(leafed).ok_or(NotSealed::NotSeen(id, dm))
    }

    /// Whether something that may have been taken was: it came back.
    pub(super) fn came_back(&self, waiting: &Waiting) -> bool {
        let nonce = hex::decode(&waiting.message).ok().and_then(|sealed| nonce_of(&sealed));
        let known = self.dms.get(&waiting.dm);
        nonce.zip(known).is_some_and(|(nonce, known)| known.seen.has(&self.name, nonce))
    }

    // --- What comes.

    /// Looks at a message: see the top of this file.
    pub(super) fn open(&mut self, message: &Message) -> Said {
        let opened = self.opened(
            message.dm_id,
            Thing::Message(message.id),
            &message.sender,
            &message.message,
            &message.signature,
        );
        let reactions = message.reactions.iter().map(|it| {
            let thing = Thing::Reaction { id: it.id, of: message.id };
            let opened = self.opened(message.dm_id, thing, &it.sender, &it.reaction, &it.signature);
            Reacted { id: it.id, from: it.sender.clone(), doubt: opened.as_ref().err().copied(), text: opened.ok() }
        });
        let reactions = reactions.collect();
        Said {
            dm: message.dm_id,
            id: message.id,
            from: message.sender.clone(),
            own: message.sender == self.name,
            verified: message.sender == self.name || self.storage.verified.contains(&message.sender),
            doubt: opened.as_ref().err().copied(),
            text: opened.ok(),
            time: message.timestamp.clone(),
            vanishes: message.delete_timestamp.clone(),
            pinned: message.pinned,
            reactions,
        }
    }

    fn opened(&mut self, dm: i64, thing: Thing, sender: &str, sealed: &str, signature: &str) -> Result<String, Doubt> {
        let key = self.storage.keys.get(&dm).ok_or(Doubt::NoKey)?;
        let author = self.pinned(sender).ok_or(Doubt::UnknownSender)?;
        let (sealed, signature) = (hex::decode(sealed), hex::decode(signature));
        let signature: [u8; 64] = signature.ok().and_then(|it| it.try_into().ok()).ok_or(Doubt::NotSigned)?;
        let sealed = sealed.map_err(|_| Doubt::NotSealed)?;
        if !author.verifies(&sealed, &signature) {
            return Err(Doubt::NotSigned);
        }
        let plain = key.open(&sealed).ok_or(Doubt::NotSealed)?;
        let nonce = nonce_of(&sealed).ok_or(Doubt::NotSealed)?;
        match self.dms.entry(dm).or_default().seen.look(thing, sender, nonce) {
            Sight::First | Sight::Again => {}
            Sight::Repeats(first) => return Err(Doubt::Repeats(first)),
            Sight::Older => return Err(Doubt::Older),
        }
        String::from_utf8(plain.to_vec()).map_err(|_| Doubt::NoText)
    }

    /// The text of a message of one's own that will be sent.
    pub(super) fn scheduled(&self, dm: i64, scheduled: &Scheduled) -> Option<String> {
        let sealed = hex::decode(&scheduled.message).ok()?;
        let signature = hex::decode(&scheduled.signature).ok()?.try_into().ok()?;
        if !self.identity.public().verifies(&sealed, &signature) {
            return None;
        }
        String::from_utf8(self.storage.keys.get(&dm)?.open(&sealed)?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::dm::wire::{Reaction, Status};

    const DM: i64 = 7;

    fn book(name: &str) -> Book {
        let mut book = Book::new(name, SecretKey::random(), true);
        book.rotate();
        book
    }

    /// What the server says of somebody.
    fn user(book: &Book) -> User {
        let prekey = book.storage.prekey.as_ref().unwrap().public();
        User {
            username: book.name.clone(),
            public_key: book.identity.public().to_hex(),
            spk: Some(prekey.to_hex()),
            sig: Some(hex::encode(book.identity.sign(prekey.as_bytes()))),
            status: Status::Online,
            biography: String::new(),
            profile_picture: String::new(),
            own_storage: None,
        }
    }

    fn dm(id: i64, users: &[&Book]) -> Dm {
        Dm {
            id,
            users: users.iter().map(|it| it.name.clone()).collect(),
            name: None,
            created_at: String::new(),
            users_in_call: InCall::Names(vec![]),
            call_peers: BTreeMap::new(),
        }
    }

    /// The creator makes it; what each of the others is delivered.
    fn make(id: i64, creator: &mut Book, others: &[&Book]) -> Vec<X3dh> {
        let bundles: Vec<Bundle> = others
            .iter()
            .map(|it| {
                creator.meet(&it.name, &user(it)).unwrap();
                creator.bundle(&it.name, &user(it)).unwrap()
            })
            .collect();
        let created = creator.create(&bundles).unwrap();
        let with: Vec<String> = others.iter().map(|it| it.name.clone()).collect();
        creator.making(&with, &created.key);
        creator.created(id).unwrap();
        let notice = |(position, message): (u16, &tree::Message)| X3dh {
            sender: creator.name.clone(),
            ik: creator.identity.public().to_hex(),
            spk: message.spk.to_hex(),
            ek: message.ek.to_hex(),
            key_tree: created.tree.iter().map(PublicKey::to_hex).collect(),
            position,
            id,
            setup_sig: Some(hex::encode(message.setup_sig)),
        };
        (1..).zip(&created.messages).map(notice).collect()
    }

    /// Alice made a direct message with Bob, who has its key.
    fn pair() -> (Book, Book) {
        let (mut alice, mut bob) = (book("alice"), book("bob"));
        let notices = make(DM, &mut alice, &[&bob]);
        bob.meet("alice", &user(&alice)).unwrap();
        bob.update(&dm(DM, &[&alice, &bob]));
        assert!(matches!(bob.invited(&notices[0]), Ok(Some(Event::Key { signed: true, .. }))));
        (alice, bob)
    }

    fn message(id: i64, from: &Book, at: i64, text: &str) -> Message {
        let (sealed, signature) = from.seal(at, text, MESSAGE_MAX).unwrap();
        Message {
            id,
            dm_id: at,
            sender: from.name.clone(),
            message: hex::encode(sealed),
            signature: hex::encode(signature),
            timestamp: "2026-01-01T00:00:00.000000".to_owned(),
            delete_timestamp: None,
            pinned: false,
            reactions: vec![],
        }
    }

    fn reaction(id: i64, from: &Message) -> Reaction {
        Reaction { id, sender: from.sender.clone(), reaction: from.message.clone(), signature: from.signature.clone() }
    }

    fn shown(book: &mut Book, message: &Message) -> Result<String, Doubt> {
        let said = book.open(message);
        assert_eq!(said.text.is_none(), said.doubt.is_some(), "either the text or why not");
        said.text.ok_or_else(|| said.doubt.unwrap())
    }

    #[test]
    fn what_is_said_is_shown_as_it_was_signed_and_sealed_and_not_otherwise() {
        let (alice, mut bob) = pair();
        let said = message(1, &alice, DM, "hello");
        assert_eq!(shown(&mut bob, &said), Ok("hello".to_owned()));
        let changed = |change: fn(&mut Message)| {
            let mut it = message(2, &alice, DM, "hello");
            change(&mut it);
            it
        };
        let in_clear = hex::encode("hello");
        let mut clear = changed(|_| {});
        clear.signature = hex::encode(alice.identity.sign(b"hello"));
        clear.message = in_clear;
        let mut by_bob = changed(|_| {});
        by_bob.signature = hex::encode(bob.identity.sign(&hex::decode(&by_bob.message).unwrap()));
        for (wrong, doubt) in [
            (changed(|it| it.signature.replace_range(..2, "00")), Doubt::NotSigned),
            (changed(|it| it.signature.clear()), Doubt::NotSigned),
            (changed(|it| it.message.replace_range(..2, "zz")), Doubt::NotSealed),
            (changed(|it| it.message.push_str("00")), Doubt::NotSigned),
            (changed(|it| it.sender = "mallory".to_owned()), Doubt::UnknownSender),
            (changed(|it| it.sender = "bob".to_owned()), Doubt::NotSigned),
            (changed(|it| it.dm_id = 8), Doubt::NoKey),
            (by_bob, Doubt::NotSigned),
            (clear, Doubt::NotSealed),
        ] {
            assert_eq!(shown(&mut bob, &wrong), Err(doubt), "{wrong:?}");
        }
        assert_eq!(bob.unknown(&changed(|it| it.sender = "carol".to_owned())), ["carol"]);
        // Under a key that Bob has, but of somewhere else.
        let mut carol = book("carol");
        let mut alice = alice;
        let notices = make(8, &mut alice, &[&bob, &carol]);
        bob.update(&dm(8, &[&alice, &bob, &carol]));
        bob.invited(&notices[0]).unwrap();
        carol.meet("alice", &user(&alice)).unwrap();
        carol.invited(&notices[1]).unwrap();
        assert_eq!(bob.key(8), carol.key(8));
        let mut moved = message(3, &alice, 8, "to the group");
        moved.dm_id = DM;
        assert_eq!(shown(&mut bob, &moved), Err(Doubt::NotSealed));
    }

    #[test]
    fn what_the_server_shows_again_as_something_else_is_not_shown() {
        let (alice, mut bob) = pair();
        let first = message(1, &alice, DM, "pay 10");
        assert!(shown(&mut bob, &first).is_ok());
        assert!(shown(&mut bob, &Message { pinned: true, ..first.clone() }).is_ok(), "it is what it was");
        let again = Message { id: 2, ..first.clone() };
        assert_eq!(shown(&mut bob, &again), Err(Doubt::Repeats(Thing::Message(1))));
        let edited = Message { id: 1, ..message(1, &alice, DM, "pay nothing") };
        assert_eq!(shown(&mut bob, &edited), Ok("pay nothing".to_owned()));
        assert_eq!(shown(&mut bob, &first), Err(Doubt::Older));
        // A reaction passed off as a message, and a message as a reaction.
        let yes = message(9, &alice, DM, "yes");
        let reacted = Message { reactions: vec![reaction(5, &yes), reaction(6, &first)], ..edited };
        let said = bob.open(&reacted);
        assert_eq!(said.reactions[0].text.as_deref(), Some("yes"));
        assert_eq!(said.reactions[1].doubt, Some(Doubt::Repeats(Thing::Message(1))));
        assert_eq!(shown(&mut bob, &yes), Err(Doubt::Repeats(Thing::Reaction { id: 5, of: 1 })));
        let moved = Message { reactions: vec![reaction(5, &yes)], ..message(3, &alice, DM, "shall I pay?") };
        assert_eq!(bob.open(&moved).reactions[0].doubt, Some(Doubt::Repeats(Thing::Reaction { id: 5, of: 1 })));
        // Also by a process that began later.
        let kept = serde_json::to_vec(&bob.kept()).unwrap();
        let mut bob = Book::restore("bob", serde_json::from_slice(&kept).unwrap()).unwrap();
        assert_eq!(shown(&mut bob, &again), Err(Doubt::Repeats(Thing::Message(1))));
    }

    #[test]
    fn a_name_keeps_the_key_it_was_met_with_until_a_person_says_otherwise() {
        let (mut alice, bob) = pair();
        let other = Book::new("bob", SecretKey::random(), true);
        let mut shown = user(&bob);
        shown.public_key = other.identity.public().to_hex();
        assert_eq!(alice.meet("bob", &shown), Err(Stranger::Changed));
        assert_eq!(alice.pinned("bob"), Some(bob.identity.public()));
        assert_eq!(alice.meet("bob", &user(&bob)), Ok(None));
        assert_eq!(alice.meet("carol", &user(&bob)), Err(Stranger::NoKey), "the server gives somebody else");
        shown.public_key = "00".repeat(32);
        assert_eq!(alice.meet("dave", &User { username: "dave".to_owned(), ..shown.clone() }), Err(Stranger::NoKey));
        assert_eq!(alice.meet("alice", &User { username: "alice".to_owned(), ..user(&bob) }), Err(Stranger::Changed));
        // What is compared are the keys in use.
        assert_eq!(alice.fingerprint("bob").unwrap(), (bob.fingerprint("alice").unwrap().0, false));
        assert!(alice.verified("bob") && !alice.verified("carol"));
        assert!(alice.fingerprint("bob").unwrap().1);
        assert!(alice.find("bob").is_ok());
        assert!(alice.forget("bob"));
        assert_eq!(alice.fingerprint("bob"), None);
        assert!(alice.find("bob").is_err(), "it was agreed on with the other key");
        assert_eq!(alice.say(DM, "x", 0, 0), Err(NotSealed::Stale(DM)), "by its number, too");
        shown.public_key = other.identity.public().to_hex();
        assert!(matches!(alice.meet("bob", &shown), Ok(Some(_))));
        assert!(!alice.fingerprint("bob").unwrap().1);
    }

    #[test]
    fn an_invitation_is_believed_once_and_whole() {
        let (mut alice, mut bob) = (book("alice"), book("bob"));
        let notice = make(DM, &mut alice, &[&bob]).remove(0);
        assert_eq!(bob.invited(&notice), Err(NotInvited::Unknown));
        bob.meet("alice", &user(&alice)).unwrap();
        let mallory = book("mallory");
        let changed = |change: &dyn Fn(&mut X3dh)| {
            let mut it = notice.clone();
            change(&mut it);
            it
        };
        let key = mallory.identity.public().to_hex();
        let wrong = NotInvited::Wrong;
        for (wrong, why) in [
            (changed(&|it| it.ik.clone_from(&key)), wrong(ReceiveError::Creator)),
            (changed(&|it| it.spk.clone_from(&key)), wrong(ReceiveError::Prekey)),
            (changed(&|it| it.key_tree[0].clone_from(&key)), wrong(ReceiveError::Signature)),
            (changed(&|it| it.position = 0), wrong(ReceiveError::Position)),
            (changed(&|it| it.key_tree.clear()), wrong(ReceiveError::Tree)),
            (changed(&|it| it.key_tree = vec![key.clone(); 100_000]), wrong(ReceiveError::Tree)),
            (changed(&|it| it.ek = "00".repeat(32)), NotInvited::Malformed),
            (changed(&|it| it.setup_sig = Some("00".to_owned())), NotInvited::Malformed),
        ] {
            assert_eq!(bob.invited(&wrong), Err(why));
            assert_eq!(bob.key(DM), None);
        }
        let unsigned = changed(&|it| it.setup_sig = None);
        bob.wants_signed(true, 1);
        assert_eq!(bob.invited(&unsigned), Err(wrong(ReceiveError::Unsigned)));
        let mut credulous = Book::restore("bob", bob.kept()).unwrap();
        credulous.wants_signed(false, 2);
        credulous.update(&dm(DM, &[&alice, &bob]));
        assert!(matches!(credulous.invited(&unsigned), Ok(Some(Event::Key { signed: false, .. }))));
        assert!(credulous.shown(DM).unwrap().unsigned, "it is said for as long as it is there");
        // After a rotation the old prekey will do.
        bob.rotate();
        assert!(matches!(bob.invited(&notice), Ok(Some(Event::Key { signed: true, .. }))));
        assert_eq!(bob.key(DM), alice.key(DM));
        assert_eq!(bob.invited(&notice), Ok(None), "delivered twice");
        let another = make(8, &mut alice, &[&bob]).remove(0);
        let same_id = X3dh { id: DM, ..another };
        assert_eq!(bob.invited(&same_id), Err(NotInvited::Other));
        assert_eq!(bob.key(DM), alice.key(DM), "the key that was there stays");
        // Under another number, what was said could be said again.
        let renumbered = X3dh { id: 99, ..notice.clone() };
        assert_eq!(bob.invited(&renumbered), Err(NotInvited::Again(DM)));
        assert_eq!((bob.key(99), bob.storage.pairs.len()), (None, 1));
        bob.update(&dm(DM, &[&alice, &bob]));
        bob.left(DM);
        bob.gave_up(DM);
        assert_eq!(bob.invited(&renumbered), Err(NotInvited::Again(DM)), "also when it was left");
        assert_eq!(bob.invited(&notice), Err(NotInvited::Again(DM)));
        assert_eq!((bob.key(DM), bob.key(99)), (None, None));
    }

    #[test]
    fn what_is_made_never_gets_the_number_of_something_else() {
        let (mut alice, mut mallory) = (book("alice"), book("mallory"));
        let bob = book("bob");
        mallory.meet("bob", &user(&bob)).unwrap();
        let notice = make(5, &mut mallory, &[&alice, &bob]).remove(0);
        alice.meet("mallory", &user(&mallory)).unwrap();
        alice.invited(&notice).unwrap();
        let with_mallory = alice.key(5).unwrap().clone();
        // A key that others have; one that is only known by name; one that was left; one that the server took back.
        alice.update(&dm(6, &[&mallory, &alice]));
        alice.storage.left.insert(7, String::new());
        alice.update(&dm(8, &[&mallory, &alice]));
        alice.left(8);
        for taken in [5, 6, 7, 8] {
            alice.making(&["bob".to_owned()], &SealKey::new(Secret::random()));
            assert!(!alice.is_making(&dm(taken, &[&alice, &bob])));
            assert_eq!(alice.created(taken), Err(Taken(taken)));
            assert!(alice.making.is_none() && alice.storage.pairs.is_empty());
        }
        assert_eq!(alice.key(5), Some(&with_mallory));
        assert!(alice.key(6).is_none() && alice.key(7).is_none() && alice.key(8).is_none());
        alice.making(&["bob".to_owned()], &SealKey::new(Secret::random()));
        assert_eq!(alice.created(9), Ok(()));
        assert_eq!(alice.find("bob"), Ok(9));
    }

    #[test]
    fn an_invitation_waits_until_it_is_decided() {
        let (mut alice, mut bob) = (book("alice"), book("bob"));
        let notice = make(DM, &mut alice, &[&bob]).remove(0);
        assert!(bob.hold(notice.clone()) && bob.hold(notice.clone()));
        assert_eq!(bob.held(), std::slice::from_ref(&notice));
        let kept = serde_json::to_vec(&bob.kept()).unwrap();
        let mut back = Book::restore("bob", serde_json::from_slice(&kept).unwrap()).unwrap();
        assert_eq!(back.held(), std::slice::from_ref(&notice), "the server does not say it again");
        back.decided(&notice);
        assert!(back.held().is_empty());
        let endless = X3dh { key_tree: vec![String::new(); 1_000], ..notice.clone() };
        assert!(!bob.hold(endless));
        let held = (0..1_000).filter(|id| bob.hold(X3dh { id: *id, ..notice.clone() })).count();
        assert_eq!((held, bob.held().len()), (INVITATIONS_MAX, INVITATIONS_MAX));
    }

    #[test]
    fn what_is_no_message_has_not_the_last_word_and_what_was_seen_survives_what_the_server_takes_back() {
        let (alice, mut bob) = pair();
        let tell = |bob: &mut Book, message: &Message| {
            let said = bob.open(message);
            bob.told(&said);
            said.text
        };
        let forged = Message { signature: String::new(), ..message(i64::MAX, &alice, DM, "x") };
        assert_eq!(tell(&mut bob, &forged), None);
        assert!(bob.is_told(&forged), "once is enough");
        let said = message(1, &alice, DM, "hello");
        assert!(!bob.is_told(&said));
        assert!(tell(&mut bob, &said).is_some() && bob.is_told(&said));
        // Said again under the highest number, it has not the last word, either.
        let repeated = Message { id: i64::MAX - 1, ..said.clone() };
        assert_eq!(tell(&mut bob, &repeated), None);
        assert_eq!(bob.last(DM), 1);
        // The direct message is gone, and comes back, with all that was said in it under other numbers.
        assert!(bob.left(DM));
        let kept = serde_json::to_vec(&bob.kept()).unwrap();
        let mut bob = Book::restore("bob", serde_json::from_slice(&kept).unwrap()).unwrap();
        bob.update(&dm(DM, &[&alice, &bob]));
        assert_eq!(bob.last(DM), 1);
        assert_eq!(shown(&mut bob, &Message { id: 2, ..said }), Err(Doubt::Repeats(Thing::Message(1))));
        // What is so old that it is not remembered may be answered when it was shown.
        let old = Said { id: -5, ..bob.open(&message(3, &alice, DM, "old")) };
        assert_eq!(bob.seen_there(DM, -5), Err(NotSealed::NotSeen(-5, DM)));
        bob.leafed(&old);
        assert_eq!(bob.seen_there(DM, -5), Ok("alice"));
        assert!(bob.react(DM, -5, "yes").is_ok());
    }

    #[test]
    fn a_group_never_takes_the_place_of_a_person() {
        let (mut alice, mut bob, mut mallory) = (book("alice"), book("bob"), book("mallory"));
        mallory.meet("bob", &user(&bob)).unwrap();
        let notices = make(DM, &mut mallory, &[&alice, &bob]);
        for (member, notice) in [(&mut alice, &notices[0]), (&mut bob, &notices[1])] {
            member.meet("mallory", &user(&mallory)).unwrap();
            member.invited(notice).unwrap();
        }
        alice.meet("bob", &user(&bob)).unwrap();
        // Mallory, who has the key, leaves, and calls it as a person.
        let mut shrunk = dm(DM, &[&alice, &bob]);
        shrunk.name = Some("bob".to_owned());
        alice.update(&shrunk);
        assert!(alice.find("bob").unwrap_err().contains("/dm"), "not the group");
        assert_eq!(alice.find("#7"), Ok(DM));
        assert!(!alice.shown(DM).unwrap().pair);
        let notice = make(8, &mut bob, &[&alice]).remove(0);
        alice.invited(&notice).unwrap();
        alice.update(&dm(8, &[&bob, &alice]));
        assert_eq!(alice.find("bob"), Ok(8));
        // And the server lets nobody into what was made for two.
        alice.update(&dm(8, &[&bob, &alice, &mallory]));
        let strangers = NotSealed::Strangers(8, "bob".to_owned());
        assert_eq!(alice.say(8, "secret", 0, 0), Err(strangers.clone()));
        assert_eq!(alice.seal(8, "secret", 1_000), Err(strangers));
        assert!(alice.find("#9").is_err() && alice.find("#x").is_err());
    }

    #[test]
    fn what_is_added_to_a_message_is_sealed_for_where_it_was_seen() {
        let (alice, mut bob) = pair();
        let (first, own) = (message(1, &alice, DM, "hello"), message(2, &bob, DM, "hi"));
        assert!(shown(&mut bob, &first).is_ok() && shown(&mut bob, &own).is_ok());
        assert_eq!(bob.edit(DM, 1, "x"), Err(NotSealed::NotOwn(1)));
        assert_eq!(bob.edit(DM, 3, "x"), Err(NotSealed::NotSeen(3, DM)), "the server knows where, but is not asked");
        assert_eq!(bob.react(8, 1, "x"), Err(NotSealed::NoDm(8)));
        let (sealed, signature) = bob.edit(DM, 2, "hey").unwrap();
        assert!(bob.identity.public().verifies(&sealed, &signature));
        assert_eq!(&alice.key(DM).unwrap().open(&sealed).unwrap()[..], b"hey");
        assert_eq!(bob.react(DM, 1, &"x".repeat(REACTION_MAX)), Err(NotSealed::TooLong(REACTION_MAX)));
        assert_eq!(bob.dm_of(1), Some(DM));
        assert_eq!(bob.say(DM, &"x".repeat(MESSAGE_MAX), 0, 0), Err(NotSealed::TooLong(MESSAGE_MAX)));
        bob.update(&dm(9, &[&alice, &bob]));
        assert_eq!(bob.say(9, "x", 0, 0), Err(NotSealed::NoKey(9)));
    }

    #[test]
    fn what_is_kept_comes_back() {
        let (alice, mut bob) = pair();
        shown(&mut bob, &message(1, &alice, DM, "hello")).unwrap();
        bob.looked(DM, 1);
        bob.say(DM, "waits", 0, 0).unwrap();
        bob.say(DM, "waits, too", 5, 0).unwrap();
        bob.making(&["carol".to_owned()], &SealKey::new(Secret::random()));
        let kept = serde_json::to_string(&bob.kept()).unwrap();
        assert!(!kept.contains("waits"));
        let mut back = Book::restore("bob", serde_json::from_str(&kept).unwrap()).unwrap();
        assert_eq!(back.storage, bob.storage);
        assert_eq!((back.last(DM), &back.dms), (1, &bob.dms));
        assert!(back.outbox.iter().all(|it| it.asked), "whatever was kept may have been said");
        // One of the two was.
        let waiting = back.outbox[0].clone();
        assert!(!back.came_back(&waiting));
        let taken = Message {
            message: waiting.message.clone(),
            signature: waiting.signature.clone(),
            ..message(2, &back, DM, "")
        };
        shown(&mut back, &taken).unwrap();
        assert!(back.came_back(&waiting) && !back.came_back(&back.outbox[1]));
        // And what was in the making is found by who is in it.
        let carol = book("carol");
        assert!(back.makes(&["carol".to_owned()]) && !back.makes(&["bob".to_owned()]));
        assert!(!back.is_making(&dm(8, &[&back, &alice])) && !back.is_making(&dm(8, &[&carol, &back])));
        assert!(back.is_making(&dm(8, &[&back, &carol])));
        back.created(8).unwrap();
        assert_eq!((back.storage.pairs.get(&8).map(String::as_str), back.key(8).is_some()), (Some("carol"), true));
        assert!(!format!("{back:?}").contains(&hex::encode(back.identity.seed().expose())));
    }

    #[test]
    fn when_there_is_no_room_strangers_are_forgotten() {
        let (mut alice, bob) = pair();
        for name in ["carol", "dave", "erin"] {
            alice.meet(name, &User { username: name.to_owned(), ..user(&book(name)) }).unwrap();
        }
        alice.verified("dave");
        alice.forget("erin");
        alice.meet("erin", &User { username: "erin".to_owned(), ..user(&book("eve")) }).unwrap();
        alice.make_room();
        assert_eq!(alice.storage.pins.keys().collect::<Vec<_>>(), ["bob", "dave", "erin"]);
        assert_eq!(alice.pinned("bob"), Some(bob.identity.public()));
        assert!(alice.fingerprint("dave").unwrap().1, "what somebody said of a key stays");
    }

    #[test]
    fn devices_share_and_do_not_write_for_ever() {
        let (mut one, bob) = pair();
        one.unshared = false;
        let mut two = Book::new("alice", one.identity.clone(), true);
        let on_server = one.sealed_storage();
        assert_eq!(two.merge(&on_server, None), Ok(vec![]));
        assert!(!two.unshared, "it has nothing that is not there");
        assert_eq!((two.key(DM), two.pinned("bob")), (one.key(DM), Some(bob.identity.public())));
        assert_eq!(one.merge(&on_server, None), Ok(vec![]));
        assert!(!one.unshared);
        assert_eq!(one.merge("", None), Ok(vec![]));
        assert!(one.unshared, "somebody lost it");
        // A device that knows another key insists on it once and for itself.
        let mut three = Book::new("alice", one.identity.clone(), true);
        three.meet("bob", &User { username: "bob".to_owned(), ..user(&book("bob")) }).unwrap();
        three.unshared = false;
        assert_eq!(three.merge(&on_server, None), Ok(vec!["bob".to_owned()]));
        assert!(!three.unshared);
        assert_eq!(three.merge(&bob.sealed_storage(), None), Err(BadStorage::Sealed));
        assert!(three.unreadable && !three.unshared, "it is not written over");
        three.merge(&on_server, None).unwrap();
        assert!(!three.unreadable);
        // What one forgets, another that was there all the time does not bring back.
        let shared = two.sealed_storage();
        assert!(one.forget("bob"));
        one.merge(&shared, None).unwrap();
        assert_eq!((one.pinned("bob"), one.find("bob").is_err()), (None, true));
        two.merge(&one.sealed_storage(), None).unwrap();
        assert_eq!((two.pinned("bob"), two.storage.pairs.len(), two.unshared), (None, 0, false));
    }
}
