//! What is asked about files over HTTP, as values: tickets and ranges (spec 4.15).

use crate::chat::skynet::wire::{AccountId, FileId};
use crate::crypto::{Secret, equal};

/// What a ticket is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Bringing the bytes of a file.
    Upload = 1,
    /// Fetching them.
    Download = 2,
}

/// Lets somebody bring or fetch a file for a while, without asking again who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// What for.
    pub purpose: Purpose,
    /// Which file.
    pub file: FileId,
    /// Who got it.
    pub account: AccountId,
    /// Good before that, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

/// In a written ticket: the account, the end, and the voucher, in hexadecimal digits.
const TICKET: usize = 8 + 8 + 32;

impl Ticket {
    fn said(&self) -> [u8; 25] {
        let mut said = [self.purpose as u8; 25];
        let rest = [self.file.0.to_be_bytes(), self.account.0.to_be_bytes(), self.until_ms.to_be_bytes()];
        said.iter_mut().skip(1).zip(rest.as_flattened()).for_each(|(to, from)| *to = *from);
        said
    }

    /// As it is given away. `vouch` is what only this server can say of it.
    pub fn written(&self, vouch: impl Fn(&[u8]) -> Secret<32>) -> String {
        let said = self.said();
        hex::encode(said.get(9..).unwrap_or_default()) + &hex::encode(vouch(&said).expose())
    }

    /// The ticket that somebody shows, if it is one, for this file and purpose, and still good.
    pub fn read(
        text: &str,
        (purpose, file): (Purpose, FileId),
        now_ms: u64,
        vouch: impl Fn(&[u8]) -> Secret<32>,
    ) -> Option<Self> {
        let mut shown = [0; TICKET];
        hex::decode_to_slice(text, &mut shown).ok()?;
        let (account, rest) = shown.split_first_chunk()?;
        let (until, voucher) = rest.split_first_chunk()?;
        let (account, until_ms) = (AccountId(i64::from_be_bytes(*account)), u64::from_be_bytes(*until));
        let ticket = Self { purpose, file, account, until_ms };
        (equal(voucher, vouch(&ticket.said()).expose()) && now_ms < until_ms).then_some(ticket)
    }
}

/// Which part of a file somebody brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brought {
    /// Its first byte.
    pub first: u64,
    /// Its last one.
    pub last: u64,
    /// How many bytes the file has, if that is known.
    pub total: Option<u64>,
}

impl Brought {
    /// Reads a `Content-Range`.
    #[must_use]
    pub fn read(header: &str) -> Option<Self> {
        let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = if total == "*" { None } else { Some(number(total)?) };
        (first <= last && last < u64::MAX && total.is_none_or(|total| last < total)).then_some(Self {
            first,
            last,
            total,
        })
    }

    /// How many bytes are brought: at least one.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// Which part of a file somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    All,
    /// From the first to the last of these bytes.
    Part {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// One that it does not have.
    None,
}

impl Wanted {
    /// Reads a `Range` for a file of so many bytes. What cannot be read, and more than one part, means all of it (RFC 9110, 14.2).
    #[must_use]
    pub fn read(header: Option<&str>, len: u64) -> Self {
        let Some((first, last)) = header.and_then(|it| it.trim().strip_prefix("bytes=")?.split_once('-')) else {
            return Self::All;
        };
        match (number(first), number(last)) {
            (None, Some(behind)) if first.is_empty() => match len.checked_sub(1) {
                Some(last) if behind > 0 => Self::Part { first: len.saturating_sub(behind), last },
                _ => Self::None,
            },
            (Some(first), _) if last.is_empty() && first < len => Self::Part { first, last: len - 1 },
            (Some(first), Some(last)) if first <= last && first < len => Self::Part { first, last: last.min(len - 1) },
            (Some(first), Some(last)) if first > last => Self::All,
            (Some(_), Some(_)) => Self::None,
            (Some(_), None) if last.is_empty() => Self::None,
            _ => Self::All,
        }
    }
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|it| it.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::kdf;

    #[test]
    fn a_ticket_is_for_one_file_one_purpose_and_a_while() {
        let vouch = |key: u8| move |said: &[u8]| kdf::blake2b(&[key; 32], b"", b"", said);
        let ticket =
            Ticket { purpose: Purpose::Upload, file: FileId(-7), account: AccountId(i64::MIN), until_ms: 1_000 };
        let written = ticket.written(vouch(1));
        let read = |text: &str, what, now_ms, key| Ticket::read(text, what, now_ms, vouch(key));
        let upload = (Purpose::Upload, FileId(-7));
        assert_eq!(read(&written, upload, 999, 1), Some(ticket));
        assert_eq!(read(&written, upload, 1_000, 1), None, "too late");
        assert_eq!(read(&written, upload, 0, 2), None, "from somebody else");
        assert_eq!(read(&written, (Purpose::Download, FileId(-7)), 0, 1), None);
        assert_eq!(read(&written, (Purpose::Upload, FileId(7)), 0, 1), None);
        for at in 0..written.len() {
            let mut other = written.clone().into_bytes();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(read(std::str::from_utf8(&other).unwrap(), upload, 0, 1), None, "{at}");
            assert_eq!(read(&written[..at], upload, 0, 1), None, "{at}");
        }
    }

    #[test]
    fn what_is_brought_is_read_as_it_is_written_and_nothing_else() {
        let brought = |first, last, total| Some(Brought { first, last, total });
        assert_eq!(Brought::read("bytes 0-0/1"), brought(0, 0, Some(1)));
        assert_eq!(Brought::read("bytes 5-9/*"), brought(5, 9, None));
        assert_eq!(Brought::read("bytes 5-9/*").unwrap().bytes(), 5);
        for bad in
            ["", "bytes 1-0/9", "bytes 0-9/9", "bytes */9", "bytes +1-2/9", "0-1/2", "bytes 0-18446744073709551615/*"]
        {
            assert_eq!(Brought::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_wanted_is_a_part_or_all_of_it() {
        let read = |header, len| Wanted::read(Some(header), len);
        let part = |first, last| Wanted::Part { first, last };
        assert_eq!(Wanted::read(None, 10), Wanted::All);
        assert_eq!(read("bytes=2-5", 10), part(2, 5));
        assert_eq!(read("bytes=2-", 10), part(2, 9));
        assert_eq!(read("bytes=2-99", 10), part(2, 9));
        assert_eq!((read("bytes=-3", 10), read("bytes=-99", 10)), (part(7, 9), part(0, 9)));
        for none in ["bytes=10-", "bytes=10-11", "bytes=-0"] {
            assert_eq!(read(none, 10), Wanted::None, "{none}");
        }
        assert_eq!((read("bytes=0-", 0), read("bytes=-1", 0)), (Wanted::None, Wanted::None));
        for unread in ["bytes=5-2", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b", "bytes=-", "bytes=+1-2"] {
            assert_eq!(read(unread, 10), Wanted::All, "{unread}");
        }
    }
}
