// The page's session without the page, against a server: DM_URL. What a browser cannot be made to do is done here: servers and
// members that are not honest, by changing what arrives.

import assert from "node:assert/strict";

import * as dm from "../src/crypto.js";
import { connect } from "../src/wire.js";
import { friends, heardText, lastOf, options, pair, person, story, tell, until, url } from "./world.js";

story("a group of four reads, edits, reacts and pages, and a second device of one knows the same", options, async () => {
  const [a, b, c, d] = await Promise.all(["ann", "ben", "cat", "dan"].map((name) => person(name)));
  const id = await a.create([b.username, c.username, d.username]);
  await until("all keys", () => [b, c, d].every((it) => it.hasKey(id)));
  assert.equal(b.signedSetup(id), true);
  for (let i = 0; i < 52; i += 1) {
    await [a, b, c, d][i % 4].send(id, `number ${i}`);
  }
  await heardText(c, id, "number 51");
  const seed = d.seed.slice();
  const second = await person(d.username, undefined, seed);
  assert.ok(second.hasKey(id));
  await second.openDm(id);
  const shown = () => [...second.dms.get(id).messages.values()].map(({ text }) => text);
  assert.deepEqual([shown().length, shown()[0], second.dms.get(id).more], [50, "number 2", true]);
  await second.older(id);
  assert.deepEqual(shown(), Array.from({ length: 52 }, (_, i) => `number ${i}`));
  assert.equal(second.dms.get(id).more, false);
  await d.edit(lastOf(d, id), "edited");
  await heardText(second, id, "edited");
  await a.react(lastOf(a, id), "👍");
  await until("the reaction", () => lastOf(second, id).reactions[0]?.text === "👍");
  // Both devices of one account write to what is kept for it; neither forgets what the other knows.
  const other = await d.create([b.username, c.username]);
  await until("the other device's key", () => second.hasKey(other));
  await second.send(other, "from the second");
  await heardText(b, other, "from the second");
});

story("what is not signed by its author, or was said before, is not taken for what it claims", options, async () => {
  let change = (argument) => argument;
  const [a, b, id] = await pair((event, argument) => (event === "message_notification" ? change(argument) : argument));
  await a.send(id, "honest");
  await heardText(b, id, "honest");
  for (const lie of [{ sender: b.username }, { message: "00".repeat(40) }, { signature: "00".repeat(64) }]) {
    const { id: before } = lastOf(b, id);
    change = (it) => ({ ...it, ...lie });
    await a.send(id, "not to be shown");
    await until("the next", () => lastOf(b, id).id > before);
    assert.match(lastOf(b, id).problem, /signature/);
    assert.equal(lastOf(b, id).text, null);
  }
  change = (it) => [it, { ...it, id: it.id + 1_000_000 }];
  await a.send(id, "twice");
  await until("the repetition", () => lastOf(b, id).problem?.includes("sent before as something else"));
  assert.equal(lastOf(b, id).text, null);
});

story("a tree with a key of the server's in it is refused, and so is one without signature where that is wanted", options, async () => {
  const forge = (it) => ({ ...it, key_tree: [dm.publicKey(dm.newSeed()), ...it.key_tree.slice(1)] });
  const [a, b, id] = await pair((event, argument) => (event === "x3dh_notification" ? forge(argument) : argument));
  assert.ok(!b.hasKey(id));
  assert.match(b.heard.find(([event]) => event === "warning")[1].text, /changed on the way/);
  await until("the conversation", () => b.dms.has(id));
  await assert.rejects(b.send(id, "no"), /has not arrived/);
  await a.send(id, "to nobody");
  await until("the placeholder", () => lastOf(b, id)?.problem?.includes("has not arrived"));

  const [c, d] = [await person("cat"), await person("dan", (event, argument) => (event === "x3dh_notification" ? { ...argument, setup_sig: undefined } : argument))];
  await friends(c, d);
  assert.equal(d.signedOnly, true, "unless a person says otherwise");
  await c.create([d.username]);
  await until("the refusal", () => d.heard.some(([event, { text }]) => event === "warning" && text.includes("not signed")));
});

