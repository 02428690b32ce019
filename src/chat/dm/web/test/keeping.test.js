// What an account knows and where it is kept: pure, or on a shelf that is a variable. No server.

import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import { EventEmitter } from "node:events";
import test from "node:test";

import * as dm from "../src/crypto.js";
import { Keeper } from "../src/keeper.js";
import { Knowledge } from "../src/knowledge.js";
import { Seen, messageThing, reactionThing } from "../src/seen.js";
import { Notebook, markOf } from "../src/vault.js";
import { Line, call } from "../src/wire.js";

// Node 18 has it under this name alone.
globalThis.crypto ??= webcrypto;

const key = (byte) => byte.repeat(32);
const copy = (known) => Knowledge.of(JSON.parse(JSON.stringify(known.document())));
const NAMES = ["constructor", "__proto__", "toString", "bob"];

test("names that every object knows are names like others", () => {
  const known = new Knowledge();
  for (const name of NAMES) {
    assert.equal(known.pins.get(name), undefined);
    known.pins.set(name, key("ab"));
    known.verified.add(name);
  }
  const again = copy(known);
  assert.deepEqual([[...again.pins.keys()], [...again.verified]], [NAMES, NAMES]);
  again.accept("__proto__", key("cd"));
  const third = new Knowledge();
  assert.deepEqual(third.merge(copy(again)), []);
  assert.deepEqual([third.pins.get("__proto__"), third.forgotten.get("__proto__").times, third.verified.has("__proto__")], [key("cd"), 1, false]);
});

test("what is odd spoils nothing but itself, and what others keep stays", () => {
  const known = Knowledge.of({
    privSPK: key("01"), oldSPKs: [key("02"), 5], sharedKeys: { 1: key("03"), no: key("04"), 2: "short", 1.5: key("05") },
    pins: { ann: key("06"), ben: 1 }, verified: ["ann", "ben"], pairs: { 1: "ann", 2: null }, makings: [{}], left: null, calendar: { a: 1 },
  });
  assert.deepEqual([[...known.keys], [...known.pins], [...known.verified], known.prekeys], [[[1, key("03")]], [["ann", key("06")]], ["ann"], [key("01"), key("02")]]);
  assert.equal(known.partner(1), "ann");
  assert.deepEqual(known.document().calendar, { a: 1 });
});

test("copies that meet in any order come to know the same, and an older one undoes nothing", () => {
  const [one, other] = [new Knowledge(), new Knowledge()];
  one.pins.set("ann", key("aa")).set("ben", key("bb"));
  one.verified.add("ann");
  one.enter(1, key("01"), ["ann"], { by: "ann", signed: true });
  one.enter(2, key("02"), [], { by: "cat", signed: false });
  const before = copy(one);
  assert.deepEqual([other.merge(before), other.isBeyond(one), one.isBeyond(other)], [[], false, false]);
  other.accept("ann", key("cc"));
  other.leave(2);
  other.signedOnly = { value: false, at: 3 };
  assert.ok(other.isBeyond(before));
  one.merge(copy(other));
  for (const known of [one, other]) {
    known.merge(before);
    assert.deepEqual([known.pins.get("ann"), known.verified.has("ann"), known.partner(1), known.unpaired.has(1)], [key("cc"), false, undefined, true]);
    assert.deepEqual([known.keys.has(2), known.setups.has(2), known.signedOnly.value], [false, false, false]);
  }
  assert.deepEqual([one.isBeyond(other), other.isBeyond(one)], [false, false]);
  // Two that were met as different people, and nobody said which is right.
  other.pins.set("ben", key("dd"));
  assert.deepEqual([one.merge(copy(other)), one.pins.get("ben"), one.isBeyond(other)], [["ben"], key("bb"), false]);
  // One key has one number.
  const thief = new Knowledge();
  thief.keys.set(9, key("01")).set(8, key("02"));
  one.merge(thief);
  assert.deepEqual([...one.keys.keys()], [1]);
  assert.ok(one.knows(key("01")) && one.knows(key("02")) && !one.knows(key("03")));
});

