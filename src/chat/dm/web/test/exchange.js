// Reads what `heliostat dm` wrote, does a few things as the page does, and writes; `tests/dm_web.rs` looks at that.

import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";

import { hexToBytes, openText, personalKey, sealText } from "../src/crypto.js";
import { Knowledge } from "../src/knowledge.js";

// Node 18 has it under this name alone.
globalThis.crypto ??= webcrypto;

const { seed, before, after, lost, carol, key } = JSON.parse(readFileSync(0, "utf8"));
const personal = personalKey(hexToBytes(seed));
const read = async (sealed) => Knowledge.of(JSON.parse(await openText(personal, sealed)));

// This page was there all the time, and made something that the other device did not hear of.
const page = await read(before);
assert.deepEqual([[...page.keys.keys()], page.partner(1), page.pins.size, [...page.verified]], [[1, 2, 3, 4], "bob", 2, ["bob"]]);
page.enter(5, key, ["dan"], { by: "dan", signed: false });
page.setups.get(5).taken = true;
page.making({ key: "ab".repeat(32), users: ["alice", "eve"], at: 7 });

// Bob's key was forgotten there, a conversation left, and something wanted: so it is here, also when it hears of it again, and older.
const there = await read(after);
assert.ok(page.isBeyond(there) && there.isBeyond(page));
for (const copy of [there, await read(before), there]) {
  assert.deepEqual(page.merge(copy), []);
  assert.deepEqual([page.pins.has("bob"), page.verified.has("bob"), page.partner(1), page.unpaired.has(1)], [false, false, undefined, true]);
  assert.deepEqual([page.keys.has(3), page.knows(lost), page.signedOnly], [false, true, { value: true, at: 5 }]);
}
assert.ok(!there.isBeyond(page));

// The page says things of the same kinds.
page.accept("carol", carol);
page.leave(4);
page.signedOnly = { value: false, at: 6 };
console.log(await sealText(personal, JSON.stringify({ ...page.document(), calendar: [1] })));
