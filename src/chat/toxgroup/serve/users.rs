//! What thin users ask for: each request becomes commands to a group, on behalf of the member that speaks for the user.

use sha2::{Digest as _, Sha256};

use super::actor::{Actor, Slot};
use super::thin::{MemberInfo, Op, Password, Request, SECRET_MIN, Said, USER_MAX, What};
use crate::chat::toxgroup::state::{
    Command, Credential, Endpoint, Event, Line, Mode, Own, Profile, Refused, Shape, Why,
};
use crate::chat::toxgroup::store::{Founded, Virtual, Write};
use crate::chat::toxgroup::wire::record::{GROUP_NAME_MAX, Voice};
use crate::chat::toxgroup::wire::{ClientId, GroupId, NAME_MAX, Token};
use crate::crypto::{Secret, equal, random, sign};
use crate::wire::toxgroup::THIN_MAX;

/// Thin users of one group, at most.
const SEATS_MAX: usize = 256;
/// Groups that one user made.
const GROUPS_EACH: usize = 8;
/// How often somebody may say wrongly who they are, on one line.
const HELLO_TRIES: u32 = 3;

/// The member that speaks for a thin user.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    pub(super) member: ClientId,
    /// Whether the user made the group.
    pub(super) operator: bool,
}

/// Why a thin user does not get what they asked for.
#[derive(Debug, thiserror::Error)]
enum Denied {
    #[error("say hello first")]
    Unknown,
    #[error("that name is somebody else's, or the secret another one")]
    BadSecret,
    #[error("a name has 1 to 64 bytes, a secret at least 16")]
    BadHello,
    #[error("no such group, or you are not in it")]
    NoGroup,
    #[error("there are too many already")]
    Full,
    #[error("you said hello already")]
    Again,
    #[error("no such member")]
    NoMember,
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Actor {
    /// Does what a line asks for, and answers.
    pub(super) fn request(&mut self, conn: u64, request: Request) {
        let Request { id, op } = request;
        let what = match op {
            Op::Hello { user, secret } => self.hello(conn, user, &secret),
            op => match self.lines.get(&conn).and_then(|line| line.user.clone()) {
                Some(user) => self.op(&user, op),
                None => Err(Denied::Unknown),
            },
        };
        let what = what.unwrap_or_else(|why| What::Error { why: why.to_string() });
        self.answer(conn, id, what);
    }

    fn hello(&mut self, conn: u64, user: String, secret: &Password) -> Result<What, Denied> {
        let known = self.knows(conn, &user, secret);
        if let Some(line) = self.lines.get_mut(&conn).filter(|_| known.is_err()) {
            line.refused += 1;
            if line.refused >= HELLO_TRIES {
                line.connection.close.cancel();
            }
        }
        known?;
        let of_user = self.groups.iter().filter(|(_, slot)| slot.seats.contains_key(&user));
        let mut groups: Vec<_> = of_user.map(|(id, _)| id.to_string()).collect();
        groups.sort_unstable();
        if let Some(line) = self.lines.get_mut(&conn) {
            line.connection.proved.cancel();
            line.user = Some(user);
        }
        Ok(What::Welcome { groups })
    }

    /// Whether somebody is who they say they are: whoever used a name first is.
    fn knows(&mut self, conn: u64, user: &str, Password(secret): &Password) -> Result<(), Denied> {
        if self.lines.get(&conn).is_some_and(|line| line.user.is_some()) {
            return Err(Denied::Again);
        }
        if user.is_empty() || user.len() > USER_MAX || secret.len() < SECRET_MIN {
            return Err(Denied::BadHello);
        }
        let hash: [u8; 32] = Sha256::digest(secret).into();
        match self.users.get(user) {
            Some(known) if equal(known, &hash) => Ok(()),
            Some(_) => Err(Denied::BadSecret),
            None if u64::try_from(self.users.len()).unwrap_or(u64::MAX) >= self.config.users_max => Err(Denied::Full),
            None => {
                self.users.insert(user.to_owned(), hash);
                self.writes.push(Write::User(user.to_owned(), hash));
                Ok(())
            }
        }
    }

    fn op(&mut self, user: &str, op: Op) -> Result<What, Denied> {
        match op {
            // Said already.
            Op::Hello { .. } => {}
            Op::Create { name, classic, topic_lock, open, nick } => {
                return self.create(user, &name, (classic, topic_lock), open, &nick);
            }
            Op::Join { group, nick } => return self.join(user, &group, &nick),
            Op::Leave { group } => {
                let (id, seat) = self.seat(user, &group)?;
                self.command(id, Command::Leave(seat.member))?;
                self.unseat(id, user);
            }
            Op::Say { group, text, action } => {
                let (id, seat) = self.seat(user, &group)?;
                self.command(id, Command::Say { by: seat.member, text, action })?;
            }
            Op::Nick { group, nick } => {
                let (id, seat) = self.seat(user, &group)?;
                self.command(id, Command::Rename(seat.member, nick.clone()))?;
                self.keep_seat(id, user, seat, &nick);
            }
            Op::Presence { group, presence } => {
                let (id, seat) = self.seat(user, &group)?;
                self.command(id, Command::SetPresence(seat.member, presence))?;
            }
            Op::Topic { group, text } => {
                let (id, seat) = self.seat(user, &group)?;
                let by = self.acts_as(id, seat)?;
                self.command(id, Command::SetTopic(by, text))?;
            }
            Op::Sanction { group, member, verdict, for_s, reason } => {
                let (id, seat) = self.seat(user, &group)?;
                let target = member.parse().map_err(|_| Denied::NoMember)?;
                let by = self.acts_as(id, seat)?;
                self.command(id, Command::Sanction { by, target, verdict, for_s, reason })?;
            }
            Op::Moderator { group, member, on } => {
                let (id, _) = self.operator(user, &group)?;
                let target = member.parse().map_err(|_| Denied::NoMember)?;
                let shape = Shape { moderator: Some((target, on)), ..Shape::default() };
                self.command(id, Command::Reshape(shape))?;
            }
            Op::Shape { group, open, open_topic, voice } => {
                let (id, _) = self.operator(user, &group)?;
                self.command(id, Command::Reshape(Shape { open, open_topic, voice, ..Shape::default() }))?;
            }
            Op::Members { group, after } => {
                let (id, _) = self.seat(user, &group)?;
                let slot = self.groups.get(&id).ok_or(Denied::NoGroup)?;
                let after: Option<ClientId> = after.map(|it| it.parse()).transpose().map_err(|_| Denied::NoMember)?;
                let mut all = slot.group.members();
                all.retain(|it| after.is_none_or(|after| it.id > after));
                all.sort_unstable_by_key(|it| it.id);
                let left = all.len();
                let info = |it: Profile| MemberInfo {
                    member: it.id.to_string(),
                    name: it.name,
                    presence: it.presence,
                    role: it.role,
                };
                let members = fitting(all.into_iter().map(info));
                let (more, neighbours) = (members.len() < left, slot.group.neighbours());
                return Ok(What::Members { group, members, more, topic: slot.group.topic(), neighbours });
            }
            Op::History { group, skip } => {
                let (id, _) = self.seat(user, &group)?;
                let slot = self.groups.get(&id).ok_or(Denied::NoGroup)?;
                let said = |line: &Line| said_of(line.at_ms, &line.by, &line.name, &line.text, line.action);
                let left = slot.group.history().count().saturating_sub(skip);
                let mut said = fitting(slot.group.history().rev().skip(skip).map(said));
                said.reverse();
                return Ok(What::History { group, more: said.len() < left, said });
            }
            Op::Peer { group, member, address } => {
                let (id, _) = self.operator(user, &group)?;
                let peer = member.parse().map_err(|_| Denied::NoMember)?;
                self.command(id, Command::AddPeer(peer, address.map(Endpoint::Udp)))?;
            }
            Op::End { group } => {
                let (id, _) = self.operator(user, &group)?;
                self.command(id, Command::End)?;
                self.close(id);
            }
            Op::Invite { group, uses, for_s } => {
                let (id, _) = self.operator(user, &group)?;
                let events = self.command(id, Command::Invite { uses, for_s })?;
                return Ok(What::Invited { group, token: self.token(id, &events)? });
            }
        }
        Ok(What::Ok)
    }

    fn create(
        &mut self,
        user: &str,
        name: &str,
        (classic, topic_lock): (bool, bool),
        open: bool,
        nick: &str,
    ) -> Result<What, Denied> {
        let made = |slot: &&Slot| slot.seats.get(user).is_some_and(|seat| seat.operator);
        let of_user = self.groups.values().filter(made).count();
        if self.groups.len() >= self.config.groups_max || of_user >= GROUPS_EACH {
            return Err(Denied::Full);
        }
        if name.is_empty() || name.len() > GROUP_NAME_MAX || nick.is_empty() || nick.len() > NAME_MAX {
            return Err(Refused::Length.into());
        }
        if classic && open || topic_lock && !classic {
            return Err(Refused::Mode.into());
        }
        let seed = (!classic).then(Secret::random);
        let id = GroupId(seed.as_ref().map_or_else(random::bytes, |seed| sign::Pair::new(seed).public()));
        let founded =
            Founded { id, signed: !classic, name: name.to_owned(), secret: Secret::random(), seed, topic_lock };
        self.writes.push(Write::Group(founded.clone()));
        self.open(&founded, 0);
        if !classic {
            self.command(
                id,
                Command::Found(Shape { name: Some(name.to_owned()), open: Some(open), ..Shape::default() }),
            )?;
        }
        let member = self.sit(id, user, nick, None, true)?;
        if !classic {
            let shape = Shape { moderator: Some((member, true)), ..Shape::default() };
            self.command(id, Command::Reshape(shape))?;
        }
        Ok(What::Entered { group: id.to_string(), member: member.to_string() })
    }

    fn join(&mut self, user: &str, group: &str, nick: &str) -> Result<What, Denied> {
        if nick.is_empty() || nick.len() > NAME_MAX {
            return Err(Refused::Length.into());
        }
        let (id, credential) = match group.parse::<Token>() {
            Ok(token) => (token.group, Some(Credential { id: token.id, secret: *token.secret.expose() })),
            Err(_) => (group.parse::<GroupId>().map_err(|_| Denied::NoGroup)?, None),
        };
        let slot = self.groups.get(&id).ok_or(Denied::NoGroup)?;
        if let Some(seat) = slot.seats.get(user) {
            return Ok(What::Entered { group: id.to_string(), member: seat.member.to_string() });
        }
        let open = slot.group.records().state().is_some_and(|state| state.open);
        if credential.is_none() && !open {
            return Err(Refused::Token.into());
        }
        if slot.seats.len() >= SEATS_MAX {
            return Err(Denied::Full);
        }
        let member = self.sit(id, user, nick, credential, false)?;
        Ok(What::Entered { group: id.to_string(), member: member.to_string() })
    }

    /// Makes the member that speaks for a user.
    fn sit(
        &mut self,
        id: GroupId,
        user: &str,
        nick: &str,
        credential: Option<Credential>,
        operator: bool,
    ) -> Result<ClientId, Denied> {
        let (secret, seed) = (Secret::random(), self.is_signed(id).then(Secret::random));
        let own = Own::new(secret.clone(), seed.as_ref().map(sign::Pair::new), 0, nick);
        let member = own.id();
        self.command(id, Command::AddVirtual(Box::new(own), credential))?;
        let slot = self.groups.get_mut(&id).ok_or(Denied::NoGroup)?;
        slot.seats.insert(user.to_owned(), Seat { member, operator });
        let it = Virtual { user: user.to_owned(), secret, seed, name: nick.to_owned(), operator, bound: 0 };
        self.writes.push(Write::Virtual(id, it));
        Ok(member)
    }

    /// A user is called differently, also after a restart.
    fn keep_seat(&mut self, id: GroupId, user: &str, seat: Seat, nick: &str) {
        let Some((secret, seed)) = self.groups.get(&id).and_then(|slot| slot.group.secrets_of(&seat.member)) else {
            return;
        };
        let (user, name) = (user.to_owned(), nick.to_owned());
        self.writes.push(Write::Virtual(id, Virtual { user, secret, seed, name, operator: seat.operator, bound: 0 }));
    }

    fn unseat(&mut self, id: GroupId, user: &str) {
        if let Some(seat) = self.groups.get_mut(&id).and_then(|slot| slot.seats.remove(user)) {
            self.writes.push(Write::VirtualGone(id, user.to_owned(), seat.member));
        }
    }

    fn seat(&self, user: &str, group: &str) -> Result<(GroupId, Seat), Denied> {
        let id = group.parse().map_err(|_| Denied::NoGroup)?;
        let slot = self.groups.get(&id).ok_or(Denied::NoGroup)?;
        Ok((id, *slot.seats.get(user).ok_or(Denied::NoGroup)?))
    }

    fn operator(&self, user: &str, group: &str) -> Result<(GroupId, Seat), Denied> {
        let (id, seat) = self.seat(user, group)?;
        if seat.operator { Ok((id, seat)) } else { Err(Refused::NotAllowed.into()) }
    }

    /// In a classic group the hub's word alone counts; who made the group has it.
    fn acts_as(&self, id: GroupId, seat: Seat) -> Result<ClientId, Denied> {
        if self.is_signed(id) || !seat.operator { Ok(seat.member) } else { self.hub_of(id) }
    }

    fn is_signed(&self, id: GroupId) -> bool {
        self.groups.get(&id).is_some_and(|slot| slot.group.mode() == Mode::Signed)
    }

    fn hub_of(&self, id: GroupId) -> Result<ClientId, Denied> {
        self.groups.get(&id).map(|slot| slot.group.me().id()).ok_or(Denied::NoGroup)
    }

    /// The text of an invitation that was just made.
    fn token(&self, id: GroupId, events: &[Event]) -> Result<String, Denied> {
        let invited = |event: &Event| match event {
            Event::Invited(invitation) => Some(invitation.clone()),
            _ => None,
        };
        let it = events.iter().find_map(invited).ok_or(Denied::NoGroup)?;
        let token = Token {
            group: id,
            hub: self.hub_of(id)?,
            id: it.credential.id,
            secret: Secret::new(it.credential.secret),
            expires_s: it.expires_s,
            doors: self.config.addresses.clone(),
        };
        Ok(token.text())
    }

    /// What thin users see of an event.
    pub(super) fn shown(&mut self, id: GroupId, event: &Event) -> Option<What> {
        let now_ms = self.clock.now().wall_ms;
        let group = id.to_string();
        if let Event::Left(member, Why::Banned) = event {
            // Who was banned has no seat any more, and is told before.
            let slot = self.groups.get(&id)?;
            let user = slot.seats.iter().find(|(_, seat)| seat.member == *member).map(|(user, _)| user.clone());
            if let Some(user) = user {
                let lines = self.lines.iter().filter(|(_, line)| line.user.as_ref() == Some(&user));
                let lines: Vec<_> = lines.map(|(conn, _)| *conn).collect();
                for conn in lines {
                    let (group, member) = (group.clone(), member.to_string());
                    self.answer(conn, None, What::Left { group, member, why: "banned".into() });
                }
                self.unseat(id, &user);
            }
        }
        let slot = self.groups.get(&id)?;
        Some(match event {
            Event::Joined(member) => What::Joined { group, member: member.to_string() },
            Event::Left(member, why) => {
                let why = match why {
                    Why::Quit => "quit",
                    Why::Expired => "expired",
                    Why::Banned => "banned",
                };
                What::Left { group, member: member.to_string(), why: why.into() }
            }
            Event::Renamed(member, name) => What::Renamed { group, member: member.to_string(), name: name.clone() },
            Event::Presence(member, presence) => {
                What::Presence { group, member: member.to_string(), presence: *presence }
            }
            Event::Said { by, text, action } => {
                What::Message { group, said: said_of(now_ms, by, &slot.group.name_of(by), text, *action) }
            }
            Event::Topic(text) => What::Topic { group, text: text.clone() },
            Event::Role(member, role) => What::Role { group, member: member.to_string(), role: *role },
            Event::BanAsked { by, target } => {
                What::BanAsked { group, member: by.to_string(), target: target.to_string() }
            }
            Event::State => {
                let state = slot.group.records().state();
                let (open, voice) = state.map_or((false, Voice::All), |state| (state.open, state.voice));
                What::State {
                    group,
                    name: state.map_or_else(|| slot.name.clone(), |state| state.name.clone()),
                    open,
                    voice,
                }
            }
            Event::Neighbours(count) => What::Neighbours { group, count: *count },
            Event::Entered | Event::NotEntered(_) | Event::Invited(_) | Event::Dropped(_) => return None,
        })
    }
}

/// As many, from the first on, as fit a frame together.
fn fitting<T: serde::Serialize>(items: impl Iterator<Item = T>) -> Vec<T> {
    // Beside them stand the id of the group, a topic, and names of fields.
    let mut room = THIN_MAX.saturating_sub(4 * 1_024);
    let fits = |item: &T| {
        let len = serde_json::to_vec(item).map_or(usize::MAX, |json| json.len() + 1);
        room.checked_sub(len).inspect(|left| room = *left).is_some()
    };
    items.take_while(fits).collect()
}

fn said_of(at_ms: u64, by: &ClientId, name: &str, text: &str, action: bool) -> Said {
    Said { at_ms, member: by.to_string(), name: name.to_owned(), text: text.to_owned(), action }
}
