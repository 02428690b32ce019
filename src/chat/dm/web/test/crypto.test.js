// Every vector of the direct messages, against this page's own code: `node --test`, with the vectors' file in DM_VECTORS.

import assert from "node:assert/strict";
import { createHash, webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
import test from "node:test";

import * as dm from "../src/crypto.js";
import { seedOf, wordsOf } from "../src/words.js";

// Node 18 has it under this name alone.
globalThis.crypto ??= webcrypto;

const file = process.env.DM_VECTORS ?? new URL("../../../../../tests/vectors/dm.json", import.meta.url);
const v = JSON.parse(readFileSync(file, "utf8"));
const PEOPLE = ["alice", "bob", "carol", "dave", "erin"];
const seed = (name) => dm.hexToBytes(v[name].ik_seed);
const spk = (name) => dm.hexToBytes(v[name].spk_seed);
const bytes = (hex) => dm.hexToBytes(hex);
const refused = (f, why) => assert.throws(f, (error) => error instanceof dm.CryptoError && why.test(error.message));

/** Gives out the seeds in order. */
const from = (seeds) => () => bytes(seeds.shift());
const repeated = (...bytes) => bytes.map((byte) => byte.repeat(32));

/** The group that alice makes of these, as the vectors have it. */
function made(names, eks, fillers) {
  const fresh = from([...repeated("71"), ...repeated(...eks), ...repeated(...fillers)]);
  return dm.createGroup(seed("alice"), names.map((name) => v[name]), fresh);
}

/** What the server hands to an invitee of it. */
const invitation = (group, i) => ({ ...group.messages[i], ik: v.alice.public_key, key_tree: group.keyTree, position: i + 1 });
const joined = (name, x) => dm.joinGroup(seed(name), v.alice.public_key, [dm.newSeed(), spk(name)], x);

test("seeds give the public keys and signatures of the vectors", () => {
  for (const name of PEOPLE) {
    assert.equal(dm.publicKey(seed(name)), v[name].public_key);
    assert.equal(dm.publicKey(spk(name)), v[name].spk);
    assert.equal(dm.sign(seed(name), bytes(v[name].spk)), v[name].sig);
    assert.ok(dm.prekeyHolds(v[name]));
    assert.ok(!dm.prekeyHolds({ ...v[name], sig: v.alice.sig.replace(/^./, "0") }));
  }
});

test("keys that are no key are refused, each of them, wherever one is taken", () => {
  assert.equal(Object.keys(v.bad_points).length, 7);
  for (const [name, key] of Object.entries(v.bad_points)) {
    refused(() => dm.point(key), /a key is not/);
    refused(() => dm.agree(seed("alice"), key), /a key is not/);
    refused(() => dm.loginResponse(seed("alice"), "alice", key), /a key is not/);
    assert.ok(!dm.verify(key, bytes("00"), v.alice.sig), name);
    const group = made(["bob"], ["61"], []);
    refused(() => joined("bob", { ...invitation(group, 0), key_tree: [key, group.keyTree[1]] }), /a key is not/);
  }
  refused(() => dm.point("zz".repeat(32)), /not valid/);
  refused(() => dm.point("00"), /not valid/);
});

test("both sides agree, and on what the vectors say", () => {
  assert.equal(dm.bytesToHex(dm.agree(seed("alice"), v.bob.public_key)), v.ecdh_alice_bob);
  assert.equal(dm.bytesToHex(dm.agree(seed("bob"), v.alice.public_key)), v.ecdh_alice_bob);
  const ek = bytes(v.x3dh.ek_seed);
  assert.equal(dm.publicKey(ek), v.x3dh.ek);
  const dhs = [["alice", v.bob.spk], [ek, v.bob.public_key], [ek, v.bob.spk], ["alice", v.bob.public_key]];
  dhs.forEach(([who, key], i) => {
    assert.equal(dm.bytesToHex(dm.agree(who === ek ? ek : seed(who), key)), v.x3dh.DH[i]);
  });
  assert.equal(dm.bytesToHex(dm.x3dhSend(seed("alice"), ek, v.bob)), v.x3dh.sk);
  const theirs = { ik: v.alice.public_key, ek: v.x3dh.ek };
  assert.equal(dm.bytesToHex(dm.x3dhReceive(seed("bob"), spk("bob"), theirs)), v.x3dh.sk);
});

test("a login is answered by a signature", () => {
  assert.equal(dm.loginResponse(seed("alice"), "alice", v.login.challenge), v.login_sig.response);
  assert.ok(dm.verify(v.alice.public_key, bytes(v.login_sig.signed_bytes), v.login_sig.response));
});

test("own storage is sealed by the personal key", async () => {
  const key = dm.personalKey(seed("alice"));
  assert.equal(dm.bytesToHex(key), v.personal_key_alice);
  const { plaintext, iv, value } = v.own_storage;
  assert.equal(await dm.sealText(key, plaintext, bytes(iv)), value);
  assert.equal(await dm.openText(key, value), plaintext);
});

test("groups of two, three and five have the keys and trees of the vectors, for every member", () => {
  for (const [name, others, eks, fillers] of [
    ["group2", ["bob"], ["61"], []],
    ["group3", ["bob", "carol"], ["61", "62"], ["81"]],
    ["group5", ["bob", "carol", "dave", "erin"], ["61", "62", "63", "64"], ["81", "82", "83"]],
  ]) {
    const group = made(others, eks, fillers);
    assert.deepEqual(group.keyTree, v[name].key_tree, name);
    assert.equal(dm.bytesToHex(group.key), v[name].root, name);
    others.forEach((other, i) => {
      const theirs = joined(other, invitation(group, i));
      assert.deepEqual([dm.bytesToHex(theirs.key), theirs.signed], [v[name].root, true], `${name}: ${other}`);
    });
  }
  const tree = v.group5.key_tree.join("");
  assert.equal(createHash("sha256").update(tree, "hex").digest("hex"), v.group5.sha256_of_concatenated_key_tree);
});

test("the setup's signature is that of the vectors, over the bytes of the vectors", () => {
  const { signed_len, sha256, setup_sig } = v.ext2_setup_sig_for_bob;
  const signed = dm.setupBytes(v.alice.public_key, v.bob.public_key, v.bob.spk, v.x3dh.ek, 1, 2, v.group2.key_tree);
  assert.equal(signed.length, signed_len);
  assert.equal(createHash("sha256").update(signed).digest("hex"), sha256);
  assert.equal(made(["bob"], ["61"], []).messages[0].setup_sig, setup_sig);
});

test("a server that changes the tree is caught by the signature, and not without it", () => {
  const x = invitation(made(["bob"], ["61"], []), 0);
  const server = dm.publicKey(bytes(v.w2_tree_substitution.server_seed));
  const changed = { ...x, key_tree: [server, x.key_tree[1]] };
  refused(() => joined("bob", changed), /changed on the way/);
  const { setup_sig, ...unsigned } = changed;
  const fooled = joined("bob", unsigned);
  assert.deepEqual([dm.bytesToHex(fooled.key), fooled.signed], [v.w2_tree_substitution.root_bob_and_server, false]);
  assert.ok(setup_sig);
});

test("an invitation with anything wrong in it is refused", () => {
  const x = invitation(made(["bob", "carol"], ["61", "62"], ["81"]), 0);
  const { setup_sig, ...plain } = x;
  assert.ok(setup_sig && joined("bob", plain).key);
  for (const [change, why] of [
    [{ ik: v.carol.public_key }, /not the one known/],
    [{ key_tree: x.key_tree.slice(1) }, /no possible size/],
    [{ key_tree: [] }, /no possible size/],
    [{ key_tree: x.key_tree.slice(2) }, /no possible size|no possible place|does not hold ours/],
    [{ position: 0 }, /no possible place/],
    [{ position: 4 }, /no possible place/],
    [{ position: 2 }, /does not hold ours/],
    [{ position: 1.5 }, /no possible place/],
    [{ spk: v.carol.spk }, /not ours/],
    [{ ek: v.carol.public_key }, /does not hold ours/],
    [{ setup_sig: "00".repeat(64) }, /changed on the way/],
  ]) {
    refused(() => joined("bob", { ...plain, ...change }), why);
  }
  refused(() => dm.createGroup(seed("alice"), [{ ...v.bob, spk: v.carol.spk }]), /not signed/);
  refused(() => dm.createGroup(seed("alice"), []), /2 to 128/);
});

test("messages and reactions are those of the vectors, and nothing is read that is not signed", async () => {
  const key = bytes(v.group2.root);
  const { plaintext, iv, message, signature } = v.message;
  assert.equal(await dm.sealText(key, plaintext, bytes(iv)), message);
  assert.equal(dm.sign(seed("alice"), bytes(message)), signature);
  assert.equal(await dm.read(v.alice.public_key, key, message, signature), plaintext);
  const { reaction } = v.reaction;
  assert.equal(await dm.read(v.bob.public_key, key, reaction, v.reaction.signature), "0");
  const sealed = await dm.write(seed("bob"), key, "an answer");
  assert.equal(await dm.read(v.bob.public_key, key, sealed.message, sealed.signature), "an answer");
  for (const [author, ours, text, by, why] of [
    ["bob", key, message, signature, /signature/],
    ["alice", key, message.replace(/.$/, "0"), signature, /signature/],
    ["alice", dm.newSeed(), message, signature, /cannot be opened/],
    ["alice", key, "00", dm.sign(seed("alice"), bytes("00")), /too short/],
  ]) {
    await assert.rejects(dm.read(v[author].public_key, ours, text, by), why);
  }
  const binary = await dm.seal(key, bytes("ff"));
  await assert.rejects(dm.read(v.alice.public_key, key, binary, dm.sign(seed("alice"), bytes(binary))), /not text/);
});

test("a message of one can be another's prekey by its form, and does not become one", () => {
  const { message, sig, len } = v.confusion;
  assert.equal(bytes(message).length, len);
  assert.ok(dm.verify(v.alice.public_key, bytes(message), sig));
});

test("recovery words give the seed back, and a wrong one is named", () => {
  const counted = Uint8Array.from({ length: 32 }, (_, i) => i);
  const words = wordsOf(counted);
  assert.equal(words.slice(0, 6).join(" "), "abandon amount liar amount expire adjust");
  assert.equal(words.slice(-5).join(" "), "silver man deal spin auto");
  assert.deepEqual(seedOf(`\n ${words.join("  ").toUpperCase()}.`), counted);
  for (let i = 0; i < 50; i += 1) {
    const any = dm.newSeed();
    assert.deepEqual(seedOf(wordsOf(any).join(" ")), any);
  }
  const changed = (at, word) => words.map((old, i) => (i === at ? word : old)).join(" ");
  assert.throws(() => seedOf(words.slice(1).join(" ")), /24 words; these are 23/);
  assert.throws(() => seedOf(changed(3, "heliostat")), /“heliostat”/);
  assert.throws(() => seedOf(changed(7, words[7] === "zoo" ? "able" : "zoo")), /words 7 to 12 is wrong/);
});

test("a fingerprint is the same for both", () => {
  const one = dm.fingerprint(v.alice.public_key, v.bob.public_key);
  assert.match(one, /^([0-9a-f]{5} ){5}[0-9a-f]{5}$/);
  assert.equal(dm.fingerprint(v.bob.public_key, v.alice.public_key), one);
  assert.notEqual(dm.fingerprint(v.carol.public_key, v.alice.public_key), one);
});
