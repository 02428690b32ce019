//! Scenarios: what the devices of a simulation do, and what is done to them, as a TOML file.
//!
//! Everything random is drawn from the seed, each device from a generator of its own, so that the same seed makes the same
//! choices whatever the server does in between. When they are carried out is up to the server as well.
//!
//! A key that is not known is a mistake, and a mistake has a line: `every` kind of value here reads itself, so that the
//! parser knows where it stands.

use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use miette::{LabeledSpan, NamedSource, Report, Result, miette};
use serde::{Deserialize, Serialize};

use crate::wire::d2m::ENVELOPE_MAX;

/// What a sealed message has more than the message: nonce and tag.
const SEAL: usize = 40;
/// The most bytes of a message.
pub(super) const SIZE_MAX: usize = ENVELOPE_MAX - SEAL;

/// The scenarios that come with the program: name and file.
const BUILT_IN: [(&str, &str); 6] = [
    ("default", include_str!("scenarios/default.toml")),
    ("steady", include_str!("scenarios/steady.toml")),
    ("offline", include_str!("scenarios/offline.toml")),
    ("transactions", include_str!("scenarios/transactions.toml")),
    ("churn", include_str!("scenarios/churn.toml")),
    ("storm", include_str!("scenarios/storm.toml")),
];

/// A simulation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Scenario {
    /// In a sentence.
    pub(super) about: String,
    /// How many device groups.
    pub(super) groups: Count,
    /// How many devices in each.
    pub(super) devices: Count,
    /// How many messages each device says; or else `duration`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) messages: Option<u32>,
    /// How long they speak; or else `messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) duration: Option<Time>,
    /// What all choices follow from.
    pub(super) seed: u64,
    /// When the groups come.
    pub(super) arrival: Arrival,
    /// Between two messages of a device. With `"none"` each speaks as fast as it is acknowledged.
    pub(super) think: Delay,
    /// Of a message, before it is sealed.
    pub(super) size: Size,
    /// Share of the messages outside transactions that are ephemeral.
    pub(super) ephemeral: Share,
    /// How many chat messages each group says; as many as `messages` when not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chat: Option<u32>,
    pub(super) transactions: Transactions,
    /// Each device is away now and then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offline: Option<Lasting>,
    /// The leader of each group is away now and then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) leader_leaves: Option<Lasting>,
    /// In each group, one device drops another now and then, and a new one takes its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replace_device: Option<Time>,
    pub(super) chaos: Chaos,
}

/// Messages that are reflected under the group's lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Transactions {
    /// Share of all messages.
    pub(super) share: Share,
    /// Messages of one transaction, from and to.
    pub(super) entries: Entries,
    /// For how long the lock is held beyond what it takes.
    pub(super) hold: Delay,
    /// What the holder asks for. When not set, the server's maximum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ttl: Option<Time>,
}

/// What goes wrong. Each time is the mean between two such events of one device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Chaos {
    /// The connection is gone without a close.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drop: Option<Time>,
    /// The device reads slowly: a few hundred bytes, then a pause of 20 ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delay: Option<Lasting>,
    /// The device reads nothing at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stall: Option<Lasting>,
    /// The device logs in a second time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) duplicate: Option<Time>,
    /// The device's process dies between a message and its acknowledgement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kill: Option<Time>,
    /// Something is done to the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server: Option<ServerChaos>,
}

/// A command that does something to the server, such as killing and starting it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerChaos {
    /// Time between two.
    pub(super) every: Time,
    /// For the shell.
    pub(super) command: String,
}

/// Something that happens now and then and takes a while.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lasting {
    /// The mean time between two.
    pub(super) every: Time,
    pub(super) lasts: Delay,
}

/// When groups come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Arrival {
    AtOnce,
    /// One after the other, evenly.
    Over(Time),
    /// By themselves; this is the mean time between two.
    Poisson(Time),
}

/// A length of time, chosen anew each time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Delay {
    None,
    Fixed(Time),
    /// By its mean.
    Exponential(Time),
    Uniform(Between),
}

/// Bytes, chosen anew each time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Size {
    Fixed(Bytes),
    Uniform(Bytes, Bytes),
    Mix(Vec<Part>),
}

/// One size of a mix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    /// Against those of the others.
    pub(super) weight: Count,
    pub(super) size: Bytes,
}

/// At least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub(super) struct Count(u16);

/// A length of time above zero, with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Time(Duration);

/// From and to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "(Time, Time)", into = "(Time, Time)")]
pub(super) struct Between(Time, Time);

/// From and to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "(Count, Count)", into = "(Count, Count)")]
pub(super) struct Entries(Count, Count);

/// A number of bytes that fits a message, with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Bytes(u16);

/// From 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub(super) struct Share(f64);

