//! What one device is going to do: what it says and when, and what becomes of it meanwhile. Drawn from generators of its own,
//! and from nothing that the server says.

use std::collections::VecDeque;
use std::time::Duration;

use super::scenario::{Delay, Lasting, Scenario, Time};

/// Something a device has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    /// Counts the device's units.
    pub(super) number: usize,
    pub(super) what: What,
    /// When it is due, by the schedule; else when it was said first.
    pub(super) due_at: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// A message of so many bytes.
    Single(usize),
    /// An ephemeral one.
    Ephemeral(usize),
    Transaction {
        /// The bytes of each message.
        sizes: Vec<usize>,
        /// For how long the lock is held beyond what it takes.
        hold: Duration,
        /// Some clients wait for the acknowledgements before they commit, some do not.
        waits: bool,
    },
}

/// What a device says.
#[derive(Debug)]
pub(super) struct Script {
    rng: fastrand::Rng,
    scenario: Scenario,
    least: usize,
    /// Messages still to be drawn; no end when it speaks for a time.
    left: Option<usize>,
    drawn: usize,
    next: Option<(Unit, Duration)>,
    /// When the last unit was due; nothing before the first one, and after a time away.
    last_due: Option<Duration>,
    /// What was begun, and may have to be said again.
    pub(super) begun: VecDeque<Unit>,
}

impl Script {
    /// No message is smaller than `least`.
    pub(super) fn new(scenario: &Scenario, left: Option<usize>, least: usize, rng: fastrand::Rng) -> Self {
        Self {
            rng,
            scenario: scenario.clone(),
            least,
            left,
            drawn: 0,
            next: None,
            last_due: None,
            begun: VecDeque::new(),
        }
    }

    /// How many messages are still to be drawn: the successor of a dropped device says them.
    pub(super) const fn left(&self) -> Option<usize> {
        self.left
    }

    /// What is to be said next, and when it is due if there is a schedule. The same until [`Self::begin`].
    pub(super) fn next(&mut self, now: Duration) -> Option<Option<Duration>> {
        if self.next.is_none() {
            let what = self.draw()?;
            let mut think = self.scenario.think.draw(&mut self.rng);
            if self.drawn == 0 {
                // Not all at once.
                think = think.mul_f64(self.rng.f64());
            }
            self.next = Some((Unit { number: self.drawn, what, due_at: None }, think));
            self.drawn += 1;
        }
        let is_open = self.scenario.is_open();
        let last_due = *self.last_due.get_or_insert(now);
        let (unit, think) = self.next.as_mut()?;
        unit.due_at = is_open.then(|| last_due + *think);
        Some(unit.due_at)
    }

    /// Begins with what is next.
    pub(super) fn begin(&mut self, now: Duration) -> Option<Unit> {
        let (mut unit, _) = self.next.take()?;
        self.last_due = unit.due_at;
        unit.due_at.get_or_insert(now);
        self.begun.push_back(unit.clone());
        Some(unit)
    }

    /// The device did something else for so long, which is nobody's fault.
    pub(super) fn put_off(&mut self, by: Duration) {
        self.last_due = self.last_due.map(|due| due + by);
    }

    /// The device was away for so long, by plan: it goes on from when it comes back, also with what it had begun.
    pub(super) fn was_away(&mut self, by: Duration) {
        self.last_due = None;
        for unit in &mut self.begun {
            unit.due_at = unit.due_at.map(|due| due + by);
        }
    }

    fn draw(&mut self) -> Option<What> {
        if self.left == Some(0) {
            return None;
        }
        let (scenario, rng) = (&self.scenario, &mut self.rng);
        let what = if rng.f64() < scenario.transactions.begin() {
            let messages = scenario.transactions.draw_entries(rng).min(self.left.unwrap_or(usize::MAX));
            let sizes = (0..messages).map(|_| scenario.size.draw(self.least, rng)).collect();
            What::Transaction { sizes, hold: scenario.transactions.hold.draw(rng), waits: rng.bool() }
        } else if rng.f64() < scenario.ephemeral.get() {
            What::Ephemeral(scenario.size.draw(self.least, rng))
        } else {
            What::Single(scenario.size.draw(self.least, rng))
        };
        if let Some(left) = &mut self.left {
            *left -= what.messages();
        }
        Some(what)
    }
}

impl What {
    const fn messages(&self) -> usize {
        match self {
            Self::Single(_) | Self::Ephemeral(_) => 1,
            Self::Transaction { sizes, .. } => sizes.len(),
        }
    }
}

/// What becomes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Event {
    Offline,
    LeaderLeaves,
    Replace,
    Drop,
    Delay,
    Stall,
    Duplicate,
    Kill,
    Server,
}

impl Event {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Offline => "away for a while",
            Self::LeaderLeaves => "leaders away for a while",
            Self::Replace => "devices dropped and replaced",
            Self::Drop => "connections cut",
            Self::Delay => "devices reading slowly",
            Self::Stall => "devices reading nothing",
            Self::Duplicate => "second logins",
            Self::Kill => "devices killed before an acknowledgement",
            Self::Server => "commands run on the server",
        }
    }
}

/// When what becomes of a device.
#[derive(Debug)]
pub(super) struct Agenda {
    rng: fastrand::Rng,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    event: Event,
    mean: Time,
    lasts: Delay,
    at: Option<Duration>,
}

