// The cryptography of the direct messages, and nothing else: no network, no storage, no page.
//
// Everything stands on one kind of key: an Ed25519 seed of 32 bytes. It signs, and over X25519 or the Edwards curve itself it
// agrees on secrets. Secrets are `Uint8Array`s; what travels is lowercase hex. Whatever is wrong with a value that came from
// outside is a `CryptoError`, whose message can be shown to a person.

import { ed25519, x25519 } from "@noble/curves/ed25519.js";
import { hkdf } from "@noble/hashes/hkdf.js";
import { sha256, sha512 } from "@noble/hashes/sha2.js";
import { bytesToHex, concatBytes, hexToBytes, randomBytes, utf8ToBytes } from "@noble/hashes/utils.js";

export { bytesToHex, hexToBytes, randomBytes };

const INFO = utf8ToBytes("Unmanageable");
const ZERO = Uint8Array.of(0);
const IV_BYTES = 12;
const TAG_BYTES = 16;

/** A value from outside that cannot be right. */
export class CryptoError extends Error {}

const refuse = (why) => {
  throw new CryptoError(why);
};

/** Bytes of a hex string of exactly `length` bytes, or of any whole number of them. */
export function unhex(text, length) {
  const right = typeof text === "string" && text.length % 2 === 0 && /^[0-9a-fA-F]*$/.test(text);
  if (!right || (length !== undefined && text.length !== 2 * length)) {
    refuse("a key or hex value is not valid");
  }
  return hexToBytes(text.toLowerCase());
}

// ---- keys

export const newSeed = () => randomBytes(32);

/** The public form of a seed, as hex. */
export const publicKey = (seed) => bytesToHex(ed25519.getPublicKey(seed));

/** Keys that were looked at: the same few people sign everything. */
const points = new Map();
const POINTS_MAX = 512;

/** The point of a public key: canonical, on the curve, of the prime order. Anything else could make a secret guessable. */
export function point(hex) {
  const known = points.get(hex);
  if (known !== undefined) {
    return known;
  }
  const bytes = unhex(hex, 32);
  let found;
  try {
    found = ed25519.Point.fromBytes(bytes);
  } catch {
    refuse("a key is not a point of the curve");
  }
  if (found.isSmallOrder() || !found.isTorsionFree()) {
    refuse("a key is not of the prime order");
  }
  if (points.size === POINTS_MAX) {
    points.clear();
  }
  points.set(hex, found);
  return found;
}

export const sign = (seed, bytes) => bytesToHex(ed25519.sign(bytes, seed));

/** Whether `signature` (hex) is `key`'s (hex) over `bytes`; false also for what is no signature or no key at all. */
export function verify(key, bytes, signature) {
  try {
    point(key);
    // By the strict rules, as the server: no second encoding of a signature counts.
    return ed25519.verify(unhex(signature, 64), bytes, unhex(key, 32), { zip215: false });
  } catch {
    return false;
  }
}

/** X25519 between a seed and a public key, both of Ed25519. */
export function agree(seed, key) {
  const u = ed25519.utils.toMontgomery(point(key).toBytes());
  return x25519.getSharedSecret(ed25519.utils.toMontgomerySecret(seed), u);
}

/** The secret that only the owner of a seed can make: seals what he keeps on the server. */
export const personalKey = (seed) => agree(seed, publicKey(seed));

// ---- login

/**
 * The answer to a challenge: a signature that says what it is for. The older answer, a product with the challenge, would
 * give the server any secret it asks for, the personal key first (specification 5.8, W1); this page does not know it.
 */
export function loginResponse(seed, username, challenge) {
  point(challenge);
  return sign(seed, concatBytes(utf8ToBytes("dm-login-v1"), ZERO, utf8ToBytes(username), ZERO, unhex(challenge, 32)));
}

// ---- sealing

const aes = (key, use) => crypto.subtle.importKey("raw", key, "AES-GCM", false, [use]);

/** `iv || ciphertext || tag` as hex. The IV is random; it is a parameter for the vectors alone. */
export async function seal(key, plain, iv = randomBytes(IV_BYTES)) {
  const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv }, await aes(key, "encrypt"), plain);
  return bytesToHex(concatBytes(iv, new Uint8Array(sealed)));
}

export async function open(key, sealed) {
  const bytes = unhex(sealed);
  if (bytes.length < IV_BYTES + TAG_BYTES) {
    refuse("it is too short to be sealed");
  }
  const iv = bytes.subarray(0, IV_BYTES);
  try {
    const data = bytes.subarray(IV_BYTES);
    return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-GCM", iv }, await aes(key, "decrypt"), data));
  } catch {
    return refuse("it cannot be opened with the key of this conversation");
  }
}

export const sealText = (key, text, iv) => seal(key, utf8ToBytes(text), iv);

export async function openText(key, sealed) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await open(key, sealed));
  } catch (error) {
    throw error instanceof CryptoError ? error : new CryptoError("it is not text");
  }
}

/** A text for the members of a conversation: sealed by its key, signed by its author. */
export async function write(seed, key, text) {
  const message = await sealText(key, text);
  return { message, signature: sign(seed, unhex(message)) };
}

/** The text of `sealed`, after its author's signature held; before, nothing of it is looked at. */
export async function read(author, key, sealed, signature) {
  if (!verify(author, unhex(sealed), signature)) {
    refuse("its signature is not its author's");
  }
  return openText(key, sealed);
}

// ---- X3DH

const derive = (...secrets) =>
  hkdf(sha512, concatBytes(new Uint8Array(32).fill(0xff), ...secrets), new Uint8Array(64), INFO, 32);

