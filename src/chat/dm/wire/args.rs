//! Arguments, taken liberally (spec 1.2): one object with named keys, or values in the order of the tables, or nothing.
//!
//! What is not asked for is never looked into, so it may be as deep or as long as a packet can be.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::refusal::Code;

#[derive(Debug)]
pub(super) enum Args<'a> {
    Named(HashMap<String, &'a RawValue>),
    InOrder(Vec<&'a RawValue>),
}

impl<'a> Args<'a> {
    /// Reads the array of an event: its name, then what came with it.
    pub(super) fn read(event: &'a str) -> Result<Self, Code> {
        let mut values: Vec<&RawValue> = serde_json::from_str(event).map_err(|_| Code::BadRequest)?;
        if values.is_empty() {
            return Err(Code::BadRequest);
        }
        values.remove(0);
        match values.as_slice() {
            [] => Ok(Self::InOrder(values)),
            [null] if null.get() == "null" => Ok(Self::InOrder(Vec::new())),
            [first, ..] if first.get().starts_with('{') => Self::object(first.get()),
            _ => Ok(Self::InOrder(values)),
        }
    }

    /// The keys of an object.
    pub(super) fn object(json: &'a str) -> Result<Self, Code> {
        serde_json::from_str(json).map(Self::Named).map_err(|_| Code::BadRequest)
    }

    /// A value as it came, `null` too.
    pub(super) fn given(&self, at: usize, name: &str) -> Option<&'a RawValue> {
        match self {
            Self::Named(named) => named.get(name).copied(),
            Self::InOrder(values) => values.get(at).copied(),
        }
    }

    /// The same, unless it is `null`.
    pub(super) fn some(&self, at: usize, name: &str) -> Option<&'a RawValue> {
        self.given(at, name).filter(|value| value.get() != "null")
    }

    fn wanted(&self, at: usize, name: &str) -> Result<&'a RawValue, Code> {
        self.some(at, name).ok_or(Code::BadRequest)
    }

    pub(super) fn text(&self, at: usize, name: &str) -> Result<String, Code> {
        text(self.wanted(at, name)?)
    }

    pub(super) fn number(&self, at: usize, name: &str) -> Result<i64, Code> {
        number(self.wanted(at, name)?)
    }

    pub(super) fn yes(&self, at: usize, name: &str) -> Result<bool, Code> {
        typed(self.wanted(at, name)?)
    }

    pub(super) fn list(&self, at: usize, name: &str) -> Result<Vec<&'a RawValue>, Code> {
        serde_json::from_str(self.wanted(at, name)?.get()).map_err(|_| Code::BadRequest)
    }

    pub(super) fn hex<const N: usize>(&self, at: usize, name: &str) -> Result<[u8; N], Code> {
        hex_of(self.wanted(at, name)?)
    }

    /// Bytes, of which there have to be some and may be `max`.
    pub(super) fn bytes(&self, at: usize, name: &str, max: usize) -> Result<Vec<u8>, Code> {
        let digits = text(self.wanted(at, name)?)?;
        if digits.len() / 2 > max {
            return Err(Code::TooLarge);
        }
        hex::decode(digits).ok().filter(|bytes| !bytes.is_empty()).ok_or(Code::Malformed)
    }
}

fn typed<T: DeserializeOwned>(value: &RawValue) -> Result<T, Code> {
    serde_json::from_str(value.get()).map_err(|_| Code::BadRequest)
}

/// Text without zeros, which one of the databases cannot keep.
pub(super) fn text(value: &RawValue) -> Result<String, Code> {
    typed::<String>(value).and_then(|text| if text.contains('\0') { Err(Code::BadRequest) } else { Ok(text) })
}

/// An integer, also when it is written as a fraction without one, or as text.
pub(super) fn number(value: &RawValue) -> Result<i64, Code> {
    /// From here on not every integer is a number of this kind.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let json = value.get();
    if let Ok(number) = json.parse() {
        return Ok(number);
    }
    if json.starts_with('"') {
        let text: String = typed(value)?;
        let is_decimal = text.strip_prefix('-').unwrap_or(&text).bytes().all(|it| it.is_ascii_digit());
        return text.parse().ok().filter(|_| is_decimal).ok_or(Code::BadRequest);
    }
    let float: f64 = typed(value)?;
    if float.fract() != 0.0 || float.abs() > EXACT_MAX {
        return Err(Code::BadRequest);
    }
    format!("{float:.0}").parse().map_err(|_| Code::BadRequest)
}

pub(super) fn hex_of<const N: usize>(value: &RawValue) -> Result<[u8; N], Code> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text(value)?, &mut bytes).map_err(|_| Code::Malformed)?;
    Ok(bytes)
}
