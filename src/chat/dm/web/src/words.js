// The recovery words: a seed of 32 bytes as 24 words of the BIP-39 English list.
//
// Not BIP-39's own checksum: each group of 8 bytes carries two bits of parity of its own and makes six words, so that a
// wrong word is noticed in its group.

import { wordlist } from "@scure/bip39/wordlists/english.js";

const GROUP_BYTES = 8;
const GROUP_WORDS = 6;
const GROUPS = 4;

/** The sum of its 2-bit parts, modulo 4. */
function parity(value) {
  let sum = 0n;
  for (let rest = value; rest > 0n; rest >>= 2n) {
    sum += rest & 3n;
  }
  return sum & 3n;
}

export function wordsOf(seed) {
  const words = [];
  for (let at = 0; at < seed.length; at += GROUP_BYTES) {
    const value = seed.subarray(at, at + GROUP_BYTES).reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
    const bits = (value << 2n) | parity(value);
    for (let word = GROUP_WORDS - 1; word >= 0; word -= 1) {
      words.push(wordlist[Number((bits >> BigInt(11 * word)) & 2047n)]);
    }
  }
  return words;
}

/** The seed of a text of 24 words. Throws an `Error` that names the word or the group that is wrong. */
export function seedOf(text) {
  const words = text.toLowerCase().split(/[^a-z]+/).filter((word) => word !== "");
  if (words.length !== GROUPS * GROUP_WORDS) {
    throw new Error(`There have to be 24 words; these are ${words.length}.`);
  }
  const seed = [];
  for (let group = 0; group < GROUPS; group += 1) {
    let bits = 0n;
    for (const word of words.slice(group * GROUP_WORDS, (group + 1) * GROUP_WORDS)) {
      const index = wordlist.indexOf(word);
      if (index < 0) {
        throw new Error(`“${word}” is not one of the words.`);
      }
      bits = (bits << 11n) | BigInt(index);
    }
    const value = bits >> 2n;
    if (parity(value) !== (bits & 3n)) {
      throw new Error(`One of the words ${group * GROUP_WORDS + 1} to ${(group + 1) * GROUP_WORDS} is wrong.`);
    }
    for (let byte = GROUP_BYTES - 1; byte >= 0; byte -= 1) {
      seed.push(Number((value >> BigInt(8 * byte)) & 255n));
    }
  }
  return Uint8Array.from(seed);
}
