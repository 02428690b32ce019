//! One nickname on many devices, for a protocol that knows nothing of devices.
//!
//! A ChatOs nickname is a connection, so only one device can have it: the leader of the device group, through its proxied
//! connection. What the leader shows it also reflects, and the others show it when they get it; what is typed on another
//! device is reflected, too, and the leader says it. A device that was away gets everything from its queue. When the leader leaves,
//! the mediator promotes the next one, which takes the nickname over.
//!
//! # The format
//!
//! An envelope holds one [`Entry`] in JSON, sealed with DGRK like every envelope of a group; the mediator sees a length.
//!
//! ```json
//! {"entry":"shown","shown":{"is":"public","from":"bob","text":"hello"}}
//! {"entry":"typed","device":"00000000000000a1","number":1763717400000,"line":"@bob hi"}
//! {"entry":"done","device":"00000000000000a1","number":1763717400000}
//! ```
//!
//! `shown` is what the leader saw or said. `typed` is a line for the leader to carry out, its own lines included; `done`, that the
//! server has handled it, which the leader knows by a fence behind it (spec 12.4). Until then every device keeps the line, so that
//! whoever leads next carries it out. A leader that is lost between saying a line and reflecting `done` makes the next one say it
//! again: once too often rather than never. What is said on the server while nobody of the group is there is lost, as for every client
//! of ChatOs; nobody is there, too, from the silent loss of a leader until the mediator notices it.
//!
//! *Rejected*: reflecting packets as they come, which would make every device understand all versions of a protocol; one
//! connection per device under numbered nicknames, which is many people and not one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, miette};
use serde::{Deserialize, Serialize};

use super::line::Public;
use super::talk::{Act, Shown, Talk, Typed};
use super::{Args, KEEP_ALIVE, LAST_WORDS, PATIENCE, show};
use crate::chat::chatos::wire::ToClient;
use crate::client::{ConnectError, Device, DeviceConfig, Ended, Mediator};
use crate::crypto::random;
use crate::time::Clock;
use crate::tools::keyfile::{self, Remembered};
use crate::tools::terminal::Terminal;
use crate::tools::{not_connected, trust_of};
use crate::wire::d2m::{
    CloseCode, DeviceId, Reconnect, ReflectFlags, ReflectId, Reflected, ServerGroup, SlotState, ToDevice,
};

/// Before a connection is tried again: twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Attempts in a row that came to nothing.
const ATTEMPTS: u32 = 10;
/// Lines of this device that the leader has not carried out, at most: more are not read.
const TYPED_MAX: usize = 256;

/// What devices of a group tell each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "kebab-case", deny_unknown_fields)]
enum Entry {
    Shown { shown: Shown },
    Typed { device: String, number: u64, line: String },
    Done { device: String, number: u64 },
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let mediator = Mediator::new(&args.address, &trust_of(&args.trust, &args.data)?).into_diagnostic()?;
    let local = matches!(mediator.host(), "localhost" | "127.0.0.1" | "[::1]");
    if !(mediator.is_encrypted() || local || args.insecure_plain) {
        return Err(miette!(
            help = "use wss://, or say --insecure-plain",
            "{} is neither encrypted nor on this machine",
            args.address
        ));
    }
    let server_group = ServerGroup::new(&args.server_group)
        .ok_or_else(|| miette!("{} is not a server group: 1 to 32 digits and letters", args.server_group))?;
    let (key, _) = keyfile::load_or_create(&args.group_key)?;
    let mut remembered = Remembered::beside(&args.group_key)?;
    let id = args.device_id.or_else(|| remembered.first(&args.address)).unwrap_or_else(|| DeviceId(random::u64()));
    let mut config = DeviceConfig {
        expected_slot_state: remembered.expected(&args.address, id),
        device_info: format!("chatos {}", args.nick).into_bytes(),
        ..DeviceConfig::new(key, server_group, id)
    };
    let mut group = Group {
        args,
        device: id,
        terminal: Terminal::open()?,
        next_number: Clock::system().now().wall_ms,
        typed: BTreeMap::new(),
        done: BTreeSet::new(),
        own: 0,
        failures: 0,
        refusals: 0,
        no_more_lines: false,
    };
    let interrupted = group.terminal.interrupted();
    let mut wait = FIRST_WAIT;
    loop {
        group.failures += 1;
        let connected = tokio::select! {
            connected = Device::connect(&mediator, &config) => connected,
            () = interrupted.cancelled() => return Err(miette!("given up before there was a connection")),
        };
        let why = match connected {
            Ok(device) => {
                remembered.note(&args.address, id, true)?;
                config.expected_slot_state = SlotState::Existing;
                match group.serve(device, &config).await? {
                    None => {
                        group.terminal.close();
                        return Ok(ExitCode::SUCCESS);
                    }
                    Some(ended) => ConnectError::NotAdmitted(ended),
                }
            }
            Err(error) => error,
        };
        let given_up = group.failures >= ATTEMPTS || group.refusals >= ATTEMPTS;
        if why.reconnect() == Reconnect::UserInteraction || given_up {
            group.terminal.close();
            if matches!(&why, ConnectError::NotAdmitted(ended) if ended.close_code() == Some(CloseCode::Dropped)) {
                remembered.note(&args.address, id, false)?;
            }
            return Err(not_connected(&why, &mediator));
        }
        if group.failures == 0 && group.refusals == 0 {
            wait = FIRST_WAIT;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = interrupted.cancelled() => {}
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// This device, over all its connections.
struct Group<'a> {
    args: &'a Args,
    device: DeviceId,
    terminal: Terminal,
    next_number: u64,
    /// What no leader has carried out, as far as is known here, in the order it came.
    typed: BTreeMap<Typed, String>,
    /// Carried out before it was heard of: the two may come in either order from two devices.
    done: BTreeSet<Typed>,
    /// How many of those were typed here.
    own: usize,
    /// Connections in a row on which the mediator did not hand over what waited.
    failures: u32,
    /// Logins in a row that came to nothing.
    refusals: u32,
    no_more_lines: bool,
}

/// One connection of this device.
struct Seat<'a> {
    device: Device,
    config: &'a DeviceConfig,
    /// Envelopes that the mediator has not acknowledged.
    reflecting: BTreeSet<ReflectId>,
}

impl Seat<'_> {
    /// How it ended, or that we end it: of a ChatOs connection that is over, nothing more can come. Nobody may hold that any more,
    /// since what is in it unread would keep the end from us.
    async fn ended(&mut self) -> Ended {
        let ended = tokio::time::timeout(LAST_WORDS, self.device.wait_ended()).await;
        ended.unwrap_or_else(|_| Ended::Lost("the ChatOs server is not what it should be".to_owned()))
    }

