//! Kinds of values: what may be written for a key, and how a value is written down again.
//!
//! What a kind shows, it reads: `config show` prints a file that means the same. A value given by the environment or a flag
//! is bare text; numbers and switches are read as they stand, words and texts need no quotes, lists are separated by commas,
//! tables are TOML's inline ones.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use subtle::ConstantTimeEq as _;
use toml::Spanned;
use toml::de::DeValue;
use zeroize::Zeroizing;

use crate::net::rate::{Per, Rate};

/// What was given for a key.
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    /// In a file.
    File(&'a Spanned<DeValue<'a>>),
    /// By the environment or a flag.
    Text(&'a str),
}

/// Why a value is none of its kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where in the file; `None`: the whole value.
    pub at: Option<Range<usize>>,
    /// What is wrong.
    pub reason: String,
}

impl Fault {
    fn new(reason: impl Into<String>) -> Vec<Self> {
        vec![Self { at: None, reason: reason.into() }]
    }
}

/// A value as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// TOML.
    Value(String),
    /// There is nothing to write.
    NotSet,
    /// It is nobody's business.
    Hidden,
}

impl Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Value(value) => value,
            Self::NotSet => "not set",
            Self::Hidden => "hidden",
        })
    }
}

impl Shown {
    /// A text, with the quotes it needs.
    pub(super) fn text(text: &str) -> Self {
        Self::Value(toml::Value::from(text).to_string())
    }
}

/// What values a key takes.
pub trait Kind<T>: fmt::Debug {
    /// For the reference: the type of the value.
    fn name(&self) -> String;

    /// For the reference: which of them, if not all.
    fn range(&self) -> Option<String> {
        None
    }

    /// Reads and checks.
    ///
    /// # Errors
    /// All that is wrong with what was given. No reason repeats a secret.
    fn read(&self, given: Given<'_>) -> Result<T, Vec<Fault>>;

    /// Writes down.
    fn show(&self, value: &T) -> Shown;

    /// For the log: the value, or only how much of it there is.
    fn sketch(&self, value: &T) -> String {
        self.show(value).to_string()
    }

    /// For the log, of a value that changed: what it was and what it is.
    fn difference(&self, from: &T, to: &T) -> [String; 2] {
        [from, to].map(|value| self.sketch(value))
    }

    /// Whether nobody may see it.
    fn is_secret(&self) -> bool {
        false
    }
}

impl<'a> Given<'a> {
    /// A text: quoted in a file, bare elsewhere.
    pub(super) fn text(self, expected: &str) -> Result<&'a str, Vec<Fault>> {
        match self {
            Self::Text(text) => Ok(text),
            Self::File(value) => value.get_ref().as_str().ok_or_else(|| self.is_no(expected)),
        }
    }