impl Agenda {
    pub(super) fn new(scenario: &Scenario, rng: fastrand::Rng) -> Self {
        let chaos = &scenario.chaos;
        let lasting = |event, it: &Option<Lasting>| it.as_ref().map(|it| (event, it.every, it.lasts));
        let moment = |event, it: Option<Time>| it.map(|every| (event, every, Delay::None));
        let all = [
            lasting(Event::Offline, &scenario.offline),
            lasting(Event::LeaderLeaves, &scenario.leader_leaves),
            moment(Event::Replace, scenario.replace_device),
            moment(Event::Drop, chaos.drop),
            lasting(Event::Delay, &chaos.delay),
            lasting(Event::Stall, &chaos.stall),
            moment(Event::Duplicate, chaos.duplicate),
            moment(Event::Kill, chaos.kill),
        ];
        let entry = |(event, mean, lasts)| Entry { event, mean, lasts, at: None };
        Self { rng, entries: all.into_iter().flatten().map(entry).collect() }
    }

    /// What comes next, and when. `devices` share what happens to a group.
    pub(super) fn next(&mut self, now: Duration, devices: usize) -> Option<(Duration, Event)> {
        for entry in &mut self.entries {
            if entry.at.is_none() {
                let mean = if entry.event == Event::Replace { devices } else { 1 };
                let pause = entry.mean.around(&mut self.rng).saturating_mul(u32::try_from(mean).unwrap_or(u32::MAX));
                entry.at = Some(now.saturating_add(pause));
            }
        }
        self.entries.iter().filter_map(|entry| Some((entry.at?, entry.event))).min()
    }

    /// One of several, and a generator for whatever follows from it.
    pub(super) fn choose<T: Copy>(&mut self, several: &[T]) -> Option<(T, fastrand::Rng)> {
        let one = *self.rng.choice(several)?;
        Some((one, self.rng.fork()))
    }

    /// It happens; says for how long.
    pub(super) fn begin(&mut self, event: Event) -> Duration {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.event == event) else { return Duration::ZERO };
        entry.at = None;
        entry.lasts.draw(&mut self.rng)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(text: &str) -> Scenario {
        Scenario::parse("test", text).unwrap()
    }

    fn script(text: &str, left: Option<usize>, seed: u64) -> Script {
        Script::new(&scenario(text), left, 14, fastrand::Rng::with_seed(seed))
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_schedule_does_not_wait_for_whoever_is_late() {
        let mut script = script("think = { fixed = \"1 s\" }", None, 1);
        let first = script.next(S).unwrap().unwrap();
        assert!((S..2 * S).contains(&first), "within the first second");
        assert_eq!(script.begin(first).unwrap().due_at, Some(first));
        // It took five seconds, but what is due is due.
        assert_eq!(script.next(first + 5 * S).unwrap(), Some(first + S));
        assert_eq!(script.begin(first + 5 * S).unwrap().due_at, Some(first + S));
        script.put_off(S);
        assert_eq!(script.next(first + 5 * S).unwrap(), Some(first + 3 * S));
        let begun: Vec<_> = script.begun.iter().map(|unit| unit.due_at).collect();
        script.was_away(7 * S);
        let later: Vec<_> = begun.iter().map(|due| due.map(|due| due + 7 * S)).collect();
        assert_eq!(script.begun.iter().map(|unit| unit.due_at).collect::<Vec<_>>(), later);
        assert_eq!(script.next(first + 60 * S).unwrap(), Some(first + 61 * S), "it was away");
    }

    #[test]
    fn without_a_schedule_a_message_is_due_when_it_is_said() {
        let mut script = script("", Some(2), 1);
        assert_eq!(script.next(S), Some(None));
        assert_eq!(script.begin(3 * S).unwrap().due_at, Some(3 * S));
    }

    #[test]
    fn as_many_messages_are_drawn_as_asked_for_and_the_same_by_the_same_seed() {
        let all = |seed| {
            let mut script = script("[transactions]\nshare = 0.5", Some(500), seed);
            let mut units = Vec::new();
            while script.next(S).is_some() {
                units.push(script.begin(S).unwrap());
            }
            units
        };
        let units = all(3);
        assert_eq!(units.iter().map(|unit| unit.what.messages()).sum::<usize>(), 500);
        let staged = units.iter().filter(|unit| matches!(unit.what, What::Transaction { .. }));
        let staged: usize = staged.map(|unit| unit.what.messages()).sum();
        assert!((180..320).contains(&staged), "half of them are in transactions: {staged}");
        assert_eq!(all(3), units);
        assert_ne!(all(4), units);
    }

    #[test]
    fn an_agenda_holds_what_the_scenario_says_and_nothing_else() {
        let mut none = Agenda::new(&scenario(""), fastrand::Rng::with_seed(1));
        assert_eq!(none.next(S, 3), None);
        let text = "replace_device = \"4 s\"\n[chaos]\nkill = \"1 s\"\nstall = { every = \"2 s\", lasts = { fixed = \"3 s\" } }";
        let mut agenda = Agenda::new(&scenario(text), fastrand::Rng::with_seed(1));
        let (mut now, mut seen) = (Duration::ZERO, std::collections::BTreeMap::<Event, u32>::new());
        while now < 4_000 * S {
            let (at, event) = agenda.next(now, 2).unwrap();
            assert!(at >= now);
            now = at;
            assert_eq!(agenda.begin(event), if event == Event::Stall { 3 * S } else { Duration::ZERO });
            *seen.entry(event).or_default() += 1;
        }
        let expected = [(Event::Replace, 450..550), (Event::Stall, 1_900..2_100), (Event::Kill, 3_800..4_200)];
        for ((event, count), (expected, range)) in seen.into_iter().zip(expected) {
            assert!(event == expected && range.contains(&count), "{event:?}: {count}");
        }
    }
}