test("the published prekey is found among all copies", () => {
  const [one, other] = [new Knowledge(), new Knowledge()];
  one.rotate(key("01"));
  other.rotate(key("02"));
  one.merge(copy(other), (prekey) => prekey === key("01"));
  assert.deepEqual([one.prekey, one.oldPrekeys], [key("01"), [key("02")]]);
  one.merge(new Knowledge());
  assert.equal(one.prekey, key("01"));
});

test("what nobody needs is forgotten when there is no room, and what a person said is not", () => {
  const known = new Knowledge();
  known.pins.set("ann", key("aa")).set("ben", key("bb")).set("cat", key("cc")).set("dan", key("dd"));
  known.verified.add("ben");
  known.accept("cat", key("ce"));
  known.enter(1, key("01"), ["ann"], { by: "ann", signed: true });
  known.enter(2, key("02"), ["dan"], { by: "dan", signed: true });
  known.prune(new Set([1]), new Set(["ann"]));
  assert.deepEqual([[...known.pins.keys()], [...known.keys.keys()], known.knows(key("02"))], [["ann", "ben", "cat"], [1], true]);
});

test("what was seen is known again as what it was, also where two pages saw different things", () => {
  const nonce = (byte) => byte.repeat(12);
  const seen = new Seen();
  assert.equal(seen.look(messageThing(1), "ann", nonce("aa")), "first");
  assert.equal(seen.look(messageThing(1), "ann", nonce("AA")), "again");
  assert.equal(seen.look(messageThing(2), "ann", nonce("aa")), "repeats");
  assert.equal(seen.look(messageThing(1), "ben", nonce("bb")), "repeats", "it changes hands");
  assert.equal(seen.look(reactionThing(5, 1), "ben", nonce("cc")), "first");
  assert.equal(seen.look(reactionThing(5, 2), "ben", nonce("cc")), "repeats");
  assert.equal(seen.look(messageThing(5), "ben", nonce("cc")), "repeats");
  const page = Seen.of(JSON.parse(JSON.stringify(seen.document())));
  assert.equal(page.look(messageThing(1), "ann", nonce("dd")), "first");
  assert.equal(page.look(messageThing(1), "ann", nonce("aa")), "older");
  seen.merge(page);
  assert.equal(seen.look(messageThing(1), "ann", nonce("aa")), "older");
  page.merge(Seen.of([[messageThing(1), "ann", [nonce("aa")]]]));
  assert.equal(page.look(messageThing(1), "ann", nonce("dd")), "again", "a page that knows less brings nothing back");
  for (let id = 10; id < 2_020; id += 1) {
    seen.look(messageThing(id), "ann", id.toString(16).padStart(24, "0"));
  }
  assert.equal(seen.document().length, 2_000);
  assert.equal(seen.look(messageThing(9_999), "ann", (2_000).toString(16).padStart(24, "0")), "repeats");
});

/** Stops time; returns what lets some of it pass. Node 18 has nothing for it that later ones have. */
function clock(t) {
  const { setTimeout: set, clearTimeout: clear } = globalThis;
  const due = new Map();
  let now = 0;
  let last = 0;
  globalThis.setTimeout = (work, wait) => {
    last += 1;
    due.set(last, { at: now + wait, work });
    return last;
  };
  globalThis.clearTimeout = (id) => due.delete(id);
  t.after(() => Object.assign(globalThis, { setTimeout: set, clearTimeout: clear }));
  return (ms) => {
    const end = now + ms;
    const next = () => [...due].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at)[0];
    for (let one = next(); one !== undefined; one = next()) {
      due.delete(one[0]);
      now = one[1].at;
      one[1].work();
    }
    now = end;
  };
}

