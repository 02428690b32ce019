//! Everything against the values of `tests/vectors/dm.json` (spec 5.9), in both directions; what must be refused; and what two
//! of the protocol's weaknesses cost, with and without what was added against them (spec 5.8).

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::keys::{PublicKey, SecretKey, fingerprint};
use super::login::{Challenge, login_message};
use super::seal::{OVERHEAD, SealKey, nonce_of};
use super::storage::{BadStorage, LEFT_MAX, OLD_PREKEYS_MAX, Storage};
use super::tree::{self, CreateError, Created, Invitation, MEMBERS_MAX, ReceiveError, Setup, setup_message};
use super::words::{self, BadWords};
use super::x3dh::{self, Bundle};
use crate::crypto::Secret;

struct Vectors(Value);

impl Vectors {
    fn new() -> Self {
        Self(serde_json::from_str(include_str!("../../../../tests/vectors/dm.json")).unwrap())
    }

    /// The text at a path such as `/alice/spk`.
    fn text(&self, path: &str) -> &str {
        self.0.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no {path}"))
    }

    fn bytes<const N: usize>(&self, path: &str) -> [u8; N] {
        hex::decode(self.text(path)).unwrap().try_into().unwrap()
    }

    fn secret(&self, path: &str) -> Secret<32> {
        Secret::new(self.bytes(path))
    }

    fn public(&self, path: &str) -> PublicKey {
        PublicKey::decode(&self.bytes(path)).unwrap_or_else(|| panic!("{path} is no key"))
    }

    fn texts(&self, path: &str) -> Vec<&str> {
        self.0.pointer(path).unwrap().as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
    }
}

fn seed(byte: u8) -> Secret<32> {
    Secret::new([byte; 32])
}

fn key(byte: u8) -> SecretKey {
    SecretKey::new(&seed(byte))
}

/// Alice's is 0x11, Bob's 0x21, and so on; everybody's prekey is one more.
const PEOPLE: [(&str, u8); 5] = [("alice", 0x11), ("bob", 0x21), ("carol", 0x31), ("dave", 0x41), ("erin", 0x51)];

fn bundle(identity: &SecretKey, prekey: &SecretKey) -> Bundle {
    let signature = identity.sign(prekey.public().as_bytes());
    Bundle { identity: identity.public(), prekey: prekey.public(), signature }
}

/// Alice's group with the first so many of the others, of the seeds that the vectors use.
fn group(invitees: usize) -> Created {
    let invitees: Vec<Bundle> = PEOPLE[1..=invitees].iter().map(|&(_, own)| bundle(&key(own), &key(own + 1))).collect();
    let ephemeral = (0x61..).take(invitees.len());
    let mut seeds = std::iter::once(0x71).chain(ephemeral).chain(0x81..).map(seed);
    tree::create(&key(0x11), &invitees, || seeds.next().unwrap()).unwrap()
}

fn invitation(created: &Created, position: u16) -> Invitation {
    let message = &created.messages[usize::from(position) - 1];
    Invitation {
        creator: key(0x11).public(),
        spk: message.spk,
        ek: message.ek,
        position,
        tree: created.tree.clone(),
        setup_sig: Some(message.setup_sig),
    }
}

/// Bob receives an invitation of Alice.
fn bob_receives(invitation: &Invitation, signed_only: bool) -> Result<SealKey, ReceiveError> {
    let alice = key(0x11).public();
    tree::receive(&key(0x21), &[key(0x22)], &alice, invitation, signed_only).map(|received| received.key)
}

#[test]
fn everybody_has_the_keys_of_their_seeds() {
    let vectors = Vectors::new();
    for (name, own) in PEOPLE {
        let at = |field: &str| format!("/{name}/{field}");
        let (identity, prekey) = (key(own), key(own + 1));
        assert_eq!(vectors.secret(&at("ik_seed")), identity.seed());
        assert_eq!(vectors.secret(&at("spk_seed")), prekey.seed());
        assert_eq!(identity.public(), vectors.public(&at("public_key")), "{name}");
        assert_eq!(prekey.public(), vectors.public(&at("spk")), "{name}");
        assert_eq!(hex::encode(identity.sign(prekey.public().as_bytes())), vectors.text(&at("sig")), "{name}");
        assert!(bundle(&identity, &prekey).is_signed());
        let other = Bundle { prekey: identity.public(), ..bundle(&identity, &prekey) };
        assert!(!other.is_signed(), "a signature over another prekey");
    }
}

