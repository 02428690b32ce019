// What an account knows: its prekeys, the keys of its conversations, which key is whose, and with whom a conversation was made.
//
// It lies on the server, sealed, in the form that every client of the account reads (and what others keep there beside it stays);
// and in this browser. Neither copy orders the other: each is merged into what is known, so that an older one undoes nothing. What
// was said once (left, compared, taken back, wanted) is said for good, or counted, or has a time, and the later word holds.
//
// `heliostat dm` reads and writes the same (crypto/storage.rs), and a test has each read what the other wrote.
//
// Names come from others, and a name may be `constructor`: everything under a name or a number is a `Map`.

import { trace } from "./crypto.js";

/** Prekeys that are no longer published and are kept: an invitation that used an older one is lost. */
const OLD_PREKEYS_MAX = 64;
/** Conversations that were asked for and whose number is not known. */
const MAKINGS_MAX = 16;
/** Conversations that were left and are remembered as such: the newest. */
const LEFT_MAX = 2_000;

const isKey = (value) => typeof value === "string" && /^[0-9a-f]{64}$/.test(value);
const isTrace = (value) => typeof value === "string" && /^[0-9a-f]{16}$/.test(value);
const isName = (value) => typeof value === "string";
const isForgotten = (value) => Number.isSafeInteger(value?.times) && value.times > 0 && (value.key === undefined || isKey(value.key));
const isTime = (value) => Number.isSafeInteger(value) && value >= 0;
const isId = (id) => Number.isSafeInteger(id) && id > 0;
const isSetup = (value) => isName(value?.by) && typeof value.signed === "boolean";
const isMaking = (value) => isKey(value?.key) && isTime(value.at) && Array.isArray(value.users) && value.users.every(isName);

/** What of an object is of the right form. An odd entry spoils nothing but itself. */
const named = (object, fits) => new Map(Object.entries(object ?? {}).filter(([, value]) => fits(value)));
const numbered = (object, fits) =>
  new Map([...named(object, fits)].map(([id, value]) => [Number(id), value]).filter(([id]) => isId(id)));
const all = (array, fits) => (Array.isArray(array) ? array.filter(fits) : []);

export class Knowledge {
  /** The prekey that is published, and those that were; seeds. */
  prekey = null;
  oldPrekeys = [];
  /** The keys of conversations, by their numbers. */
  keys = new Map();
  /**
   * The identity key of a name; and how often a person took one back, with the last of those: a client that does not know of this may
   * have written it again. Of two copies, the one that took back more often is right about a name.
   */
  pins = new Map();
  forgotten = new Map();
  /** Names whose key was compared. */
  verified = new Set();
  /** Conversations that were made for two, and with whom; and those that were made with a key that was taken back. */
  pairs = new Map();
  unpaired = new Set();
  /** By whom a conversation was made, whether the tree of its keys was signed, and whether a person took it all the same. */
  setups = new Map();
  /** Conversations that were left, with a trace of their keys: an invitation to one that comes again is known. */
  left = new Map();
  /** Conversations that were asked for: who is in them, oneself first, and their keys. */
  makings = [];
  /** Whether invitations without a signed tree are refused, and since when. */
  signedOnly = { value: true, at: 0 };
  /** Those that were not made: other copies may still have them. */
  #unmade = new Set();
  /** What other clients keep. */
  #rest = {};

  /** Of what lies somewhere: any object. */
  static of(document) {
    const { privSPK, oldSPKs, sharedKeys, pins, forgotten, verified, pairs, unpaired, setups, left, makings, signedOnly, ...rest } = document;
    const known = new Knowledge();
    known.prekey = isKey(privSPK) ? privSPK : null;
    known.oldPrekeys = all(oldSPKs, isKey);
    known.keys = numbered(sharedKeys, isKey);
    known.pins = named(pins, isKey);
    known.forgotten = named(forgotten, isForgotten);
    known.verified = new Set(all(verified, (name) => known.pins.has(name)));
    known.unpaired = new Set(all(unpaired, isId));
    known.pairs = numbered(pairs, isName);
    known.unpaired.forEach((id) => known.pairs.delete(id));
    known.setups = numbered(setups, isSetup);
    known.left = numbered(left, isTrace);
    known.makings = all(makings, isMaking);
    known.signedOnly = isTime(signedOnly?.at) && typeof signedOnly.value === "boolean" ? signedOnly : known.signedOnly;
    known.#rest = rest;
    return known;
  }

