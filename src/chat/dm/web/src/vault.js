// What stays in this browser: the seed of an account, sealed by a passphrase, and what the account knows here.
//
// The seed is all of an account. A key that WebCrypto keeps to itself cannot be used for what the protocol needs (products on
// the Edwards curve), so the seed has to be in this page's memory while the page is unlocked; on the disk it is only sealed:
// AES-256-GCM under scrypt of a passphrase, with numbers that make each guess cost 128 MiB and a good part of a second.
// Pins and what else is known here are sealed by a key made from the seed: a server that hands out an older copy of
// what it stores cannot make this browser forget a pin.

import { hkdf } from "@noble/hashes/hkdf.js";
import { scryptAsync } from "@noble/hashes/scrypt.js";
import { sha512 } from "@noble/hashes/sha2.js";
import { utf8ToBytes } from "@noble/hashes/utils.js";

import { bytesToHex, hexToBytes, open, openText, randomBytes, seal, sealText } from "./crypto.js";

const STORE = "accounts";
const COST = { N: 2 ** 17, r: 8, p: 1 };

/** The shortest passphrase that is taken. */
export const PASSPHRASE_MIN = 8;

function database() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("heliostat-dm", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "username" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Runs one request in a transaction of its own, and waits until the transaction is kept. */
async function run(mode, use) {
  const db = await database();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = db.transaction(STORE, mode);
      const request = use(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    db.close();
  }
}

const stretch = (passphrase, { N, r, p, salt }) =>
  scryptAsync(utf8ToBytes(passphrase.normalize("NFKC")), hexToBytes(salt), { N, r, p, dkLen: 32, maxmem: 2 ** 28 });

/** The names of the accounts that are kept here. */
export const accounts = () => run("readonly", (store) => store.getAllKeys());

export const forget = (username) => run("readwrite", (store) => store.delete(username));

/** By which it is known whose something is. */
export const markOf = (seed) => bytesToHex(hkdf(sha512, seed, undefined, utf8ToBytes("heliostat-dm-mark"), 16));

/**
 * Keeps an account's seed here. What was known here before of the same seed stays; another seed of this name does, too, and this
 * is an error, unless it is `instead` of that.
 */
export async function keep(username, seed, passphrase, instead = false) {
  const before = await run("readonly", (store) => store.get(username));
  const mark = markOf(seed);
  if (before !== undefined && before.mark !== mark && !instead) {
    throw new Error("Another account of this name is kept here. Forget it first.");
  }
  const kdf = { ...COST, salt: bytesToHex(randomBytes(16)) };
  const sealed = await seal(await stretch(passphrase, kdf), seed);
  await run("readwrite", (store) => store.put({ username, mark, kdf, seed: sealed, state: before?.mark === mark ? before.state : null }));
}

/** The seed, or an error when the passphrase is another. */
export async function unlock(username, passphrase) {
  const kept = await run("readonly", (store) => store.get(username));
  if (kept === undefined) {
    throw new Error("That account is not kept here.");
  }
  const key = await stretch(passphrase, kept.kdf);
  try {
    return await open(key, kept.seed);
  } catch {
    throw new Error("That is not the passphrase.");
  }
}

/** Where one account lies here. */
const shelfOf = (username) => ({
  get: () => run("readonly", (store) => store.get(username)),
  put: (kept) => run("readwrite", (store) => store.put(kept)),
});

/** What an account knows in this browser beside its seed. Of an account whose seed is not kept here, nothing is. */
export class Notebook {
  #username;
  #key;
  #mark;
  #written = null;
  #shelf;

  constructor(username, seed, shelf = shelfOf(username)) {
    this.#username = username;
    this.#key = hkdf(sha512, seed, undefined, utf8ToBytes("heliostat-dm-notebook"), 32);
    this.#mark = markOf(seed);
    this.#shelf = shelf;
  }

  /** What is written; null when nothing is. Throws when the browser does not say, or it was damaged. */
  async load() {
    const kept = await this.#kept();
    return kept === null ? null : this.#read(kept);
  }

  /** Writes what `change` makes of what somebody else wrote since (null when nobody did): one page of this browser after the other. */
  async update(change) {
    const turn = async () => {
      const kept = await this.#kept();
      if (kept !== null) {
        const since = kept.state === this.#written ? null : await this.#read(kept);
        const state = await sealText(this.#key, JSON.stringify(change(since)));
        await this.#shelf.put({ ...kept, state });
        this.#written = state;
      }
    };
    await (globalThis.navigator?.locks?.request(`heliostat-dm-notebook ${this.#username}`, turn) ?? turn());
  }

  /** The place of this account; null when that of another one of its name is here, or none. */
  async #kept() {
    const kept = await this.#shelf.get();
    return kept?.mark === this.#mark ? kept : null;
  }

  async #read({ state }) {
    return state === null ? null : JSON.parse(await openText(this.#key, state));
  }
}
