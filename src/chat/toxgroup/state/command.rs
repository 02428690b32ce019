//! What is asked for from here: by the user of a client, or by thin users and operators of a hub (spec 10.3).

use sha2::{Digest as _, Sha256};

use super::super::wire::message::{PAYLOAD_MAX, Presence, SIGNED_MAX, parts};
use super::super::wire::record::{GROUP_NAME_MAX, Grade, MODERATORS_MAX, REASON_MAX, Verdict, Voice};
use super::super::wire::{ClientId, JoinRefused, Message, NAME_MAX, Record, Sanction, SigPk, State, TOPIC_MAX, Topic};
use super::join::Joining;
use super::{Credential, Endpoint, Group, Mode, OUTGOING_EACH, OUTGOING_MAX, Own, Role, Save, Step, Ticket, Why};
use crate::time::Now;

/// How long a kick lasts, in seconds.
pub const KICK_S: u64 = 60;
/// Invitations that are open at once.
const TICKETS_MAX: usize = 1_024;

/// What may be different about a group; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// How it is called.
    pub name: Option<String>,
    /// Whether nobody needs an invitation.
    pub open: Option<bool>,
    /// Whether users may set the topic.
    pub open_topic: Option<bool>,
    /// Who may talk.
    pub voice: Option<Voice>,
    /// How many may be in; 0: as many as ever.
    pub peers_max: Option<u16>,
    /// Who keeps order: whom to add, and whom to take away.
    pub moderator: Option<(ClientId, bool)>,
}

/// What is asked for.
#[derive(Debug)]
pub enum Command {
    /// To come in by a hub; without a credential as one who is known there.
    Enter {
        /// Which.
        hub: ClientId,
        /// The way there.
        at: Endpoint,
        /// What for.
        credential: Option<Credential>,
    },
    /// To let somebody in whose key was exchanged by other means (spec 6.2).
    AddPeer(ClientId, Option<Endpoint>),
    /// To keep a peer as a hub.
    Anchor(ClientId, Endpoint),
    /// To begin a signed group, whose founder we are.
    Found(Shape),
    /// To change one.
    Reshape(Shape),
    /// To let somebody be here without a socket; with an invitation, if one is needed.
    AddVirtual(Box<Own>, Option<Credential>),
    /// The same after a restart: it is a member already.
    RestoreVirtual(Box<Own>),
    /// To say something; too long a text goes out in parts.
    Say {
        /// As whom.
        by: ClientId,
        /// What.
        text: String,
        /// `/me`.
        action: bool,
    },
    /// To be called in another way.
    Rename(ClientId, String),
    /// To be in another way.
    SetPresence(ClientId, Presence),
    /// To set the topic.
    SetTopic(ClientId, String),
    /// To sanction somebody, for so many seconds or for ever; in a classic group, to ban.
    Sanction {
        /// As whom.
        by: ClientId,
        /// Whom.
        target: ClientId,
        /// How.
        verdict: Verdict,
        /// For how long.
        for_s: Option<u64>,
        /// Why.
        reason: String,
    },
    /// To make an invitation.
    Invite {
        /// How many may come by it.
        uses: u32,
        /// For how long it counts, in seconds.
        for_s: u64,
    },
    /// To leave; a hub's own member never does.
    Leave(ClientId),
    /// To end the group here: everybody of ours leaves, the hub too.
    End,
}

/// An invitation that was made: all of it that nobody but us knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Which, and its secret.
    pub credential: Credential,
    /// Unix seconds.
    pub expires_s: u64,
}

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such member, here or at all.
    #[error("no such member")]
    NoMember,
    /// They may not.
    #[error("that is not allowed")]
    NotAllowed,
    /// There is nothing to say, or more than fits.
    #[error("too long, or nothing at all")]
    Length,
    /// Too much waits to be said.
    #[error("not so fast")]
    Busy,
    /// There is no place left.
    #[error("full")]
    Full,
    /// The kind of group does not know that.
    #[error("not in this kind of group")]
    Mode,
    /// The invitation does not count.
    #[error("the invitation is unknown, used up or expired")]
    Token,
}

impl From<JoinRefused> for Refused {
    fn from(why: JoinRefused) -> Self {
        match why {
            JoinRefused::Token => Self::Token,
            JoinRefused::Full => Self::Full,
            JoinRefused::Banned | JoinRefused::Signature | JoinRefused::NoGroup => Self::NotAllowed,
            JoinRefused::SlowDown => Self::Busy,
        }
    }
}

