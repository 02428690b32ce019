// Where what an account knows is kept: sealed on the server, for all its devices, and sealed in this browser.
//
// What is learnt is in the memory of the page first, then in the browser, then on the server, and there it is written until it is
// taken. There is no compare-and-set: who writes reads first and merges. Pages of one browser take turns; of two browsers that write at
// once the slower undoes what the other wrote, which the other finds lacking when it reads again, and writes once more.

import { bytesToHex, hexToBytes, newSeed, openText, personalKey, publicKey, sealText, sign } from "./crypto.js";
import { Knowledge } from "./knowledge.js";
import { Seen } from "./seen.js";
import { call, connected } from "./wire.js";

const SAVE_AFTER_MS = 400;
const NOTE_AFTER_MS = 1_000;
/** How long after a write that failed the next one is tried: twice as long each time. */
const SAVE_AGAIN_MS = 2_000;
const SAVE_AGAIN_MAX_MS = 60_000;
/** What the server keeps, in characters; and from where on what nobody needs is left out. */
const STORAGE_MAX = 524_288;
const STORAGE_FULL = 0.8 * STORAGE_MAX;

/** What the server keeps for this account is not what a device of this account has sealed. */
export class Unreadable extends Error {}

/** Makes the account of a seed. Logs nobody in. */
export async function register(socket, username, seed = newSeed()) {
  await connected(socket);
  const knowledge = new Knowledge();
  const spk = newSeed();
  knowledge.rotate(bytesToHex(spk));
  await call(socket, "register", {
    username,
    public_key: publicKey(seed),
    spk: publicKey(spk),
    sig: sign(seed, hexToBytes(publicKey(spk))),
    own_storage: await sealText(personalKey(seed), JSON.stringify(knowledge.document())),
  });
  return seed;
}

export class Keeper {
  knowledge = new Knowledge();
  /** What was seen, by conversation. */
  #seen = new Map();

  #username;
  #seed;
  #personal;
  #ask;
  #notebook;
  #warn;
  #needed;
  #heard;
  /** Counts what was learnt; and how much of it the server has. */
  #learnt = 0;
  #taken = 0;
  #failures = 0;
  #saving = null;
  #noting = null;
  #full = false;
  #closed = false;

  /**
   * `ask` puts a question to the server, `notebook` keeps things in this browser (or there is none), `warn` tells a person,
   * `heard` is told what was read, and `needed` says which conversations and people there are; null while that is not known.
   */
  constructor({ username, seed, ask, notebook, warn, heard, needed }) {
    this.#username = username;
    this.#seed = seed;
    this.#personal = personalKey(seed);
    this.#ask = ask;
    this.#notebook = notebook;
    this.#warn = warn;
    this.#heard = heard;
    this.#needed = needed;
  }

  /** The key of a conversation. */
  key(id) {
    const key = this.knowledge.keys.get(id);
    return key === undefined ? undefined : hexToBytes(key);
  }

  /** What was seen in it. */
  seen(id) {
    if (!this.#seen.has(id)) {
      this.#seen.set(id, new Seen());
    }
    return this.#seen.get(id);
  }

  /** Reads what this browser knows. */
  async load() {
    try {
      const kept = await this.#notebook?.load();
      kept && this.#takeIn(kept);
    } catch (error) {
      this.#notebook = null;
      this.#warn(`What this browser knows of the account cannot be read, and nothing is written over it: ${error.message}`);
    }
  }