impl Default for Scenario {
    fn default() -> Self {
        Self {
            about: String::new(),
            groups: Count(20),
            devices: Count(3),
            messages: None,
            duration: None,
            seed: 1,
            arrival: Arrival::AtOnce,
            think: Delay::None,
            size: Size::Fixed(Bytes(200)),
            ephemeral: Share(0.1),
            chat: None,
            transactions: Transactions::default(),
            offline: None,
            leader_leaves: None,
            replace_device: None,
            chaos: Chaos::default(),
        }
    }
}

impl Default for Transactions {
    fn default() -> Self {
        Self { share: Share(0.1), entries: Entries(Count(1), Count(5)), hold: Delay::None, ttl: None }
    }
}

impl Scenario {
    /// One that comes with the program, by its name, else a file.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub(super) fn find(name: &str) -> Result<Self> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Self::parse(name, text);
        }
        let text = std::fs::read_to_string(Path::new(name)).map_err(|error| {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let help = format!("a scenario is a file or one of {}", names.join(", "));
            miette!(help = help, "cannot read the scenario {name}: {error}")
        })?;
        Self::parse(name, &text)
    }

    /// Reads a scenario; `name` is for complaints.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1);
            let place = line.map_or_else(|| name.to_owned(), |line| format!("{name}, line {line}"));
            let labels: Vec<LabeledSpan> = error.span().map(|span| LabeledSpan::at(span, "here")).into_iter().collect();
            let report: Report = miette!(labels = labels, "{place}: {}", error.message());
            report.with_source_code(NamedSource::new(name, text.to_owned()))
        })
    }

    /// What cannot be together.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn check(&self) -> Result<()> {
        match (self.messages, self.duration) {
            (Some(_), Some(_)) => Err(miette!("a scenario has either `messages` or `duration`")),
            (None, None) => Err(miette!("a scenario needs `messages` or `duration`")),
            _ if self.replace_device.is_some() && self.devices.get() < 2 => Err(miette!(
                "nobody can be dropped in a group of one device: `replace_device` needs `devices` of 2 at least"
            )),
            _ => Ok(()),
        }
    }

    /// As a file.
    ///
    /// # Errors
    /// Only when the format cannot say it.
    pub(super) fn print(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// A line for each that comes with the program.
    pub(super) fn list() -> Result<String> {
        BUILT_IN.iter().map(|(name, text)| Ok(format!("{name:13} {}\n", Self::parse(name, text)?.about))).collect()
    }

    /// Whether messages are due by a schedule; else a device says the next as soon as it may.
    pub(super) fn is_open(&self) -> bool {
        self.think != Delay::None
    }
}

impl Arrival {
    /// When each of so many groups comes, counted from the beginning.
    pub(super) fn times(self, groups: usize, rng: &mut fastrand::Rng) -> Vec<Duration> {
        let mut at = Duration::ZERO;
        let count = u32::try_from(groups).unwrap_or(u32::MAX).max(1);
        (0..count)
            .map(|number| match self {
                Self::AtOnce => Duration::ZERO,
                Self::Over(Time(over)) => over.mul_f64(f64::from(number) / f64::from(count)),
                Self::Poisson(mean) => {
                    at += mean.around(rng);
                    at
                }
            })
            .take(groups)
            .collect()
    }
}

impl Delay {
    pub(super) fn draw(self, rng: &mut fastrand::Rng) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fixed(Time(time)) => time,
            Self::Exponential(mean) => mean.around(rng),
            Self::Uniform(Between(Time(from), Time(to))) => from + to.saturating_sub(from).mul_f64(rng.f64()),
        }
    }
}

impl Size {
    /// Nothing is smaller than `least`.
    pub(super) fn draw(&self, least: usize, rng: &mut fastrand::Rng) -> usize {
        let size = match self {
            Self::Fixed(Bytes(size)) => *size,
            Self::Uniform(Bytes(a), Bytes(b)) => rng.u16(*a.min(b)..=*a.max(b)),
            Self::Mix(parts) => {
                let all: u32 = parts.iter().map(|part| u32::from(part.weight.0)).sum();
                let mut left = rng.u32(0..all.max(1));
                let chosen = parts.iter().find(|part| {
                    let weight = u32::from(part.weight.0);
                    let here = left < weight;
                    left = left.saturating_sub(weight);
                    here
                });
                chosen.map_or(0, |part| part.size.0)
            }
        };
        usize::from(size).max(least)
    }
}

impl Transactions {
    /// How often a transaction is begun where a message would be, so that `share` of the messages are in transactions.
    pub(super) fn begin(&self) -> f64 {
        let Entries(Count(from), Count(to)) = self.entries;
        let mean = f64::midpoint(f64::from(from), f64::from(to));
        self.share.0 / (self.share.0 + mean * (1.0 - self.share.0)).max(f64::MIN_POSITIVE)
    }