    /// Hands on what TOML knows.
    fn toml<T>(self, expected: &str, read: impl FnOnce(&DeValue<'_>) -> Option<T>) -> Result<T, Vec<Fault>> {
        let value = match self {
            Self::File(value) => read(value.get_ref()),
            Self::Text(text) => DeValue::parse(text.trim()).ok().and_then(|value| read(value.get_ref())),
        };
        value.ok_or_else(|| self.is_no(expected))
    }

    pub(super) fn is_no(self, expected: &str) -> Vec<Fault> {
        Fault::new(match self {
            Self::File(value) => match value.get_ref() {
                DeValue::String(text) => format!("expected {expected}, not {:?}", &**text),
                other => format!("expected {expected}, not {} {}", article(other), other.type_str()),
            },
            Self::Text(text) => format!("expected {expected}, not {text:?}"),
        })
    }
}

fn article(value: &DeValue<'_>) -> &'static str {
    if matches!(value, DeValue::Integer(_) | DeValue::Array(_)) { "an" } else { "a" }
}

fn within<T: PartialOrd>(value: T, range: &RangeInclusive<T>, show: impl Fn(&T) -> String) -> Result<T, Vec<Fault>> {
    if range.contains(&value) { Ok(value) } else { Err(out_of(range, &show(&value), show)) }
}

fn out_of<T>(range: &RangeInclusive<T>, value: &str, show: impl Fn(&T) -> String) -> Vec<Fault> {
    Fault::new(format!("has to be between {} and {}, not {value}", show(range.start()), show(range.end())))
}

fn from_to<T>(range: &RangeInclusive<T>, show: impl Fn(&T) -> String) -> Option<String> {
    Some(format!("{} to {}", show(range.start()), show(range.end())))
}

/// `true` or `false`.
#[derive(Debug)]
pub struct Switch;

impl Kind<bool> for Switch {
    fn name(&self) -> String {
        "`true` or `false`".into()
    }

    fn read(&self, given: Given<'_>) -> Result<bool, Vec<Fault>> {
        given.toml("`true` or `false`", |value| value.as_bool())
    }

    fn show(&self, value: &bool) -> Shown {
        Shown::Value(value.to_string())
    }
}

/// A whole number.
#[derive(Debug)]
pub struct Number(pub RangeInclusive<u64>);

impl Number {
    /// With thousands apart, as TOML can read it.
    fn written(number: &impl ToString) -> String {
        let digits = number.to_string();
        if digits.len() < 5 || digits.starts_with('-') {
            return digits;
        }
        let grouped = |out: String, (at, digit): (usize, char)| match (digits.len() - at) % 3 {
            0 if at > 0 => out + "_" + digit.encode_utf8(&mut [0; 4]),
            _ => out + digit.encode_utf8(&mut [0; 4]),
        };
        digits.char_indices().fold(String::new(), grouped)
    }
}

impl<T: Copy + Display + TryFrom<u64>> Kind<T> for Number {
    fn name(&self) -> String {
        "number".into()
    }

    fn range(&self) -> Option<String> {
        from_to(&self.0, Self::written)
    }

    fn read(&self, given: Given<'_>) -> Result<T, Vec<Fault>> {
        let (digits, radix) = given.toml("a whole number", |value| {
            value.as_integer().map(|integer| (integer.as_str().to_owned(), integer.radix()))
        })?;
        let number = u64::from_str_radix(&digits, radix).ok().filter(|number| self.0.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| out_of(&self.0, &digits, Self::written))
    }

    fn show(&self, value: &T) -> Shown {
        Shown::Value(Self::written(value))
    }
}

/// A number of bytes, with its unit.
#[derive(Debug)]
pub struct Size(pub RangeInclusive<u64>);

impl Size {
    fn written(bytes: &u64) -> String {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let whole = |&&(_, bits): &&(&str, u32)| *bytes > 0 && bytes.trailing_zeros() >= bits;
        match UNITS.iter().find(whole) {
            Some((unit, bits)) => format!("{} {unit}", bytes >> bits),
            None => format!("{bytes} B"),
        }
    }
}

impl Kind<u64> for Size {
    fn name(&self) -> String {
        "size".into()
    }

    fn range(&self) -> Option<String> {
        from_to(&self.0, Self::written)
    }

    fn read(&self, given: Given<'_>) -> Result<u64, Vec<Fault>> {
        const EXPECTED: &str = "a size with its unit, such as \"64 MiB\"";
        let text = given.text(EXPECTED)?;
        let size = text.parse::<ByteSize>().ok().filter(|_| text.contains(char::is_alphabetic));
        within(size.ok_or_else(|| given.is_no(EXPECTED))?.as_u64(), &self.0, Self::written)
    }

    fn show(&self, value: &u64) -> Shown {
        Shown::text(&Self::written(value))
    }
}

/// A length of time, with its unit.
#[derive(Debug)]
pub struct Time(pub RangeInclusive<Duration>);

impl Time {
    fn written(time: &Duration) -> String {
        const UNITS: [(&str, u128); 5] =
            [("days", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];
        let ms = time.as_millis();
        match UNITS.iter().find(|(_, length)| ms > 0 && ms.is_multiple_of(*length)) {
            Some(("days", length)) if ms == *length => "1 day".to_owned(),
            Some((unit, length)) => format!("{} {unit}", ms / length),
            None => "0 s".to_owned(),
        }
    }
}

impl Kind<Duration> for Time {
    fn name(&self) -> String {
        "duration".into()
    }

    fn range(&self) -> Option<String> {
        from_to(&self.0, Self::written)
    }

    fn read(&self, given: Given<'_>) -> Result<Duration, Vec<Fault>> {
        const EXPECTED: &str = "a duration with its unit, such as \"90 s\"";
        let time = humantime::parse_duration(given.text(EXPECTED)?).map_err(|_| given.is_no(EXPECTED))?;
        // Milliseconds are the finest that is shown, and finer than anything here needs.
        let time = Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        within(time, &self.0, Self::written)
    }

    fn show(&self, value: &Duration) -> Shown {
        Shown::text(&Self::written(value))
    }
}

/// So many per time: `"30/min"`.
#[derive(Debug)]
pub struct Times(pub RangeInclusive<u64>);

/// So many bytes per time: `"2 MiB/s"`.
#[derive(Debug)]
pub struct Bytes(pub RangeInclusive<u64>);

/// What stands before and behind the slash.
fn per<'a>(given: Given<'a>, expected: &str) -> Result<(&'a str, Per), Vec<Fault>> {
    let split = given.text(expected)?.rsplit_once('/');
    let read = split.and_then(|(amount, unit)| {
        let unit = Per::ALL.iter().find(|(name, _)| *name == unit.trim());
        unit.map(|(_, per)| (amount.trim(), *per))
    });
    read.ok_or_else(|| given.is_no(expected))
}

impl Kind<Rate> for Times {
    fn name(&self) -> String {
        "number per `s`, `min` or `h`".into()
    }

    fn range(&self) -> Option<String> {
        from_to(&self.0, Number::written)
    }

    fn read(&self, given: Given<'_>) -> Result<Rate, Vec<Fault>> {
        const EXPECTED: &str = "a number per time, such as \"30/min\"";
        let (amount, per) = per(given, EXPECTED)?;
        let amount = amount.replace('_', "").parse().map_err(|_| given.is_no(EXPECTED))?;
        Ok(Rate { amount: within(amount, &self.0, Number::written)?, per })
    }

    fn show(&self, Rate { amount, per }: &Rate) -> Shown {
        Shown::text(&format!("{}/{per}", Number::written(amount)))
    }
}

impl Kind<Rate> for Bytes {
    fn name(&self) -> String {
        "size per `s`, `min` or `h`".into()
    }

    fn range(&self) -> Option<String> {
        from_to(&self.0, Size::written)
    }

    fn read(&self, given: Given<'_>) -> Result<Rate, Vec<Fault>> {
        const EXPECTED: &str = "a size per time, such as \"2 MiB/s\"";
        let (amount, per) = per(given, EXPECTED)?;
        let amount = amount.parse::<ByteSize>().ok().filter(|_| amount.contains(char::is_alphabetic));
        let amount = amount.ok_or_else(|| given.is_no(EXPECTED))?.as_u64();
        Ok(Rate { amount: within(amount, &self.0, Size::written)?, per })
    }

    fn show(&self, Rate { amount, per }: &Rate) -> Shown {
        Shown::text(&format!("{}/{per}", Size::written(amount)))
    }
}

/// A file or a directory.
#[derive(Debug)]
pub struct File;

impl Kind<PathBuf> for File {
    fn name(&self) -> String {
        "path".into()
    }

    fn read(&self, given: Given<'_>) -> Result<PathBuf, Vec<Fault>> {
        match given.text("a path")? {
            "" => Err(Fault::new("a path cannot be empty")),
            path => Ok(path.into()),
        }
    }

    fn show(&self, value: &PathBuf) -> Shown {
        Shown::text(&value.to_string_lossy())
    }
}

/// Anything that has a syntax of its own: what it is called, with its article, and an example.
#[derive(Debug)]
pub struct Parsed(pub &'static str, pub &'static str);

impl<T: FromStr + Display> Kind<T> for Parsed {
    fn name(&self) -> String {
        self.0.trim_start_matches("an ").trim_start_matches("a ").into()
    }

    fn read(&self, given: Given<'_>) -> Result<T, Vec<Fault>> {
        let expected = format!("{}, such as {:?}", self.0, self.1);
        given.text(&expected)?.parse().map_err(|_| given.is_no(&expected))
    }

    fn show(&self, value: &T) -> Shown {
        Shown::text(&value.to_string())
    }
}

/// A type made by `words!`.
pub trait Words: Copy + PartialEq + 'static {
    /// Every value: how it is written, itself, and what it means.
    const WORDS: &'static [(&'static str, Self, &'static str)];
}

/// One of a few words.
#[derive(Debug)]
pub struct OneOf;

impl<T: Words> Kind<T> for OneOf {
    fn name(&self) -> String {
        let words: Vec<String> =
            T::WORDS.iter().map(|(word, _, meaning)| format!("`\"{word}\"` ({})", meaning.trim())).collect();
        words.join(" or ")
    }