/** Everything that waits for nothing has happened. */
const settle = async () => {
  for (let i = 0; i < 20; i += 1) {
    await new Promise((resolve) => setImmediate(resolve));
  }
};

/** A server that keeps one thing, and a shelf that does. */
function places(seed) {
  const server = { spk: null, own_storage: "", fails: 0 };
  const shelf = { kept: { username: "ann", mark: markOf(seed), state: null } };
  shelf.get = async () => shelf.kept && { ...shelf.kept };
  shelf.put = async (kept) => (shelf.kept = kept);
  const warnings = [];
  const keeper = (more = {}) => new Keeper({
    username: "ann",
    seed,
    notebook: new Notebook("ann", seed, shelf),
    ask: async (event, parameters) => {
      if (server.fails > 0) {
        server.fails -= 1;
        throw new Error("no line");
      }
      return event === "get_full_user" ? { username: "ann", ...server } : Object.assign(server, parameters);
    },
    warn: (text) => warnings.push(text),
    heard: () => {},
    needed: () => null,
    ...more,
  });
  return { server, shelf, warnings, keeper };
}

test("after a restart the browser knows what it knew, whatever the server hands out", async () => {
  const seed = dm.newSeed();
  const { server, shelf, keeper } = places(seed);
  const first = keeper();
  await first.load();
  first.knowledge.pins.set("ben", key("bb"));
  await first.save();
  const old = server.own_storage;
  first.knowledge.accept("ben", key("cc"), 5);
  first.knowledge.enter(1, key("01"), ["ben"], { by: "ben", signed: true });
  first.seen(1).look(messageThing(1), "ben", key("aa"));
  first.learnt();
  await first.close(false);
  server.own_storage = old;
  const second = keeper();
  await second.load();
  await second.read();
  assert.deepEqual([second.knowledge.pins.get("ben"), second.knowledge.keys.get(1)], [key("cc"), key("01")]);
  assert.equal(second.seen(1).look(messageThing(2), "ben", key("aa")), "repeats");
  // Two pages of one browser, of which one knows less: neither forgets.
  const third = keeper({ notebook: new Notebook("ann", seed, shelf) });
  third.knowledge.pins.set("cat", key("ee"));
  third.seen(2).look(messageThing(3), "cat", key("ab"));
  await third.close(false);
  await second.close(true);
  const last = keeper();
  await last.load();
  assert.deepEqual([last.knowledge.pins.get("ben"), last.knowledge.pins.get("cat")], [key("cc"), key("ee")]);
  assert.equal(last.seen(2).look(messageThing(4), "cat", key("ab")), "repeats");
  await last.close(false);
});

test("what cannot be read is not written over, and another account of the name keeps its place", async () => {
  const seed = dm.newSeed();
  const { server, shelf, warnings, keeper } = places(seed);
  server.own_storage = await dm.sealText(dm.newSeed(), "{}");
  const one = keeper();
  await one.load();
  await assert.rejects(one.save(), /cannot be opened/);
  assert.equal(warnings.length, 0);
  shelf.kept.state = `00${"11".repeat(40)}`;
  const damaged = keeper();
  await damaged.load();
  assert.match(warnings[0], /cannot be read/);
  await damaged.close(false);
  assert.equal(shelf.kept.state, `00${"11".repeat(40)}`);
  const other = { username: "ann", mark: markOf(dm.newSeed()), state: "ff" };
  shelf.kept = other;
  const stranger = keeper();
  await stranger.load();
  stranger.note();
  await stranger.close(false);
  assert.equal(shelf.kept, other);
  await one.close(false);
});