  document() {
    const object = (map) => Object.fromEntries(map);
    return {
      ...this.#rest,
      ...(this.prekey === null ? {} : { privSPK: this.prekey }),
      oldSPKs: this.oldPrekeys,
      sharedKeys: object(this.keys),
      pins: object(this.pins),
      forgotten: object(this.forgotten),
      verified: [...this.verified],
      pairs: object(this.pairs),
      unpaired: [...this.unpaired],
      setups: object(this.setups),
      left: object(this.left),
      makings: this.makings,
      signedOnly: this.signedOnly,
    };
  }

  get prekeys() {
    return [this.prekey, ...this.oldPrekeys].filter((prekey) => prekey !== null);
  }

  /** With whom a conversation was made for two. */
  partner(id) {
    return this.pairs.get(id);
  }

  /** Whether a key is or was that of a conversation. */
  knows(key) {
    return this.idOf(key) !== undefined || [...this.left.values()].includes(trace(key));
  }

  /** The number under which a key is known. */
  idOf(key) {
    return [...this.keys].find(([, known]) => known === key)?.[0];
  }

  /** The key of a conversation, of which nothing was known. */
  enter(id, key, users, setup) {
    this.keys.set(id, key);
    this.setups.set(id, setup);
    if (users.length === 1) {
      this.pairs.set(id, users[0]);
    }
    this.makings = this.makings.filter((making) => making.key !== key);
  }

  /** The key of a name, as it is met first. */
  pin(name, key) {
    const forgotten = this.forgotten.get(name);
    if (forgotten?.key === key) {
      // Taken back, and met again: this is newer than what says that it was taken back.
      this.forgotten.set(name, { times: forgotten.times + 1 });
    }
    this.pins.set(name, key);
  }

  /** Another key for a name: what was agreed on with the one before is not agreed on with it. */
  accept(name, key) {
    const { times } = this.#forgotten(name);
    this.forgotten.set(name, { times: times + 1, key: this.pins.get(name) });
    this.verified.delete(name);
    this.#unpair((_, partner) => partner === name);
    this.pin(name, key);
  }

