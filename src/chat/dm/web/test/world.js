// People at pages without the pages, on a server: DM_URL; and that server made to lie, by changing what arrives.

import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import { after, describe, it } from "node:test";

import * as dm from "../src/crypto.js";
import { register } from "../src/keeper.js";
import { Session } from "../src/session.js";
import { connect } from "../src/wire.js";

// Node 18 has it under this name alone.
globalThis.crypto ??= webcrypto;

// What still waits for an answer that nobody gives any more keeps no process.
const { setTimeout: set } = globalThis;
globalThis.setTimeout = (work, wait, ...more) => {
  const timer = set(work, wait, ...more);
  return wait < 5_000 ? timer : timer.unref();
};

export const url = process.env.DM_URL;
export const options = { skip: url === undefined && "no server: DM_URL is not set", timeout: 30_000 };

const open = [];
const stories = [];

/** Something that is to be told. */
export const story = (...its) => stories.push(its);

/** Tells all stories of a file at the same time: most of what happens in them is that somebody waits. */
export const tell = () => describe("at the same time", { concurrency: true }, () => {
  stories.forEach((its) => it(...its));
  after(() => Promise.all(open.map((session) => session.close())));
});

/** Makes a server answer otherwise: `change` gets the event, its parameters, and how to ask. */
export function lying(socket, change) {
  const ask = socket.emitWithAck.bind(socket);
  socket.emitWithAck = (event, parameters) => change(event, parameters, () => {
    // What a wait in between may have used up.
    socket.timeout(10_000);
    return ask(event, parameters);
  });
  return socket;
}

/** An account; `between` may change what the server says before the session hears it. */
export async function person(name, between = (event, argument) => argument, seed = undefined, socket = connect(url), notebook = null) {
  const username = seed ? name : `${name} ${dm.bytesToHex(dm.randomBytes(4))}`;
  const known = seed ?? (await register(socket, username));
  const session = new Session(socket, username, known, notebook);
  session.heard = [];
  for (const event of ["warning", "key", "message", "dm"]) {
    session.addEventListener(event, ({ detail }) => session.heard.push([event, detail]));
  }
  await session.start();
  const listeners = new Map(["message_notification", "message_change_notification", "x3dh_notification", "profile_notification"].map((event) => [event, socket.listeners(event)]));
  listeners.forEach((all, event) => {
    socket.off(event);
    socket.on(event, (argument) => [between(event, argument)].flat().forEach((one) => all.forEach((listener) => listener(one))));
  });
  open.push(session);
  return Object.assign(session, { socket });
}

/** Waits for something to become true. */
export async function until(what, fits) {
  const end = performance.now() + 15_000;
  for (let value; ; await new Promise((resolve) => setTimeout(resolve, 10))) {
    value = await fits();
    if (value) {
      return value;
    }
    assert.ok(performance.now() < end, `never: ${what}`);
  }
}

export async function friends(a, b) {
  await a.people.requestFriend(b.username);
  await until("the request", () => b.people.requests.includes(a.username));
  await b.people.answerFriend(a.username, true);
  await until("the answer", () => a.people.friends.includes(b.username));
}

export async function pair(between) {
  const [a, b] = [await person("ann"), await person("ben", between)];
  await friends(a, b);
  const id = await a.create([b.username]);
  await until("the key", () => b.hasKey(id) || b.heard.some(([event]) => event === "warning"));
  await until("the conversation", () => b.dms.has(id));
  return [a, b, id];
}

export const lastOf = (session, id) => session.dms.get(id)?.latest;
export const heardText = (session, id, text) => until(text, () => lastOf(session, id)?.text === text);
