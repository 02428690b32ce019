//! What was seen in a direct message, to know it when it comes again (spec 5.8, W4).
//!
//! A signature is over the ciphertext alone: not over the message's id, its direct message, or what kind of thing it is. So a server can
//! show what was said once more under another id, pass a reaction off as a message, move it to another message, or go back to what stood
//! there before an edit. All of it is sealed under the nonce it was sealed under first.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// Messages, and reactions, that are remembered of each direct message: the newest.
const REMEMBERED: usize = 1_000;
/// Versions of one message that are.
const VERSIONS: usize = 64;

/// 12 bytes.
type Nonce = [u8; 12];

/// Something that was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thing {
    /// A message, by its id.
    Message(i64),
    /// A reaction: a yes to one thing is none to another.
    Reaction {
        /// Its id.
        id: i64,
        /// The message that it is on.
        of: i64,
    },
}

/// What there is to say about something that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// It is seen for the first time.
    First,
    /// It is what it was.
    Again,
    /// It was seen as something else.
    Repeats(Thing),
    /// It was this once, and something newer since.
    Older,
}

/// See the top of this file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Entry>", into = "Vec<Entry>")]
pub(super) struct Seen {
    things: BTreeMap<Thing, Versions>,
    first: HashMap<(String, Nonce), Thing>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Versions {
    sender: String,
    /// The newest last.
    nonces: Vec<Nonce>,
}

/// How it is kept.
#[derive(Serialize, Deserialize)]
struct Entry(Thing, String, Vec<String>);

impl From<Vec<Entry>> for Seen {
    fn from(entries: Vec<Entry>) -> Self {
        let mut seen = Self::default();
        for Entry(thing, sender, versions) in entries {
            for version in versions {
                let mut nonce = Nonce::default();
                if hex::decode_to_slice(version, &mut nonce).is_ok() {
                    seen.look(thing, &sender, nonce);
                }
            }
        }
        seen
    }
}

impl From<Seen> for Vec<Entry> {
    fn from(seen: Seen) -> Self {
        let entry = |(thing, Versions { sender, nonces }): (Thing, Versions)| {
            Entry(thing, sender, nonces.iter().map(hex::encode).collect())
        };
        seen.things.into_iter().map(entry).collect()
    }
}

impl Seen {
    /// Looks at something that was verified, and remembers it unless it repeats something.
    pub(super) fn look(&mut self, thing: Thing, sender: &str, nonce: Nonce) -> Sight {
        let key = (sender.to_owned(), nonce);
        match self.first.get(&key) {
            Some(first) if *first != thing => return Sight::Repeats(*first),
            Some(_) => {
                let newest = self.things.get(&thing).and_then(|it| it.nonces.last());
                return if newest == Some(&nonce) { Sight::Again } else { Sight::Older };
            }
            None => {}
        }
        let known = self.things.entry(thing).or_insert_with(|| Versions { sender: key.0.clone(), nonces: Vec::new() });
        if known.sender != key.0 {
            // Nothing changes hands.
            return Sight::Repeats(thing);
        }
        known.nonces.push(nonce);
        if known.nonces.len() > VERSIONS {
            let oldest = known.nonces.remove(0);
            self.first.remove(&(key.0.clone(), oldest));
        }
        self.first.insert(key, thing);
        self.prune();
        Sight::First
    }

    /// Whether this was seen.
    pub(super) fn has(&self, sender: &str, nonce: Nonce) -> bool {
        self.first.contains_key(&(sender.to_owned(), nonce))
    }

    /// Who said a message that was seen.
    pub(super) fn sender(&self, message: i64) -> Option<&str> {
        self.things.get(&Thing::Message(message)).map(|it| &*it.sender)
    }

    fn prune(&mut self) {
        let between = Thing::Reaction { id: i64::MIN, of: i64::MIN };
        let oldest = if self.things.range(..between).count() > REMEMBERED {
            self.things.keys().next().copied()
        } else if self.things.range(between..).count() > REMEMBERED {
            self.things.range(between..).next().map(|(thing, _)| *thing)
        } else {
            None
        };
        if let Some(Versions { sender, nonces }) = oldest.and_then(|oldest| self.things.remove(&oldest)) {
            for nonce in nonces {
                self.first.remove(&(sender.clone(), nonce));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(n: u32) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&n.to_le_bytes());
        nonce
    }

    #[test]
    fn what_comes_again_is_known() {
        let mut seen = Seen::default();
        let (first, second) = (Thing::Message(1), Thing::Message(2));
        assert_eq!(seen.look(first, "alice", nonce(1)), Sight::First);
        assert_eq!(seen.look(first, "alice", nonce(1)), Sight::Again, "it was pinned");
        assert_eq!(seen.look(second, "alice", nonce(1)), Sight::Repeats(first));
        let reaction = |of| Thing::Reaction { id: 1, of };
        assert_eq!(seen.look(reaction(1), "alice", nonce(1)), Sight::Repeats(first), "as another kind of thing");
        assert_eq!(seen.look(reaction(1), "alice", nonce(5)), Sight::First);
        assert_eq!(seen.look(reaction(2), "alice", nonce(5)), Sight::Repeats(reaction(1)), "to another message");
        assert_eq!(
            seen.look(second, "bob", nonce(1)),
            Sight::First,
            "chance, or a bad client: not the same key of his"
        );
        assert_eq!(seen.look(first, "bob", nonce(9)), Sight::Repeats(first), "as another's");
        // An edit, and back.
        assert_eq!(seen.look(first, "alice", nonce(2)), Sight::First);
        assert_eq!(seen.look(first, "alice", nonce(1)), Sight::Older);
        assert_eq!(seen.look(first, "alice", nonce(2)), Sight::Again);
        assert_eq!(seen.look(Thing::Message(3), "alice", nonce(1)), Sight::Repeats(first));
        assert_eq!(seen.sender(1), Some("alice"));
        assert!(seen.has("bob", nonce(1)) && !seen.has("bob", nonce(2)));
        let kept = serde_json::to_string(&seen).unwrap();
        let mut again: Seen = serde_json::from_str(&kept).unwrap();
        assert_eq!(again, seen, "{kept}");
        assert_eq!(again.look(first, "alice", nonce(1)), Sight::Older);
    }

    #[test]
    fn of_what_is_old_nothing_is_left() {
        let mut seen = Seen::default();
        for n in 0..2_000 {
            seen.look(Thing::Message(n.into()), "alice", nonce(n));
            seen.look(Thing::Reaction { id: n.into(), of: 0 }, "alice", nonce(10_000 + n));
        }
        for n in 0..200 {
            seen.look(Thing::Message(1_999), "alice", nonce(20_000 + n));
        }
        assert_eq!(seen.things.len(), 2 * REMEMBERED);
        assert_eq!(seen.first.len(), 2 * REMEMBERED - 1 + VERSIONS);
        assert!(!seen.has("alice", nonce(999)) && seen.has("alice", nonce(1_000)));
        assert!(!seen.has("alice", nonce(10_999)) && seen.has("alice", nonce(11_000)));
    }
}