    async fn reflect(&mut self, entry: &Entry) -> std::result::Result<(), Ended> {
        // Made of text and numbers: it can always be written.
        let plain = serde_json::to_vec(entry).unwrap_or_default();
        let id = self.device.reflect(&self.config.key.seal_envelope(&plain), ReflectFlags::default()).await?;
        self.reflecting.insert(id);
        Ok(())
    }
}

/// The nickname, as long as this device has it.
struct Lead {
    public: Public,
    talk: Talk,
    /// What was typed and is on its way.
    saying: BTreeSet<Typed>,
}

impl Group<'_> {
    /// One connection, to its end; nothing when the end was asked for and everything is said.
    async fn serve(&mut self, device: Device, config: &DeviceConfig) -> Result<Option<Ended>> {
        let mut seat = Seat { device, config, reflecting: BTreeSet::new() };
        match self.talk(&mut seat).await {
            Ok(()) => {
                seat.device.close(CloseCode::Normal).await;
                Ok(None)
            }
            Err(End::Connection(ended)) => Ok(Some(ended)),
            Err(End::Failed(report)) => Err(report),
        }
    }

    async fn talk(&mut self, seat: &mut Seat<'_>) -> std::result::Result<(), End> {
        let (mut dry, mut leads) = (false, false);
        let mut lead: Option<Lead> = None;
        let mut keep_alive = tokio::time::interval(KEEP_ALIVE);
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        let (mut last_words, mut given_up) = (None, None);
        let interrupted = self.terminal.interrupted();
        loop {
            if leads && dry && lead.is_none() {
                let Some(stream) = seat.device.proxy_stream() else {
                    return Err(End::Failed(miette!("the mediator gives no connection to the ChatOs server")));
                };
                let talk = Talk::new(&self.args.nick, self.args.octets_max(), false);
                let mut public = Public::new(Box::new(stream), self.args.manners());
                public.say(&talk.login());
                lead = Some(Lead { public, talk, saying: BTreeSet::new() });
                patience.set(tokio::time::sleep(PATIENCE));
            }
            if let Some(lead) = &mut lead
                && last_words.is_none()
            {
                self.carry_out(seat, lead).await?;
            }
            // Whoever leads, and whether somebody does: what is typed is known to the others in any case.
            let takes_lines = dry && !self.no_more_lines && self.own < TYPED_MAX;
            if self.no_more_lines && self.own == 0 && dry {
                match &mut lead {
                    Some(lead) if last_words.is_none() && lead.talk.is_online() => {
                        let acts = lead.talk.quit();
                        last_words = Some(Box::pin(tokio::time::sleep(LAST_WORDS)));
                        self.perform(seat, &mut Some(&mut *lead), acts).await?;
                    }
                    Some(_) => {}
                    None if seat.reflecting.is_empty() => return Ok(()),
                    None => {}
                }
            }
            tokio::select! {
                heard = seat.device.next_event() => match heard? {
                    ToDevice::Reflected(message) => {
                        self.reflected(seat, &message)?;
                        seat.device.ack(message.id()).await?;
                    }
                    ToDevice::ReflectAck(ack) => drop(seat.reflecting.remove(&ack.reflect_id)),
                    ToDevice::ReflectionQueueDry => {
                        dry = true;
                        self.failures = 0;
                        self.repeat_typed(seat).await?;
                    }
                    ToDevice::RolePromotedToLeader => leads = true,
                    _ => {}
                },
                heard = next_of(&mut lead) => {
                    let packet = match heard {
                        Ok(Some(packet)) => packet,
                        // The mediator closes when it has handed on everything, and says why.
                        Ok(None) | Err(_) => {
                            self.refusals += 1;
                            drop(lead);
                            return Err(End::Connection(seat.ended().await));
                        }
                    };
                    let Some(leading) = &mut lead else { continue };
                    let was_online = leading.talk.is_online();
                    let acts = leading.talk.heard(packet);
                    if let [Act::Fail(why)] = &acts[..]
                        && self.refusals + 1 < ATTEMPTS
                    {
                        // The nickname may not be free yet: the server may not have noticed that the leader before is gone.
                        self.refusals += 1;
                        if self.refusals == 1 {
                            let text = format!("{why}; it is tried again for a while");
                            show(&mut self.terminal, &Shown::problem(text)).map_err(End::Failed)?;
                        }
                        drop(lead);
                        return Err(End::Connection(seat.ended().await));
                    }
                    if self.perform(seat, &mut Some(leading), acts).await? {
                        return self.last_acks(seat).await;
                    }
                    if !was_online && leading.talk.is_online() {
                        self.refusals = 0;
                    }
                }
                line = self.terminal.line(), if takes_lines => match line.map_err(End::Failed)? {
                    None => self.no_more_lines = true,
                    Some(line) if line == "\\quit" => self.no_more_lines = true,
                    Some(line) if line.trim().is_empty() => {}
                    Some(line) => {
                        let (device, number) = (self.device.to_string(), self.next_number);
                        self.next_number += 1;
                        self.own += 1;
                        self.typed.insert((number, device.clone()), line.clone());
                        seat.reflect(&Entry::Typed { device, number, line }).await?;
                    }
                },
                _ = keep_alive.tick() => if let Some(lead) = &mut lead {
                    let acts = lead.talk.keep_alive();
                    self.perform(seat, &mut Some(lead), acts).await?;
                },
                () = &mut patience, if lead.as_ref().is_some_and(|lead| !lead.talk.is_online()) => {
                    self.refusals += 1;
                    drop(lead);
                    return Err(End::Connection(seat.ended().await));
                }
                () = interrupted.cancelled(), if given_up.is_none() => {
                    self.no_more_lines = true;
                    given_up = Some(Box::pin(tokio::time::sleep(LAST_WORDS)));
                }
                () = time_of(&mut given_up) => {
                    return Err(End::Failed(miette!("what was typed was not said in time")));
                }
                () = time_of(&mut last_words) => {
                    return Err(End::Failed(miette!("the ChatOs server did not handle everything in time")));
                }
            }
        }
    }

    /// Lines that were typed here and maybe heard of by nobody, because the connection was lost. Only now: what was carried
    /// out stood in the backlog. Who knows them already does not take them for others.
    async fn repeat_typed(&self, seat: &mut Seat<'_>) -> std::result::Result<(), End> {
        let own = self.device.to_string();
        for ((number, device), line) in self.typed.iter().filter(|((_, device), _)| *device == own) {
            let (number, device, line) = (*number, device.clone(), line.clone());
            seat.reflect(&Entry::Typed { device, number, line }).await?;
        }
        Ok(())
    }

    fn reflected(&mut self, seat: &Seat<'_>, message: &Reflected) -> std::result::Result<(), End> {
        let plain = seat.config.key.open_envelope(message.envelope()).ok();
        let Some(entry) = plain.and_then(|plain| serde_json::from_slice::<Entry>(&plain).ok()) else {
            // Of another program of this group, or of a later version of this one.
            return show(
                &mut self.terminal,
                &Shown::problem("another device said something that is not understood here"),
            )
            .map_err(End::Failed);
        };
        match entry {
            Entry::Shown { shown } => show(&mut self.terminal, &shown).map_err(End::Failed)?,
            Entry::Done { device, number } => {
                let typed = (number, device);
                self.forget(&typed);
                self.note_done(typed);
            }
            Entry::Typed { device, number, line } => {
                let typed = (number, device);
                if !self.done.contains(&typed) {
                    self.typed.insert(typed, line);
                }
            }
        }
        Ok(())
    }

    /// Says what was typed on some device, this one included, as far as there is room.
    async fn carry_out(&mut self, seat: &mut Seat<'_>, lead: &mut Lead) -> std::result::Result<(), End> {
        while lead.talk.is_online() && lead.public.has_room() {
            let next = self.typed.iter().find(|(typed, _)| !lead.saying.contains(*typed));
            let Some((typed, line)) = next else { break };
            lead.saying.insert(typed.clone());
            let acts = lead.talk.typed(typed.clone(), line);
            self.perform(seat, &mut Some(&mut *lead), acts).await?;
        }
        Ok(())
    }

    fn note_done(&mut self, typed: Typed) {
        self.done.insert(typed);
        // A device says a line again only after it lost its connection, so few need be known.
        while self.done.len() > 4 * TYPED_MAX {
            self.done.pop_first();
        }
    }

    fn forget(&mut self, typed: &Typed) {
        if self.typed.remove(typed).is_some() && typed.1 == self.device.to_string() {
            self.own = self.own.saturating_sub(1);
        }
    }

    /// Does what was decided by the leader, and lets the others see it. Whether everything is over.
    async fn perform(
        &mut self,
        seat: &mut Seat<'_>,
        lead: &mut Option<&mut Lead>,
        acts: Vec<Act>,
    ) -> std::result::Result<bool, End> {
        for act in acts {
            match act {
                Act::Send(packet) => {
                    if let Some(lead) = lead {
                        lead.public.say(&packet);
                    }
                }
                Act::Show(shown) => {
                    show(&mut self.terminal, &shown).map_err(End::Failed)?;
                    seat.reflect(&Entry::Shown { shown }).await?;
                }
                Act::Done(typed) => {
                    if let Some(lead) = lead {
                        lead.saying.remove(&typed);
                    }
                    self.forget(&typed);
                    self.note_done(typed.clone());
                    let (number, device) = typed;
                    seat.reflect(&Entry::Done { device, number }).await?;
                }
                Act::Quit => return Ok(true),
                Act::Fail(why) => return Err(End::Failed(miette!("{why}"))),
                // There are none: a mediator carries one connection per device.
                Act::Open(..) | Act::Write(..) | Act::Close(_) => {}
            }
        }
        Ok(false)
    }

    /// What this device showed last is with the mediator before it goes.
    async fn last_acks(&mut self, seat: &mut Seat<'_>) -> std::result::Result<(), End> {
        let acked = async {
            while !seat.reflecting.is_empty() {
                if let ToDevice::ReflectAck(ack) = seat.device.next_event().await? {
                    seat.reflecting.remove(&ack.reflect_id);
                }
            }
            Ok::<_, Ended>(())
        };
        match tokio::time::timeout(LAST_WORDS, acked).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(End::Failed(miette!("the mediator did not keep everything in time"))),
        }
    }
}

