//! A key as words that a person can write down (spec 5.2).
//!
//! Of BIP-39 only the list of 2048 English words is used: eight bytes and two bits that check them (the sum of their pairs of
//! bits, modulo four) are 66 bits, which are six words. A seed is 24.

use zeroize::Zeroizing;

use crate::crypto::Secret;

/// How many words a seed is.
pub const COUNT: usize = 24;

static ENGLISH: &str = include_str!("english.txt");

/// Words that are no seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadWords {
    /// There must be 24.
    #[error("there are {0} words, and there must be {COUNT}")]
    Count(usize),
    /// The word at this place, counted from 1, is not in the list.
    #[error("word {0} is not in the list")]
    Unknown(usize),
    /// Of the six words from this one, counted from 1, at least one is wrong. Two bits find three of four such mistakes.
    #[error("one of the words {0} to {end} is wrong", end = .0 + 5)]
    Check(usize),
}

/// The words of a seed, in capitals, with single spaces.
#[must_use]
pub fn of(seed: &Secret<32>) -> Zeroizing<String> {
    let list: Vec<&str> = ENGLISH.lines().collect();
    // Eight letters and a space each: it never moves, so no copy stays behind.
    let mut out = Zeroizing::new(String::with_capacity(COUNT * 9));
    for group in seed.expose().as_chunks::<8>().0 {
        let bits = u64::from_be_bytes(*group);
        let checked = u128::from(bits) << 2 | u128::from(check(bits));
        for place in (0..6).rev() {
            let word = usize::try_from(checked >> (11 * place) & 0x7ff).unwrap_or_default();
            if !out.is_empty() {
                out.push(' ');
            }
            out.extend(list.get(word).into_iter().flat_map(|word| word.chars()).map(|c| c.to_ascii_uppercase()));
        }
    }
    out
}

/// The seed that was written down, in capitals or not, with any blanks between the words.
///
/// # Errors
/// [`BadWords`], with the place of what is wrong.
pub fn read(words: &str) -> Result<Secret<32>, BadWords> {
    let count = words.split_whitespace().count();
    if count != COUNT {
        return Err(BadWords::Count(count));
    }
    let mut seed = Zeroizing::new([0; 32]);
    let mut words = words.split_whitespace().zip(1_usize..);
    for (group, first) in seed.as_chunks_mut::<8>().0.iter_mut().zip((1..).step_by(6)) {
        let mut checked = 0_u128;
        for (word, place) in words.by_ref().take(6) {
            let index = ENGLISH.lines().position(|known| known.eq_ignore_ascii_case(word));
            checked = checked << 11 | u128::try_from(index.ok_or(BadWords::Unknown(place))?).unwrap_or_default();
        }
        let bits = u64::try_from(checked >> 2).unwrap_or_default();
        if u64::try_from(checked & 3).ok() != Some(check(bits)) {
            return Err(BadWords::Check(first));
        }
        *group = bits.to_be_bytes();
    }
    Ok(Secret::new(*seed))
}

/// The sum of the pairs of bits, modulo four.
fn check(bits: u64) -> u64 {
    (0..32).map(|pair| bits >> (2 * pair) & 3).sum::<u64>() & 3
}
