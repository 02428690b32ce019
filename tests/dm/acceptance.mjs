// The acceptance script of the direct messages, with the npm socket.io-client: 23 steps, each with accounts of its own, all at the
// same time but for the restart, which is the last. Run in the page's directory, where the packages are:
//
//     node ../../../../tests/dm/acceptance.mjs http://127.0.0.1:PORT
//
// The restart is asked for by a line on standard output, `stop` or `start`; the answer is a line on standard input, for
// `start` the new address. Ends with status 0, or names the step that failed and why.

import assert from "node:assert/strict";
import { createPrivateKey, randomBytes, sign as signature, webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

// Node 18 has it under this name alone.
globalThis.crypto ??= webcrypto;

const here = pathToFileURL(`${process.cwd()}/`);
const require = createRequire(new URL("package.json", here));
const { io } = require("socket.io-client");
const { Socket: Engine } = require("engine.io-client");
const dm = await import(new URL("src/crypto.js", here));
const vectors = JSON.parse(readFileSync(new URL("../vectors/dm.json", import.meta.url), "utf8"));

let url = process.argv[2];
const PATIENCE = 15_000;
const hex = (bytes) => Buffer.from(bytes).toString("hex");

// ---- keys: signing is OpenSSL's, so that two makers have to agree

const PKCS8 = Buffer.from("302e020100300506032b657004220420", "hex");
const signer = (seed) => {
  const key = createPrivateKey({ key: Buffer.concat([PKCS8, seed]), format: "der", type: "pkcs8" });
  return (bytes) => hex(signature(null, bytes, key));
};

// ---- a client

const everybody = new Set();

class Client {
  heard = [];
  #waiting = new Set();

  constructor(name, seed = randomBytes(32), spk = randomBytes(32)) {
    Object.assign(this, { name, seed, spk, sign: signer(seed) });
  }

  /** Every second client by WebSocket alone, the others by polling and its upgrade. */
  async connects() {
    const transports = everybody.size % 2 === 0 ? ["websocket"] : ["polling", "websocket"];
    this.socket = io(url, { forceNew: true, reconnection: false, transports });
    everybody.add(this);
    this.socket.onAny((event, argument) => {
      this.heard.push([event, argument]);
      this.#waiting.forEach((look) => look());
    });
    await new Promise((resolve, reject) => {
      this.socket.on("connect", resolve);
      this.socket.on("connect_error", reject);
    });
    return this;
  }

  ask(event, ...parameters) {
    return this.socket.timeout(PATIENCE).emitWithAck(event, ...parameters);
  }

  async ok(event, parameters = {}) {
    const answer = await this.ask(event, parameters);
    assert.deepEqual(Object.keys(answer).sort(), ["result", "success"], `${event}: ${JSON.stringify(answer)}`);
    assert.equal(answer.success, true);
    return answer.result;
  }

  async refused(code, event, parameters = {}) {
    const answer = await this.ask(event, parameters);
    assert.deepEqual([answer.success, answer.code], [false, code], `${event} of ${this.name}: ${JSON.stringify(answer).slice(0, 300)}`);
    assert.equal(typeof answer.result, "string");
  }

  /** What was or will be notified and fits. */
  async hears(event, fits = () => true, patience = PATIENCE) {
    const find = () => this.heard.find(([name, argument]) => name === event && fits(argument));
    if (!find()) {
      await new Promise((resolve, reject) => {
        const late = setTimeout(() => reject(new Error(`${this.name} never hears ${event}; it heard ${JSON.stringify(this.heard).slice(0, 600)}`)), patience);
        const look = () => {
          if (find()) {
            clearTimeout(late);
            this.#waiting.delete(look);
            resolve();
          }
        };
        this.#waiting.add(look);
      });
    }
    return find()[1];
  }

  count(event, fits = () => true) {
    return this.heard.filter(([name, argument]) => name === event && fits(argument)).length;
  }

  get keys() {
    return { public_key: dm.publicKey(this.seed), spk: dm.publicKey(this.spk), sig: this.sign(Buffer.from(dm.publicKey(this.spk), "hex")) };
  }

  registers() {
    return this.ok("register", { username: this.name, ...this.keys, own_storage: "kept" });
  }

  async answersTo(challenge) {
    return this.sign(Buffer.concat([Buffer.from(`dm-login-v1\0${this.name}\0`), Buffer.from(challenge, "hex")]));
  }

  async logsIn() {
    const challenge = await this.ok("login", { username: this.name });
    assert.match(challenge, /^[0-9a-f]{64}$/);
    assert.equal(await this.ok("login_challenge_response", { response: await this.answersTo(challenge) }), true);
    return this;
  }

  /** A second connection of the same account. */
  again() {
    return new Client(this.name, this.seed, this.spk);
  }

  async goes() {
    this.socket.disconnect();
  }

  /** A sealed and signed text. */
  async writes(key, text) {
    const message = await dm.sealText(key, text);
    return { message, signature: this.sign(Buffer.from(message, "hex")) };
  }

  async sends(id, key, text, more = {}) {
    assert.equal(await this.ok("send_message", { id, ...(await this.writes(key, text)), schedule: 0, delete: 0, ...more }), true);
  }
}

let number = 0;
const unique = (name) => `${name} ${process.pid} ${(number += 1)}`;

async function newcomer(name) {
  const client = await new Client(unique(name)).connects();
  assert.equal(await client.registers(), true);
  return client.logsIn();
}

/** So many accounts that are logged in. */
const people = (...names) => Promise.all(names.map(newcomer));

async function befriend(a, b) {
  await a.ok("send_friend_request", { username: b.name });
  await b.ok("ack_friend_request", { username: a.name, accept: true });
}

/** A conversation as its creator makes it: number and key. */
async function makes(creator, ...invitees) {
  const users = [];
  for (const { name } of invitees) {
    users.push(await creator.ok("get_user", { username: name }));
  }
  const group = dm.createGroup(creator.seed, users);
  const parameters = { usernames: users.map(({ username }) => username), messages: group.messages, key_tree: group.keyTree };
  return { id: await creator.ok("create_dm", parameters), key: group.key, parameters };
}

/** The key as an invitee gets it. */
async function joins(client, creator, id) {
  const invitation = await client.hears("x3dh_notification", (it) => it.id === id);
  assert.equal(invitation.sender, creator.name);
  const { key, signed } = dm.joinGroup(client.seed, dm.publicKey(creator.seed), [client.spk], invitation);
  assert.ok(signed, "the setup's signature was handed on");
  return key;
}

/** Two friends and their conversation. */
async function pair(a = "ann", b = "ben") {
  const [one, other] = await people(a, b);
  await befriend(one, other);
  const { id, key } = await makes(one, other);
  await other.hears("x3dh_notification");
  return [one, other, id, key];
}

/** Everything that was said to this client before has arrived: it was said in order. */
async function settled(client, by, id, key) {
  const text = randomBytes(8).toString("hex");
  const sealed = await by.writes(key, text);
  await by.ok("send_message", { id, ...sealed, schedule: 0, delete: 0 });
  return client.hears("message_notification", (it) => it.message === sealed.message);
}

/** Without what comes by itself: others come and go, and an invitation is repeated until it has certainly arrived. */
const said = (heard) => heard.filter(([event]) => !["profile_notification", "x3dh_notification"].includes(event));

// ---- the steps

// What makes much work waits until what has to be seen in time was seen.
let arm;
const armed = new Promise((resolve) => (arm = resolve));

const steps = {
  async 1() {
    const [a, b, c] = await Promise.all(["Aa", "Ba", "Ca"].map((name) => new Client(unique(name)).connects()));
    for (const client of [a, b, c]) {
      assert.equal(await client.registers(), true);
    }
    const account = (more) => ({ username: unique("new"), ...a.keys, own_storage: "", ...more });
    await a.refused("username_taken", "register", account({ username: a.name }));
    await a.refused("username_taken", "register", account({ username: a.name.toLowerCase() }));
    await a.refused("username_invalid", "register", account({ username: "xy" }));
    await a.refused("bad_signature", "register", account({ sig: b.keys.sig }));
    for (const bad of Object.values(vectors.bad_points)) {
      await a.refused("malformed", "register", account({ public_key: bad }));
      await a.refused("malformed", "register", account({ spk: bad }));
    }
    assert.equal(await c.ok("username_exists", { username: a.name }), true);
    assert.equal(await c.ok("username_exists", { username: a.name.toUpperCase() }), true);
    assert.equal(await c.ok("username_exists", { username: unique("nobody") }), false);
    assert.equal((await c.ask("username_exists", a.name)).result, true, "positional");
  },

  async 2() {
    const stranger = await new Client("stranger").connects();
    const closed = `get_user get_full_user get_user_list set_user create_dm get_dms get_dm set_dm leave_dm send_message get_message
      get_message_history get_pinned set_message cancel_scheduled_message add_reaction remove_reaction ping_typing send_friend_request
      get_friend_requests get_outgoing_requests ack_friend_request unfriend get_friends block_user unblock unblock_user get_blocked
      join_call leave_call`.split(/\s+/);
    assert.equal(closed.length, 30);
    for (const event of closed) {
      await stranger.refused("not_logged_in", event);
    }
    // What all others do meanwhile, this one must not hear of: looked at before the restart.
    steps.stranger = stranger;
  },

  async 3() {
    const a = await new Client(unique("login")).connects();
    await a.registers();
    await a.refused("no_such_user", "login", { username: unique("nobody") });
    await a.refused("no_challenge", "login_challenge_response", { response: "00".repeat(32) });
    const challenge = await a.ok("login", { username: a.name });
    await a.refused("wrong_response", "login_challenge_response", { response: "00".repeat(64) });
    const late = await a.answersTo(challenge);
    await a.refused("no_challenge", "login_challenge_response", { response: late });
    await a.refused("not_logged_in", "get_dms");
    await a.logsIn();
    assert.deepEqual(await a.ok("get_dms"), []);
    await a.refused("already_logged_in", "login", { username: a.name });

    const old = await a.again().connects();
    const point = dm.point(await old.ok("login", { username: old.name }));
    const { ed25519 } = await import(pathToFileURL(require.resolve("@noble/curves/ed25519.js")));
    const { scalar } = ed25519.utils.getExtendedPublicKey(old.seed);
    assert.equal(await old.ok("login_challenge_response", { response: point.multiply(scalar).toHex() }), true, "v1");

    const bad = await a.again().connects();
    for (let failure = 1; failure < 10; failure += 1) {
      await bad.refused("no_such_user", "login", { username: "nobody" });
    }
    assert.equal((await bad.ask("login", { username: "nobody" })).success, false);
    await bad.refused("locked_out", "login", { username: a.name });
  },

  async 4() {
    const [a] = await people("full");
    const full = await a.ok("get_full_user");
    const open = ["username", "public_key", "spk", "sig", "status", "biography", "profile_picture"].sort();
    assert.deepEqual(Object.keys(full).sort(), [...open, "own_storage"].sort());
    assert.deepEqual([full.own_storage, full.status, full.biography, full.spk], ["kept", "online", "", a.keys.spk]);
    assert.deepEqual(Object.keys(await a.ok("get_user", { username: a.name })).sort(), open);
    const users = await a.ok("get_user_list");
    assert.ok(users.some(({ username }) => username === a.name));
    users.forEach((user) => assert.deepEqual(Object.keys(user).sort(), open));
  },

  async 5() {
    const [a, b] = await people("profile", "watcher");
    assert.equal(await a.ok("set_user", { biography: "é".repeat(500) }), true);
    await a.refused("too_large", "set_user", { biography: "é".repeat(501) });
    await a.refused("bad_request", "set_user", { spk: b.keys.spk });
    await a.refused("bad_signature", "set_user", { spk: b.keys.spk, sig: b.keys.sig, biography: "no" });
    await a.refused("bad_request", "set_user", { status: "asleep" });
    assert.equal(await a.ok("set_user", {}), true);
    await a.ok("set_user", { status: "away", profile_picture: "#aabbcc" });
    const seen = await b.hears("profile_notification", (it) => it.username === a.name && it.status === "away");
    assert.equal(seen.biography, "é".repeat(500), "the refused one changed nothing");
    assert.ok(!("own_storage" in seen));
    await b.ok("set_user", { biography: "heard" });
    await a.hears("profile_notification", (it) => it.username === b.name && it.biography === "heard");
    assert.equal(a.count("profile_notification", (it) => it.username === a.name), 0);
    await a.ok("set_user", { spk: null, sig: null });
    assert.equal((await b.ok("get_user", { username: a.name })).spk, null);
  },

  async 6() {
    const [a, b] = await people("asker", "asked");
    const ask = { username: b.name };
    await a.ok("send_friend_request", ask);
    await b.hears("friend_request_notification", (it) => it.username === a.name);
    await a.refused("already_requested", "send_friend_request", ask);
    await b.refused("request_waiting", "send_friend_request", { username: a.name });
    await a.refused("cannot_friend_self", "send_friend_request", { username: a.name });
    await a.refused("cannot_friend", "send_friend_request", { username: unique("nobody") });
    assert.deepEqual([await a.ok("get_outgoing_requests"), await b.ok("get_friend_requests")], [[b.name], [a.name]]);
    await b.ok("ack_friend_request", { username: a.name, accept: false });
    assert.equal((await a.hears("friend_request_accept_notification")).accept, false);
    await b.refused("no_request", "ack_friend_request", { username: a.name, accept: true });
    await befriend(a, b);
    await a.hears("friend_request_accept_notification", (it) => it.username === b.name && it.accept === true);
    await a.refused("already_friends", "send_friend_request", ask);
    assert.deepEqual([await a.ok("get_friends"), await b.ok("get_friends")], [[b.name], [a.name]]);
    assert.deepEqual([await a.ok("get_outgoing_requests"), await b.ok("get_friend_requests")], [[], []]);
    await b.ok("unfriend", { username: a.name });
    await a.hears("unfriend_notification", (it) => it.username === b.name);
    await b.hears("unfriend_notification", (it) => it.username === a.name);
    await a.refused("not_friends", "unfriend", ask);
  },

  async 7() {
    const [a, b] = await people("maker", "made");
    const user = await a.ok("get_user", { username: b.name });
    const group = dm.createGroup(a.seed, [user]);
    const request = { usernames: [b.name], messages: group.messages, key_tree: group.keyTree };
    await a.refused("not_friends", "create_dm", request);
    await befriend(a, b);
    await a.refused("bad_request", "create_dm", { ...request, key_tree: request.key_tree.slice(1) });
    await a.refused("bad_request", "create_dm", { ...request, usernames: [b.name, b.name], messages: [...group.messages, ...group.messages] });
    await a.refused("bad_request", "create_dm", { ...request, usernames: [a.name] });
    await a.refused("bad_request", "create_dm", { ...request, usernames: [], messages: [] });
    await a.refused("spk_mismatch", "create_dm", { ...request, messages: [{ ...group.messages[0], spk: a.keys.spk }] });
    await a.refused("malformed", "create_dm", { ...request, key_tree: [vectors.bad_points.mixed_torsion, request.key_tree[1]] });
    await a.refused("bad_signature", "create_dm", { ...request, messages: [{ ...group.messages[0], setup_sig: a.keys.sig }] });
    const id = await a.ok("create_dm", request);
    const key = await joins(b, a, id);
    assert.equal((await b.hears("x3dh_notification")).position, 1);
    assert.deepEqual(hex(key), hex(group.key));
    await a.refused("dm_exists", "create_dm", request);
    await settled(a, b, id, key);
    assert.equal(a.count("x3dh_notification"), 0);
    // The server cannot have put a key of its own into the tree.
    const invitation = await b.hears("x3dh_notification");
    const forged = { ...invitation, key_tree: [dm.publicKey(randomBytes(32)), invitation.key_tree[1]] };
    assert.throws(() => dm.joinGroup(b.seed, a.keys.public_key, [b.spk], forged), /changed on the way/);
  },

  async 8() {
    const [a, b, c] = await people("founder", "present", "absent");
    await c.goes();
    const { id, key } = await makes(a, b, c);
    assert.equal(hex(await joins(b, a, id)), hex(key));
    for (const time of ["first", "second"]) {
      const back = await c.again().connects();
      await back.logsIn();
      await back.hears("x3dh_notification", (it) => it.id === id, 5_000);
      assert.equal(hex(await joins(back, a, id)), hex(key), time);
      await settled(back, a, id, key);
      assert.equal(back.count("x3dh_notification"), 1, time);
      await back.goes();
    }
  },

  async 9() {
    const [a, b, id, key] = await pair();
    const [c] = await people("outsider");
    await a.sends(id, key, "hello");
    const [first] = await Promise.all([a, b].map((client) => client.hears("message_notification")));
    assert.equal(await dm.read(a.keys.public_key, key, first.message, first.signature), "hello");
    assert.deepEqual([first.sender, first.dm_id, first.pinned, first.delete_timestamp, first.reactions], [a.name, id, false, null, []]);
    assert.match(first.timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$/);
    const sealed = await c.writes(key, "no");
    await c.refused("no_dm_access", "send_message", { id, ...sealed, schedule: 0, delete: 0 });
    for (const event of ["get_dm", "get_message_history", "get_pinned", "ping_typing", "set_dm", "leave_dm", "leave_call"]) {
      await c.refused("no_dm_access", event, { id, name: "no" });
    }
    await c.refused("no_dm_access", "join_call", { id, uuid: "u" });
    await c.refused("no_dm_access", "get_dm", { id: id + 1_000_000 });
    for (const [event, more] of [["get_message", {}], ["set_message", { pinned: true }], ["add_reaction", { reaction: sealed.message, signature: sealed.signature }]]) {
      await c.refused("no_message_access", event, { id: first.id, ...more });
    }
    await settled(b, a, id, key);
    assert.equal(c.count("message_notification"), 0);
  },

  async 10() {
    const [a, b, id, key] = await pair();
    const { message, signature } = await b.writes(key, "not of a");
    await a.refused("bad_signature", "send_message", { id, message, signature, schedule: 0, delete: 0 });
    const right = await a.writes(key, "text");
    await a.refused("bad_request", "send_message", { id, ...right, schedule: -1, delete: 0 });
    await a.refused("bad_request", "send_message", { id, ...right, schedule: 0, delete: -1 });
    await a.refused("bad_request", "send_message", { id, ...right, schedule: 1.5, delete: 0 });
    assert.equal(await a.ok("send_message", { id: String(id), ...right, schedule: "0", delete: 0 }), true);
  },

  async 11() {
    const [a, b, id, key] = await pair();
    const start = performance.now();
    await a.sends(id, key, "short-lived", { delete: 2 });
    const message = await b.hears("message_notification");
    assert.ok(message.delete_timestamp > message.timestamp);
    await Promise.all([a, b].map((client) => client.hears("message_delete_notification", (it) => it === message.id)));
    const after = performance.now() - start;
    assert.ok(after > 1_900 && after < 8_000, `deleted after ${after} ms`);
    await b.refused("no_message_access", "get_message", { id: message.id });
    assert.ok((await settled(b, a, id, key)).id > message.id);
  },

  async 12() {
    const [a, b, id, key] = await pair();
    const start = performance.now();
    await a.sends(id, key, "later, and not for long", { schedule: 3, delete: 2 });
    await a.sends(id, key, "in a minute", { schedule: 62 });
    const pending = Object.keys((await a.ok("get_dm", { id })).scheduled_messages);
    assert.equal(pending.length, 2);
    assert.deepEqual((await b.ok("get_dm", { id })).scheduled_messages, {});
    arm();
    const message = await b.hears("message_notification");
    assert.ok(performance.now() - start > 2_500);
    const { schedule_id } = await a.hears("scheduled_message_sent_notification", (it) => it.dm_id === id);
    await a.hears("message_notification", (it) => it.id === message.id);
    const soon = await a.hears("scheduled_soon_notification", (it) => it.dm_id === id);
    const cancel = { dm_id: id, schedule_id: soon.schedule_id };
    assert.deepEqual([String(schedule_id), String(soon.schedule_id)].sort(), pending.sort());
    await b.refused("no_schedule", "cancel_scheduled_message", cancel);
    assert.equal(await a.ok("cancel_scheduled_message", cancel), true);
    await a.refused("no_schedule", "cancel_scheduled_message", cancel);
    await a.refused("no_schedule", "cancel_scheduled_message", { dm_id: id, schedule_id });
    await b.hears("message_delete_notification", (it) => it === message.id);
    assert.ok(performance.now() - start > 4_000);
    assert.equal(b.count("scheduled_message_sent_notification") + b.count("scheduled_soon_notification"), 0);
  },

  async 14() {
    const [a, b, id, key] = await pair();
    const message = await settled(b, a, id, key);
    const change = (client, fits) => client.hears("message_change_notification", fits);
    const edited = await a.writes(key, "edited");
    await a.ok("set_message", { id: message.id, ...edited });
    const after = await change(b, (it) => it.message === edited.message);
    assert.deepEqual([after.id, after.timestamp], [message.id, message.timestamp]);
    await b.refused("not_sender", "set_message", { id: message.id, ...(await b.writes(key, "mine")) });
    await a.refused("bad_request", "set_message", { id: message.id, signature: edited.signature });
    await a.refused("bad_signature", "set_message", { id: message.id, message: edited.message, signature: message.signature });
    await b.ok("set_message", { id: message.id, pinned: true });
    await change(a, (it) => it.id === message.id && it.pinned);
    assert.deepEqual((await a.ok("get_pinned", { id })).map((it) => it.id), [message.id]);
    await b.ok("set_message", { id: message.id, pinned: false });
    await change(a, (it) => it.id === message.id && !it.pinned && it.message === edited.message);
    assert.deepEqual(await a.ok("get_pinned", { id }), []);
  },

  async 15() {
    const [a, b, id, key] = await pair();
    const message = await settled(b, a, id, key);
    const { message: reaction, signature } = await b.writes(key, "👍");
    await b.refused("bad_signature", "add_reaction", { id: message.id, reaction, signature: message.signature });
    const number = await b.ok("add_reaction", { id: message.id, reaction, signature });
    const after = await a.hears("message_change_notification", (it) => it.reactions.length === 1);
    assert.deepEqual(after.reactions, [{ id: number, sender: b.name, reaction, signature }]);
    assert.equal(await dm.read(b.keys.public_key, key, reaction, signature), "👍");
    await a.refused("no_reaction_access", "remove_reaction", { id: number });
    await b.ok("remove_reaction", { id: number });
    await a.hears("message_change_notification", (it) => it.id === message.id && it.reactions.length === 0);
  },

  async 16() {
    await armed;
    const [a, b, id, key] = await pair();
    const sealed = await Promise.all(Array.from({ length: 120 }, (_, i) => a.writes(key, `number ${i}`)));
    await Promise.all(sealed.map((one) => a.ok("send_message", { id, ...one, schedule: 0, delete: 0 })));
    for (const [count, zone] of [["count", ""], ["limit", "Z"]]) {
      const all = [];
      const sizes = [];
      for (let cursor = null; sizes.at(-1) !== 20; cursor = all.at(-1).timestamp + zone) {
        const page = await b.ok("get_message_history", { id, cursor, [count]: 50 });
        sizes.push(page.length);
        all.push(...page);
        assert.ok(sizes.length < 4, `pages of ${sizes}`);
      }
      assert.deepEqual(sizes, [50, 50, 20]);
      assert.deepEqual(all.map(({ message }) => message), sealed.map(({ message }) => message).reverse());
    }
    await a.refused("bad_request", "get_message_history", { id, cursor: "yesterday", count: 1 });
    await a.refused("bad_request", "get_message_history", { id, cursor: null, count: 101 });
  },

  async 17() {
    const [a, b, id, key] = await pair();
    assert.equal(await a.ok("ping_typing", { id }), true);
    assert.deepEqual(await b.hears("typing_notification"), { id, username: a.name });
    await settled(a, b, id, key);
    assert.equal(a.count("typing_notification"), 0);
  },

  async 18() {
    const [a, b, id, key] = await pair();
    await b.ok("set_dm", { id, name: "Ours" });
    await Promise.all([a, b].map((client) => client.hears("dm_notification", (it) => it.name === "Ours")));
    await b.ok("set_dm", { id, name: null });
    await a.hears("dm_notification", (it) => it.id === id && it.name === null);
    await a.refused("too_large", "set_dm", { id, name: "x".repeat(101) });
    await b.ok("leave_dm", { id });
    const left = await a.hears("dm_notification", (it) => it.users.length === 1);
    assert.deepEqual(left.users, [a.name]);
    const before = b.heard.length;
    await b.refused("no_dm_access", "get_dm", { id });
    await a.sends(id, key, "alone");
    await a.hears("message_notification");
    await b.refused("no_dm_access", "get_message_history", { id });
    assert.deepEqual(said(b.heard.slice(before)), []);
    assert.deepEqual(await b.ok("get_dms"), []);
    await a.ok("leave_dm", { id });
    await a.refused("no_dm_access", "get_dm", { id });
    assert.deepEqual(await a.ok("get_dms"), []);
  },

  async 19() {
    const [a, b, id] = await pair();
    assert.deepEqual(await a.ok("join_call", { id, uuid: "peer-a" }), { [a.name]: "peer-a" });
    assert.deepEqual(await b.hears("user_joined_call"), { id, username: a.name });
    await b.hears("dm_notification", (it) => it.users_in_call.length === 1);
    assert.deepEqual(await b.ok("join_call", { id, uuid: "peer-b" }), { [a.name]: "peer-a", [b.name]: "peer-b" });
    const both = await a.hears("dm_notification", (it) => it.users_in_call.length === 2);
    assert.deepEqual([[...both.users_in_call].sort(), both.call_peers[b.name]], [[a.name, b.name].sort(), "peer-b"]);
    await a.refused("bad_request", "join_call", { id, uuid: "no spaces" });
    await b.ok("leave_call", { id });
    assert.deepEqual(await a.hears("user_left_call"), { id, username: b.name });
    await b.refused("not_in_call", "leave_call", { id });
    await a.goes();
    assert.deepEqual(await b.hears("user_left_call", (it) => it.username === a.name), { id, username: a.name });
    await b.hears("dm_notification", (it) => it.users_in_call.length === 0);
  },

  async 20() {
    const [a, b, id, key] = await pair();
    const before = b.heard.length;
    await a.ok("block_user", { username: b.name });
    await a.refused("cannot_block", "block_user", { username: b.name });
    await a.refused("cannot_block", "block_user", { username: a.name });
    assert.deepEqual(await a.ok("get_blocked"), [b.name]);
    for (const client of [a, b]) {
      await client.refused("not_friends", "send_message", { id, ...(await client.writes(key, "no")), schedule: 0, delete: 0 });
      await client.refused("not_friends", "ping_typing", { id });
    }
    await b.refused("cannot_friend", "send_friend_request", { username: a.name });
    assert.deepEqual(said(b.heard.slice(before)), [], "silently");
    await a.ok("send_friend_request", { username: b.name });
    assert.deepEqual(await a.ok("get_blocked"), []);
    await b.hears("friend_request_notification", (it) => it.username === a.name);
    await b.ok("ack_friend_request", { username: a.name, accept: true });
    await settled(b, a, id, key);

    const [c] = await people("third");
    await c.ok("send_friend_request", { username: a.name });
    await a.ok("block_user", { username: c.name });
    await a.ok("ack_friend_request", { username: c.name, accept: true });
    assert.deepEqual(await a.ok("get_blocked"), []);
    assert.ok((await c.ok("get_friends")).includes(a.name));
    await a.ok("block_user", { username: c.name });
    await a.ok("unblock_user", { username: c.name });
    await a.refused("not_blocked", "unblock", { username: c.name });
  },

  async 21() {
    const [a, b, id, key] = await pair();
    const second = await a.again().connects();
    await second.logsIn();
    const message = await settled(a, b, id, key);
    await second.hears("message_notification", (it) => it.id === message.id);
    await a.ok("ping_typing", { id });
    await second.hears("typing_notification");
    await second.goes();
    await settled(a, b, id, key);
    assert.equal((await b.ok("get_user", { username: a.name })).status, "online");
    assert.equal(b.count("profile_notification", (it) => it.username === a.name && it.status === "offline"), 0);
    await a.goes();
    await b.hears("profile_notification", (it) => it.username === a.name && it.status === "offline");
    assert.equal((await b.ok("get_user", { username: a.name })).status, "offline");
  },

  async 22() {
    await armed;
    const [a] = await people("garbler");
    for (const event of ["get_user", "send_message", "create_dm", "set_user", "join_call", "login", "register"]) {
      for (const argument of [5, -1.5, [], [[1, 2], 3], null, "", true, { id: {}, usernames: 7, messages: [null], key_tree: [[]] }]) {
        const answer = await a.ask(event, argument);
        assert.equal(typeof answer.success, "boolean", `${event} of ${JSON.stringify(argument)}: ${JSON.stringify(answer)}`);
        assert.notEqual(answer.code, "internal", `${event} of ${JSON.stringify(argument)}`);
      }
    }
    assert.equal((await a.ask("get_dms")).success, true, "no argument");
    assert.equal((await a.ask("get_dms", { unknown: 1 })).success, true, "an unknown key");
    await a.refused("unknown_event", "no_such_event");
    await a.refused("bad_request", "get_user", { username: Buffer.from("00ff", "hex") });
    a.socket.emit("get_user", { username: a.name });
    a.socket.emit("ping_typing");
    assert.deepEqual(await a.ok("get_dms"), []);

    // By hand: what no library would send. Each has to be answered, or the connection is closed.
    for (const transport of ["websocket", "polling"]) {
      for (const packet of [`20["login",${"[".repeat(10_000)}${"]".repeat(10_000)}]`, `20["login",{"username":"${"x".repeat(2_000_000)}"}]`]) {
        const engine = new Engine(url, { path: "/socket.io/", transports: [transport] });
        const said = new Promise((resolve) => {
          engine.on("message", (text) => {
            if (text.startsWith("0")) {
              engine.send(packet);
            } else if (text.startsWith("30")) {
              resolve(text);
            }
          });
          engine.on("close", resolve);
        });
        engine.on("open", () => engine.send("0"));
        assert.ok(await Promise.race([said, sleep(PATIENCE, null, { ref: false })]), `${transport}: ${packet.length} bytes are answered by nothing`);
        engine.close();
      }
    }
    assert.deepEqual(await a.ok("get_dms"), [], "nobody else was disturbed");
  },

  async 23() {
    await armed;
    const [a, b, id, key] = await pair();
    const sealed = [];
    for (let i = 0; i < 1_000; i += 1) {
      sealed.push(await a.writes(key, `${i}`));
    }
    for (const one of sealed) {
      a.socket.emit("send_message", { id, ...one, schedule: 0, delete: 0 });
    }
    await b.hears("message_notification", (it) => it.message === sealed.at(-1).message);
    const got = b.heard.filter(([event]) => event === "message_notification").map(([, it]) => it);
    assert.deepEqual(got.map(({ message }) => message), sealed.map(({ message }) => message));
    got.slice(1).forEach((it, i) => assert.ok(it.id > got[i].id && it.timestamp > got[i].timestamp, `${i}`));
  },
};

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Asks whoever started this to do something with the server. */
async function wants(what) {
  console.log(what);
  return (await lines.next()).value;
}

async function step13() {
  const [a, b, id, key] = await pair();
  const [c] = await people("later");
  await c.goes();
  const group = await makes(a, b, c);
  const pinned = await settled(b, a, id, key);
  await a.ok("set_message", { id: pinned.id, pinned: true });
  await a.sends(id, key, "deleted while it is down", { delete: 1 });
  const gone = await b.hears("message_notification", (it) => it.delete_timestamp !== null);
  await a.sends(id, key, "due while it is down", { schedule: 1 });
  await a.sends(id, key, "due when it is back", { schedule: 4 });
  await wants("stop");
  await sleep(1_500);
  url = await wants("start");

  const [back, other] = await Promise.all([a, b].map(async (client) => (await client.again().connects()).logsIn()));
  await other.hears("message_notification");
  const history = await other.ok("get_message_history", { id, cursor: null, count: 50 });
  const texts = await Promise.all(history.map(({ message, signature }) => dm.read(a.keys.public_key, key, message, signature)));
  assert.deepEqual(texts.slice(0, 2), ["due when it is back", "due while it is down"]);
  assert.deepEqual([history.length, history[2].id], [3, pinned.id]);
  await other.refused("no_message_access", "get_message", { id: gone.id });
  assert.deepEqual((await back.ok("get_pinned", { id })).map((it) => it.id), [pinned.id]);
  assert.deepEqual(await back.ok("get_friends"), [b.name]);
  assert.deepEqual(await back.ok("get_dms"), [id, group.id]);
  const late = await (await c.again().connects()).logsIn();
  assert.equal(hex(await joins(late, a, group.id)), hex(group.key));
  assert.ok((await settled(other, back, id, key)).id > history[0].id);
}

/** Runs it, or names it. */
async function runs(name, step) {
  try {
    await step();
  } catch (error) {
    console.error(`step ${name} failed: ${error.stack}`);
    process.exit(1);
  }
}

const known = Object.keys(steps);
await Promise.all(known.map((name) => runs(name, steps[name])));
await runs(2, async () => {
  await steps.stranger.ok("username_exists", { username: "anybody" });
  assert.deepEqual(steps.stranger.heard, [], "somebody who is not logged in hears nothing");
});
await runs(13, step13);
console.log(`all ${known.length + 1} steps passed`);
process.exit(0);