#[test]
fn a_point_that_helps_an_attacker_is_no_key() {
    let vectors = Vectors::new();
    let bad = vectors.0["bad_points"].as_object().unwrap();
    assert_eq!(bad.len(), 7);
    for name in bad.keys() {
        let bytes = vectors.bytes(&format!("/bad_points/{name}"));
        assert_eq!(PublicKey::decode(&bytes), None, "{name}");
        assert_eq!(PublicKey::from_hex(&hex::encode(bytes)), None, "{name}");
    }
    let good = vectors.text("/alice/public_key");
    assert_eq!(PublicKey::from_hex(good).unwrap().to_hex(), good);
    for digits in ["", "d0", &good[..62], &format!("{good}00"), &format!(" {}", &good[1..]), &good.replace('d', "g")] {
        assert_eq!(PublicKey::from_hex(digits), None, "{digits:?}");
    }
}

#[test]
fn a_signature_is_good_for_its_bytes_and_its_key_only() {
    let (alice, message) = (key(0x11), b"what is signed");
    let signature = alice.sign(message);
    assert!(alice.public().verifies(message, &signature));
    assert!(!alice.public().verifies(b"what is Signed", &signature));
    assert!(!key(0x21).public().verifies(message, &signature));
    for at in 0..signature.len() {
        let mut changed = signature;
        changed[at] ^= 1;
        assert!(!alice.public().verifies(message, &changed), "byte {at}");
    }
    // s + L says the same to whoever does not look: strictly it is another signature.
    let order: [u8; 32] =
        hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap().try_into().unwrap();
    let (mut malleable, mut carry) = (signature, 0);
    for (byte, add) in malleable[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = u8::try_from(sum & 0xff).unwrap();
        carry = sum >> 8;
    }
    assert!(!alice.public().verifies(message, &malleable));
    // A key that says yes to everything, were it one.
    assert_eq!(PublicKey::decode(&std::array::from_fn(|at| u8::from(at == 0))), None);
}

#[test]
fn two_keys_agree_from_either_side() {
    let vectors = Vectors::new();
    let (alice, bob) = (key(0x11), key(0x21));
    assert_eq!(hex::encode(alice.public().montgomery().as_bytes()), vectors.text("/u_alice"));
    assert_eq!(hex::encode(bob.public().montgomery().as_bytes()), vectors.text("/u_bob"));
    let clamped =
        curve25519_dalek::scalar::clamp_integer(ed25519_dalek::SigningKey::from_bytes(&[0x11; 32]).to_scalar_bytes());
    assert_eq!(hex::encode(clamped), vectors.text("/scalar_alice_clamped"));
    assert_eq!(alice.agree(&bob.public()), vectors.secret("/ecdh_alice_bob"));
    assert_eq!(bob.agree(&alice.public()), vectors.secret("/ecdh_alice_bob"));
}

#[test]
fn a_challenge_takes_both_answers_and_no_other() {
    let vectors = Vectors::new();
    let alice = key(0x11);
    let challenge = Challenge::new(&vectors.secret("/login/server_r_seed"));
    assert_eq!(challenge.point, vectors.bytes::<32>("/login/challenge"));
    let point = PublicKey::decode(&challenge.point).unwrap();
    let product = alice.answer_by_product(&point);
    assert_eq!(product, vectors.secret("/login/response"));
    assert_eq!(hex::encode(login_message("alice", &challenge.point)), vectors.text("/login_sig/signed_bytes"));
    let signed = alice.answer("alice", &challenge.point);
    assert_eq!(hex::encode(signed), vectors.text("/login_sig/response"));

    let public = alice.public();
    assert!(challenge.answered_by(&public, "alice", product.expose()));
    assert!(challenge.answered_by(&public, "alice", &signed));
    let elsewhere = Challenge::new(&seed(0x78));
    for wrong in [&[][..], &product.expose()[..31], &signed[..63], &[&signed[..], &[0]].concat(), &[0; 32], &[0; 64]] {
        assert!(!challenge.answered_by(&public, "alice", wrong), "{} bytes", wrong.len());
    }
    for answer in [&product.expose()[..], &signed] {
        assert!(!challenge.answered_by(&key(0x21).public(), "alice", answer), "another's key");
        assert!(!elsewhere.answered_by(&public, "alice", answer), "another challenge");
    }
    assert!(!challenge.answered_by(&public, "alicf", &signed), "another name");
}