  /**
   * Reads what the server keeps, and merges it. `heard` gets the account, the conversations whose keys are new here, and the names
   * for which another key is kept there than is known here.
   */
  async read() {
    const me = await this.#ask("get_full_user");
    let there = new Knowledge();
    if (me.own_storage !== "") {
      try {
        there = Knowledge.of(JSON.parse(await openText(this.#personal, me.own_storage)));
      } catch {
        throw new Unreadable("What the server keeps for this account cannot be opened. Nothing is written over it.");
      }
    }
    const before = new Set(this.knowledge.keys.keys());
    const contradicted = this.knowledge.merge(there, (prekey) => publicKey(hexToBytes(prekey)) === me.spk);
    this.note();
    if (this.knowledge.isBeyond(there)) {
      this.learnt();
    }
    this.#heard({ me, contradicted, fresh: [...this.knowledge.keys.keys()].filter((id) => !before.has(id)) });
  }

  /** Something was learnt: it is kept here, and on the server a little later. */
  learnt() {
    this.#learnt += 1;
    this.note();
    this.#saveIn(SAVE_AFTER_MS);
  }

  #saveIn(wait) {
    if (!this.#closed) {
      this.#saving ??= setTimeout(() => this.#saveAgain(), wait);
    }
  }

  async #saveAgain() {
    this.#saving = null;
    try {
      if (this.#taken < this.#learnt) {
        await this.save();
      }
    } catch (error) {
      if (this.#failures === 0) {
        this.#warn(`What is new is not yet on the server, and is written again: ${error.message}`);
      }
      this.#failures += 1;
      this.#saveIn(Math.min(SAVE_AGAIN_MS * 2 ** (this.#failures - 1), SAVE_AGAIN_MAX_MS));
    }
  }

  /** Reads, merges, changes, writes; returns when the server has taken it. `more` goes with it. */
  async save(change = () => {}, more = {}) {
    const turn = async () => {
      await this.read();
      change();
      const learnt = this.#learnt;
      await this.#ask("set_user", { own_storage: await this.#sealed(), ...more });
      this.#taken = Math.max(this.#taken, learnt);
      this.#failures = 0;
    };
    await (globalThis.navigator?.locks?.request(`heliostat-dm ${this.#username}`, turn) ?? turn());
    await this.#write();
  }

  async #sealed() {
    const seal = () => sealText(this.#personal, JSON.stringify(this.knowledge.document()));
    let sealed = await seal();
    if (sealed.length > STORAGE_FULL) {
      const needed = this.#needed();
      if (needed !== null) {
        this.knowledge.prune(needed.ids, needed.names);
        sealed = await seal();
      }
      if (sealed.length > STORAGE_FULL && !this.#full) {
        this.#full = true;
        this.#warn("What the server keeps for this account is nearly full. Leave conversations that you do not need.");
      }
    }
    if (sealed.length > STORAGE_MAX) {
      throw new Error("There is more to keep than the server takes. Leave conversations that you do not need.");
    }
    return sealed;
  }

  // ---- in this browser

  /** Something is to be kept in this browser, a little later. */
  note() {
    if (this.#notebook && !this.#closed) {
      this.#noting ??= setTimeout(() => this.#write().catch((error) => this.#warn(error.message)), NOTE_AFTER_MS);
    }
  }

  async #write() {
    clearTimeout(this.#noting);
    this.#noting = null;
    await this.#notebook?.update((kept) => {
      // Another page of this browser may have written meanwhile.
      kept && this.#takeIn(kept);
      const seen = [...this.#seen].map(([id, seen]) => [id, seen.document()]);
      return { knowledge: this.knowledge.document(), seen: Object.fromEntries(seen) };
    });
  }

  #takeIn({ knowledge, seen }) {
    const published = this.knowledge.prekey;
    this.knowledge.merge(Knowledge.of(knowledge ?? {}), (prekey) => prekey === published);
    for (const [id, entries] of Object.entries(seen ?? {})) {
      this.seen(Number(id)).merge(Seen.of(entries));
    }
    [...this.knowledge.left.keys()].forEach((id) => this.#seen.delete(id));
  }

  /** Keeps what is not kept yet, and ends. */
  async close(online) {
    clearTimeout(this.#saving);
    await Promise.allSettled([this.#write(), online && this.#taken < this.#learnt ? this.save() : null]);
    this.#closed = true;
    clearTimeout(this.#saving);
    clearTimeout(this.#noting);
    this.#personal.fill(0);
  }

  // ---- the prekey

  /** A new one; invitations that are on their way still find the old one. */
  replacePrekey() {
    const spk = newSeed();
    const published = publicKey(spk);
    const more = { spk: published, sig: sign(this.#seed, hexToBytes(published)) };
    return this.save(() => this.knowledge.rotate(bytesToHex(spk)), more);
  }

  /** Nobody can invite this account any more, until there is a new prekey. */
  withdrawPrekey() {
    return this.save(() => {}, { spk: null, sig: null });
  }
}
