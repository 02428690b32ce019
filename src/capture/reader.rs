//! Reads a capture as far as it is whole.

use std::io::{self, Read};

use bytes::Bytes;

use super::{BODY_MAX, BadRecord, End, Entry, Event, HEADER_MAX, Header, MAGIC, PREAMBLE, RECORD_HEAD, VERSION};

/// Why this is no capture that can be read.
#[derive(Debug, thiserror::Error)]
pub enum NotACapture {
    /// It begins otherwise.
    #[error("this is no capture: it does not begin like one")]
    Magic,
    /// It is of another version.
    #[error("a capture of version {0}; this program reads version {VERSION}")]
    Version(u16),
    /// It ends within its header.
    #[error("a capture that was cut within its header")]
    Cut,
    /// Its header means nothing.
    #[error("a capture whose header is damaged: {0}")]
    Header(#[from] BadRecord),
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How a capture ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// There is more to be read.
    Unread,
    /// With the record that says so.
    Ended(End),
    /// Between two records: whoever wrote it was ended, or the file was cut there.
    Unended,
    /// Within a record.
    Cut {
        /// Where that record begins, in bytes from the front.
        at: u64,
        /// How many of its bytes are there.
        there: u64,
    },
    /// With a record that means nothing; whatever stands behind it is not read.
    Damaged {
        /// Where that record begins, in bytes from the front.
        at: u64,
        /// What is wrong with it.
        why: BadRecord,
    },
}

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unread => f.write_str("there is more"),
            Self::Ended(end) => f.write_str(end.meaning()),
            Self::Unended => f.write_str("it just stops: nothing says that it is complete"),
            Self::Cut { at, there } => {
                write!(
                    f,
                    "it was cut: of a record that begins at byte {at} there are {there} bytes, which are left out"
                )
            }
            Self::Damaged { at, why } => {
                write!(f, "it is damaged at byte {at} ({why}); what stands behind that is left out")
            }
        }
    }
}

/// Gives one record after the other, and holds one at a time.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    header: Header,
    /// Bytes that belong to what was given, or passed over.
    at: u64,
    passed_over: u64,
    tail: Tail,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`NotACapture`] says why there is nothing to be read.
    pub fn new(mut from: R) -> Result<Self, NotACapture> {
        let mut preamble = [0; PREAMBLE];
        let there = fill(&mut from, &mut preamble)?;
        let [magic @ .., v0, v1, n0, n1] = preamble;
        let known = there.min(MAGIC.len());
        if magic.get(..known) != MAGIC.get(..known) || there == 0 {
            return Err(NotACapture::Magic);
        }
        if there < PREAMBLE {
            return Err(NotACapture::Cut);
        }
        let (version, len) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([n0, n1]));
        if version != VERSION {
            return Err(NotACapture::Version(version));
        }
        if len > HEADER_MAX {
            return Err(BadRecord::TooLong(len.into()).into());
        }
        let mut header = vec![0; len.into()];
        if fill(&mut from, &mut header)? < header.len() {
            return Err(NotACapture::Cut);
        }
        let at = PREAMBLE as u64 + u64::from(len);
        Ok(Self { from, header: Header::decode(&header)?, at, passed_over: 0, tail: Tail::Unread })
    }

    /// What stands before the first record.
    #[must_use]
    pub const fn header(&self) -> Header {
        self.header
    }

    /// How it ended; [`Tail::Unread`] until [`Self::next_entry`] gave nothing.
    #[must_use]
    pub const fn tail(&self) -> Tail {
        self.tail
    }

    /// Records of kinds that this version does not know.
    #[must_use]
    pub const fn passed_over(&self) -> u64 {
        self.passed_over
    }

    /// The next record; nothing at the end, whatever kind of end that is ([`Self::tail`]). What stands behind
    /// [`Event::End`] is not read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        while self.tail == Tail::Unread {
            let mut head = [0; RECORD_HEAD];
            let there = fill(&mut self.from, &mut head)?;
            if there < RECORD_HEAD {
                self.tail = if there == 0 { Tail::Unended } else { Tail::Cut { at: self.at, there: there as u64 } };
                break;
            }
            let [a, b, c, d, kind] = head;
            let len = u32::from_le_bytes([a, b, c, d]);
            let Some(len) = usize::try_from(len).ok().filter(|&len| len <= BODY_MAX) else {
                self.tail = Tail::Damaged { at: self.at, why: BadRecord::TooLong(len) };
                break;
            };
            let mut body = vec![0; len];
            let there = fill(&mut self.from, &mut body)?;
            if there < len {
                self.tail = Tail::Cut { at: self.at, there: (RECORD_HEAD + there) as u64 };
                break;
            }
            match Entry::decode(kind, &Bytes::from(body)) {
                Ok(Some(entry)) => {
                    self.at += (RECORD_HEAD + len) as u64;
                    if let Event::End(end) = entry.event {
                        self.tail = Tail::Ended(end);
                    }
                    return Ok(Some(entry));
                }
                Ok(None) => {
                    self.at += (RECORD_HEAD + len) as u64;
                    self.passed_over += 1;
                }
                Err(why) => self.tail = Tail::Damaged { at: self.at, why },
            }
        }
        Ok(None)
    }

    /// All that is still to come.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn rest(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        while let Some(entry) = self.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

/// Reads until the buffer is full or the input ends; says how many bytes there were.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut there = 0;
    while let Some(rest) = buffer.get_mut(there..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => there += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(there)
}