/** What a creator and an invitee share, on the creator's side: his identity and ephemeral seeds, the other's public keys. */
export const x3dhSend = (seed, ek, theirs) =>
  derive(agree(seed, theirs.spk), agree(ek, theirs.public_key), agree(ek, theirs.spk), agree(seed, theirs.public_key));

/** The same on the invitee's side. */
export const x3dhReceive = (seed, spk, theirs) =>
  derive(agree(spk, theirs.ik), agree(seed, theirs.ek), agree(spk, theirs.ek), agree(seed, theirs.ik));

// ---- the tree of a conversation

/** A node's secret from one child's secret and the other's public key: their product, encoded. */
const climb = (secret, key) => point(key).multiply(ed25519.utils.getExtendedPublicKey(secret).scalar).toBytes();

/** What a creator signs for one invitee, so that no server can change a key on the way (W2). */
export function setupBytes(creator, invitee, spk, ek, position, members, tree) {
  const numbers = new DataView(new ArrayBuffer(4));
  numbers.setUint16(0, position);
  numbers.setUint16(2, members);
  const keys = [creator, invitee, spk, ek].map((key) => unhex(key, 32));
  const entries = tree.map((key) => unhex(key, 32));
  return concatBytes(utf8ToBytes("dm-setup-v1"), ZERO, ...keys, new Uint8Array(numbers.buffer), ...entries);
}

/** Whether this user's prekey is his own. */
export const prekeyHolds = (user) => verify(user.public_key, unhex(user.spk, 32), user.sig);

/**
 * A new conversation with `invitees` ({ public_key, spk, sig }): its key, and what `create_dm` needs.
 *
 * `fresh` makes a seed; it is asked for the creator's leaf, then for an ephemeral key per invitee, then for the leaves of nobody.
 */
export function createGroup(seed, invitees, fresh = newSeed) {
  if (invitees.length < 1 || invitees.length > 127) {
    refuse("a conversation has 2 to 128 members");
  }
  if (!invitees.every(prekeyHolds)) {
    refuse("a prekey is not signed by its owner");
  }
  let leaves = 1;
  while (leaves < invitees.length + 1) {
    leaves *= 2;
  }
  const secrets = new Array(2 * leaves);
  secrets[leaves] = fresh();
  const eks = invitees.map(() => fresh());
  invitees.forEach((invitee, i) => (secrets[leaves + 1 + i] = x3dhSend(seed, eks[i], invitee)));
  for (let node = leaves + invitees.length + 1; node < 2 * leaves; node += 1) {
    secrets[node] = fresh();
  }
  const keys = new Array(2 * leaves);
  for (let node = 2 * leaves - 1; node > 1; node -= 1) {
    keys[node] = publicKey(secrets[node]);
    if (node % 2 === 0) {
      secrets[node / 2] = climb(secrets[node], keys[node + 1]);
    }
  }
  const keyTree = keys.slice(2);
  const own = publicKey(seed);
  const messages = invitees.map(({ public_key, spk }, i) => {
    const ek = publicKey(eks[i]);
    const signed = setupBytes(own, public_key, spk, ek, i + 1, invitees.length + 1, keyTree);
    return { ek, spk, setup_sig: sign(seed, signed) };
  });
  return { key: secrets[1], keyTree, messages };
}

/**
 * The key of a conversation that one was invited to.
 *
 * `pinned` is the identity key that is known for the sender, `spks` are one's own prekeys' seeds. Returns the key and
 * whether the creator has signed the tree. Without that signature a server can have put a key of its own into it.
 */
export function joinGroup(seed, pinned, spks, { ik, spk, ek, key_tree: tree, position, setup_sig: signature }) {
  if (ik !== pinned) {
    refuse("its sender's key is not the one known for that name");
  }
  const leaves = (tree.length + 2) / 2;
  if (!Number.isInteger(Math.log2(leaves)) || leaves < 2 || leaves > 128) {
    refuse("its tree of keys has no possible size");
  }
  if (!Number.isInteger(position) || position < 1 || position >= leaves) {
    refuse("it has no possible place in the tree");
  }
  tree.forEach(point);
  const mine = spks.find((candidate) => publicKey(candidate) === spk);
  if (mine === undefined) {
    refuse("it was made for a prekey that is not ours");
  }
  const signed = signature !== undefined && signature !== null;
  if (signed) {
    // How many were invited is signed and not delivered: the size of the tree leaves few numbers.
    const own = publicKey(seed);
    let members = Math.max(leaves / 2, position) + 1;
    while (!verify(ik, setupBytes(ik, own, spk, ek, position, members, tree), signature)) {
      members += 1;
      if (members > leaves) {
        refuse("its tree of keys was changed on the way");
      }
    }
  }
  let secret = x3dhReceive(seed, mine, { ik, ek });
  if (publicKey(secret) !== tree[leaves + position - 2]) {
    refuse("its tree of keys does not hold ours");
  }
  for (let node = leaves + position; node > 1; node = Math.floor(node / 2)) {
    secret = climb(secret, tree[(node ^ 1) - 2]);
  }
  return { key: secret, signed };
}

/** By which a key is known again after it was given up: enough for that, too little to open anything. */
export const trace = (key) => bytesToHex(sha256(concatBytes(utf8ToBytes("left"), hexToBytes(key)))).slice(0, 16);

// ---- for people

/** Thirty hexadecimal digits that two people compare by another way: the same on both sides. */
export function fingerprint(one, other) {
  const hash = sha512(concatBytes(...[one, other].sort().map((key) => unhex(key, 32))));
  return bytesToHex(hash).slice(0, 30).match(/.{5}/g).join(" ");
}