#[test]
fn the_older_answer_gives_the_personal_key_to_a_server_that_asks_for_it() {
    let vectors = Vectors::new();
    let alice = key(0x11);
    assert_eq!(alice.personal().secret(), &vectors.secret("/personal_key_alice"));
    // W1: the challenge is Alice's own public key, and the answer's form on Curve25519 is her personal key.
    let answer = alice.answer_by_product(&alice.public());
    assert_eq!(answer, vectors.secret("/oracle_response_to_own_pub"));
    let stolen = PublicKey::decode(answer.expose()).unwrap().montgomery().to_bytes();
    let stolen = SealKey::new(Secret::new(stolen));
    assert_eq!(stolen, alice.personal());
    assert!(Storage::open(&stolen, vectors.text("/own_storage/value")).unwrap().prekey.is_some());
    // The signed answer to the same question says nothing about it.
    let signed = alice.answer("alice", alice.public().as_bytes());
    assert!(!signed.windows(32).any(|part| part == answer.expose() || part == stolen.secret().expose()));
}

#[test]
fn storage_is_sealed_under_the_personal_key() {
    let vectors = Vectors::new();
    let personal = key(0x11).personal();
    let value = vectors.text("/own_storage/value");
    let storage = Storage::open(&personal, value).unwrap();
    assert_eq!(storage.prekey, Some(key(0x12)));
    assert_eq!(&storage.plain()[..], vectors.text("/own_storage/plaintext").as_bytes());
    assert_eq!(hex::encode(personal.seal_with([0x99; 12], &storage.plain())), value);

    assert_eq!(Storage::open(&personal, "").unwrap(), Storage::default());
    assert_eq!(Storage::open(&key(0x21).personal(), value), Err(BadStorage::Sealed));
    for wrong in ["00", "xx", &value[..value.len() - 2], &value.replacen('9', "8", 1)] {
        assert_eq!(Storage::open(&personal, wrong), Err(BadStorage::Sealed), "{wrong}");
    }
    let identity = vectors.text("/bad_points/identity");
    let sealed = |plain: &str| hex::encode(personal.seal(plain.as_bytes()));
    for plain in ["[]", r#"{"privSPK":"12"}"#, r#"{"verified":{"bob":true}}"#, r#"{"sharedKeys":[]}"#] {
        assert_eq!(Storage::open(&personal, &sealed(plain)), Err(BadStorage::Content), "{plain}");
    }
    // Single entries that are not understood cost nothing else, and stay.
    let (good, bob) = ("07".repeat(32), key(0x21).public());
    let plain = format!(
        r#"{{"sharedKeys":{{"7":"{good}","8":5,"x":"{good}"}},"pins":{{"a":"{identity}","b":[],"bob":"{}"}},"pairs":{{"7":"bob","y":"bob"}}}}"#,
        bob.to_hex()
    );
    let mut storage = Storage::open(&personal, &sealed(&plain)).unwrap();
    assert_eq!(storage.keys, [(7, SealKey::new(seed(7)))].into());
    assert_eq!(storage.pins, [("bob".to_owned(), bob)].into());
    assert_eq!(storage.pairs, [(7, "bob".to_owned())].into());
    let plain: Value = serde_json::from_str(&plain).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&storage.plain()).unwrap(), plain);
    let mut other = Storage::default();
    other.merge(storage.clone(), None);
    assert_eq!(other, storage, "also by way of another device");
    // Until there is something in their place.
    storage.pin("a", bob);
    storage.keys.insert(8, SealKey::new(seed(8)));
    let plain = serde_json::from_slice::<Value>(&storage.plain()).unwrap();
    assert_eq!((&plain["pins"]["a"], &plain["sharedKeys"]["8"]), (&bob.to_hex().into(), &"08".repeat(32).into()));
    assert_eq!(plain["pins"]["b"], serde_json::json!([]));
}