    pub(super) fn draw_entries(&self, rng: &mut fastrand::Rng) -> usize {
        let Entries(Count(from), Count(to)) = self.entries;
        rng.u16(from..=to).into()
    }

    /// In whole seconds; zero asks for the server's maximum.
    pub(super) fn ttl_s(&self) -> u32 {
        self.ttl.map_or(0, |Time(ttl)| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1))
    }
}

impl Count {
    pub(super) const fn get(self) -> usize {
        self.0 as usize
    }
}

impl Time {
    /// More is as good as never, and what is added to it must not overflow.
    const MOST: Duration = Duration::from_secs(10 * 365 * 86_400);

    /// Nothing when it is no time at all; ten years at most.
    pub(super) fn new(time: Duration) -> Option<Self> {
        (!time.is_zero()).then_some(Self(time.min(Self::MOST)))
    }

    pub(super) const fn get(self) -> Duration {
        self.0
    }

    /// Exponentially distributed, with this mean.
    pub(super) fn around(self, rng: &mut fastrand::Rng) -> Duration {
        // Never the logarithm of zero: the generator's one is excluded.
        self.0.mul_f64(-(1.0 - rng.f64()).ln())
    }
}

impl Share {
    pub(super) const fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<u16> for Count {
    type Error = &'static str;

    fn try_from(count: u16) -> Result<Self, Self::Error> {
        if count == 0 { Err("has to be 1 at least") } else { Ok(Self(count)) }
    }
}

impl From<Count> for u16 {
    fn from(count: Count) -> Self {
        count.0
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl std::str::FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match humantime::parse_duration(text) {
            Ok(Duration::ZERO) => Err("has to be longer than nothing".to_owned()),
            Ok(time) if time > Self::MOST => Err("has to be ten years at most".to_owned()),
            Ok(time) => Ok(Self(time)),
            Err(error) => Err(format!("expected a time with its unit, such as \"90 s\" or \"10 min\": {error}")),
        }
    }
}

impl From<Time> for String {
    fn from(Time(time): Time) -> Self {
        humantime::format_duration(time).to_string()
    }
}

impl TryFrom<(Time, Time)> for Between {
    type Error = &'static str;

    fn try_from((from, to): (Time, Time)) -> Result<Self, Self::Error> {
        if from.0 <= to.0 { Ok(Self(from, to)) } else { Err("the first of two times has to be the shorter one") }
    }
}

impl From<Between> for (Time, Time) {
    fn from(Between(from, to): Between) -> Self {
        (from, to)
    }
}

impl TryFrom<(Count, Count)> for Entries {
    type Error = &'static str;

    fn try_from((from, to): (Count, Count)) -> Result<Self, Self::Error> {
        if from.0 <= to.0 { Ok(Self(from, to)) } else { Err("the first of two numbers has to be the smaller one") }
    }
}

impl From<Entries> for (Count, Count) {
    fn from(Entries(from, to): Entries) -> Self {
        (from, to)
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let size = text.parse::<ByteSize>().ok().filter(|_| text.contains(char::is_alphabetic));
        let size = size.ok_or_else(|| format!("expected a size with its unit, such as \"2 KiB\", not {text:?}"))?;
        u16::try_from(size.as_u64())
            .map_err(|_| String::new())
            .and_then(Self::try_from)
            .map_err(|_| too_large(size.as_u64()))
    }
}

impl TryFrom<u16> for Bytes {
    type Error = String;

    fn try_from(size: u16) -> Result<Self, Self::Error> {
        if usize::from(size) <= SIZE_MAX { Ok(Self(size)) } else { Err(too_large(size.into())) }
    }
}

fn too_large(size: u64) -> String {
    format!("a message of {size} bytes does not fit an envelope: {SIZE_MAX} is the most")
}

impl From<Bytes> for String {
    fn from(Bytes(size): Bytes) -> Self {
        format!("{size} B")
    }
}

impl TryFrom<f64> for Share {
    type Error = &'static str;

    fn try_from(share: f64) -> Result<Self, Self::Error> {
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err("not between 0 and 1") }
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> Self {
        share.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        Scenario::parse("it.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn what_comes_with_the_program_is_understood_and_says_what_it_is() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::parse(name, text).unwrap();
            scenario.check().unwrap();
            assert!(!scenario.about.is_empty(), "{name}");
            assert_eq!(Scenario::parse(name, &scenario.print().unwrap()).unwrap(), scenario, "{name}");
        }
        assert_eq!(Scenario::list().unwrap().lines().count(), BUILT_IN.len());
    }