    fn read(&self, given: Given<'_>) -> Result<T, Vec<Fault>> {
        let words: Vec<String> = T::WORDS.iter().map(|(word, ..)| format!("{word:?}")).collect();
        let expected = words.join(" or ");
        let text = given.text(&expected)?;
        let found = T::WORDS.iter().find(|(word, ..)| *word == text);
        found.map(|(_, value, _)| *value).ok_or_else(|| given.is_no(&expected))
    }

    fn show(&self, value: &T) -> Shown {
        T::WORDS.iter().find(|(_, it, _)| it == value).map_or(Shown::NotSet, |(word, ..)| Shown::text(word))
    }
}

/// A value that can be absent: the word for that, and the kind of a value that is there. What has no word can only be left out.
#[derive(Debug)]
pub struct Or<K>(pub Option<&'static str>, pub K);

/// A limit that need not be one.
pub const fn unlimited<K>(kind: K) -> Or<K> {
    Or(Some("unlimited"), kind)
}

impl<T, K: Kind<T>> Kind<Option<T>> for Or<K> {
    fn name(&self) -> String {
        self.0.map_or_else(|| self.1.name(), |word| format!("{} or `\"{word}\"`", self.1.name()))
    }

    fn range(&self) -> Option<String> {
        self.1.range()
    }

    fn read(&self, given: Given<'_>) -> Result<Option<T>, Vec<Fault>> {
        let Some(word) = self.0 else { return self.1.read(given).map(Some) };
        if given.text(word).is_ok_and(|text| text == word) {
            return Ok(None);
        }
        self.1.read(given).map(Some).map_err(|mut faults| {
            for fault in faults.iter_mut().filter(|fault| fault.at.is_none()) {
                fault.reason += &format!("; or {word:?}");
            }
            faults
        })
    }

    fn show(&self, value: &Option<T>) -> Shown {
        match (value, self.0) {
            (Some(value), _) => self.1.show(value),
            (None, Some(word)) => Shown::text(word),
            (None, None) => Shown::NotSet,
        }
    }

    fn sketch(&self, value: &Option<T>) -> String {
        value.as_ref().map_or_else(|| self.show(value).to_string(), |value| self.1.sketch(value))
    }

    fn difference(&self, from: &Option<T>, to: &Option<T>) -> [String; 2] {
        match (from, to) {
            (Some(from), Some(to)) => self.1.difference(from, to),
            _ => [from, to].map(|value| self.sketch(value)),
        }
    }

    fn is_secret(&self) -> bool {
        self.1.is_secret()
    }
}

/// Any number of values of a kind; in the environment and in flags they are separated by commas.
#[derive(Debug)]
pub struct List<K>(pub K);

impl<T: Ord, K: Kind<T>> Kind<BTreeSet<T>> for List<K> {
    fn name(&self) -> String {
        format!("list of {}", self.0.name())
    }

    fn range(&self) -> Option<String> {
        self.0.range()
    }

    fn read(&self, given: Given<'_>) -> Result<BTreeSet<T>, Vec<Fault>> {
        let items: Vec<Given<'_>> = match given {
            Given::File(value) => {
                let array = value.get_ref().as_array().ok_or_else(|| given.is_no("a list in [ ]"))?;
                array.iter().map(Given::File).collect()
            }
            Given::Text(text) => text.split(',').map(str::trim).filter(|it| !it.is_empty()).map(Given::Text).collect(),
        };
        let (mut values, mut faults) = (BTreeSet::new(), Vec::new());
        for item in items {
            match self.0.read(item) {
                Ok(value) => drop(values.insert(value)),
                Err(found) => faults.extend(found.into_iter().map(|fault| match item {
                    Given::File(value) => Fault { at: fault.at.or_else(|| Some(value.span())), ..fault },
                    Given::Text(_) => fault,
                })),
            }
        }
        if faults.is_empty() { Ok(values) } else { Err(faults) }
    }

    fn show(&self, values: &BTreeSet<T>) -> Shown {
        let values: Vec<String> = values.iter().map(|value| self.0.show(value).to_string()).collect();
        Shown::Value(format!("[{}]", values.join(", ")))
    }

    fn sketch(&self, values: &BTreeSet<T>) -> String {
        format!("a list of {}", values.len())
    }
}

/// What nobody may see: printed as hidden, wiped from memory, compared in constant time.
#[derive(Clone)]
pub struct Secret {
    text: Zeroizing<String>,
    file: Option<PathBuf>,
}

impl Secret {
    /// Whether `offered` is the secret; how long the answer takes tells nothing but the length.
    #[must_use]
    pub fn matches(&self, offered: &[u8]) -> bool {
        self.text.as_bytes().ct_eq(offered).into()
    }

