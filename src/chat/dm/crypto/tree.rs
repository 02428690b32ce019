//! A group's key: the setup of an asynchronous ratcheting tree (spec 5.6).
//!
//! A binary tree in a heap's order: the root is node 1, the children of `k` are `2k` and `2k + 1`, and leaf `i` of `width` is node
//! `width + i`. Every node has a secret, which is the seed of a key; an inner node's is what its children's keys make of each
//! other, `encode(d · P)`, the same from either child. Leaf 0 is the creator's, leaf `i` what creator and invitee `i` agreed on by
//! X3DH, the rest is thrown away. The root's secret is the group's key. Published are all public keys but the root's, level by
//! level: so node `k` is entry `k − 2`, and every member climbs from its own leaf with the neighbours' public keys.
//!
//! Nothing in the protocol says that the published tree is the creator's. Whoever delivers it can put a key of their own in place of a
//! neighbour's, and the member climbs to a key that they know (spec 5.8, W2). Hence the setup's signature, and [`receive`] to
//! look at it.

use crate::crypto::Secret;

use super::x3dh::{self, Bundle};
use super::{PublicKey, SealKey, SecretKey};

/// How many members there may be, the creator included.
pub const MEMBERS_MAX: usize = 128;
/// What a setup's signature begins with, so that it is no signature of anything else.
const PREFIX: &[u8] = b"dm-setup-v1\0";

/// What a creator says about the group to one invitee, and signs (EXT-2).
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The creator's identity key.
    pub creator: &'a PublicKey,
    /// The invitee's identity key.
    pub invitee: &'a PublicKey,
    /// The invitee's prekey that was used.
    pub spk: &'a PublicKey,
    /// The key that the creator made for this invitee.
    pub ek: &'a PublicKey,
    /// The invitee's leaf, from 1.
    pub position: u16,
    /// How many members there are at creation, the creator included.
    pub members: u16,
    /// The published tree.
    pub tree: &'a [PublicKey],
}

/// What a setup's signature is over: prefix, both identity keys, prekey, ephemeral key, position and number of members
/// (16 bits, big-endian), tree.
#[must_use]
pub fn setup_message(setup: &Setup<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX.len() + 4 * 32 + 4 + setup.tree.len() * 32);
    out.extend_from_slice(PREFIX);
    for key in [setup.creator, setup.invitee, setup.spk, setup.ek] {
        out.extend_from_slice(key.as_bytes());
    }
    out.extend_from_slice(&setup.position.to_be_bytes());
    out.extend_from_slice(&setup.members.to_be_bytes());
    for key in setup.tree {
        out.extend_from_slice(key.as_bytes());
    }
    out
}

/// The number of leaves for so many members: the smallest power of two that has room. From 2 to [`MEMBERS_MAX`] members.
#[must_use]
pub fn width(members: usize) -> Option<usize> {
    (2..=MEMBERS_MAX).contains(&members).then(|| members.next_power_of_two())
}

/// The length of the published tree of so many members.
#[must_use]
pub fn published(members: usize) -> Option<usize> {
    width(members).map(|width| 2 * width - 2)
}

/// What one invitee is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The key made for this invitee.
    pub ek: PublicKey,
    /// The invitee's prekey that was used.
    pub spk: PublicKey,
    /// The creator's signature over [`setup_message`].
    pub setup_sig: [u8; 64],
}

/// A group that was made.
#[derive(Debug, Clone)]
pub struct Created {
    /// The key of everything that is said in it.
    pub key: SealKey,
    /// The published tree.
    pub tree: Vec<PublicKey>,
    /// What each invitee is sent, in the order of the invitees.
    pub messages: Vec<Message>,
}

/// Why a group is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// There must be somebody to invite, and not more than a group may have.
    #[error("a group has 2 to {MEMBERS_MAX} members")]
    Size,
    /// This invitee's prekey is not signed by its identity key: somebody else made it.
    #[error("the prekey of invitee {0} is not signed by its owner")]
    Prekey(usize),
}

