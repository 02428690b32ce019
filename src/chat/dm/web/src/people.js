// People as an account knows them: who is a friend, what the server says of them, and which key is whose.
//
// A person's identity key is the one that was known first under that name, its *pin*. When the server names another one, that is told, and
// the pin stays until a person has compared the new one and says so.

import { CryptoError, fingerprint, point } from "./crypto.js";
import { Refused } from "./wire.js";

/** How many questions are open at a time. */
const ABREAST = 8;

/** Does it for each, a few at a time. */
export async function each(items, work) {
  const rest = [...items];
  const worker = async () => {
    while (rest.length > 0) {
      await work(rest.shift());
    }
  };
  await Promise.all(Array.from({ length: ABREAST }, worker));
}

export class People {
  /** What the server says of oneself, and of others by their names. */
  me = null;
  users = new Map();
  friends = [];
  requests = [];
  outgoing = [];
  blocked = [];
  /** Keys that changed: username to the new key. */
  changed = new Map();

  #username;
  #publicKey;
  #keeper;
  #ask;
  #tell;

  /** `keeper` keeps the pins, `ask` puts a question to the server, `tell` says what happened. */
  constructor({ username, publicKey, keeper, ask, tell }) {
    this.#username = username;
    this.#publicKey = publicKey;
    this.#keeper = keeper;
    this.#ask = ask;
    this.#tell = tell;
  }

  get #known() {
    return this.#keeper.knowledge;
  }

  /** What is known of a person; of oneself, what others see. */
  person(username) {
    return username === this.#username ? this.me : this.users.get(username);
  }

  /** Reads who is a friend, who asks to be one, and who is blocked. */
  async read() {
    const ask = (event) => this.#ask(event);
    [this.friends, this.requests, this.outgoing, this.blocked] = await Promise.all(
      ["get_friends", "get_friend_requests", "get_outgoing_requests", "get_blocked"].map(ask),
    );
    await each([...this.friends, ...this.requests].filter((name) => !this.users.has(name)), (name) => this.readUser(name));
    this.#tell("people");
  }

  /** What the server says of somebody; null when there is nobody of that name. */
  async readUser(username) {
    try {
      const user = await this.#ask("get_user", { username });
      if (user.username !== username) {
        throw new CryptoError(`The server answers with somebody else than ${username}.`);
      }
      return this.met(user);
    } catch (error) {
      if (error instanceof Refused && error.code === "no_such_user") {
        return null;
      }
      throw error;
    }
  }

  /** Compares the key of a person with the pinned one. */
  met(user) {
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
    return username === this.#username ? this.#publicKey : this.#known.pins.get(username);
  }

  /** The same; the first time, the one that the server names becomes it. */
  async pinned(username) {
    if (this.pin(username) === undefined) {
      const user = this.users.get(username) ?? (await this.readUser(username));
      if (!user) {
        throw new CryptoError("its author is unknown");
      }
      point(user.public_key);
      this.#known.pin(username, user.public_key);
      this.#keeper.learnt();
    }
    return this.pin(username);
  }

  /**
   * What two people compare: the digits of the key known for a name, which is the known one from now on, and of the one that the
   * server names now, if that is another.
   */
  async comparison(username) {
    const digits = (key) => key && { key, digits: fingerprint(this.#publicKey, key) };
    const known = await this.pinned(username);
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

  /** A person has compared the new key: it is the known one. */
  accept(username, key) {
    if (this.changed.get(username) !== key) {
      throw new CryptoError(`The server names yet another key of ${username} by now. Compare again.`);
    }
    point(key);
    this.#known.accept(username, key);
    this.#keeper.learnt();
    this.changed.delete(username);
  }

  /** Drops the warnings of keys that another device has accepted. */
  settle() {
    this.changed.forEach((key, name) => this.pin(name) === key && this.changed.delete(name));
  }

  /** Everybody, for a look around. */
  async directory() {
    const users = await this.#ask("get_user_list");
    users.forEach((user) => user.username === this.#username || this.met(user));
    return users;
  }

  async #friendship(event, username, more = {}) {
    await this.#ask(event, { username, ...more });
    await this.read();
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
}
