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

/** Keeps an account's seed here. What was known here before of the same seed stays. */
export async function keep(username, seed, passphrase) {
  const kdf = { ...COST, salt: bytesToHex(randomBytes(16)) };
  const sealed = await seal(await stretch(passphrase, kdf), seed);
  const before = await run("readonly", (store) => store.get(username));
  await run("readwrite", (store) => store.put({ username, kdf, seed: sealed, state: before?.state ?? null }));
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

/** What an account knows in this browser beside its seed. Of an account whose seed is not kept here, nothing is. */
export class Notebook {
  #username;
  #key;

  constructor(username, seed) {
    this.#username = username;
    this.#key = hkdf(sha512, seed, undefined, utf8ToBytes("heliostat-dm-notebook"), 32);
  }

  async load() {
    try {
      const kept = await run("readonly", (store) => store.get(this.#username));
      return kept?.state ? JSON.parse(await openText(this.#key, kept.state)) : {};
    } catch {
      // Of another seed, whose account had this name before; or the browser keeps nothing.
      return {};
    }
  }

  async save(state) {
    const sealed = await sealText(this.#key, JSON.stringify(state));
    const kept = await run("readonly", (store) => store.get(this.#username));
    if (kept !== undefined) {
      await run("readwrite", (store) => store.put({ ...kept, state: sealed }));
    }
  }
}