    /// The secret itself, for whoever has to hand it on.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.text.as_bytes()) && self.file == other.file
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// A secret of at least so many bytes: as it is, in a file that only the server's user can read, or `file:` and the path of a
/// file that holds it and nothing else.
///
/// The file is read with the configuration, so a reload takes over a new secret. White space around it is not part of it.
#[derive(Debug)]
pub struct Confidential(pub usize);

impl Kind<Secret> for Confidential {
    fn name(&self) -> String {
        "secret, or `\"file:PATH\"`".into()
    }

    fn range(&self) -> Option<String> {
        Some(format!("at least {} bytes", self.0))
    }

    fn read(&self, given: Given<'_>) -> Result<Secret, Vec<Fault>> {
        let text = match given {
            Given::Text(text) => text,
            // The general complaint would repeat what was written.
            Given::File(value) => value.get_ref().as_str().ok_or_else(|| Fault::new("expected a text in quotes"))?,
        };
        let secret = match (text.strip_prefix("file:"), given) {
            (Some(path), _) => {
                let read = std::fs::read_to_string(path).map(Zeroizing::new);
                let read = read.map_err(|error| Fault::new(format!("cannot read the secret in {path}: {error}")))?;
                Secret { text: Zeroizing::new(read.trim().to_owned()), file: Some(path.into()) }
            }
            (None, Given::File(_)) => Secret { text: Zeroizing::new(text.to_owned()), file: None },
            (None, Given::Text(_)) => {
                return Err(Fault::new(
                    "a secret does not belong into the environment or on a command line, where others can read it: \
                     write it into a file and give `file:` and its path",
                ));
            }
        };
        if secret.text.len() < self.0 {
            return Err(Fault::new(format!("a secret has to have at least {} bytes", self.0)));
        }
        Ok(secret)
    }