impl Group {
    /// Does what is asked for.
    ///
    /// # Errors
    /// [`Refused`] says why not; nothing happened then.
    pub fn command(&mut self, now: Now, command: Command) -> Result<Step, Refused> {
        self.now = now;
        self.obey(command)?;
        Ok(self.finish())
    }

    fn obey(&mut self, command: Command) -> Result<(), Refused> {
        let now = self.now.monotonic;
        match command {
            Command::Enter { hub, at, credential } => {
                if !self.anchor(hub) {
                    return Err(Refused::Full);
                }
                self.joining = Some(Joining::new(hub, at, credential, now));
                self.tend_joining();
            }
            Command::AddPeer(id, at) => {
                if self.is_signed() {
                    return Err(Refused::Mode);
                }
                self.welcome(id, None, "")?;
                if let Some(at) = at {
                    self.ask(id, at);
                }
            }
            Command::Anchor(id, at) => {
                if !self.anchor(id) {
                    return Err(Refused::Full);
                }
                self.ask(id, at);
            }
            Command::Found(shape) => self.found(shape)?,
            Command::Reshape(shape) => self.reshape(shape)?,
            Command::AddVirtual(own, credential) => self.add_virtual(*own, credential.as_ref())?,
            Command::RestoreVirtual(own) => self.seat_virtual(*own),
            Command::Say { by, text, action } => self.say(by, &text, action)?,
            Command::Rename(by, name) => {
                if name.is_empty() || name.len() > NAME_MAX {
                    return Err(Refused::Length);
                }
                let own = self.own(&by).ok_or(Refused::NoMember)?;
                own.name = name.clone().into_bytes();
                own.next_name = now;
                if let Some(member) = self.members.get_mut(&by) {
                    member.name = name.clone().into_bytes();
                }
                self.tell(super::Event::Renamed(by, name));
                self.tend_own(by);
            }
            Command::SetPresence(by, presence) => {
                let own = self.own(&by).ok_or(Refused::NoMember)?;
                (own.presence, own.tells_presence) = (presence, true);
                self.tell(super::Event::Presence(by, presence));
                self.tend_own(by);
            }
            Command::SetTopic(by, text) => self.ask_topic(by, text)?,
            Command::Sanction { by, target, verdict, for_s, reason } => {
                self.sanction(by, target, verdict, for_s, reason)?;
            }
            Command::Invite { uses, for_s } => self.invite(uses, for_s)?,
            Command::Leave(by) => self.leave(by)?,
            Command::End => {
                for id in self.virtuals.keys().copied().chain([self.me.id]).collect::<Vec<_>>() {
                    self.originate(id, Message::Quit);
                }
            }
        }
        Ok(())
    }

    /// What we say ourselves keeps the limits by which others judge it.
    fn count_topic(&mut self, by: &ClientId) -> Result<(), Refused> {
        let (now, pace) = (self.now.monotonic, self.rules.limits.settings.careful());
        let own = self.own(by).ok_or(Refused::NoMember)?;
        if own.topics.take(now, pace, 1) { Ok(()) } else { Err(Refused::Busy) }
    }

    /// The same of records: everybody near takes so many from us, whoever's they are.
    fn count_record(&mut self) -> Result<(), Refused> {
        let (now, pace) = (self.now.monotonic, self.rules.limits.records.careful());
        if self.published.take(now, pace, 1) { Ok(()) } else { Err(Refused::Busy) }
    }

    fn say(&mut self, by: ClientId, text: &str, action: bool) -> Result<(), Refused> {
        self.own(&by).ok_or(Refused::NoMember)?;
        let parts = parts(text, if self.is_signed() { SIGNED_MAX } else { PAYLOAD_MAX });
        if parts.is_empty() {
            return Err(Refused::Length);
        }
        // Each their own share: one who talks much keeps nobody else from talking.
        let waits = self.outgoing.iter().filter(|(of, _)| *of == by).count();
        if waits + parts.len() > if self.rules.hub { OUTGOING_EACH } else { OUTGOING_MAX } {
            return Err(Refused::Busy);
        }
        let messages: Vec<_> = parts.iter().map(|it| Message::Text { text: it.as_bytes().to_vec(), action }).collect();
        if self.is_signed() && !messages.iter().all(|message| self.may_say(&by, message)) {
            return Err(Refused::NotAllowed);
        }
        self.outgoing.extend(messages.into_iter().map(|message| (by, message)));
        self.say_what_waits();
        Ok(())
    }

