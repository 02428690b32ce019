// The page's session on a server that lies, loses answers, and hands out what was once true.

import assert from "node:assert/strict";

import { titleOf } from "../src/conversation.js";
import * as dm from "../src/crypto.js";
import { connect } from "../src/wire.js";
import { friends, heardText, lastOf, lying, options, pair, person, story, tell, until, url } from "./world.js";

const warned = (session, what) => session.heard.some(([event, { text }]) => event === "warning" && what.test(text));
const stored = async (session) => {
  const { result } = await session.socket.timeout(10_000).emitWithAck("get_full_user", {});
  return JSON.parse(await dm.openText(dm.personalKey(session.seed), result.own_storage));
};
const refusal = (code) => ({ success: false, result: "no", code });

story("a number that is taken takes no key away, and nothing is said under it", options, async () => {
  const [a, b, id] = await pair();
  const c = await person("cat");
  lying(a.socket, async (event, parameters, ask) => (event === "create_dm" ? { success: true, result: id } : ask()));
  await assert.rejects(a.create([b.username, c.username]), /number that is taken/);
  assert.equal(a.about(id).partner, b.username);
  await a.send(id, "under the key it had");
  await heardText(b, id, "under the key it had");
  await until("nothing waits for it", async () => (await stored(a)).makings.length === 0);
});

story("with whom one talks is what was agreed on, whatever the server or a member says", options, async () => {
  const [a, b, id] = await pair();
  assert.deepEqual([a.about(id), b.about(id)], [
    { partner: b.username, by: a.username, trouble: null },
    { partner: a.username, by: a.username, trouble: null },
  ]);
  await until("all devices and clients know", async () => (await stored(b)).pairs[id] === a.username);
  // Made by somebody else, who then left or says so, under the other one's name.
  const mallory = await person("mallory");
  const group = await mallory.create([a.username, b.username]);
  await until("the key", () => a.hasKey(group) && a.dms.has(group));
  await mallory.rename(group, b.username);
  await mallory.leave(group);
  await until("two are left", () => a.dms.get(group)?.users.length === 2);
  assert.deepEqual(a.about(group), { partner: undefined, by: mallory.username, trouble: null });
  assert.equal(titleOf(a, a.dms.get(group)), `Group “${b.username}”: ${b.username}`);
  assert.equal(titleOf(a, a.dms.get(id)), b.username);
  // A third one among two.
  a.dms.get(id).users.push(mallory.username);
  assert.equal(a.about(id).trouble, "strangers");
  await assert.rejects(a.send(id, "to two"), /others are in it/);
  await assert.rejects(a.edit({ id: 1, dm: id }, "to two"), /others are in it/);
  await assert.rejects(a.react({ id: 1, dm: id }, "👍"), /others are in it/);
});

story("an invitation that comes again under another number is none, nor is one to what was left", options, async () => {
  let invitation = null;
  const [a, b, id] = await pair((event, argument) => {
    invitation = event === "x3dh_notification" ? argument : invitation;
    return argument;
  });
  const again = (more) => b.socket.listeners("x3dh_notification").forEach((listener) => listener({ ...invitation, ...more }));
  again({ id: id + 1_000_000 });
  await until("the refusal", () => warned(b, /repeated by the server/));
  assert.ok(!b.hasKey(id + 1_000_000));
  for (const odd of ["7", 1.5, -1, "__proto__"]) {
    b.heard.length = 0;
    again({ id: odd });
    await until("the refusal", () => warned(b, /its number is none/));
  }
  await b.leave(id);
  b.heard.length = 0;
  again({ id: id + 2_000_000 });
  await until("the refusal", () => warned(b, /repeated by the server/));
  assert.ok(!b.hasKey(id + 2_000_000));
  await until("it is gone there, too", async () => (await stored(b)).sharedKeys[id] === undefined);
  assert.ok(a.hasKey(id));
});

story("the key that two compare is the known one from then on", options, async () => {
  const other = dm.publicKey(dm.newSeed());
  let lie = false;
  const [a, b] = [await person("ann"), await person("ben")];
  lying(a.socket, async (event, parameters, ask) => {
    const answer = await ask();
    return lie && event === "get_user" ? { ...answer, result: { ...answer.result, public_key: other } } : answer;
  });
  const { known } = await a.people.comparison(b.username);
  lie = true;
  await assert.rejects(a.create([b.username]), /has changed/);
  const after = await a.people.comparison(b.username);
  assert.deepEqual([after.known, after.named.key], [known, other]);
  assert.throws(() => a.people.confirmKey(b.username, other), /Compare again/);
  const c = await person("cat");
  lying(c.socket, async (event, parameters, ask) => (event === "get_user" ? { success: true, result: { ...(await ask()).result, public_key: `01${"00".repeat(31)}` } } : ask()));
  await assert.rejects(c.people.comparison(b.username), /prime order/);
  assert.equal(c.people.pin(b.username), undefined);
});