  #forgotten(name) {
    return this.forgotten.get(name) ?? { times: 0 };
  }

  #unpair(are) {
    for (const [id, partner] of this.pairs) {
      if (are(id, partner)) {
        this.pairs.delete(id);
        this.unpaired.add(id);
      }
    }
  }

  /** Forgets a conversation for good. */
  leave(id, what = trace(this.keys.get(id) ?? "")) {
    this.left.set(id, what);
    this.left = new Map([...this.left].sort(([a], [b]) => b - a).slice(0, LEFT_MAX));
    for (const map of [this.keys, this.pairs, this.setups, this.unpaired]) {
      map.delete(id);
    }
  }

  /** Forgets what nobody asks for: of conversations one is not in, and keys of people about which nobody has said anything. */
  prune(ids, names) {
    [...this.keys.keys()].filter((id) => !ids.has(id)).forEach((id) => this.leave(id));
    const wanted = (name) => names.has(name) || this.verified.has(name) || this.forgotten.has(name);
    this.pins = new Map([...this.pins].filter(([name]) => wanted(name)));
  }

  rotate(prekey) {
    this.oldPrekeys = this.prekeys.slice(0, OLD_PREKEYS_MAX);
    this.prekey = prekey;
  }

  making(making) {
    this.makings = [...this.makings, making].slice(-MAKINGS_MAX);
  }

  unmade({ key }) {
    this.#unmade.add(key);
    this.makings = this.makings.filter((making) => making.key !== key);
  }

  /**
   * Takes in what lies elsewhere. Where both know a key, this one's stays; of two pins that of who took back more often.
   * `published` says which of the prekeys is. Returns the names for which the other has another key and did not win.
   */
  merge(other, isPublished = () => false) {
    const prekeys = [...new Set([...other.prekeys, ...this.prekeys])];
    this.prekey = prekeys.find(isPublished) ?? other.prekey ?? this.prekey;
    this.oldPrekeys = prekeys.filter((prekey) => prekey !== this.prekey).slice(0, OLD_PREKEYS_MAX);
    const contradicted = [];
    for (const [name, theirs] of other.forgotten) {
      if (theirs.times > this.#forgotten(name).times) {
        this.forgotten.set(name, theirs);
        this.pins.delete(name);
        this.verified.delete(name);
        this.#unpair((id, partner) => partner === name && !other.pairs.has(id));
      }
    }
    other.unpaired.forEach((id) => this.unpaired.add(id));
    this.#unpair((id) => this.unpaired.has(id));
    const isOld = (name) => other.#forgotten(name).times < this.#forgotten(name).times;
    for (const [name, key] of other.pins) {
      if (isOld(name) || this.#forgotten(name).key === key) {
        continue;
      }
      const known = this.pins.get(name) ?? key;
      this.pins.set(name, known);
      if (known !== key) {
        contradicted.push(name);
      } else if (other.verified.has(name)) {
        this.verified.add(name);
      }
    }
    other.left.forEach((what, id) => this.left.has(id) || this.leave(id, what));
    this.left.forEach((_, id) => this.unpaired.delete(id));
    const known = new Set(this.keys.values());
    const left = new Set(this.left.values());
    for (const [id, key] of other.keys) {
      // One key under two numbers would let what was said under one be said again under the other.
      if (!this.left.has(id) && !this.keys.has(id) && !known.has(key) && !(left.size > 0 && left.has(trace(key)))) {
        this.keys.set(id, key);
        known.add(key);
      }
    }
    for (const [id, name] of other.pairs) {
      if (this.keys.has(id) && !this.unpaired.has(id) && !this.pairs.has(id)) {
        isOld(name) ? this.unpaired.add(id) : this.pairs.set(id, name);
      }
    }
    for (const [id, setup] of other.setups) {
      const mine = this.setups.get(id) ?? setup;
      this.left.has(id) || this.setups.set(id, { ...mine, taken: mine.taken === true || setup.taken === true });
    }
    const makings = new Map([...other.makings, ...this.makings].map((making) => [making.key, making]));
    this.makings = [...makings.values()].filter(({ key }) => !this.#unmade.has(key) && this.idOf(key) === undefined).slice(-MAKINGS_MAX);
    this.signedOnly = other.signedOnly.at > this.signedOnly.at ? other.signedOnly : this.signedOnly;
    this.#rest = { ...this.#rest, ...other.#rest };
    return contradicted;
  }

  /** Whether something is known here that the other copy lacks. Where both know something, none insists: two would write for ever. */
  isBeyond(other) {
    const lacks = (mine, there) => [...mine.keys()].some((it) => !there.has(it));
    const later = [...this.forgotten].some(([name, { times }]) => times > other.#forgotten(name).times);
    const taken = [...this.setups].some(([id, { taken }]) => taken === true && other.setups.get(id)?.taken !== true);
    const compared = [...this.verified].some((name) => this.pins.get(name) === other.pins.get(name) && !other.verified.has(name));
    const pairs = ["keys", "pins", "pairs", "unpaired", "setups", "left"].some((what) => lacks(this[what], other[what]));
    const prekeys = this.prekey !== null && !other.prekeys.includes(this.prekey);
    return pairs || prekeys || later || taken || compared || this.signedOnly.at > other.signedOnly.at;
  }
}
