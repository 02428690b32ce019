// What was seen in a conversation, to know it when it comes again (specification 5.8, W4).
//
// A signature is over the sealed text alone: not over its number, its conversation, its time, or what kind of thing it is. So a server
// can show what was said once more under another number, move a reaction to another message, pass one off as a message, or go back to what
// stood there before an edit. All of that is sealed under the nonce it was sealed under first.

/** Messages and reactions that are remembered of each conversation: the newest. */
const REMEMBERED = 2_000;
/** Versions of one message that are. */
const VERSIONS = 64;

const NONCE_HEX = 24;

export const messageThing = (id) => `m${id}`;
export const reactionThing = (id, of) => `r${id}@${of}`;

/** The number of the message that something is or stands on. */
const messageOf = (thing) => Number(thing.slice(thing.indexOf("@") + 1).replace("m", ""));
const mark = (sender, nonce) => `${nonce} ${sender}`;

export class Seen {
  /** What was seen, by what it is: its author, and its nonces with the newest last. */
  #things = new Map();
  /** As what a nonce of somebody was seen first. */
  #first = new Map();

  static of(entries) {
    const seen = new Seen();
    for (const [thing, sender, nonces] of Array.isArray(entries) ? entries : []) {
      nonces.forEach((nonce) => seen.#look(thing, sender, nonce));
    }
    return seen;
  }

  document() {
    return [...this.#things].map(([thing, { sender, nonces }]) => [thing, sender, nonces]);
  }

  /** Looks at something that holds: `first`, `again`, `repeats` something else, or is `older` than what stood there. */
  look(thing, sender, sealed) {
    return this.#look(thing, sender, sealed.slice(0, NONCE_HEX).toLowerCase());
  }

  #look(thing, sender, nonce) {
    const first = this.#first.get(mark(sender, nonce));
    if (first !== undefined) {
      return first !== thing ? "repeats" : this.#things.get(thing).nonces.at(-1) === nonce ? "again" : "older";
    }
    const known = this.#things.get(thing) ?? { sender, nonces: [] };
    if (known.sender !== sender) {
      // Nothing changes hands.
      return "repeats";
    }
    known.nonces.push(nonce);
    if (known.nonces.length > VERSIONS) {
      this.#first.delete(mark(sender, known.nonces.shift()));
    }
    this.#things.set(thing, known);
    this.#first.set(mark(sender, nonce), thing);
    if (this.#things.size > REMEMBERED) {
      this.#forget([...this.#things.keys()].reduce((a, b) => (messageOf(b) < messageOf(a) ? b : a)));
    }
    return "first";
  }

  #forget(thing) {
    const { sender, nonces } = this.#things.get(thing);
    nonces.forEach((nonce) => this.#first.delete(mark(sender, nonce)));
    this.#things.delete(thing);
  }

  /** Takes in what another page of this browser saw. What is the newest version here stays it, unless that page went on from it. */
  merge(other) {
    for (const [thing, { sender, nonces }] of other.#things) {
      const known = this.#things.get(thing);
      if (known === undefined) {
        nonces.forEach((nonce) => this.#look(thing, sender, nonce));
      } else if (known.sender === sender) {
        const goesOn = known.nonces.every((nonce, at) => nonces[at] === nonce);
        const rest = nonces.filter((nonce) => !known.nonces.includes(nonce) && !this.#first.has(mark(sender, nonce)));
        known.nonces = (goesOn ? [...known.nonces, ...rest] : [...rest, ...known.nonces]).slice(-VERSIONS);
        known.nonces.forEach((nonce) => this.#first.set(mark(sender, nonce), thing));
      }
    }
  }
}
