// An account that is in use: its connection, what it knows, and what it can do. The page shows it and calls it.
//
// What the server says is believed where it must be (who is in a conversation, when, in which order) and checked where it
// can be: a person's identity key is the one that was seen first under that name (a *pin*); nothing is shown that its author's
// pinned key did not sign; the same sealed text under a second number is called a repetition. What arrives is
// worked through one after the other, so that what is known always belongs to the latest thing said.

import {
  CryptoError,
  bytesToHex,
  createGroup,
  fingerprint,
  hexToBytes,
  joinGroup,
  loginResponse,
  newSeed,
  openText,
  personalKey,
  publicKey,
  read,
  sealText,
  sign,
  write,
} from "./crypto.js";
import { Refused, call, connected } from "./wire.js";

const PAGE = 50;
/** How long somebody is said to be typing after the last sign of it. */
const TYPING_MS = 3_000;
/** How often others are told. */
const TYPING_EVERY_MS = 1_000;
/** How many of what was seen are remembered, per conversation. */
const SEEN_MAX = 2_000;
const SAVE_AFTER_MS = 400;
/** How long after a connection the server has ended the next one is tried. */
const RETURN_AFTER_MS = 5_000;
/** How many questions are open at a time. */
const ABREAST = 8;

const IV_HEX = 24;

/** The time of a timestamp, which is UTC without saying so. */
export const timeOf = (stamp) => new Date(`${stamp}Z`);

/** Does it for each, a few at a time. */
async function each(items, work) {
  const rest = [...items];
  const worker = async () => {
    while (rest.length > 0) {
      await work(rest.shift());
    }
  };
  await Promise.all(Array.from({ length: ABREAST }, worker));
}

/** Makes an account: returns its seed. Logs nobody in. */
export async function register(socket, username) {
  await connected(socket);
  const [seed, spk] = [newSeed(), newSeed()];
  const storage = { privSPK: bytesToHex(spk), sharedKeys: {}, oldSPKs: [], pins: {} };
  await call(socket, "register", {
    username,
    public_key: publicKey(seed),
    spk: publicKey(spk),
    sig: sign(seed, hexToBytes(publicKey(spk))),
    own_storage: await sealText(personalKey(seed), JSON.stringify(storage)),
  });
  return seed;
}

export class Session extends EventTarget {
  /** Whether the connection stands and is logged in. */
  online = false;
  me = null;
  users = new Map();
  friends = [];
  requests = [];
  outgoing = [];
  blocked = [];
  dms = new Map();
  /** Keys that changed: username to the new key. */
  changed = new Map();

  #socket;
  #seed;
  #personal;
  #notebook;
  #closed = false;
  #tail = Promise.resolve();
  #storage = { privSPK: null, sharedKeys: {}, oldSPKs: [], pins: {} };
  /** What only this browser knows. */
  #local = { pins: {}, seen: {}, signed: {}, signedOnly: false };
  #saving = null;
  #noting = null;
  #typed = new Map();

  /** `notebook` keeps what is known here; without one it is forgotten with the page. */
  constructor(socket, username, seed, notebook) {
    super();
    this.username = username;
    this.#socket = socket;
    this.#seed = seed;
    this.#personal = personalKey(seed);
    this.#notebook = notebook;
  }