story("a key that the server does not take at once is written until it does", options, async () => {
  let refused = 0;
  const [a, b] = [await person("ann"), await person("ben")];
  await friends(a, b);
  lying(b.socket, async (event, parameters, ask) => {
    if (event === "set_user" && refused < 2) {
      refused += 1;
      return refusal("internal");
    }
    return ask();
  });
  const id = await a.create([b.username]);
  await until("the key", () => b.hasKey(id));
  await until("it is there", async () => (await stored(b)).sharedKeys[id] !== undefined);
  assert.equal(refused, 2);
});

story("an invitation whose sender cannot be asked for at once is looked at again", options, async () => {
  let asked = 0;
  const [a, b, c] = await Promise.all(["ann", "ben", "cat"].map((name) => person(name)));
  lying(b.socket, async (event, parameters, ask) => {
    asked += event === "get_user" && parameters.username === a.username;
    return event === "get_user" && asked === 1 ? refusal("internal") : ask();
  });
  const id = await a.create([b.username, c.username]);
  await until("the failure", () => asked === 1);
  await until("the key", () => b.hasKey(id));
  assert.equal(b.about(id).by, a.username);
});

story("a conversation whose number was lost with the answer is found, now or by the next page", options, async () => {
  const [a, b] = [await person("ann"), await person("ben")];
  await friends(a, b);
  lying(a.socket, async (event, parameters, ask) => {
    const answer = await ask();
    if (event === "create_dm") {
      throw new Error("lost");
    }
    return answer;
  });
  const id = await a.create([b.username]);
  assert.equal(a.about(id).partner, b.username);
  await a.send(id, "found");
  await heardText(b, id, "found");
  // And where nothing more could be asked.
  let ended = false;
  const c = await person("cat");
  lying(c.socket, async (event, parameters, ask) => {
    if (ended) {
      throw new Error("no line");
    }
    await (event === "create_dm" ? ask() : null);
    ended = event === "create_dm";
    return ended ? Promise.reject(new Error("lost")) : ask();
  });
  const seed = c.seed.slice();
  await assert.rejects(c.create([a.username, b.username]), /does not answer/);
  const next = await person(c.username, undefined, seed);
  const [group] = [...next.dms.keys()];
  assert.ok(next.hasKey(group));
  await next.send(group, "not lost");
  await heardText(b, group, "not lost");
});

story("what another device wrote over is written again", options, async () => {
  const [a, b, id] = await pair();
  const before = (await b.socket.timeout(10_000).emitWithAck("get_full_user", {})).result.own_storage;
  const c = await person("cat");
  const group = await c.create([a.username, b.username]);
  await until("the key is there", async () => (await stored(b)).sharedKeys[group] !== undefined);
  // Another device, which has read before that, and writes after it.
  const device = await person(b.username, undefined, b.seed.slice());
  await device.socket.timeout(10_000).emitWithAck("set_user", { own_storage: before });
  await until("it is there again", async () => (await stored(b)).sharedKeys[group] !== undefined);
  assert.ok((await stored(b)).sharedKeys[id]);
});

story("where nobody has signed the tree, nothing is said before a person takes it", options, async () => {
  const [a, b] = [await person("ann"), await person("ben", (event, argument) => (event === "x3dh_notification" ? { ...argument, setup_sig: undefined } : argument))];
  await friends(a, b);
  b.signedOnly = false;
  const id = await a.create([b.username]);
  await until("the key", () => b.hasKey(id) && b.dms.has(id));
  assert.equal(b.about(id).trouble, "unsigned");
  await assert.rejects(b.send(id, "no"), /did not sign/);
  const known = async () => {
    const { signedOnly, setups } = await stored(b);
    return signedOnly.value === false && setups[id]?.signed === false;
  };
  await until("all devices know", known);
  const device = await person(b.username, undefined, b.seed.slice());
  assert.deepEqual([device.signedOnly, device.about(id).trouble], [false, "unsigned"]);
  b.takeUnsigned(id);
  await b.send(id, "yes");
  await heardText(a, id, "yes");
});