#[test]
fn what_one_device_takes_back_no_other_brings_back() {
    let personal = key(0x11).personal();
    let (first, second) = (key(0x21).public(), key(0x22).public());
    let mut before = Storage::default();
    before.keys.insert(7, SealKey::new(seed(7)));
    before.pairs.insert(7, "bob".to_owned());
    before.pin("bob", first);
    before.verified.insert("bob".to_owned());
    let (mut one, mut two) = (before.clone(), before.clone());
    assert_eq!(one.forget("bob"), Some(first));
    assert_eq!(one.forget("bob"), None);
    assert!(one.is_beyond(&two));
    // A server, or a client that does not know of this, shows what was.
    let mut unaware = before.clone();
    unaware.forgotten.clone_from(&one.forgotten);
    for old in [&before, &unaware] {
        assert_eq!(one.merge(old.clone(), None), [""; 0]);
        assert_eq!((one.pins.get("bob"), one.pairs.len(), one.verified.len()), (None, 0, 0));
    }
    // The other device is told, and keeps to it.
    two.merge(Storage::open(&personal, &one.seal(&personal)).unwrap(), None);
    assert_eq!(two, one);
    // What is met then is shared as ever.
    two.pin("bob", second);
    one.merge(two.clone(), None);
    assert_eq!(one.pins["bob"], second);
    // And whoever forgets that, too, may go back to the first; what was made with it stays unused.
    two.forget("bob");
    two.pin("bob", first);
    two.merge(one.clone(), None);
    assert_eq!(two.pins["bob"], first);
    one.merge(two.clone(), None);
    assert_eq!((one.pins["bob"], one.pairs.len()), (first, 0));
    assert_eq!(one.merge(before.clone(), None), [""; 0]);
    assert_eq!(one.pairs.len(), 0);
    // Forgotten and met again with the same key: no forgetting from before undoes that.
    let mut again = two.clone();
    again.forget("bob");
    let forgotten = again.clone();
    again.pin("bob", first);
    again.merge(forgotten, None);
    assert_eq!(again.pins["bob"], first);

    // A key that was given up.
    let mut left = before.clone();
    left.leave(7);
    assert!(left.is_beyond(&before));
    left.merge(before.clone(), None);
    assert_eq!((left.keys.len(), left.pairs.len()), (0, 0));
    assert_eq!(left.number_of(&SealKey::new(seed(7))), Some(7), "it is known again");
    assert!(!left.plain().windows(64).any(|it| it == "07".repeat(32).as_bytes()));
    let mut other = before.clone();
    other.merge(Storage::open(&personal, &left.seal(&personal)).unwrap(), None);
    assert_eq!((other.keys.len(), other.pairs.len(), other.left.len()), (0, 0, 1));
    // A key has one number.
    let mut twice = Storage::default();
    twice.keys.insert(99, SealKey::new(seed(7)));
    twice.pairs.insert(99, "bob".to_owned());
    for known in [&before, &left] {
        let mut known = known.clone();
        known.merge(twice.clone(), None);
        assert!(!known.keys.contains_key(&99) && !known.pairs.contains_key(&99));
    }
    for dm in 0..5_000 {
        left.keys.insert(dm, SealKey::new(seed(9)));
        left.leave(dm);
    }
    assert_eq!((left.left.len(), left.left.first_key_value().map(|it| *it.0)), (LEFT_MAX, Some(3_000)));
}

