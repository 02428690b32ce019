// What arrived, as it is shown: nothing that its author's pinned key did not sign, that does not open, or that was seen before as
// something else.

import { CryptoError, read } from "./crypto.js";
import { messageThing, reactionThing } from "./seen.js";

const REPEATED = {
  repeats: "Not shown: it was sent before as something else, and may be repeated by the server",
  older: "Not shown: it stood here before an edit, and may be brought back by the server",
};

/** The time of a timestamp, which is UTC without saying so. */
export const timeOf = (stamp) => new Date(`${stamp}Z`);

export class Reader {
  #keeper;
  #pinned;

  /** `pinned` says which key is whose. */
  constructor({ keeper, pinned }) {
    this.#keeper = keeper;
    this.#pinned = pinned;
  }

  /**
   * A message of a conversation as it is shown: with its text, or with why there is none. Of one that is heard just now it is known how
   * long it stays, whatever the clock of this device says.
   */
  async view(dm, message, live = false) {
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
    const key = this.#keeper.key(dm);
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
}