    #[test]
    fn every_key_can_be_written_and_is_read() {
        let text = r#"
            about = "all of it"
            groups = 5
            devices = 4
            duration = "10 min"
            seed = 9
            arrival = { poisson = "200 ms" }
            think = { uniform = ["1 s", "3 s"] }
            size = { mix = [{ weight = 9, size = "200 B" }, { weight = 1, size = "32 KiB" }] }
            ephemeral = 0.5
            chat = 3
            offline = { every = "1 min", lasts = { exponential = "5 s" } }
            leader_leaves = { every = "1 min", lasts = { fixed = "1 s" } }
            replace_device = "2 min"
            [transactions]
            share = 0.25
            entries = [2, 7]
            hold = { fixed = "50 ms" }
            ttl = "30 s"
            [chaos]
            drop = "1 min"
            delay = { every = "1 min", lasts = { fixed = "1 s" } }
            stall = { every = "1 min", lasts = { fixed = "1 s" } }
            duplicate = "1 min"
            kill = "1 min"
            server = { every = "30 s", command = "systemctl restart heliostat" }
        "#;
        let scenario = Scenario::parse("it.toml", text).unwrap();
        assert_eq!(scenario.transactions.ttl_s(), 30);
        assert_eq!(scenario.chaos.server.as_ref().map(|server| server.every.get()), Some(Duration::from_secs(30)));
        assert_eq!(Scenario::parse("it.toml", &scenario.print().unwrap()).unwrap(), scenario);
    }

    #[test]
    fn a_mistake_has_its_line_and_its_reason() {
        for (text, line, reason) in [
            ("groups = 1\ngropus = 2", 2, "unknown field `gropus`"),
            ("\n\ngroups = 0", 3, "1 at least"),
            ("duration = 10", 1, "string"),
            ("duration = \"10\"", 1, "unit"),
            ("think = { fixed = \"0 s\" }", 1, "longer than nothing"),
            ("think = { uniform = [\"3 s\", \"1 s\"] }", 1, "shorter"),
            ("size = { fixed = \"200\" }", 1, "unit"),
            ("size = { fixed = \"64 KiB\" }", 1, "65476 is the most"),
            ("ephemeral = 1.5", 1, "between 0 and 1"),
            ("[transactions]\nentries = [5, 1]", 2, "smaller"),
            ("[chaos]\nstall = { every = \"1 s\" }", 2, "lasts"),
            ("[chaos]\ncut = \"1 s\"", 2, "unknown field `cut`"),
        ] {
            let said = wrong(text);
            assert!(said.starts_with(&format!("it.toml, line {line}: ")) && said.contains(reason), "{text}: {said}");
        }
        let both = Scenario::parse("it.toml", "messages = 1\nduration = \"1 s\"").unwrap();
        assert!(both.check().unwrap_err().to_string().contains("either"));
        assert!(Scenario::find("strom").unwrap_err().help().unwrap().to_string().contains("storm"));
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let draw = |seed| {
            let mut rng = fastrand::Rng::with_seed(seed);
            assert!("10000 years".parse::<Time>().is_err() && "1 s".parse::<Time>().is_ok());
            let mean = Time(Duration::from_secs(1));
            let size = Size::Uniform(Bytes(100), Bytes(900));
            let choices: Vec<_> = (0..50).map(|_| (mean.around(&mut rng), size.draw(0, &mut rng))).collect();
            (choices, Arrival::Poisson(mean).times(9, &mut rng))
        };
        assert_eq!(draw(4), draw(4));
        assert_ne!(draw(4), draw(5));
    }

    #[test]
    fn what_is_drawn_is_distributed_as_it_says() {
        let mut rng = fastrand::Rng::with_seed(1);
        let second = Time(Duration::from_secs(1));
        let sum: Duration = (0..20_000).map(|_| Delay::Exponential(second).draw(&mut rng)).sum();
        assert!((0.97..1.03).contains(&(sum.as_secs_f64() / 20_000.0)), "{sum:?}");
        let between = Delay::Uniform(Between(second, Time(Duration::from_secs(3))));
        assert!((0..1_000).all(|_| (1.0..=3.0).contains(&between.draw(&mut rng).as_secs_f64())));
        let part = |weight, size| Part { weight: Count(weight), size: Bytes(size) };
        let mix = Size::Mix(vec![part(9, 200), part(1, 9_000)]);
        let large = (0..10_000).filter(|_| mix.draw(0, &mut rng) == 9_000).count();
        assert!((800..1_200).contains(&large), "{large}");
        assert_eq!(Size::Fixed(Bytes(3)).draw(14, &mut rng), 14);
        // Of three messages in four transactions of three on average, half of the messages are in transactions.
        let half = Transactions { share: Share(0.5), entries: Entries(Count(1), Count(5)), ..Transactions::default() };
        assert!((half.begin() - 0.25).abs() < 1e-9);
        let over = Arrival::Over(Time(Duration::from_secs(10))).times(5, &mut rng);
        assert_eq!(over.iter().map(Duration::as_secs).collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
    }
}