story("a key that changes is told, blocks, and is taken only when a person says so", options, async () => {
  const other = dm.newSeed();
  let lie = false;
  const [a, b, id] = await pair((event, argument) => (lie && event === "profile_notification" ? { ...argument, public_key: dm.publicKey(other) } : argument));
  await a.send(id, "before");
  await heardText(b, id, "before");
  const { known } = await b.people.comparison(a.username);
  assert.equal((await a.people.comparison(b.username)).known.digits, known.digits);
  b.people.confirmKey(a.username, known.key);
  lie = true;
  await a.setProfile({ biography: "new" });
  await until("the warning", () => b.people.changed.has(a.username));
  const { known: still, named, verified } = await b.people.comparison(a.username);
  assert.deepEqual([still, verified], [known, true], "the pinned one stays");
  assert.notEqual(named.digits, known.digits);
  await a.send(id, "still the old key");
  await heardText(b, id, "still the old key");
  await assert.rejects(b.acceptKey(a.username, known.key), /Compare again/, "only the one whose digits were shown");
  await b.acceptKey(a.username, named.key);
  await until("its old messages are not the new key's", () => lastOf(b, id).problem?.includes("signature"));
  // What was agreed on with the other key was not agreed on with this one.
  assert.deepEqual([b.people.verified(a.username), b.about(id).partner, b.about(id).trouble], [false, undefined, "stale"]);
  await assert.rejects(b.send(id, "to whom"), /begin a new one/);
});

story("invitations made for an old prekey still arrive, and none after it is withdrawn", options, async () => {
  let held = null;
  const [a, b] = [await person("ann"), await person("ben", (event, argument) => {
    if (event === "x3dh_notification" && !held?.through) {
      held = { argument };
      return [];
    }
    return argument;
  })];
  await friends(a, b);
  const id = await a.create([b.username]);
  await until("the invitation", () => held);
  await b.replacePrekey();
  // As after a login: the server repeats it.
  held.through = true;
  b.socket.listeners("x3dh_notification").forEach((listener) => listener(held.argument));
  await until("the key", () => b.hasKey(id));
  const c = await person("cat");
  assert.ok(await c.create([a.username, b.username]));
  await b.withdrawPrekey();
  await assert.rejects(c.create([a.username, b.username]), /cannot be invited/);
});

story("after the connection was lost everything that happened meanwhile is there", options, async () => {
  const [a, b, id] = await pair();
  await a.send(id, "first");
  await heardText(b, id, "first");
  await b.openDm(id);
  b.socket.io.engine.close();
  await until("the loss", () => !b.online);
  await a.send(id, "while away");
  await until("the return", () => b.online);
  await heardText(b, id, "while away");
  assert.deepEqual([...b.dms.get(id).messages.values()].map(({ text }) => text), ["first", "while away"]);
  await b.send(id, "back");
  await heardText(a, id, "back");
});

story("an invitation that arrives while everything is still being read is not lost", options, async () => {
  const [a, b] = [await person("ann"), await person("ben")];
  const seed = b.seed.slice();
  await b.close();
  const c = await person("cat");
  const id = await a.create([b.username, c.username]);
  const slow = connect(url);
  const ask = slow.emitWithAck.bind(slow);
  // The server repeats it a second after the login.
  slow.emitWithAck = async (event, ...parameters) => {
    if (event === "get_dms") {
      await new Promise((resolve) => slow.once("x3dh_notification", resolve));
      slow.timeout(10_000);
    }
    return ask(event, ...parameters);
  };
  const back = await person(b.username, undefined, seed, slow);
  await until("the key", () => back.hasKey(id));
  await a.send(id, "not lost");
  await heardText(back, id, "not lost");
});

tell();