#[test]
fn two_devices_merge_what_they_share() {
    let personal = key(0x11).personal();
    let other = r#"{"privSPK":"12","sharedKeys":{},"theme":{"dark":true}}"#.replace("12", &"12".repeat(32));
    let mut one = Storage::open(&personal, &hex::encode(personal.seal(other.as_bytes()))).unwrap();
    let mut two = one.clone();
    one.keys.insert(7, SealKey::new(seed(7)));
    one.keys.insert(9, SealKey::new(seed(9)));
    one.pins.extend([("bob".to_owned(), key(0x21).public()), ("carol".to_owned(), key(0x31).public())]);
    two.rotate(key(0x13));
    two.keys.insert(8, SealKey::new(seed(8)));
    two.keys.insert(9, SealKey::new(seed(99)));
    two.pins.extend([("bob".to_owned(), key(0x21).public()), ("carol".to_owned(), key(0x32).public())]);
    two.pairs.insert(8, "bob".to_owned());
    two.verified.extend(["bob".to_owned(), "carol".to_owned()]);

    let mut merged = one.clone();
    assert_eq!(merged.merge(two.clone(), Some(&key(0x13).public())), ["carol"]);
    assert_eq!(merged.prekey, Some(key(0x13)), "the one that is published");
    assert_eq!(merged.old_prekeys, [key(0x12)]);
    assert_eq!(merged.keys.keys().copied().collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!(merged.pairs, [(8, "bob".to_owned())].into());
    assert_eq!(merged.keys[&9], SealKey::new(seed(9)), "its own stays");
    assert_eq!(merged.pins["carol"], key(0x31).public(), "its own stays");
    assert_eq!(merged.verified.iter().collect::<Vec<_>>(), ["bob"], "what was verified was another key of Carol");
    assert!(merged.plain().windows(14).any(|part| part == br#""theme":{"dark"#), "what others keep");
    assert_eq!(Storage::open(&personal, &merged.seal(&personal)).unwrap(), merged);
    // Merging what is known already changes nothing; and nobody knows a prekey that neither has.
    let before = merged.clone();
    assert!(merged.is_beyond(&one) && merged.is_beyond(&two));
    let mut insisting = two.clone();
    insisting.merge(merged.clone(), Some(&key(0x13).public()));
    assert!(!merged.is_beyond(&insisting) && !insisting.is_beyond(&merged), "Carol and #9 are not written for ever");
    assert!(merged.merge(one, Some(&key(0x13).public())).is_empty());
    assert_eq!(merged, before);
    assert_eq!(merged.merge(two, Some(&key(0x55).public())), ["carol"]);
    assert_eq!(merged, before);
    for byte in 0..=255 {
        merged.rotate(key(byte));
    }
    assert_eq!(merged.prekeys().count(), 1 + OLD_PREKEYS_MAX);
    assert_eq!(merged.old_prekeys[0], key(254), "newest first");
}

#[test]
fn creator_and_invitee_agree() {
    let vectors = Vectors::new();
    let (alice, bob, prekey, ephemeral) = (key(0x11), key(0x21), key(0x22), key(0x61));
    assert_eq!(vectors.secret("/x3dh/ek_seed"), ephemeral.seed());
    assert_eq!(ephemeral.public(), vectors.public("/x3dh/ek"));
    let of_alice = [(&alice, &prekey), (&ephemeral, &bob), (&ephemeral, &prekey), (&alice, &bob)];
    for ((own, other), expected) in of_alice.into_iter().zip(vectors.texts("/x3dh/DH")) {
        assert_eq!(hex::encode(own.agree(&other.public()).expose()), expected);
    }
    let secret = vectors.secret("/x3dh/sk");
    assert_eq!(x3dh::send(&alice, &ephemeral, &bundle(&bob, &prekey)), secret);
    assert_eq!(x3dh::receive(&bob, &prekey, &alice.public(), &ephemeral.public()), secret);
}

#[test]
fn every_member_climbs_to_the_key_of_the_group() {
    let vectors = Vectors::new();
    for (name, invitees) in [("group2", 1), ("group3", 2), ("group5", 4)] {
        let created = group(invitees);
        assert_eq!(created.key.secret(), &vectors.secret(&format!("/{name}/root")), "{name}");
        let published: Vec<String> = created.tree.iter().map(PublicKey::to_hex).collect();
        assert_eq!(published, vectors.texts(&format!("/{name}/key_tree")), "{name}");
        assert_eq!(tree::published(invitees + 1), Some(published.len()));
        let leaves = &published[published.len() / 2 - 1..];
        for (leaf, seed) in leaves.iter().zip(vectors.texts(&format!("/{name}/leaf_seeds"))) {
            let seed = hex::decode(seed).unwrap().try_into().unwrap();
            assert_eq!(*leaf, SecretKey::new(&Secret::new(seed)).public().to_hex(), "{name}");
        }
        for (position, &(member, own)) in (1..).zip(&PEOPLE[1..=invitees]) {
            let (message, invitation) = (&created.messages[usize::from(position) - 1], invitation(&created, position));
            if let Some(expected) = vectors.0.pointer(&format!("/{name}/messages/{}", position - 1)) {
                assert_eq!(expected["ek"], message.ek.to_hex());
                assert_eq!(expected["spk"], message.spk.to_hex());
            }
            // An old prekey will do.
            let prekeys = [key(0x99), key(own + 1)];
            let received = tree::receive(&key(own), &prekeys, &key(0x11).public(), &invitation, true).unwrap();
            assert_eq!(received.key, created.key, "{member} in {name}");
            assert_eq!(received.members.map(usize::from), Some(invitees + 1));
        }
    }
    let tree = group(4).tree.iter().flat_map(|key| *key.as_bytes()).collect::<Vec<u8>>();
    assert_eq!(hex::encode(Sha256::digest(tree)), vectors.text("/group5/sha256_of_concatenated_key_tree"));
    let inner = |node: &str| SecretKey::new(&vectors.secret(&format!("/group3/internal_secrets/{node}"))).public();
    assert_eq!(group(2).tree[..2], [inner("2"), inner("3")]);
}

#[test]
fn a_group_has_a_creator_and_somebody_else_and_room_for_so_many() {
    let (alice, bob) = (key(0x11), bundle(&key(0x21), &key(0x22)));
    let create = |invitees: &[Bundle]| tree::create(&alice, invitees, || seed(1)).map(|created| created.tree.len());
    assert_eq!(create(&[]), Err(CreateError::Size));
    assert_eq!(create(&[bob; MEMBERS_MAX]), Err(CreateError::Size));
    assert_eq!(create(&[bob; MEMBERS_MAX - 1]), Ok(254));
    let forged = Bundle { prekey: key(0x32).public(), ..bob };
    assert_eq!(create(&[bob, forged]), Err(CreateError::Prekey(1)));
    let lengths = [1, 2, 3, 4, 5, 8, 9, 65, 128, 129].map(tree::published);
    assert_eq!(lengths, [None, Some(2), Some(6), Some(6), Some(14), Some(14), Some(30), Some(254), Some(254), None]);
}

#[test]
fn a_setup_is_signed() {
    let vectors = Vectors::new();
    let created = group(1);
    let message = &created.messages[0];
    let setup = Setup {
        creator: &key(0x11).public(),
        invitee: &key(0x21).public(),
        spk: &message.spk,
        ek: &message.ek,
        position: 1,
        members: 2,
        tree: &created.tree,
    };
    let signed = setup_message(&setup);
    assert_eq!(Some(signed.len() as u64), vectors.0["ext2_setup_sig_for_bob"]["signed_len"].as_u64());
    assert_eq!(hex::encode(Sha256::digest(&signed)), vectors.text("/ext2_setup_sig_for_bob/sha256"));
    assert_eq!(hex::encode(message.setup_sig), vectors.text("/ext2_setup_sig_for_bob/setup_sig"));
}

#[test]
fn a_server_that_puts_its_key_into_the_tree_is_caught_by_the_signature() {
    let vectors = Vectors::new();
    let (created, server) = (group(1), key(0x66));
    assert_eq!(vectors.secret("/w2_tree_substitution/server_seed"), server.seed());
    let mut delivered = invitation(&created, 1);
    delivered.tree[0] = server.public();
    // W2: without signature Bob climbs to a key that the server computes from his published leaf.
    let unsigned = Invitation { setup_sig: None, ..delivered.clone() };
    let of_bob = bob_receives(&unsigned, false).unwrap();
    assert_eq!(of_bob.secret(), &vectors.secret("/w2_tree_substitution/root_bob_and_server"));
    assert_eq!(of_bob.secret(), &server.multiply(&delivered.tree[1]));
    assert_ne!(of_bob, created.key);
    // With it he does not.
    assert_eq!(bob_receives(&delivered, false), Err(ReceiveError::Signature));
    assert_eq!(bob_receives(&unsigned, true), Err(ReceiveError::Unsigned));
    // Neither does a signature help that the server makes.
    let forged = SecretKey::sign(&server, b"whatever");
    assert_eq!(bob_receives(&Invitation { setup_sig: Some(forged), ..delivered }, false), Err(ReceiveError::Signature));
}

#[test]
fn each_thing_that_is_wrong_with_an_invitation_is_named() {
    let good = invitation(&group(2), 1);
    assert!(bob_receives(&good, true).is_ok());
    let unsigned = Invitation { setup_sig: None, ..good.clone() };
    assert!(bob_receives(&unsigned, false).is_ok());
    type Change = fn(&mut Invitation);
    let cases: [(ReceiveError, ReceiveError, Change); 9] = [
        (ReceiveError::Creator, ReceiveError::Creator, |it| it.creator = key(0x31).public()),
        (ReceiveError::Prekey, ReceiveError::Prekey, |it| it.spk = key(0x32).public()),
        (ReceiveError::Tree, ReceiveError::Tree, |it| it.tree.truncate(5)),
        (ReceiveError::Tree, ReceiveError::Tree, |it| it.tree.clear()),
        (ReceiveError::Tree, ReceiveError::Tree, |it| it.tree = vec![it.tree[0]; 510]),
        (ReceiveError::Position, ReceiveError::Position, |it| it.position = 0),
        (ReceiveError::Position, ReceiveError::Position, |it| it.position = 4),
        (ReceiveError::Leaf, ReceiveError::Signature, |it| it.position = 2),
        (ReceiveError::Leaf, ReceiveError::Signature, |it| it.ek = key(0x62).public()),
    ];
    for (at, (expected, expected_signed, change)) in cases.into_iter().enumerate() {
        let (mut plain, mut signed) = (unsigned.clone(), good.clone());
        change(&mut plain);
        change(&mut signed);
        assert_eq!(bob_receives(&plain, false), Err(expected), "case {at}");
        assert_eq!(bob_receives(&signed, false), Err(expected_signed), "case {at}, signed");
    }
    // Somebody else's own leaf, whatever else is right.
    let mut moved = unsigned;
    moved.tree.swap(2, 3);
    assert_eq!(bob_receives(&moved, false), Err(ReceiveError::Leaf));
}

#[test]
fn what_is_said_is_sealed_and_signed() {
    let vectors = Vectors::new();
    let group = SealKey::new(vectors.secret("/group2/root"));
    for (kind, field, author) in [("message", "message", 0x11), ("reaction", "reaction", 0x21)] {
        let at = |field: &str| format!("/{kind}/{field}");
        let sealed = hex::decode(vectors.text(&at(field))).unwrap();
        let nonce = vectors.bytes(&at("iv"));
        assert_eq!(group.seal_with(nonce, vectors.text(&at("plaintext")).as_bytes()), sealed);
        assert_eq!(nonce_of(&sealed), Some(nonce));
        assert_eq!(&group.open(&sealed).unwrap()[..], vectors.text(&at("plaintext")).as_bytes());
        assert_eq!(hex::encode(key(author).sign(&sealed)), vectors.text(&at("signature")));
        assert!(key(author).public().verifies(&sealed, &vectors.bytes(&at("signature"))));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(group.open(&changed), None, "byte {at}");
            assert_eq!(group.open(&sealed[..at]), None, "cut at {at}");
        }
    }
    assert_eq!(SealKey::new(seed(1)).open(&group.seal(b"x")), None);
    let empty = group.seal(b"");
    assert_eq!(empty.len(), OVERHEAD);
    assert_eq!(&group.open(&empty).unwrap()[..], b"");
    assert_ne!(nonce_of(&empty), nonce_of(&group.seal(b"")));
    assert_eq!(nonce_of(&[0; 11]), None);
}

#[test]
fn a_short_message_can_be_taken_for_the_signature_of_a_prekey_but_not_of_anything_newer() {
    // W5: what is signed says not what it is.
    let vectors = Vectors::new();
    let message = vectors.bytes::<32>("/confusion/message");
    let signature = vectors.bytes("/confusion/sig");
    assert!(key(0x11).public().verifies(&message, &signature));
    let login = login_message("alice", &message);
    assert!(!key(0x11).public().verifies(&login, &signature));
    assert!(login.len() > 32 && login.starts_with(b"dm-login-v1\0"));
}

#[test]
fn a_seed_is_words_and_words_are_a_seed() {
    let counting = Secret::new(std::array::from_fn(|at| u8::try_from(at).unwrap()));
    let words = words::of(&counting);
    assert!(words.starts_with("ABANDON AMOUNT LIAR AMOUNT EXPIRE ADJUST "), "{}", *words);
    assert!(words.ends_with(" SILVER MAN DEAL SPIN AUTO"), "{}", *words);
    assert_eq!(words.split(' ').count(), words::COUNT);
    for seed in [counting, seed(0), seed(0xff), Secret::random()] {
        let words = words::of(&seed);
        assert_eq!(words::read(&words).unwrap(), seed);
        assert_eq!(words::read(&format!("\n {} ", words.to_lowercase().replace(' ', "\t "))).unwrap(), seed);
    }
    let read = |words: &[&str]| words::read(&words.join(" "));
    let good: Vec<&str> = words.split(' ').collect();
    assert_eq!(read(&good[1..]), Err(BadWords::Count(23)));
    assert_eq!(words::read(""), Err(BadWords::Count(0)));
    let with = |place: usize, word: &'static str| {
        let mut words = good.clone();
        words[place - 1] = word;
        read(&words)
    };
    assert_eq!(with(9, "HELIOSTAT"), Err(BadWords::Unknown(9)));
    // A word that differs in one bit is always found.
    let list: Vec<&str> = include_str!("english.txt").lines().collect();
    for (place, word) in (1..).zip(&good) {
        let index = list.iter().position(|known| known.eq_ignore_ascii_case(word)).unwrap();
        for bit in 0..11 {
            assert_eq!(with(place, list[index ^ (1 << bit)]), Err(BadWords::Check((place - 1) / 6 * 6 + 1)));
        }
    }
    assert_eq!(BadWords::Check(13).to_string(), "one of the words 13 to 18 is wrong");
}

#[test]
fn the_list_of_words_is_that_of_bip_39() {
    let list = include_str!("english.txt");
    let expected = "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda";
    assert_eq!(hex::encode(Sha256::digest(list)), expected);
}

#[test]
fn a_fingerprint_is_the_same_from_either_side() {
    let (alice, bob, carol) = (key(0x11).public(), key(0x21).public(), key(0x31).public());
    let shown = fingerprint(&alice, &bob);
    assert_eq!(shown, fingerprint(&bob, &alice));
    assert_ne!(shown, fingerprint(&alice, &carol));
    assert_eq!(shown.split(' ').map(str::len).collect::<Vec<_>>(), [5; 6]);
    assert!(shown.chars().all(|c| c == ' ' || c.is_ascii_hexdigit()));
}

#[test]
fn nothing_secret_is_printed() {
    let created = group(1);
    let mut storage = Storage::default();
    storage.rotate(key(0xab));
    storage.keys.insert(1, created.key.clone());
    let printed = format!("{:?} {:?} {:?} {storage:?}", key(0xab), created, Challenge::new(&seed(0xab)));
    for secret in [seed(0xab), created.key.secret().clone()] {
        assert!(!printed.contains(&hex::encode(secret.expose())));
        assert!(!printed.contains(&format!("{:?}", secret.expose()).replace(['[', ']'], "")));
    }
}