/// Makes a group. `fresh` gives random seeds: leaf 0 first, then an ephemeral key for each invitee, then the leaves that
/// belong to nobody.
///
/// # Errors
/// [`CreateError`] when nobody or too many are invited, or a prekey is not its owner's.
pub fn create(
    own: &SecretKey,
    invitees: &[Bundle],
    mut fresh: impl FnMut() -> Secret<32>,
) -> Result<Created, CreateError> {
    let members = invitees.len() + 1;
    let (Some(width), Ok(count)) = (width(members), u16::try_from(members)) else {
        return Err(CreateError::Size);
    };
    if let Some(at) = invitees.iter().position(|invitee| !invitee.is_signed()) {
        return Err(CreateError::Prekey(at));
    }
    let mut level = vec![SecretKey::new(&fresh())];
    let ephemeral: Vec<SecretKey> = invitees.iter().map(|_| SecretKey::new(&fresh())).collect();
    let leaves = ephemeral.iter().zip(invitees).map(|(ek, to)| SecretKey::new(&x3dh::send(own, ek, to)));
    level.extend(leaves);
    level.resize_with(width, || SecretKey::new(&fresh()));
    // From the leaves up: what is published stands level by level, the highest first.
    let mut levels = Vec::new();
    let root = loop {
        levels.push(level.iter().map(SecretKey::public).collect::<Vec<_>>());
        let secrets: Vec<Secret<32>> = level
            .chunks_exact(2)
            .filter_map(|pair| <&[SecretKey; 2]>::try_from(pair).ok())
            .map(|[left, right]| left.multiply(&right.public()))
            .collect();
        if let [root] = &secrets[..] {
            break root.clone();
        }
        level = secrets.iter().map(SecretKey::new).collect();
    };
    let tree: Vec<PublicKey> = levels.into_iter().rev().flatten().collect();
    let creator = own.public();
    let messages = (1..).zip(ephemeral.iter().zip(invitees)).map(|(position, (ephemeral, to))| {
        let (ek, spk) = (ephemeral.public(), to.prekey);
        let setup = Setup {
            creator: &creator,
            invitee: &to.identity,
            spk: &spk,
            ek: &ek,
            position,
            members: count,
            tree: &tree,
        };
        Message { ek, spk, setup_sig: own.sign(&setup_message(&setup)) }
    });
    let messages = messages.collect();
    Ok(Created { key: SealKey::new(root), tree, messages })
}

/// What an invitee was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The creator's identity key, as it was delivered.
    pub creator: PublicKey,
    /// The prekey that was used.
    pub spk: PublicKey,
    /// The key that the creator made for this invitee.
    pub ek: PublicKey,
    /// The invitee's leaf.
    pub position: u16,
    /// The published tree.
    pub tree: Vec<PublicKey>,
    /// The creator's signature, if there is one: the original's clients do not sign.
    pub setup_sig: Option<[u8; 64]>,
}

/// A group that was received.
#[derive(Debug, Clone)]
pub struct Received {
    /// The key of everything that is said in it.
    pub key: SealKey,
    /// How many members the creator signed for; nothing without signature.
    pub members: Option<u16>,
}

/// Why an invitation is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The creator's key is not the one that is known for that name.
    #[error("the key of the creator is not the known one")]
    Creator,
    /// The prekey is none of one's own, neither now nor before.
    #[error("the prekey is not one's own")]
    Prekey,
    /// No group has a tree of this length.
    #[error("the tree has an impossible length")]
    Tree,
    /// There is no such leaf, or it is the creator's.
    #[error("there is no such leaf")]
    Position,
    /// The leaf in the tree is not what was agreed on.
    #[error("the leaf in the tree is another's")]
    Leaf,
    /// The creator signed something else.
    #[error("the creator signed another setup")]
    Signature,
    /// Signed setups are wanted, and this one is not.
    #[error("the setup is not signed")]
    Unsigned,
}

/// Climbs to the group's key, after everything that can be checked was (spec 5.6).
///
/// `prekeys` are the own ones, newest first; `pinned` is the key that is known for the creator; with `signed_only`, a setup
/// without signature is not believed.
///
/// # Errors
/// [`ReceiveError`], the first check that fails.
pub fn receive(
    own: &SecretKey,
    prekeys: &[SecretKey],
    pinned: &PublicKey,
    invitation: &Invitation,
    signed_only: bool,
) -> Result<Received, ReceiveError> {
    let Invitation { creator, spk, ek, position, tree, setup_sig } = invitation;
    if creator != pinned {
        return Err(ReceiveError::Creator);
    }
    let prekey = prekeys.iter().find(|prekey| prekey.public() == *spk).ok_or(ReceiveError::Prekey)?;
    let width = (tree.len() + 2) / 2;
    if published(width) != Some(tree.len()) {
        return Err(ReceiveError::Tree);
    }
    let leaf = usize::from(*position);
    if leaf == 0 || leaf >= width {
        return Err(ReceiveError::Position);
    }
    let members = match setup_sig {
        Some(signature) => {
            // How many members there were is not delivered; the tree's length leaves few numbers, and one is signed.
            let invitee = own.public();
            let signed = |members: &u16| {
                let (members, position) = (*members, *position);
                let setup = Setup { creator, invitee: &invitee, spk, ek, position, members, tree };
                creator.verifies(&setup_message(&setup), signature)
            };
            let possible = (width / 2 + 1).max(leaf + 1)..=width;
            Some(possible.filter_map(|n| u16::try_from(n).ok()).find(signed).ok_or(ReceiveError::Signature)?)
        }
        None if signed_only => return Err(ReceiveError::Unsigned),
        None => None,
    };
    let mut node = width + leaf;
    let entry = |node: usize| tree.get(node.wrapping_sub(2)).ok_or(ReceiveError::Tree);
    let mut secret = x3dh::receive(own, prekey, creator, ek);
    if SecretKey::new(&secret).public() != *entry(node)? {
        return Err(ReceiveError::Leaf);
    }
    while node > 1 {
        secret = SecretKey::new(&secret).multiply(entry(node ^ 1)?);
        node /= 2;
    }
    Ok(Received { key: SealKey::new(secret), members })
}