story("what was accepted stays so when the server hands out what was kept before", options, async () => {
  const [a, b, id] = await pair();
  const old = dm.publicKey(dm.newSeed());
  const before = (await b.socket.timeout(10_000).emitWithAck("get_full_user", {})).result;
  b.people.changed.set(a.username, old);
  await b.acceptKey(a.username, old);
  await until("it is there", async () => (await stored(b)).pins[a.username] === old);
  const device = await person(b.username, undefined, b.seed.slice());
  lying(device.socket, async (event, parameters, ask) => (event === "get_full_user" ? { success: true, result: before } : ask()));
  await device.replacePrekey();
  assert.deepEqual([device.people.pin(a.username), device.about(id).trouble], [old, "stale"]);
  await until("and is there again", async () => (await stored(b)).pins[a.username] === old);
});

story("a reaction stays where it was, and a text from before an edit does not come back", options, async () => {
  let change = (argument) => argument;
  const [a, b, id] = await pair((event, argument) => (event.startsWith("message_") ? change(argument) : argument));
  await a.send(id, "hello");
  await heardText(b, id, "hello");
  const hello = lastOf(b, id);
  await b.openDm(id);
  let first = null;
  let reaction = null;
  b.socket.on("message_change_notification", (it) => (reaction ??= it.reactions[0]));
  await a.react(lastOf(a, id), "👍");
  await until("the reaction", () => lastOf(b, id).reactions[0]?.text === "👍");
  change = (it) => {
    first = it;
    return { ...it, reactions: [reaction] };
  };
  await a.send(id, "shall I pay?");
  await heardText(b, id, "shall I pay?");
  assert.deepEqual(lastOf(b, id).reactions.map(({ text }) => text), [null]);
  change = (argument) => argument;
  await a.edit(lastOf(a, id), "shall I not pay?");
  await heardText(b, id, "shall I not pay?");
  b.socket.listeners("message_change_notification").forEach((listener) => listener(first));
  await until("it is not shown", () => lastOf(b, id).problem?.includes("before an edit"));
  assert.equal(lastOf(b, id).text, null);
  // A message is not another conversation's because the server says so there.
  const c = await person("cat");
  const group = await c.create([a.username, b.username]);
  await until("the key", () => b.hasKey(group) && b.dms.has(group));
  lying(b.socket, async (event, parameters, ask) => {
    const answer = await ask();
    return event === "get_message_history" ? { ...answer, result: [{ ...first, dm_id: id, id: hello.id + 1_000_000 }] } : answer;
  });
  await b.openDm(group);
  assert.deepEqual([...b.dms.get(group).messages.values()].map(({ dm, text }) => [dm, text]), [[group, null]]);
});

story("what deletes itself while it is being read, or while nobody can say so, is gone", options, async () => {
  const [a, b, id] = await pair();
  const deleted = new Promise((resolve) => b.socket.once("message_delete_notification", resolve));
  lying(b.socket, async (event, parameters, ask) => {
    const answer = await ask();
    event === "get_message_history" && (await deleted);
    return answer;
  });
  await a.send(id, "not for long", { remove: 2 });
  await heardText(b, id, "not for long");
  await b.openDm(id);
  await until("it is gone", () => b.dms.get(id).messages.size === 0 && lastOf(b, id) === null);
  await a.openDm(id);
  await a.send(id, "nor this", { remove: 2 });
  await heardText(a, id, "nor this");
  a.socket.off("message_delete_notification");
  await until("it is gone", () => (a.expire(), a.dms.get(id).messages.size === 0 && lastOf(a, id) === null));
});

story("a login that cannot succeed is not tried again, until a person says so", options, async () => {
  const b = await person("ben");
  let gone = true;
  lying(b.socket, async (event, parameters, ask) => (event === "login" && gone ? refusal("no_such_user") : ask()));
  b.socket.io.engine.close();
  await until("it is told", () => !b.online && !b.trying && b.trouble === "no");
  gone = false;
  b.again();
  await until("the return", () => b.online);
  assert.deepEqual([b.trying, b.trouble], [true, null]);
});

story("one conversation that cannot be read does not keep the others away", options, async () => {
  const [a, b, id] = await pair();
  await a.send(id, "here");
  const socket = lying(connect(url), async (event, parameters, ask) => {
    const answer = await ask();
    return event === "get_dms" ? { ...answer, result: [...answer.result, id + 1_000_000] } : answer;
  });
  const device = await person(b.username, undefined, b.seed.slice(), socket);
  await heardText(device, id, "here");
  assert.deepEqual([...device.dms.keys()], [id]);
});

tell();
