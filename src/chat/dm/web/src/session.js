// An account that is in use: what it knows, and what it can do. The page shows it and calls it.
//
// What the server says is believed where it must be (who is in a conversation, when, in which order) and checked where it
// can be: a person's identity key is the one that was known first under that name (a *pin*); nothing is shown that its author's
// pinned key did not sign, or that was seen before as something else; with whom one talks is what was agreed on when the key was made,
// and nothing is said where others are. What arrives, and what is read, is worked through one after the other, so that what is known
// always belongs to the latest thing said.

import { CryptoError, bytesToHex, createGroup, fingerprint, hexToBytes, joinGroup, loginResponse, point, publicKey, read, write } from "./crypto.js";
import { Keeper, Unreadable } from "./keeper.js";
import { messageThing, reactionThing } from "./seen.js";
import { Line, Refused, call } from "./wire.js";

const PAGE = 50;
/** How long somebody is said to be typing after the last sign of it. */
const TYPING_MS = 3_000;
/** How often others are told. */
const TYPING_EVERY_MS = 1_000;
/** How often, and how long after each other, it is tried to look at an invitation. */
const INVITED_TRIES = 20;
const INVITED_AGAIN_MS = 3_000;
/** How many questions are open at a time. */
const ABREAST = 8;

/** After these a login is not tried again by itself. */
const HOPELESS = ["no_such_user", "wrong_response"];
/** After these it is not known whether something was done. */
const UNKNOWN = ["timeout", "internal"];

const REPEATED = {
  repeats: "Not shown: it was sent before as something else, and may be repeated by the server",
  older: "Not shown: it stood here before an edit, and may be brought back by the server",
};

/** The time of a timestamp, which is UTC without saying so. */
export const timeOf = (stamp) => new Date(`${stamp}Z`);

