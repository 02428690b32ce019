// An account that is in use: what it knows, and what it can do. The page shows it and calls it.
//
// What the server says is believed where it must be (who is in a conversation, when, in which order) and checked where it
// can be: with whom one talks is what was agreed on when the key was made, and nothing is said where others are. What arrives, and what
// is read, is worked through one after the other, so that what is known always belongs to the latest thing said.

import { Bonds, troubleText } from "./bonds.js";
import { CryptoError, loginResponse, publicKey, read, write } from "./crypto.js";
import { Keeper, Unreadable } from "./keeper.js";
import { People, each } from "./people.js";
import { Reader, timeOf } from "./reader.js";
import { Line, Refused, call } from "./wire.js";

const PAGE = 50;
/** How long somebody is said to be typing after the last sign of it. */
const TYPING_MS = 3_000;
/** How often others are told. */
const TYPING_EVERY_MS = 1_000;
/** How often, and how long after each other, it is tried to look at an invitation. */
const INVITED_TRIES = 20;
const INVITED_AGAIN_MS = 3_000;
/** After these a login is not tried again by itself. */
const HOPELESS = ["no_such_user", "wrong_response"];
/** After these it is not known whether something was done. */
const UNKNOWN = ["timeout", "internal"];

export class Session extends EventTarget {
  /** Whether the connection stands and is logged in. */
  online = false;
  dms = new Map();

  /** What is in the way of the connection; and whether it is tried again. */
  trouble = null;
  trying = true;

  #socket;
  #seed;
  #keeper;
  #reader;
  #bonds;
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
    this.people = new People({
      username,
      publicKey: publicKey(seed),
      keeper: this.#keeper,
      ask: (event, parameters) => this.#call(event, parameters),
      tell: (what, detail) => this.#tell(what, detail),
    });
    this.#reader = new Reader({ keeper: this.#keeper, pinned: (name) => this.people.pinned(name) });
    this.#bonds = new Bonds({ username, seed, keeper: this.#keeper, people: this.people });
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
    await this.people.read();
    const ids = await this.#call("get_dms");
    for (const id of [...this.dms.keys()].filter((id) => !ids.includes(id))) {
      this.dms.delete(id);
    }
    // One that was left meanwhile, by another page, is in nobody's way.
    await each(ids, (id) => this.#readDm(id).catch((error) => this.#gone(id, error)));
    this.#complete = true;
    await each(this.#names(), (name) => this.people.readUser(name));
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
    return new Set([...this.people.friends, ...this.people.requests, ...[...this.dms.values()].flatMap((dm) => dm.users)]);
  }

  /** What the server keeps was read. */
  #heard({ me, contradicted, fresh }) {
    this.people.me = me;
    for (const name of contradicted.filter((name) => !this.#told.has(name))) {
      this.#told.add(name);
      this.#warn(`Another device of this account knows another key of ${name}. Here the one that was known here stays.`);
    }
    this.people.settle();
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
      this.people.met(user);
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
      const view = await this.#reader.view(dm.id, message, true);
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
      const view = await this.#reader.view(dm.id, message);
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
        await this.#bonds.invited(invitation);
      } catch (error) {
        if (!(error instanceof CryptoError)) {
          // Who sent it could not be asked for. The server says it no more once it thinks that it has arrived.
          if (tries < INVITED_TRIES && !this.#closed) {
            setTimeout(() => this.#later(() => this.#handlers.x3dh_notification.call(this, invitation, tries + 1)), INVITED_AGAIN_MS);
          }
          throw error;
        }
        this.#warn(`An invitation of ${invitation.sender} was refused: ${error.message}.`);
      }
      await this.#reread(invitation.id);
      await each(this.dms.get(invitation.id).users, (name) => this.people.readUser(name));
      this.#tell("dm", { id: invitation.id });
    },

    async friend_request_notification({ username }) {
      await this.people.read();
      this.#tell("request", { username });
    },

    async friend_request_accept_notification({ username, accept }) {
      await this.people.read();
      this.#tell("answer", { username, accept });
    },

    async unfriend_notification() {
      await this.people.read();
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

  // ---- keys and the own account

  /** A person has compared the new key of somebody, and takes it. What was sent is read once more by it. */
  async acceptKey(username, key) {
    this.people.accept(username, key);
    for (const dm of [...this.dms.values()].filter((dm) => dm.users.includes(username))) {
      await this.#inTurn(() => this.#reread(dm.id));
    }
    this.#tell("people");
  }

  async setProfile(profile) {
    await this.#call("set_user", profile);
    Object.assign(this.people.me, profile);
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
    return this.#bonds.has(id);
  }

  /** See `Bonds`. */
  signedSetup(id) {
    return this.#bonds.signed(id);
  }
  about(id) {
    return this.#bonds.about(id, this.dms.get(id)?.users ?? []);
  }

  /** A person takes a conversation whose tree of keys nobody has signed. */
  takeUnsigned(id) {
    this.#bonds.take(id);
    this.#tell("dm", { id });
  }

  async #readDm(id) {
    const { latest_message, scheduled_messages, ...dm } = await this.#call("get_dm", { id });
    this.#bonds.adopt(id, dm);
    const before = this.dms.get(id) ?? { messages: new Map(), typing: new Map(), opened: false, more: false, unread: 0 };
    const key = this.#keeper.key(id);
    const scheduled = Object.entries(scheduled_messages ?? {}).map(async ([number, one]) => {
      const text = key === undefined ? null : await read(this.publicKey, key, one.message, one.signature).catch(() => null);
      return { id: Number(number), text, at: timeOf(one.timestamp) };
    });
    const latest = latest_message ? await this.#reader.view(id, latest_message) : null;
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

  /** A conversation with one or more; returns its number. */
  async create(usernames) {
    for (let again = 0; ; again += 1) {
      const { making, request } = await this.#bonds.prepare(usernames);
      try {
        // Before it is asked for: nobody makes this key a second time.
        await this.#keeper.save();
        const id = await this.#call("create_dm", request);
        return await this.#inTurn(() => this.#created(id, making));
      } catch (error) {
        const found = UNKNOWN.includes(error.code) ? await this.#inTurn(() => this.#lookFor(making)).catch(() => "later") : null;
        if (Number.isSafeInteger(found)) {
          return found;
        }
        if (found === null) {
          this.#bonds.unmade(making);
        }
        // A prekey was replaced between the question and this.
        if (again > 0 || error.code !== "spk_mismatch") {
          throw error;
        }
      }
    }
  }

  async #created(id, making) {
    if (this.dms.has(id) && this.#bonds.numberOf(making) !== id) {
      throw new CryptoError("The server gives a number that is taken. Nothing was begun.");
    }
    this.#bonds.created(id, making);
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
    return this.#bonds.numberOf(making) ?? "later";
  }

  async rename(id, name) {
    await this.#call("set_dm", { id, name: name === "" ? null : name });
  }

  async leave(id) {
    await this.#call("leave_dm", { id });
    this.dms.delete(id);
    this.#bonds.leave(id);
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
      views.push(await this.#reader.view(dm.id, message));
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
        views.push(await this.#reader.view(id, message));
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

  #keyOrRefuse(id) {
    const { trouble, partner } = this.about(id);
    if (trouble !== null) {
      throw new CryptoError(troubleText(trouble, partner));
    }
    return this.#keeper.key(id);
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