/// Why a connection is over before the end was asked for.
enum End {
    /// It is; there may be another one.
    Connection(Ended),
    /// There is no point in another one.
    Failed(miette::Report),
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        Self::Connection(ended)
    }
}

/// What the ChatOs server says next, where this device is connected with it.
async fn next_of(lead: &mut Option<Lead>) -> std::io::Result<Option<ToClient>> {
    match lead {
        Some(lead) => lead.public.next().await,
        None => std::future::pending().await,
    }
}

async fn time_of(sleep: &mut Option<std::pin::Pin<Box<tokio::time::Sleep>>>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Devices of different versions read each other, so the words are a promise.
    #[test]
    fn the_format_is_the_one_that_is_documented() {
        let shown = Shown::Public { from: "bob".into(), text: "hello".into() };
        let (device, number) = ("00000000000000a1".to_owned(), 1_763_717_400_000);
        for (entry, json) in [
            (Entry::Shown { shown }, r#"{"entry":"shown","shown":{"is":"public","from":"bob","text":"hello"}}"#),
            (
                Entry::Typed { device: device.clone(), number, line: "@bob hi".into() },
                r#"{"entry":"typed","device":"00000000000000a1","number":1763717400000,"line":"@bob hi"}"#,
            ),
            (Entry::Done { device, number }, r#"{"entry":"done","device":"00000000000000a1","number":1763717400000}"#),
        ] {
            assert_eq!(serde_json::to_string(&entry).unwrap(), json);
            assert_eq!(serde_json::from_str::<Entry>(json).unwrap(), entry);
            let documented = include_str!("devices.rs").lines().any(|line| line == format!("//! {json}"));
            assert!(documented, "{json}");
        }
        assert!(serde_json::from_str::<Entry>(r#"{"entry":"other"}"#).is_err());
    }
}