/** Why nothing is said in a conversation. */
export const troubleText = (trouble, partner) => ({
  key: "The key of this conversation has not arrived.",
  stale: "This conversation was made with another key than the one that was accepted since. Leave it and begin a new one.",
  strangers: `This conversation was made with ${partner} alone, and the server says that others are in it. Nothing is sent.`,
  unsigned: "Whoever made this conversation did not sign its tree of keys: a server that is not honest could read what you write here.",
})[trouble];

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

  /** What is in the way of the connection; and whether it is tried again. */
  trouble = null;
  trying = true;

  #socket;
  #seed;
  #keeper;
  #line;
  #tail = Promise.resolve();
  /** Whether it is known which conversations there are. */
  #complete = false;
  #closed = false;
  #typed = new Map();
  #told = new Set();

  /** `notebook` keeps what is known here; without one it is forgotten with the page. */
  constructor(socket, username, seed, notebook) {
    super();
    this.username = username;
    this.#socket = socket;
    this.#seed = seed;
    this.#keeper = new Keeper({
      username,
      seed,
      notebook,
      ask: (event, parameters) => this.#call(event, parameters),
      warn: (text) => this.#warn(text),
      heard: (what) => this.#heard(what),
      needed: () => (this.#complete ? { ids: new Set(this.dms.keys()), names: this.#names() } : null),
    });
    this.#line = new Line(socket, {
      begin: (standing) => this.#inTurn(async () => standing() && (await this.#begin())),
      lost: (error, trying) => this.#lost(error, trying),
      hopeless: (error) => error instanceof Unreadable || HOPELESS.includes(error.code),
    });
  }

  get #known() {
    return this.#keeper.knowledge;
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
    await this.#keeper.load();
    // Before anything is asked: what arrives while everything is being read waits for that, and is not lost.
    for (const [event, handle] of Object.entries(this.#handlers)) {
      this.#socket.on(event, (argument) => {
        this.#later(() => handle.call(this, argument));
      });
    }
    try {
      await this.#line.open();
    } catch (error) {
      await this.close();
      throw error;
    }
  }

  /** Keeps what is not kept yet, and ends. */
  async close() {
    await this.#keeper.close(this.online);
    this.#closed = true;
    this.#line.close();
    this.#seed.fill(0);
  }

  /** Tries once more to connect. */
  again() {
    this.trying = true;
    this.#tell("connection");
    this.#line.again();
  }

  #lost(error, trying) {
    this.online = false;
    this.trying = trying;
    this.trouble = error?.message ?? this.trouble;
    this.#tell("connection");
  }

  async #begin() {
    const challenge = await this.#call("login", { username: this.username });
    await this.#call("login_challenge_response", { response: loginResponse(this.#seed, this.username, challenge) });
    await this.#keeper.read();
    await this.#readPeople();
    const ids = await this.#call("get_dms");
    for (const id of [...this.dms.keys()].filter((id) => !ids.includes(id))) {
      this.dms.delete(id);
    }
    // One that was left meanwhile, by another page, is in nobody's way.
    await each(ids, (id) => this.#readDm(id).catch((error) => this.#gone(id, error)));
    this.#complete = true;
    await each(this.#names(), (name) => this.#readUser(name));
    for (const dm of this.dms.values()) {
      if (dm.opened) {
        // What changed or went meanwhile was told to nobody: what is shown is read anew.
        await this.#readPage(dm, { anew: true });
      }
    }
    this.online = true;
    this.trouble = null;
    this.#tell("connection");
    this.#tell("all");
  }

  #gone(id, error) {
    if (error.code !== "no_dm_access") {
      throw error;
    }
    this.dms.delete(id);
  }

  /** Everybody that this account has to do with. */
  #names() {
    return new Set([...this.friends, ...this.requests, ...[...this.dms.values()].flatMap((dm) => dm.users)]);
  }

  /** What the server keeps was read. */
  #heard({ me, contradicted, fresh }) {
    this.me = me;
    for (const name of contradicted.filter((name) => !this.#told.has(name))) {
      this.#told.add(name);
      this.#warn(`Another device of this account knows another key of ${name}. Here the one that was known here stays.`);
    }
    this.changed.forEach((key, name) => this.pin(name) === key && this.changed.delete(name));
    for (const id of fresh.filter((id) => this.dms.has(id))) {
      this.#later(() => this.#reread(id));
    }
  }

  #call(event, parameters) {
    return call(this.#socket, event, parameters);
  }

  /** After everything that came before it; never from within such a turn. */
  #inTurn(work) {
    const done = this.#tail.then(work);
    this.#tail = done.catch(() => {});
    return done;
  }

  #later(work) {
    this.#inTurn(work).catch((error) => this.#warn(error.message));
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
        return this.#keeper.read().then(() => this.#tell("people"));
      }
      this.#met(user);
      this.#tell("people");
    },

    async dm_notification(dm) {
      if (this.dms.has(dm.id)) {
        Object.assign(this.dms.get(dm.id), { users: dm.users, name: dm.name, users_in_call: dm.users_in_call });
      } else {
        // Made by another page of this account, which keeps the key in the storage.
        await this.#keeper.read();
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
      const view = await this.#view(dm.id, message, true);
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
      const view = await this.#view(dm.id, message);
      if (dm.messages.has(view.id)) {
        dm.messages.set(view.id, view);
      }
      if (dm.latest?.id === view.id) {
        dm.latest = view;
      }
      this.#tell("dm", { id: dm.id });
    },

    message_delete_notification(id) {
      this.#remove(id);
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

    async x3dh_notification(invitation, tries = 1) {
      try {
        await this.#invited(invitation);
      } catch (error) {
        // Who sent it could not be asked for. The server says it no more once it thinks that it has arrived.
        if (tries < INVITED_TRIES && !this.#closed) {
          setTimeout(() => this.#later(() => this.#handlers.x3dh_notification.call(this, invitation, tries + 1)), INVITED_AGAIN_MS);
        }
        throw error;
      }
      await this.#reread(invitation.id);
      await each(this.dms.get(invitation.id).users, (name) => this.#readUser(name));
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
      const user = await this.#call("get_user", { username });
      if (user.username !== username) {
        throw new CryptoError(`The server answers with somebody else than ${username}.`);
      }
      return this.#met(user);
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
    } else if (pin === user.public_key) {
      this.changed.delete(user.username);
    }
    return user;
  }

  /** The identity key known for a name, if one is. */
  pin(username) {
    return username === this.username ? this.publicKey : this.#known.pins.get(username);
  }

  /** The same; the first time, the one that the server names becomes it. */
  async #pinned(username) {
    if (this.pin(username) === undefined) {
      const user = this.users.get(username) ?? (await this.#readUser(username));
      if (!user) {
        throw new CryptoError("its author is unknown");
      }
      point(user.public_key);
      this.#known.pins.set(username, user.public_key);
      this.#keeper.learnt();
    }
    return this.pin(username);
  }

  /**
   * What two people compare: the digits of the key known for a name, which is the known one from now on, and of the one that the
   * server names now, if that is another.
   */
  async comparison(username) {
    const digits = (key) => key && { key, digits: fingerprint(this.publicKey, key) };
    const known = await this.#pinned(username);
    return { known: digits(known), named: digits(this.changed.get(username)), verified: this.verified(username) };
  }

  /** Whether a person has compared the key that is known for a name. */
  verified(username) {
    return this.#known.verified.has(username);
  }

  /** A person has compared, and it was the same. */
  confirmKey(username, key) {
    if (this.pin(username) !== key) {
      throw new CryptoError(`Another key of ${username} is known by now. Compare again.`);
    }
    this.#known.verified.add(username);
    this.#keeper.learnt();
    this.#tell("verified", { username });
    this.#tell("people");
  }

  /** A person has compared the new key, and takes it. */
  async acceptKey(username, key) {
    if (this.changed.get(username) !== key) {
      throw new CryptoError(`The server names yet another key of ${username} by now. Compare again.`);
    }
    point(key);
    this.#known.accept(username, key, Date.now());
    this.#keeper.learnt();
    this.changed.delete(username);
    for (const dm of [...this.dms.values()].filter((dm) => dm.users.includes(username))) {
      await this.#inTurn(() => this.#reread(dm.id));
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

  replacePrekey() {
    return this.#keeper.replacePrekey();
  }
  withdrawPrekey() {
    return this.#keeper.withdrawPrekey();
  }

  get signedOnly() {
    return this.#known.signedOnly.value;
  }

  /** Whether invitations without a signed tree are refused. */
  set signedOnly(value) {
    this.#known.signedOnly = { value, at: Date.now() };
    this.#keeper.learnt();
  }

  // ---- conversations

  hasKey(id) {
    return this.#known.keys.has(id);
  }

  /** Whether the keys of a conversation were signed by who made it; `undefined` where no page of this account was there. */
  signedSetup(id) {
    return this.#known.setups.get(id)?.signed;
  }

  /**
   * What is known of a conversation whatever the server says: the other one, if it was made for two; else by whom it was made, if
   * that is known. `trouble` is why nothing is said there: `key`, `strangers`, `stale`, or `unsigned`, which a person can take.
   */
  about(id) {
    const users = this.dms.get(id)?.users ?? [];
    const partner = this.#known.partner(id);
    const setup = this.#known.setups.get(id);
    const trouble = !this.hasKey(id) ? "key"
      : this.#known.unpaired.has(id) ? "stale"
      : partner !== undefined && users.some((name) => name !== this.username && name !== partner) ? "strangers"
      : setup?.signed === false && setup.taken !== true ? "unsigned"
      : null;
    return { partner, by: setup?.by, trouble };
  }

  /** A person takes a conversation whose tree of keys nobody has signed. */
  takeUnsigned(id) {
    this.#known.setups.set(id, { ...this.#known.setups.get(id), taken: true });
    this.#keeper.learnt();
    this.#tell("dm", { id });
  }

  async #readDm(id) {
    const { latest_message, scheduled_messages, ...dm } = await this.#call("get_dm", { id });
    this.#adopt(id, dm);
    const before = this.dms.get(id) ?? { messages: new Map(), typing: new Map(), opened: false, more: false, unread: 0 };
    const key = this.#key(id);
    const scheduled = Object.entries(scheduled_messages ?? {}).map(async ([number, one]) => {
      const text = key === undefined ? null : await read(this.publicKey, key, one.message, one.signature).catch(() => null);
      return { id: Number(number), text, at: timeOf(one.timestamp) };
    });
    const latest = latest_message ? await this.#view(id, latest_message) : null;
    this.dms.set(id, Object.assign(before, dm, { id, latest, scheduled: await Promise.all(scheduled) }));
  }

  /** Reads a conversation once more, and what is shown of it, with the keys known now. */
  async #reread(id) {
    await this.#readDm(id);
    const dm = this.dms.get(id);
    if (dm.opened) {
      await this.#readPage(dm, { anew: true });
    }
    this.#tell("dm", { id });
  }

  /** Whether it is one that was asked for, and whose number was lost with the answer: then its key is here. */
  #adopt(id, { users, created_at }) {
    if (this.hasKey(id) || this.#known.left.has(id) || !users.includes(this.username)) {
      return;
    }
    const away = ({ at }) => Math.abs(at - timeOf(created_at));
    const [making] = this.#known.makings.filter((one) => users.every((name) => one.users.includes(name))).sort((a, b) => away(a) - away(b));
    if (making !== undefined) {
      this.#enter(id, making);
    }
  }

  #enter(id, { key, users }) {
    this.#known.enter(id, key, users.filter((name) => name !== this.username), { by: this.username, signed: true });
    this.#keeper.learnt();
  }

  async #invited(invitation) {
    const { id, sender } = invitation;
    try {
      if (!Number.isSafeInteger(id) || id < 1) {
        throw new CryptoError("its number is none");
      }
      const joined = joinGroup(this.#seed, await this.#pinned(sender), this.#known.prekeys.map(hexToBytes), invitation);
      const key = bytesToHex(joined.key);
      const known = this.#known.keys.get(id);
      if (known === key) {
        // The server repeats what may not have arrived.
        return;
      }
      if (known !== undefined) {
        throw new CryptoError("it would change the key of a conversation that has one");
      }
      // The number is not signed. Under another one everything could be said once more.
      if (this.#known.knows(key) || this.#known.left.has(id)) {
        throw new CryptoError("it is the one to another conversation or to one that was left, repeated by the server");
      }
      if (!joined.signed && this.signedOnly) {
        throw new CryptoError("its keys are not signed, and this account wants them to be");
      }
      const pair = invitation.key_tree.length === 2;
      this.#known.enter(id, key, pair ? [sender] : [], { by: sender, signed: joined.signed });
      this.#keeper.learnt();
    } catch (error) {
      if (!(error instanceof CryptoError)) {
        throw error;
      }
      this.#warn(`An invitation of ${sender} was refused: ${error.message}.`);
    }
  }

  /** A conversation with one or more; returns its number. */
  async create(usernames) {
    for (let again = 0; ; again += 1) {
      const group = createGroup(this.#seed, await this.#invitees(usernames));
      const making = { key: bytesToHex(group.key), users: [this.username, ...usernames], at: Date.now() };
      this.#known.making(making);
      try {
        // Before it is asked for: nobody makes this key a second time.
        await this.#keeper.save();
        const id = await this.#call("create_dm", { usernames, messages: group.messages, key_tree: group.keyTree });
        return await this.#inTurn(() => this.#created(id, making));
      } catch (error) {
        const found = UNKNOWN.includes(error.code) ? await this.#inTurn(() => this.#lookFor(making)).catch(() => "later") : null;
        if (Number.isSafeInteger(found)) {
          return found;
        }
        if (found === null) {
          this.#known.unmade(making);
          this.#keeper.learnt();
        }
        // A prekey was replaced between the question and this.
        if (again > 0 || error.code !== "spk_mismatch") {
          throw error;
        }
      }
    }
  }

  async #invitees(usernames) {
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
    return invitees;
  }

  async #created(id, making) {
    // Its key may have been taken by this number already, from what another page has read.
    if (this.#known.keys.get(id) !== making.key) {
      const taken = this.hasKey(id) || this.dms.has(id) || this.#known.left.has(id) || this.#known.idOf(making.key) !== undefined;
      if (taken || !Number.isSafeInteger(id) || id < 1) {
        throw new CryptoError("The server gives a number that is taken. Nothing was begun.");
      }
      this.#enter(id, making);
    }
    await this.#readDm(id);
    this.#tell("dm", { id });
    return id;
  }

  /** The number of what was asked for, when the answer was lost. */
  async #lookFor(making) {
    for (const id of await this.#call("get_dms")) {
      if (!this.hasKey(id)) {
        await this.#readDm(id).catch((error) => this.#gone(id, error));
      }
    }
    this.#tell("all");
    return this.#known.idOf(making.key) ?? "later";
  }

  async rename(id, name) {
    await this.#call("set_dm", { id, name: name === "" ? null : name });
  }

  async leave(id) {
    await this.#call("leave_dm", { id });
    this.dms.delete(id);
    this.#known.leave(id);
    this.#keeper.learnt();
    this.#tell("all");
  }

  /** Reads the latest page, the first time somebody looks. */
  async openDm(id) {
    const dm = this.dms.get(id);
    dm.unread = 0;
    if (!dm.opened) {
      await this.#inTurn(() => this.#readPage(dm));
      dm.opened = true;
      this.#tell("dm", { id });
    }
  }

  /** Reads one page of older messages. */
  async older(id) {
    const dm = this.dms.get(id);
    await this.#inTurn(() => this.#readPage(dm, { cursor: [...dm.messages.values()][0]?.stamp }));
    this.#tell("dm", { id });
  }

  async #readPage(dm, { cursor = null, anew = false } = {}) {
    const page = await this.#call("get_message_history", { id: dm.id, cursor, count: PAGE });
    const views = [];
    for (const message of page.reverse()) {
      views.push(await this.#view(dm.id, message));
    }
    const all = new Map(views.map((view) => [view.id, view]));
    if (!anew) {
      dm.messages.forEach((view, id) => all.set(id, view));
    }
    // The oldest first, wherever they came from.
    dm.messages = new Map([...all].sort(([a], [b]) => a - b));
    dm.more = page.length === PAGE;
  }

  pinnedMessages(id) {
    return this.#inTurn(async () => {
      const views = [];
      for (const message of await this.#call("get_pinned", { id })) {
        views.push(await this.#view(id, message));
      }
      return views;
    });
  }

  // ---- messages

  /** Takes a message away that is no more. Of which conversation it is nobody says: numbers are never used twice. */
  #remove(id) {
    for (const dm of this.dms.values()) {
      if (dm.messages.delete(id) || dm.latest?.id === id) {
        if (dm.latest?.id === id) {
          dm.latest = [...dm.messages.values()].at(-1) ?? null;
        }
        this.#tell("dm", { id: dm.id });
      }
    }
  }

  /** Takes away what had to delete itself by now, also while nobody can say so. */
  expire() {
    const over = (message) => message?.goes !== null && message?.goes <= Date.now();
    for (const dm of this.dms.values()) {
      [dm.latest, ...dm.messages.values()].filter(over).forEach(({ id }) => this.#remove(id));
    }
  }

  /**
   * A message of a conversation as it is shown: with its text, or with why there is none. Of one that is heard just now it is known how
   * long it stays, whatever the clock of this device says.
   */
  async #view(dm, message, live = false) {
    const reactions = [];
    for (const one of message.reactions) {
      const opened = await this.#opened(dm, one.sender, one.reaction, one.signature, reactionThing(one.id, message.id));
      reactions.push({ id: one.id, sender: one.sender, ...opened });
    }
    const at = timeOf(message.timestamp);
    const deletes = message.delete_timestamp === null ? null : timeOf(message.delete_timestamp);
    return {
      id: message.id,
      dm,
      sender: message.sender,
      stamp: message.timestamp,
      at,
      goes: deletes === null ? null : live ? Date.now() + (deletes - at) : deletes.getTime(),
      pinned: message.pinned,
      reactions,
      ...(await this.#opened(dm, message.sender, message.message, message.signature, messageThing(message.id))),
    };
  }

  /** The text of something, after everything held that can be checked. */
  async #opened(dm, sender, sealed, signature, thing) {
    const key = this.#key(dm);
    if (key === undefined) {
      return { text: null, problem: "The key of this conversation has not arrived" };
    }
    try {
      const text = await read(await this.#pinned(sender), key, sealed, signature);
      const sight = this.#keeper.seen(dm).look(thing, sender, sealed);
      sight === "first" && this.#keeper.note();
      return sight in REPEATED ? { text: null, problem: REPEATED[sight] } : { text, problem: null };
    } catch (error) {
      if (!(error instanceof CryptoError)) {
        throw error;
      }
      return { text: null, problem: `Not shown: ${error.message}` };
    }
  }

  #key(id) {
    const key = this.#known.keys.get(id);
    return key === undefined ? undefined : hexToBytes(key);
  }

  #keyOrRefuse(id) {
    const { trouble, partner } = this.about(id);
    if (trouble !== null) {
      throw new CryptoError(troubleText(trouble, partner));
    }
    return this.#key(id);
  }

  /** Sends now, or `schedule` seconds from now; the message deletes itself `remove` seconds after it was sent. */
  async send(id, text, { schedule = 0, remove = 0 } = {}) {
    const sealed = await write(this.#seed, this.#keyOrRefuse(id), text);
    await this.#call("send_message", { id, ...sealed, schedule, delete: remove });
    if (schedule > 0) {
      await this.#inTurn(() => this.#readDm(id));
      this.#tell("dm", { id });
    }
  }

  async cancel(id, schedule) {
    await this.#call("cancel_scheduled_message", { dm_id: id, schedule_id: schedule });
    await this.#inTurn(() => this.#readDm(id));
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