    fn show(&self, value: &Secret) -> Shown {
        match &value.file {
            Some(file) => Shown::text(&format!("file:{}", file.to_string_lossy())),
            None => Shown::Hidden,
        }
    }

    fn is_secret(&self) -> bool {
        true
    }
}

/// A table with a syntax of its own: what serde makes of it, with the place of what is wrong. Its name, and an example.
pub(super) fn table<T: serde::de::DeserializeOwned>(given: Given<'_>) -> Result<T, Vec<Fault>> {
    let read = |value: Spanned<DeValue<'_>>| T::deserialize(toml::de::ValueDeserializer::from(value));
    match given {
        Given::File(value) => {
            read(value.clone()).map_err(|error| vec![Fault { at: error.span(), reason: error.message().to_owned() }])
        }
        Given::Text(text) => {
            let read = DeValue::parse(text).and_then(read);
            read.map_err(|error| Fault::new(error.message()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads TOML as it stands in a file.
    fn file<T>(kind: &impl Kind<T>, toml: &str) -> Result<T, Vec<String>> {
        let value = DeValue::parse(toml).unwrap();
        kind.read(Given::File(&value)).map_err(|faults| faults.into_iter().map(|fault| fault.reason).collect())
    }

    fn text<T>(kind: &impl Kind<T>, text: &str) -> Result<T, Vec<String>> {
        kind.read(Given::Text(text)).map_err(|faults| faults.into_iter().map(|fault| fault.reason).collect())
    }

    /// Both ways to write it are read, and what is shown is read again.
    #[track_caller]
    fn reads<T: PartialEq + fmt::Debug>(kind: &impl Kind<T>, toml: &str, bare: &str, shown: &str) {
        let value = file(kind, toml).unwrap();
        assert_eq!(text(kind, bare).unwrap(), value);
        assert_eq!(kind.show(&value), Shown::Value(shown.to_owned()));
        assert_eq!(file(kind, shown).unwrap(), value);
    }

    #[test]
    fn what_a_kind_shows_it_reads() {
        reads(&Switch, "true", "true", "true");
        reads::<u32>(&Number(1..=15), "0xf", " 15 ", "15");
        reads::<u64>(&Number(1..=1_000_000), "999999", "999_999", "999_999");
        reads::<u64>(&Number(1..=u64::MAX), "1_0000", "10000", "10_000");
        reads(&Size(0..=u64::MAX), "\"0.5 MiB\"", "524288 B", "\"512 KiB\"");
        reads(&Size(0..=u64::MAX), "\"64 kB\"", "64000b", "\"64000 B\"");
        reads(&Size(0..=u64::MAX), "\"0 B\"", "0b", "\"0 B\"");
        let any = Time(Duration::ZERO..=Duration::MAX);
        reads(&any, "\"90 s\"", "1m 30s", "\"90 s\"");
        reads(&any, "\"120 s\"", "2min", "\"2 min\"");
        reads(&any, "\"24h\"", "1d", "\"1 day\"");
        reads(&any, "\"90 days\"", "2160 h", "\"90 days\"");
        reads(&any, "\"1500 ms\"", "1s 500ms", "\"1500 ms\"");
        reads(&any, "\"0s\"", "0 s", "\"0 s\"");
        reads(&Times(1..=u64::MAX), "\"30/min\"", "30 / min", "\"30/min\"");
        reads(&Times(1..=u64::MAX), "\"10000/h\"", "10_000/h", "\"10_000/h\"");
        reads(&Bytes(1..=u64::MAX), "\"0.5 MiB/s\"", "524288 B/s", "\"512 KiB/s\"");
        reads(&File, "'/a \"b\"/ü'", "/a \"b\"/ü", "'/a \"b\"/ü'");
        let number = Parsed("an ip address", "::1");
        reads::<std::net::IpAddr>(&number, "\"::1\"", "0:0::1", "\"::1\"");
        let list = List(number);
        reads::<BTreeSet<std::net::IpAddr>>(&list, "[\"::2\", '::1']", "::1, ::2", "[\"::1\", \"::2\"]");
        reads::<BTreeSet<std::net::IpAddr>>(&list, "[]", "", "[]");
        let limit = unlimited(Number(1..=9));
        reads::<Option<u8>>(&limit, "\"unlimited\"", "unlimited", "\"unlimited\"");
        reads::<Option<u8>>(&limit, "7", "7", "7");
    }

    #[test]
    fn what_is_no_value_is_told_what_would_be_one() {
        fn told<T: fmt::Debug>(kind: &impl Kind<T>, toml: &str, expected: &str) {
            let reasons = file(kind, toml).unwrap_err();
            assert!(reasons.iter().any(|reason| reason.contains(expected)), "{toml}: {reasons:?}");
        }
        told(&Switch, "\"yes\"", "expected `true` or `false`, not \"yes\"");
        told::<u8>(&Number(0..=300), "256", "has to be between 0 and 300, not 256");
        told::<u64>(&Number(0..=9), "-1", "has to be between 0 and 9, not -1");
        told::<u64>(&Number(0..=9), "99999999999999999999999", "has to be between 0 and 9");
        told::<u64>(&Number(0..=9), "1.5", "expected a whole number, not a float");
        told(&Size(0..=9), "\"9\"", "expected a size with its unit");
        told(&Size(0..=9), "9", "expected a size with its unit, such as \"64 MiB\", not an integer");
        told(&Time(Duration::ZERO..=Duration::MAX), "\"9\"", "expected a duration with its unit");
        told(&Times(1..=9), "\"10/s\"", "has to be between 1 and 9, not 10");
        for wrong in ["\"9\"", "9", "\"9/day\"", "\"/s\"", "\"-1/s\"", "\"1.5/s\""] {
            told(&Times(1..=9), wrong, "expected a number per time, such as \"30/min\"");
        }
        told(&Bytes(1..=9), "\"9/s\"", "expected a size per time, such as");
        told(&Bytes(1..=9), "\"10 B/s\"", "has to be between 1 B and 9 B, not 10 B");
        told(&File, "\"\"", "cannot be empty");
        told::<std::net::IpAddr>(&Parsed("an ip address", "::1"), "[]", "such as \"::1\", not an array");
        told::<Option<u8>>(&unlimited(Number(1..=9)), "0", "has to be between 1 and 9, not 0; or \"unlimited\"");
        let list = List(Number(1..=9));
        assert_eq!(<List<Number> as Kind<BTreeSet<u8>>>::read(&list, Given::Text("0,5,11")).unwrap_err().len(), 2);
    }

    #[test]
    fn a_secret_is_read_from_a_file_and_shown_to_nobody() {
        let kind = Confidential(8);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "open sesame\n").unwrap();
        let named = format!("file:{}", path.display());
        let secret = text(&kind, &named).unwrap();
        assert_eq!(secret.expose(), "open sesame");
        assert!(secret.matches(b"open sesame") && !secret.matches(b"open sesamE") && !secret.matches(b""));
        assert_eq!(kind.show(&secret), Shown::Value(format!("{named:?}")));
        let inline = file(&kind, "\"open sesame\"").unwrap();
        assert_eq!(kind.show(&inline), Shown::Hidden);
        assert_ne!(inline, secret, "moving a secret is a change");
        assert_eq!(format!("{inline:?}"), "Secret(hidden)");
        assert!(Kind::<Option<Secret>>::is_secret(&Or(None, Confidential(8))));
    }

    #[test]
    fn no_complaint_about_a_secret_repeats_it() {
        let kind = Confidential(20);
        let bare = text(&kind, "hunter2-hunter2-hunter2").unwrap_err();
        assert!(bare[0].contains("does not belong into the environment"), "{bare:?}");
        let complaints = [bare, file(&kind, "\"hunter2\"").unwrap_err(), file(&kind, "[\"hunter2\"]").unwrap_err()];
        assert!(!complaints.concat().concat().contains("hunter2"), "{complaints:?}");
        let gone = text(&kind, "file:/nowhere/token").unwrap_err();
        assert!(gone[0].contains("/nowhere/token: No such file"), "{gone:?}");
    }
}
