// With whom a conversation is, and under which key: what was agreed on when it was made, by this account or by who invited it.

import { CryptoError, bytesToHex, createGroup, hexToBytes, joinGroup } from "./crypto.js";
import { timeOf } from "./reader.js";
import { Refused } from "./wire.js";

/** Why nothing is said in a conversation. */
export const troubleText = (trouble, partner) => ({
  key: "The key of this conversation has not arrived.",
  stale: "This conversation was made with another key than the one that was accepted since. Leave it and begin a new one.",
  strangers: `This conversation was made with ${partner} alone, and the server says that others are in it. Nothing is sent.`,
  unsigned: "Whoever made this conversation did not sign its tree of keys: a server that is not honest could read what you write here.",
})[trouble];

export class Bonds {
  #username;
  #seed;
  #keeper;
  #people;

  constructor({ username, seed, keeper, people }) {
    this.#username = username;
    this.#seed = seed;
    this.#keeper = keeper;
    this.#people = people;
  }

  get #known() {
    return this.#keeper.knowledge;
  }

  has(id) {
    return this.#known.keys.has(id);
  }

  /** Whether the keys of a conversation were signed by who made it; `undefined` where no page of this account was there. */
  signed(id) {
    return this.#known.setups.get(id)?.signed;
  }

  /**
   * What is known of a conversation whatever the server says: the other one, if it was made for two; else by whom it was made, if
   * that is known. `trouble` is why nothing is said there: `key`, `strangers`, `stale`, or `unsigned`, which a person can take.
   */
  about(id, users) {
    const partner = this.#known.partner(id);
    const setup = this.#known.setups.get(id);
    const trouble = !this.has(id) ? "key"
      : this.#known.unpaired.has(id) ? "stale"
      : partner !== undefined && users.some((name) => name !== this.#username && name !== partner) ? "strangers"
      : setup?.signed === false && setup.taken !== true ? "unsigned"
      : null;
    return { partner, by: setup?.by, trouble };
  }

  /** A person takes a conversation whose tree of keys nobody has signed. */
  take(id) {
    this.#known.setups.set(id, { ...this.#known.setups.get(id), taken: true });
    this.#keeper.learnt();
  }

  /** Asks for the keys of these, and makes what is needed to invite them; its key is kept from here on. */
  async prepare(usernames) {
    const group = createGroup(this.#seed, await this.#invitees(usernames));
    const making = { key: bytesToHex(group.key), users: [this.#username, ...usernames], at: Date.now() };
    this.#known.making(making);
    return { making, request: { usernames, messages: group.messages, key_tree: group.keyTree } };
  }

  async #invitees(usernames) {
    const invitees = [];
    for (const username of usernames) {
      const user = await this.#people.readUser(username);
      if (!user) {
        throw new Refused("no_such_user", `There is no user of the name ${username}.`);
      }
      if (user.public_key !== (await this.#people.pinned(username))) {
        throw new CryptoError(`The key of ${username} has changed. Compare it first.`);
      }
      if (!user.spk) {
        throw new Refused("spk_missing", `${username} cannot be invited now.`);
      }
      invitees.push(user);
    }
    return invitees;
  }

  /** What was asked for has this number, as the server says. Throws when that is one that is taken, or none. */
  created(id, making) {
    // Its key may have been taken by this number already, from what another page has read.
    if (this.#known.keys.get(id) !== making.key) {
      if (this.has(id) || this.#known.left.has(id) || this.numberOf(making) !== undefined || !Number.isSafeInteger(id) || id < 1) {
        throw new CryptoError("The server gives a number that is taken. Nothing was begun.");
      }
      this.enter(id, making);
    }
  }

  /** It was not made. */
  unmade(making) {
    this.#known.unmade(making);
    this.#keeper.learnt();
  }

  /** The number under which it is known. */
  numberOf({ key }) {
    return this.#known.idOf(key);
  }

  /** Forgets a conversation, and its key. */
  leave(id) {
    this.#known.leave(id);
    this.#keeper.learnt();
  }

  /** Whether it is one that was asked for, and whose number was lost with the answer: then its key is here. */
  adopt(id, { users, created_at }) {
    if (this.has(id) || this.#known.left.has(id) || !users.includes(this.#username)) {
      return;
    }
    const away = ({ at }) => Math.abs(at - timeOf(created_at));
    const [making] = this.#known.makings.filter((one) => users.every((name) => one.users.includes(name))).sort((a, b) => away(a) - away(b));
    if (making !== undefined) {
      this.enter(id, making);
    }
  }

  /** What was asked for has this number. */
  enter(id, { key, users }) {
    this.#known.enter(id, key, users.filter((name) => name !== this.#username), { by: this.#username, signed: true });
    this.#keeper.learnt();
  }

  /** Looks at an invitation: its key is that of the conversation from now on. Throws a `CryptoError` when it is not to be believed. */
  async invited(invitation) {
    const { id, sender } = invitation;
    if (!Number.isSafeInteger(id) || id < 1) {
      throw new CryptoError("its number is none");
    }
    const joined = joinGroup(this.#seed, await this.#people.pinned(sender), this.#known.prekeys.map(hexToBytes), invitation);
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
    if (!joined.signed && this.#known.signedOnly.value) {
      throw new CryptoError("its keys are not signed, and this account wants them to be");
    }
    const pair = invitation.key_tree.length === 2;
    this.#known.enter(id, key, pair ? [sender] : [], { by: sender, signed: joined.signed });
    this.#keeper.learnt();
  }
}