    /// Says what may be said by now; each of ours in its order.
    pub(super) fn say_what_waits(&mut self) {
        let (now, pace) = (self.now.monotonic, self.rules.limits.texts.careful());
        let mut waits = std::collections::VecDeque::new();
        let mut held = Vec::new();
        for (by, message) in std::mem::take(&mut self.outgoing) {
            let may = !held.contains(&by) && self.own(&by).is_some_and(|own| own.texts.take(now, pace, 1));
            if may {
                if let Message::Text { text, action } = &message {
                    self.said(by, &text.clone(), *action);
                }
                self.originate(by, message);
            } else if self.is_own(&by) {
                held.push(by);
                waits.push_back((by, message));
            }
        }
        self.outgoing = waits;
    }

    fn ask_topic(&mut self, by: ClientId, text: String) -> Result<(), Refused> {
        if text.len() > TOPIC_MAX {
            return Err(Refused::Length);
        }
        if !self.is_signed() {
            let locked = matches!(self.mode, Mode::Classic { owner, topic_lock: true } if owner != Some(by));
            if locked {
                return Err(Refused::NotAllowed);
            }
            self.count_topic(&by)?;
            self.set_topic(text.clone().into_bytes());
            self.originate(by, Message::Topic(text.into_bytes()));
            return Ok(());
        }
        let open = self.records.state().is_some_and(|state| state.open_topic);
        if !self.role(&by).is_some_and(|role| role.may_set_topic(open)) {
            return Err(Refused::NotAllowed);
        }
        self.count_topic(&by)?;
        let (version, after) = self.records.topic().map_or((0, 0), |it| (it.version, it.time_s.saturating_add(1)));
        let topic = Topic {
            group: self.id,
            version: version.saturating_add(1),
            time_s: self.now_s().max(after),
            text,
            setter: SigPk([0; 32]),
            signature: [0; 64],
        };
        let signed = self.own(&by).and_then(|own| own.pair.as_ref()).map(|pair| topic.signed(pair));
        self.publish(Record::Topic(signed.ok_or(Refused::NoMember)?));
        Ok(())
    }

    fn sanction(
        &mut self,
        by: ClientId,
        target: ClientId,
        verdict: Verdict,
        for_s: Option<u64>,
        reason: String,
    ) -> Result<(), Refused> {
        if reason.len() > REASON_MAX {
            return Err(Refused::Length);
        }
        if let Mode::Classic { owner, .. } = self.mode {
            // A kick is a ban there, and what is banned stays banned.
            if verdict != Verdict::Ban {
                return Err(Refused::Mode);
            }
            if Some(target) == owner || target == by || self.is_own(&target) && target == self.me.id {
                return Err(Refused::NotAllowed);
            }
            self.own(&by).ok_or(Refused::NoMember)?;
            if !self.may_announce(by) {
                return Err(Refused::Busy);
            }
            self.originate(by, Message::Ban(target));
            if owner == Some(by) {
                self.virtuals.remove(&target);
                self.ban(target);
            }
            return Ok(());
        }
        let issuer = self.own(&by).and_then(|own| own.sig_pk()).ok_or(Refused::NoMember)?;
        let able = self.role(&by).is_some_and(|role| role >= Role::Moderator);
        if !able || !self.records.may_sanction(&issuer, &target) {
            return Err(Refused::NotAllowed);
        }
        self.count_record()?;
        let now_s = self.now_s();
        let after = self.records.effective(&target).map_or(0, |it| it.time_s.saturating_add(1));
        let time_s = now_s.max(after);
        let sanction = Sanction {
            group: self.id,
            target,
            verdict,
            seq: self.records.seq(&target, &issuer).saturating_add(1),
            time_s,
            expires_s: for_s.map_or(0, |for_s| time_s.saturating_add(for_s)),
            reason,
            issuer,
            signature: [0; 64],
        };
        let signed = self.own(&by).and_then(|own| own.pair.as_ref()).map(|pair| sanction.signed(pair));
        self.publish(Record::Sanction(signed.ok_or(Refused::NoMember)?));
        Ok(())
    }