  get publicKey() {
    return publicKey(this.#seed);
  }

  /** For the recovery words. */
  get seed() {
    return this.#seed;
  }

  // ---- coming and going

  /** Logs in, and again after each loss of the connection, until `close`. Throws when the first login fails. */
  async start() {
    if (this.#notebook) {
      Object.assign(this.#local, await this.#notebook.load());
    }
    await connected(this.#socket);
    // Before anything is asked: what arrives while everything is being read waits for that, and is not lost.
    for (const [event, handle] of Object.entries(this.#handlers)) {
      this.#socket.on(event, (argument) => {
        this.#later(() => handle.call(this, argument));
      });
    }
    this.#socket.on("connect", () => {
      const { id } = this.#socket;
      this.#later(() => this.#returns(id));
    });
    this.#socket.on("disconnect", (reason) => {
      this.online = false;
      this.#tell("connection");
      if (reason === "io server disconnect") {
        // After this one alone the library does not come back by itself.
        this.#connectLater();
      }
    });
    const first = this.#begin();
    this.#tail = first.catch(() => {});
    await first;
  }

  /** Keeps what is not kept yet, and ends. */
  async close() {
    await Promise.allSettled([this.#saving?.now(), this.#noting?.now()]);
    this.#closed = true;
    this.#socket.removeAllListeners();
    this.#socket.disconnect();
    this.#seed.fill(0);
    this.#personal.fill(0);
  }

  #connectLater() {
    setTimeout(() => this.#closed || this.#socket.connect(), RETURN_AFTER_MS);
  }

  /** Begins again on this connection; when that fails, it is tried with another one. */
  async #returns(id) {
    // Lost again by now: the next one has its own turn.
    const current = () => this.#socket.id === id;
    try {
      if (current()) {
        await this.#begin();
      }
    } catch (error) {
      if (current()) {
        this.#socket.disconnect();
        this.#connectLater();
        throw error;
      }
    }
  }

  async #begin() {
    const challenge = await this.#call("login", { username: this.username });
    await this.#call("login_challenge_response", { response: loginResponse(this.#seed, this.username, challenge) });
    await this.#readStorage();
    await this.#readPeople();
    const ids = await this.#call("get_dms");
    for (const id of [...this.dms.keys()].filter((id) => !ids.includes(id))) {
      this.dms.delete(id);
    }
    await each(ids, (id) => this.#readDm(id));
    const names = new Set([...this.friends, ...this.requests, ...[...this.dms.values()].flatMap((dm) => dm.users)]);
    await each(names, (name) => this.#readUser(name));
    for (const dm of this.dms.values()) {
      if (dm.opened) {
        // What changed or went meanwhile was told to nobody: what is shown is read anew.
        await this.#readPage(dm, { anew: true });
      }
    }
    this.online = true;
    this.#tell("connection");
    this.#tell("all");
  }

  #call(event, parameters) {
    return call(this.#socket, event, parameters);
  }

  #later(work) {
    this.#tail = this.#tail.then(work).catch((error) => this.#warn(error.message));
  }

  #tell(what, detail = {}) {
    this.dispatchEvent(Object.assign(new Event(what), { detail }));
  }

  #warn(text) {
    this.#tell("warning", { text });
  }

  // ---- what the server says by itself

  #handlers = {
    profile_notification(user) {
      if (user.username === this.username) {
        // Another page of this account wrote something.
        return this.#readStorage().then(() => this.#tell("people"));
      }
      this.#met(user);
      this.#tell("people");
    },

    async dm_notification(dm) {
      if (this.dms.has(dm.id)) {
        Object.assign(this.dms.get(dm.id), { users: dm.users, name: dm.name, users_in_call: dm.users_in_call });
      } else {
        // Made by another page of this account, which keeps the key in the storage.
        await this.#readStorage();
        await this.#readDm(dm.id);
      }
      this.#tell("dm", { id: dm.id });
    },

    typing_notification({ id, username }) {
      const dm = this.dms.get(id);
      if (dm && username !== this.username) {
        clearTimeout(dm.typing.get(username));
        const stop = () => {
          dm.typing.delete(username);
          this.#tell("typing", { id });
        };
        dm.typing.set(username, setTimeout(stop, TYPING_MS));
        this.#tell("typing", { id });
      }
    },

    async message_notification(message) {
      if (!this.dms.has(message.dm_id)) {
        await this.#readDm(message.dm_id);
      }
      const dm = this.dms.get(message.dm_id);
      const view = await this.#view(message);
      dm.latest = view;
      if (dm.opened) {
        dm.messages.set(view.id, view);
      }
      if (view.sender !== this.username) {
        dm.unread += 1;
      }
      clearTimeout(dm.typing.get(view.sender));
      dm.typing.delete(view.sender);
      this.#tell("message", { id: dm.id, message: view });
    },

    async message_change_notification(message) {
      const dm = this.dms.get(message.dm_id);
      if (!dm) {
        return;
      }
      const view = await this.#view(message);
      if (dm.messages.has(view.id)) {
        dm.messages.set(view.id, view);
      }
      if (dm.latest?.id === view.id) {
        dm.latest = view;
      }
      this.#tell("dm", { id: dm.id });
    },

    message_delete_notification(id) {
      // It does not say of which conversation: numbers are never used twice.
      for (const dm of this.dms.values()) {
        if (dm.messages.delete(id) || dm.latest?.id === id) {
          if (dm.latest?.id === id) {
            dm.latest = [...dm.messages.values()].at(-1) ?? null;
          }
          this.#tell("dm", { id: dm.id });
        }
      }
    },

    scheduled_message_sent_notification({ dm_id, schedule_id }) {
      const dm = this.dms.get(dm_id);
      if (dm) {
        dm.scheduled = dm.scheduled.filter(({ id }) => id !== schedule_id);
        this.#tell("dm", { id: dm_id });
      }
    },

    scheduled_soon_notification({ dm_id }) {
      this.#tell("soon", { id: dm_id });
    },

    async x3dh_notification(invitation) {
      await this.#invited(invitation);
      await this.#readDm(invitation.id);
      const dm = this.dms.get(invitation.id);
      if (dm.opened) {
        await this.#readPage(dm, { anew: true });
      }
      await each(dm.users, (name) => this.#readUser(name));
      this.#tell("dm", { id: invitation.id });
    },

    async friend_request_notification({ username }) {
      await this.#readPeople();
      this.#tell("request", { username });
    },

    async friend_request_accept_notification({ username, accept }) {
      await this.#readPeople();
      this.#tell("answer", { username, accept });
    },

    async unfriend_notification() {
      await this.#readPeople();
      this.#tell("people");
    },

    // The list of who is in a call comes with the conversation; these come besides.
    user_joined_call({ id }) {
      this.#tell("dm", { id });
    },
    user_left_call({ id }) {
      this.#tell("dm", { id });
    },
  };

  // ---- people and their keys

  /** What is known of a person; of oneself, what others see. */
  person(username) {
    return username === this.username ? this.me : this.users.get(username);
  }

  async #readPeople() {
    const ask = (event) => this.#call(event);
    [this.friends, this.requests, this.outgoing, this.blocked] = await Promise.all(
      ["get_friends", "get_friend_requests", "get_outgoing_requests", "get_blocked"].map(ask),
    );
    await each([...this.friends, ...this.requests].filter((name) => !this.users.has(name)), (name) => this.#readUser(name));
    this.#tell("people");
  }

  async #readUser(username) {
    try {
      return this.#met(await this.#call("get_user", { username }));
    } catch (error) {
      if (error instanceof Refused && error.code === "no_such_user") {
        return null;
      }
      throw error;
    }
  }

  /** Compares the key of a person with the pinned one. */
  #met(user) {
    this.users.set(user.username, user);
    const pin = this.pin(user.username);
    if (pin !== undefined && pin !== user.public_key && this.changed.get(user.username) !== user.public_key) {
      this.changed.set(user.username, user.public_key);
      this.#tell("key", { username: user.username });
    }
    return user;
  }

  /** The identity key known for a name, if one is. */
  pin(username) {
    if (username === this.username) {
      return this.publicKey;
    }
    return this.#storage.pins[username] ?? this.#local.pins[username];
  }

  /** The same; the first time, the one that the server names becomes it. */
  async #pinned(username) {
    if (this.pin(username) === undefined) {
      const user = this.users.get(username) ?? (await this.#readUser(username));
      if (!user) {
        throw new CryptoError("its author is unknown");
      }
      this.#setPin(username, user.public_key);
      this.#saveSoon();
    }
    return this.pin(username);
  }

  #setPin(username, key) {
    this.#storage.pins[username] = key;
    this.#local.pins[username] = key;
    this.#noteSoon();
  }

  /** What the two of them compare; with the changed key, what they would compare after it. */
  fingerprintWith(username, changed = false) {
    const key = changed ? this.changed.get(username) : (this.pin(username) ?? this.users.get(username)?.public_key);
    return key === undefined ? null : fingerprint(this.publicKey, key);
  }

  /** A person has compared, and takes the new key. */
  async acceptKey(username) {
    const key = this.changed.get(username);
    if (key === undefined) {
      return;
    }
    this.changed.delete(username);
    await this.#save(() => this.#setPin(username, key));
    for (const dm of this.dms.values()) {
      if (dm.users.includes(username)) {
        await this.reopen(dm.id);
      }
    }
    this.#tell("people");
  }

  /** Everybody, for a look around. */
  async directory() {
    const users = await this.#call("get_user_list");
    users.forEach((user) => user.username === this.username || this.#met(user));
    return users;
  }

  async #friendship(event, username, more = {}) {
    await this.#call(event, { username, ...more });
    await this.#readPeople();
  }

  requestFriend(username) {
    return this.#friendship("send_friend_request", username);
  }
  answerFriend(username, accept) {
    return this.#friendship("ack_friend_request", username, { accept });
  }
  unfriend(username) {
    return this.#friendship("unfriend", username);
  }
  block(username) {
    return this.#friendship("block_user", username);
  }
  unblock(username) {
    return this.#friendship("unblock", username);
  }

  // ---- the own account

  async setProfile(profile) {
    await this.#call("set_user", profile);
    Object.assign(this.me, profile);
    this.#tell("people");
  }

  /** A new prekey; invitations that are on their way still find the old one. */
  replacePrekey() {
    const spk = newSeed();
    return this.#save(
      () => {
        const { privSPK, oldSPKs } = this.#storage;
        if (privSPK) {
          oldSPKs.push(privSPK);
        }
        this.#storage.privSPK = bytesToHex(spk);
      },
      { spk: publicKey(spk), sig: sign(this.#seed, hexToBytes(publicKey(spk))) },
    );
  }

  /** Nobody can invite this account any more, until there is a new prekey. */
  withdrawPrekey() {
    return this.#save(() => {}, { spk: null, sig: null });
  }

  get signedOnly() {
    return this.#local.signedOnly;
  }

  /** Whether invitations without a signed tree are refused. */
  set signedOnly(value) {
    this.#local.signedOnly = value;
    this.#noteSoon();
  }

  // ---- what is kept: sealed on the server, and sealed in this browser

  async #readStorage() {
    this.me = await this.#call("get_full_user");
    if (this.me.own_storage === "") {
      return;
    }
    let there;
    try {
      there = JSON.parse(await openText(this.#personal, this.me.own_storage));
    } catch {
      throw new Error("What the server keeps for this account cannot be opened. Nothing is written over it.");
    }
    // Both ways: what is there wins where both know something, and nothing that is known here is lost.
    const here = this.#storage;
    const olds = [...(there.oldSPKs ?? []), ...here.oldSPKs, here.privSPK ?? there.privSPK];
    const privSPK = there.privSPK ?? here.privSPK;
    this.#storage = {
      ...there,
      privSPK,
      sharedKeys: { ...here.sharedKeys, ...there.sharedKeys },
      oldSPKs: [...new Set(olds)].filter((old) => old && old !== privSPK),
      pins: { ...this.#local.pins, ...here.pins, ...there.pins },
    };
  }

  /** Reads, merges, changes, writes: one page of this browser after the other. */
  async #save(change = () => {}, more = {}) {
    const turn = async () => {
      await this.#readStorage();
      change();
      const own_storage = await sealText(this.#personal, JSON.stringify(this.#storage));
      await this.#call("set_user", { own_storage, ...more });
    };
    await (globalThis.navigator?.locks?.request(`heliostat-dm ${this.username}`, turn) ?? turn());
  }

  #saveSoon() {
    this.#saving ??= this.#soon(() => {
      this.#saving = null;
      return this.#save();
    });
  }

  #noteSoon() {
    this.#noting ??= this.#soon(() => {
      this.#noting = null;
      return this.#notebook?.save(this.#local);
    });
  }

  /** Several changes are written at once, a little later, or `now`. */
  #soon(work) {
    const run = async () => {
      clearTimeout(timer);
      try {
        await work();
      } catch (error) {
        this.#warn(error.message);
      }
    };
    const timer = setTimeout(run, SAVE_AFTER_MS);
    return { now: run };
  }

  // ---- conversations

  #key(id) {
    const key = this.#storage.sharedKeys[id];
    return key === undefined ? undefined : hexToBytes(key);
  }

  hasKey(id) {
    return this.#storage.sharedKeys[id] !== undefined;
  }

  /** Whether the keys of a conversation were signed by who made it; `undefined` where this browser was not there. */
  signedSetup(id) {
    return this.#local.signed[id];
  }

  async #readDm(id) {
    const { latest_message, scheduled_messages, ...dm } = await this.#call("get_dm", { id });
    const before = this.dms.get(id) ?? { messages: new Map(), typing: new Map(), opened: false, more: false, unread: 0 };
    const scheduled = Object.entries(scheduled_messages ?? {}).map(async ([number, one]) => {
      const author = this.publicKey;
      const text = await read(author, this.#key(id) ?? new Uint8Array(32), one.message, one.signature).catch(() => null);
      return { id: Number(number), text, at: timeOf(one.timestamp) };
    });
    const latest = latest_message ? await this.#view(latest_message) : null;
    this.dms.set(id, Object.assign(before, dm, { latest, scheduled: await Promise.all(scheduled) }));
  }

  async #invited(invitation) {
    const { id, sender } = invitation;
    const spks = [this.#storage.privSPK, ...this.#storage.oldSPKs].filter(Boolean).map(hexToBytes);
    try {
      const { key, signed } = joinGroup(this.#seed, await this.#pinned(sender), spks, invitation);
      const known = this.#storage.sharedKeys[id];
      if (known !== undefined) {
        // The server repeats what may not have arrived.
        if (known !== bytesToHex(key)) {
          throw new CryptoError("it would change the key of a conversation that has one");
        }
        return;
      }
      if (!signed && this.#local.signedOnly) {
        throw new CryptoError("its keys are not signed, and this account wants them to be");
      }
      this.#local.signed[id] = signed;
      this.#noteSoon();
      await this.#save(() => (this.#storage.sharedKeys[id] = bytesToHex(key)));
    } catch (error) {
      if (!(error instanceof CryptoError)) {
        throw error;
      }
      this.#warn(`An invitation of ${sender} was refused: ${error.message}.`);
    }
  }

  /** A conversation with one or more; returns its number. */
  async create(usernames) {
    let id;
    let group;
    for (let again = 0; id === undefined; again += 1) {
      const invitees = [];
      for (const username of usernames) {
        const user = await this.#readUser(username);
        if (!user) {
          throw new Refused("no_such_user", `There is no user of the name ${username}.`);
        }
        if (user.public_key !== (await this.#pinned(username))) {
          throw new CryptoError(`The key of ${username} has changed. Compare it first.`);
        }
        if (!user.spk) {
          throw new Refused("spk_missing", `${username} cannot be invited now.`);
        }
        invitees.push(user);
      }
      group = createGroup(this.#seed, invitees);
      try {
        id = await this.#call("create_dm", { usernames, messages: group.messages, key_tree: group.keyTree });
      } catch (error) {
        // A prekey was replaced between the question and this.
        if (again > 0 || error.code !== "spk_mismatch") {
          throw error;
        }
      }
    }
    await this.#save(() => (this.#storage.sharedKeys[id] = bytesToHex(group.key)));
    this.#local.signed[id] = true;
    this.#noteSoon();
    await this.#readDm(id);
    this.#tell("dm", { id });
    return id;
  }

  async rename(id, name) {
    await this.#call("set_dm", { id, name: name === "" ? null : name });
  }

  async leave(id) {
    await this.#call("leave_dm", { id });
    this.dms.delete(id);
    this.#tell("all");
  }

  /** Reads the latest page, the first time somebody looks. */
  async openDm(id) {
    const dm = this.dms.get(id);
    dm.unread = 0;
    if (!dm.opened) {
      dm.opened = true;
      await this.#readPage(dm);
      this.#tell("dm", { id });
    }
  }

  /** Reads what is shown once more, with the keys known now. */
  async reopen(id) {
    const dm = this.dms.get(id);
    await this.#readDm(id);
    if (dm.opened) {
      await this.#readPage(dm, { anew: true });
    }
    this.#tell("dm", { id });
  }

  /** Reads one page of older messages. */
  async older(id) {
    const dm = this.dms.get(id);
    await this.#readPage(dm, { cursor: [...dm.messages.values()][0]?.stamp });
    this.#tell("dm", { id });
  }

  async #readPage(dm, { cursor = null, anew = false } = {}) {
    const page = await this.#call("get_message_history", { id: dm.id, cursor, count: PAGE });
    const views = [];
    for (const message of page.reverse()) {
      views.push(await this.#view(message));
    }
    const all = new Map(views.map((view) => [view.id, view]));
    if (!anew) {
      dm.messages.forEach((view, id) => all.set(id, view));
    }
    // The oldest first, wherever they came from.
    dm.messages = new Map([...all].sort(([a], [b]) => a - b));
    dm.more = page.length === PAGE;
  }

  async pinnedMessages(id) {
    const views = [];
    for (const message of await this.#call("get_pinned", { id })) {
      views.push(await this.#view(message));
    }
    return views;
  }

  // ---- messages

  /** A message as it is shown: with its text, or with why there is none. */
  async #view(message) {
    const reactions = [];
    for (const one of message.reactions) {
      const opened = await this.#opened(message.dm_id, one.sender, one.reaction, one.signature, `r${one.id}`);
      reactions.push({ id: one.id, sender: one.sender, ...opened });
    }
    return {
      id: message.id,
      dm: message.dm_id,
      sender: message.sender,
      stamp: message.timestamp,
      at: timeOf(message.timestamp),
      deletes: message.delete_timestamp === null ? null : timeOf(message.delete_timestamp),
      pinned: message.pinned,
      reactions,
      ...(await this.#opened(message.dm_id, message.sender, message.message, message.signature, `m${message.id}`)),
    };
  }

  async #opened(dm, sender, sealed, signature, what) {
    const key = this.#key(dm);
    if (key === undefined) {
      return { text: null, problem: "The key of this conversation has not arrived" };
    }
    try {
      const text = await read(await this.#pinned(sender), key, sealed, signature);
      return { text, problem: null, repeated: this.#repeated(dm, sender, sealed, what) };
    } catch (error) {
      if (!(error instanceof CryptoError)) {
        throw error;
      }
      return { text: null, problem: `Not shown: ${error.message}` };
    }
  }

  /** Whether the same sealed text was seen before as something else: the signature does not say what it was made for (W4). */
  #repeated(dm, sender, sealed, what) {
    const seen = (this.#local.seen[dm] ??= {});
    const mark = `${sealed.slice(0, IV_HEX).toLowerCase()} ${sender}`;
    if (seen[mark] === undefined) {
      seen[mark] = what;
      const marks = Object.keys(seen);
      if (marks.length > SEEN_MAX) {
        delete seen[marks[0]];
      }
      this.#noteSoon();
    }
    return seen[mark] !== what;
  }

  #keyOrRefuse(id) {
    const key = this.#key(id);
    if (key === undefined) {
      throw new CryptoError("The key of this conversation has not arrived.");
    }
    return key;
  }

  /** Sends now, or `schedule` seconds from now; the message deletes itself `remove` seconds after it was sent. */
  async send(id, text, { schedule = 0, remove = 0 } = {}) {
    const sealed = await write(this.#seed, this.#keyOrRefuse(id), text);
    await this.#call("send_message", { id, ...sealed, schedule, delete: remove });
    if (schedule > 0) {
      await this.#readDm(id);
      this.#tell("dm", { id });
    }
  }

  async cancel(id, schedule) {
    await this.#call("cancel_scheduled_message", { dm_id: id, schedule_id: schedule });
    await this.#readDm(id);
    this.#tell("dm", { id });
  }

  async edit(message, text) {
    await this.#call("set_message", { id: message.id, ...(await write(this.#seed, this.#keyOrRefuse(message.dm), text)) });
  }

  setPinned(message, pinned) {
    return this.#call("set_message", { id: message.id, pinned });
  }

  async react(message, text) {
    const { message: reaction, signature } = await write(this.#seed, this.#keyOrRefuse(message.dm), text);
    await this.#call("add_reaction", { id: message.id, reaction, signature });
  }

  unreact(reaction) {
    return this.#call("remove_reaction", { id: reaction.id });
  }

  /** Says so, not too often. */
  async typing(id) {
    const now = performance.now();
    if (now - (this.#typed.get(id) ?? -Infinity) >= TYPING_EVERY_MS) {
      this.#typed.set(id, now);
      // Whether it arrives is of no importance.
      await this.#call("ping_typing", { id }).catch(() => {});
    }
  }

  // ---- calls: who is in one; sound and picture are not this page's

  joinCall(id) {
    return this.#call("join_call", { id, uuid: crypto.randomUUID() });
  }

  leaveCall(id) {
    return this.#call("leave_call", { id });
  }
}