test("a write that fails is tried again, later each time, and told once", async (t) => {
  const tick = clock(t);
  const { server, warnings, keeper } = places(dm.newSeed());
  const one = keeper();
  server.fails = 3;
  one.knowledge.enter(1, key("01"), ["ben"], { by: "ben", signed: true });
  one.learnt();
  for (const [wait, fails] of [[400, 2], [2_000, 1], [3_999, 1], [1, 0], [7_999, 0]]) {
    tick(wait);
    await settle();
    assert.equal(server.fails, fails);
    assert.equal(server.own_storage, "");
  }
  tick(1);
  // Sealing takes as long as it takes.
  while (server.own_storage === "") {
    await settle();
  }
  assert.equal(warnings.length, 1);
  await one.close(false);
});

test("when there is no room, what is not needed goes, a person hears of it, and the rest is not lost", async () => {
  const { server, warnings, keeper } = places(dm.newSeed());
  const one = keeper({ needed: () => ({ ids: new Set([1]), names: new Set() }) });
  one.knowledge.enter(1, key("01"), ["ben"], { by: "ben", signed: true });
  for (let id = 2; id < 3_200; id += 1) {
    one.knowledge.keys.set(id, id.toString(16).padStart(64, "0"));
  }
  await one.save();
  assert.deepEqual([one.knowledge.keys.size, one.knowledge.keys.has(1), warnings], [1, true, []]);
  assert.ok(server.own_storage.length < 200_000);
  for (let i = 0; i < 3_000; i += 1) {
    one.knowledge.pins.set(`somebody ${i}`, key("aa"));
    one.knowledge.verified.add(`somebody ${i}`);
  }
  const before = server.own_storage;
  await assert.rejects(one.save(), /more to keep than the server takes/);
  assert.equal(server.own_storage, before);
  assert.match(warnings[0], /nearly full/);
  await one.close(false);
});

/** As much of a connection as a line needs. */
class Wire extends EventEmitter {
  connected = false;
  id = 0;
  off = this.removeListener;
  connects = 0;

  connect() {
    this.connected = true;
    this.connects += 1;
    this.id = this.connects;
    this.emit("connect");
    return this;
  }
  disconnect() {
    if (this.connected) {
      this.connected = false;
      this.emit("disconnect");
    }
    return this;
  }
}

test("a connection that never holds is tried later each time, one that held at once, and one that is hopeless not at all", async (t) => {
  const tick = clock(t);
  const socket = new Wire();
  const told = [];
  let hopeless = null;
  const line = new Line(socket, {
    begin: async () => {
      if (hopeless) {
        throw hopeless;
      }
    },
    lost: (error, trying) => told.push([error?.message ?? null, trying]),
    hopeless: (error) => error === hopeless,
  });
  await line.open();
  for (const wait of [1_000, 2_000, 4_000, 8_000]) {
    socket.disconnect();
    tick(wait - 1);
    assert.ok(!socket.connected);
    tick(1);
    assert.ok(socket.connected);
    await settle();
  }
  tick(30_000);
  socket.disconnect();
  tick(1_000);
  assert.ok(socket.connected);
  await settle();
  hopeless = new Error("nobody");
  socket.disconnect();
  tick(1_000_000);
  await settle();
  assert.deepEqual([socket.connected, told.at(-1)], [false, ["nobody", false]]);
  const { connects } = socket;
  tick(1_000_000);
  assert.equal(socket.connects, connects);
  hopeless = null;
  line.again();
  await settle();
  assert.ok(socket.connected);
  line.close();
  tick(1_000_000);
  assert.ok(!socket.connected);
});

test("what came too soon is asked again where that changes nothing", async (t) => {
  const tick = clock(t);
  const asked = [];
  const socket = { timeout: () => socket, emitWithAck: async (event) => {
    asked.push(event);
    return asked.length % 2 === 1 ? { success: false, result: "no", code: "rate_limited" } : { success: true, result: 1 };
  } };
  const waits = call(socket, "set_user");
  await settle();
  tick(500);
  assert.equal(await waits, 1);
  await assert.rejects(call(socket, "send_message"), { code: "rate_limited" });
  assert.deepEqual(asked, ["set_user", "set_user", "send_message"]);
});