    fn invite(&mut self, uses: u32, for_s: u64) -> Result<(), Refused> {
        if !self.rules.hub {
            return Err(Refused::NotAllowed);
        }
        if self.tickets.len() >= TICKETS_MAX {
            return Err(Refused::Full);
        }
        let (id, secret): ([u8; 16], [u8; 32]) = (self.bytes(), self.bytes());
        let expires_s = self.now_s().saturating_add(for_s);
        let ticket = Ticket { id, hash: Sha256::digest(secret).into(), expires_s, uses: uses.max(1) };
        self.tickets.insert(id, ticket);
        self.save(Save::Token(ticket));
        let credential = Credential { id, secret };
        self.tell(super::Event::Invited(Invitation { credential, expires_s }));
        Ok(())
    }

    fn leave(&mut self, by: ClientId) -> Result<(), Refused> {
        if by == self.me.id && self.rules.hub {
            return Err(Refused::NotAllowed);
        }
        if !self.is_own(&by) {
            return Err(Refused::NoMember);
        }
        self.originate(by, Message::Quit);
        self.virtuals.remove(&by);
        self.remove(by, Why::Quit);
        Ok(())
    }

    fn found(&mut self, shape: Shape) -> Result<(), Refused> {
        let pair = self.me.pair.clone().filter(|pair| pair.public() == self.id.0).ok_or(Refused::NotAllowed)?;
        let cert = self.certify(self.me.id, SigPk(pair.public()), Grade::User).ok_or(Refused::NotAllowed)?;
        self.publish(Record::Cert(cert));
        self.reshape(shape)
    }

    /// A new state by the founder.
    fn reshape(&mut self, shape: Shape) -> Result<(), Refused> {
        if !self.is_signed() {
            return Err(Refused::Mode);
        }
        let pair = self.me.pair.clone().filter(|pair| pair.public() == self.id.0).ok_or(Refused::NotAllowed)?;
        let now_s = self.now_s();
        let mut state = self.records.state().cloned().unwrap_or(State {
            group: self.id,
            version: 0,
            time_s: 0,
            open: false,
            open_topic: false,
            voice: Voice::All,
            peers_max: 0,
            name: String::new(),
            moderators: Vec::new(),
            signature: [0; 64],
        });
        let Shape { name, open, open_topic, voice, peers_max, moderator } = shape;
        if name.as_ref().is_some_and(|name| name.len() > GROUP_NAME_MAX) {
            return Err(Refused::Length);
        }
        if let Some((id, add)) = moderator {
            let key = self.records.cert(&id, now_s).map(|cert| cert.sig_pk).ok_or(Refused::NoMember)?;
            state.moderators.retain(|it| *it != key);
            if add {
                state.moderators.push(key);
            }
            if state.moderators.len() > MODERATORS_MAX {
                return Err(Refused::Full);
            }
        }
        self.count_record()?;
        state.name = name.unwrap_or(state.name);
        state.open = open.unwrap_or(state.open);
        state.open_topic = open_topic.unwrap_or(state.open_topic);
        state.voice = voice.unwrap_or(state.voice);
        state.peers_max = peers_max.unwrap_or(state.peers_max);
        state.version = state.version.checked_add(1).filter(|it| *it != u32::MAX).ok_or(Refused::Full)?;
        state.time_s = now_s;
        self.publish(Record::State(state.signed(&pair)));
        self.renew_certs();
        Ok(())
    }

    fn add_virtual(&mut self, own: Own, credential: Option<&Credential>) -> Result<(), Refused> {
        if !self.rules.hub || own.pair.is_some() != self.is_signed() {
            return Err(Refused::Mode);
        }
        let invited = match credential {
            Some(it) => Some(self.ticket(&it.id, &it.secret).ok_or(Refused::Token)?),
            None => None,
        };
        if self.is_banned(&own.id) {
            return Err(Refused::NotAllowed);
        }
        let name = super::flood::name_of(&own.name);
        self.welcome(own.id, own.sig_pk(), &name)?;
        if let Some(id) = invited {
            self.use_ticket(id);
        }
        self.seat_virtual(own);
        Ok(())
    }

    fn seat_virtual(&mut self, mut own: Own) {
        let now = self.now.monotonic;
        if self.is_banned(&own.id) {
            return;
        }
        // Whoever sat here has a place, however many came since.
        if !self.members.contains_key(&own.id) {
            self.insert(own.id);
        }
        if let Some(member) = self.members.get_mut(&own.id) {
            (member.is_virtual, member.name) = (true, own.name.clone());
        }
        let first = std::time::Duration::from_millis(self.roll(2_000));
        (own.next_name, own.next_ping) = (now + first, now + first);
        own.tells_presence = true;
        self.virtuals.insert(own.id, own);
    }
}
