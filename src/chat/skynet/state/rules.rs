//! Who may say what where (spec 2.6), what a message may build on (2.5), who is in a group (4.6), and who hears what.

use std::collections::{HashMap, HashSet};

use crate::chat::skynet::store::{Audience, Channel, Fact, Member};
use crate::chat::skynet::wire::content::{ArchiveMode, MemberFlags};
use crate::chat::skynet::wire::{
    AccountId, Body, ChannelId, ChannelType, Dependency, Kind, MessageFlags, MessageId, MessageSendStatus,
};

/// Why a message is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The sender is told, and goes on.
    Status(MessageSendStatus),
    /// It is out of the protocol: the connection ends.
    Violation(&'static str),
}

const DENIED: Refusal = Refusal::Status(MessageSendStatus::ACCESS_DENIED);
/// What others are not shown leaves them a message about nothing, on which clients fail in every sync (spec 2.4, 8.8).
const FOR_ONE: Refusal = Refusal::Violation("what a receipt or an override is about concerns one account alone");
/// Somebody else was faster.
pub const CONCURRENT: Refusal = Refusal::Status(MessageSendStatus::CONCURRENT_CHANGES);

/// What can be said of a message without knowing where it goes: whether clients send it, and with these flags.
///
/// # Errors
/// [`Refusal`] says why not.
pub const fn may_be_sent(kind: Kind, flags: MessageFlags) -> Result<(), Refusal> {
    let rule = kind.rule();
    if !rule.from_client {
        return Err(Refusal::Violation("a message that only the server sends"));
    }
    if flags.obey(&rule) { Ok(()) } else { Err(Refusal::Violation("flags of a message")) }
}

/// Whether `sender`, who is in the channel as `member`, may say it there.
///
/// # Errors
/// [`Refusal`] says why not.
pub fn may_write(
    channel: &Channel,
    member: Option<Member>,
    sender: AccountId,
    kind: Kind,
    flags: MessageFlags,
) -> Result<(), Refusal> {
    let Some(member) = member else { return Err(DENIED) };
    let administers = member.flags.has(MemberFlags::ADMINISTRATOR);
    if channel.channel_type == ChannelType::AccountData {
        return match () {
            () if channel.owner != sender => Err(DENIED),
            () if kind.rule().channels.contains(&ChannelType::AccountData) && flags.has(MessageFlags::UNENCRYPTED) => {
                Ok(())
            }
            () => Err(Refusal::Violation("what does not belong into account data")),
        };
    }
    if !kind.rule().channels.contains(&channel.channel_type) {
        return Err(DENIED);
    }
    let open = match channel.archive {
        ArchiveMode::NONE => true,
        ArchiveMode::BLOCKED => flags.has(MessageFlags::LOOPBACK) || kind == Kind::GroupChannelKeyNotify,
        _ => false,
    };
    let receipt = matches!(kind, Kind::MessageReceived | Kind::MessageRead);
    let allowed = match channel.channel_type {
        ChannelType::Loopback => channel.owner == sender,
        ChannelType::AccountData => false,
        // Only the server blocks.
        ChannelType::Direct => kind != Kind::ArchiveChannel,
        ChannelType::Group => match kind {
            Kind::ChatMessage | Kind::MessageOverride => !member.flags.has(MemberFlags::NO_CONTENT),
            _ if receipt => !member.flags.has(MemberFlags::NO_METADATA),
            Kind::BackgroundImage => true,
            _ => administers,
        },
        ChannelType::ProfileData => match kind {
            _ if receipt => !member.flags.has(MemberFlags::NO_METADATA),
            Kind::BackgroundImage => true,
            _ => administers,
        },
    };
    if open && allowed { Ok(()) } else { Err(DENIED) }
}

/// How many others a message may build on. The layout has room for 65 535, each of which is kept, read and told on its own;
/// nothing needs more than a few, but for a group, which names a key for each of its members.
#[must_use]
pub const fn dependencies_max(kind: Kind) -> usize {
    match kind {
        Kind::GroupChannelUpdate => GROUP_DEPENDENCIES_MAX,
        _ => DEPENDENCIES_MAX,
    }
}

const DEPENDENCIES_MAX: usize = 256;
/// More than the members that fit into the content: 64 KiB of nine bytes each.
const GROUP_DEPENDENCIES_MAX: usize = 8 * 1024;

/// Whether everything that a message builds on is there and is what its kind needs. `facts` has what is there of it, `loopback`
/// is the sender's own.
///
/// # Errors
/// [`Refusal`] says why not.
pub fn may_depend(
    channel: &Channel,
    sender: AccountId,
    body: &Body,
    facts: &HashMap<MessageId, Fact>,
    loopback: ChannelId,
) -> Result<(), Refusal> {
    let found = |dependency: &Dependency| facts.get(&dependency.message);
    if body.dependencies.len() > dependencies_max(body.kind) {
        return Err(DENIED);
    }
    if body.dependencies.iter().any(|dependency| found(dependency).is_none()) {
        return Err(Refusal::Violation("a dependency that is not there"));
    }
    let said = |fact: &&Fact| matches!(fact.kind, Kind::ChatMessage | Kind::DaystreamMessage);
    match body.kind {
        Kind::PublicKeys => match body.dependencies[..] {
            [on] if on.account == sender
                && found(&on).is_some_and(|fact| {
                    fact.kind == Kind::PrivateKeys && fact.sender == sender && fact.channel == loopback
                }) =>
            {
                Ok(())
            }
            _ => Err(Refusal::Violation("public keys without the private ones they belong to")),
        },
        Kind::MessageOverride => {
            let target = |on: &&Dependency| found(on).as_ref().is_some_and(said);
            let mut targets = body.dependencies.iter().filter(target);
            if targets.any(|on| !on.account.is_none()) {
                return Err(FOR_ONE);
            }
            let mut targets = body.dependencies.iter().filter_map(found).filter(said).peekable();
            let own = |fact: &Fact| fact.sender == sender && fact.channel == channel.id;
            if targets.peek().is_some() && targets.all(own) { Ok(()) } else { Err(DENIED) }
        }
        Kind::MessageReceived | Kind::MessageRead => {
            if body.dependencies.is_empty() {
                return Err(Refusal::Violation("a receipt for nothing"));
            }
            if body.dependencies.iter().any(|on| !on.account.is_none()) {
                return Err(FOR_ONE);
            }
            let here = |fact: &Fact| said(&fact) && fact.channel == channel.id;
            if body.dependencies.iter().filter_map(found).all(here) { Ok(()) } else { Err(DENIED) }
        }
        _ => Ok(()),
    }
}

/// Whether a sealed message says with which keys it was sealed (spec 7.8), where that is demanded.
#[must_use]
pub fn names_its_keys(channel: &Channel, body: &Body, facts: &HashMap<MessageId, Fact>) -> bool {
    let base = match channel.channel_type {
        _ if body.flags.has(MessageFlags::UNENCRYPTED) => return true,
        _ if body.flags.has(MessageFlags::LOOPBACK) => Kind::PasswordUpdate,
        ChannelType::Direct => Kind::DirectChannelUpdate,
        ChannelType::Group | ChannelType::ProfileData => Kind::GroupChannelUpdate,
        ChannelType::Loopback | ChannelType::AccountData => return true,
    };
    body.dependencies.iter().filter_map(|on| facts.get(&on.message)).any(|fact| fact.kind == base)
}

/// What a group is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupUpdate<'a> {
    /// One more than before.
    pub revision: i64,
    /// All of them.
    pub members: &'a [(AccountId, MemberFlags)],
    /// Of the message.
    pub dependencies: &'a [Dependency],
}

/// Whether a group may become that (spec 4.6.3). `exists` are the members who can be one, `keys` the key notifications that the
/// message builds on, each with the member in whose direct channel with the sender it is.
///
/// # Errors
/// [`Refusal`] says why not.
pub fn may_update_group(
    channel: &Channel,
    sender: AccountId,
    update: &GroupUpdate<'_>,
    exists: &HashSet<AccountId>,
    keys: &HashMap<MessageId, AccountId>,
) -> Result<(), Refusal> {
    if update.revision != channel.revision.wrapping_add(1) {
        return Err(CONCURRENT);
    }
    let distinct: HashSet<AccountId> = update.members.iter().map(|(account, _)| *account).collect();
    let administers = |flags: MemberFlags| flags.has(MemberFlags::ADMINISTRATOR);
    let profile = |account, flags: MemberFlags| match administers(flags) {
        true => account == channel.owner,
        false => flags.has(MemberFlags::INVISIBLE) || account == channel.owner,
    };
    let has_key = |account: AccountId| {
        let mut on = update.dependencies.iter().filter(|dependency| dependency.account == account);
        let notify = on.next();
        on.next().is_none() && notify.is_some_and(|on| keys.get(&on.message) == Some(&account))
    };
    let good = distinct.len() == update.members.len()
        && distinct.is_subset(exists)
        && update.members.iter().any(|(_, flags)| administers(*flags))
        && (channel.channel_type != ChannelType::ProfileData
            || update.members.iter().all(|(account, flags)| profile(*account, *flags)))
        && distinct.iter().all(|account| *account == sender || has_key(*account));
    if good { Ok(()) } else { Err(DENIED) }
}

/// Who sees what somebody says: receipts of the invisible are for administrators.
#[must_use]
pub const fn audience(kind: Kind, sender: MemberFlags) -> Audience {
    match kind {
        Kind::MessageReceived | Kind::MessageRead if sender.has(MemberFlags::INVISIBLE) => Audience::Administrators,
        _ => Audience::Members,
    }
}

/// Whether a member hears a message (spec 2.3). Which of its sessions do is another matter.
#[must_use]
pub fn hears(member: Member, sender: AccountId, flags: MessageFlags, audience: Audience) -> bool {
    let own = member.account == sender;
    (own || !flags.has(MessageFlags::LOOPBACK))
        && !(own && flags.has(MessageFlags::NO_SENDER_SYNC))
        && (own || audience == Audience::Members || member.flags.has(MemberFlags::ADMINISTRATOR))
}

/// What a member who is no administrator is shown of a group: itself, and whoever is visible.
pub fn hide_invisible(members: &mut Vec<(AccountId, MemberFlags)>, to: AccountId) {
    members.retain(|(account, flags)| *account == to || !flags.has(MemberFlags::INVISIBLE));
}

/// What a direct channel becomes, if that is another mode than it has: deleted always wins.
#[must_use]
pub fn archive_after(channel: &Channel, blocked: bool) -> Option<ArchiveMode> {
    let mode = if blocked { ArchiveMode::BLOCKED } else { ArchiveMode::NONE };
    (channel.archive != ArchiveMode::DELETED && channel.archive != mode).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::skynet::wire::ChannelType::{AccountData, Direct, Group, Loopback, ProfileData};

    const ME: AccountId = AccountId(1);
    const OTHER: AccountId = AccountId(2);
    const CLEAR: MessageFlags = MessageFlags::UNENCRYPTED;
    const ADMIN: MemberFlags = MemberFlags::ADMINISTRATOR;
    const NOBODY: MemberFlags = MemberFlags(0);

    fn channel(channel_type: ChannelType) -> Channel {
        Channel {
            id: ChannelId(7),
            channel_type,
            owner: ME,
            counterpart: OTHER,
            created_ms: 0,
            archive: ArchiveMode::NONE,
            revision: 4,
        }
    }

    fn member(flags: MemberFlags) -> Option<Member> {
        Some(Member { account: ME, flags })
    }

    /// The kinds that somebody may say in a channel, by their numbers.
    fn says(channel: &Channel, sender: AccountId, flags: MemberFlags) -> Vec<u8> {
        let may = |kind: &&Kind| {
            let of = kind.rule().required;
            // What may be in clear is tried in clear: account data takes nothing else.
            let of = if kind.rule().allowed.has(CLEAR) { of.and(CLEAR) } else { of };
            may_write(channel, Some(Member { account: sender, flags }), sender, **kind, of).is_ok()
        };
        Kind::ALL.iter().filter(|kind| kind.rule().from_client).filter(may).map(|kind| kind.id()).collect()
    }

    #[test]
    fn who_may_say_what_where_is_the_table() {
        assert_eq!(says(&channel(Loopback), ME, NOBODY), [0x13, 0x15, 0x17, 0x28, 0x2a]);
        assert_eq!(says(&channel(AccountData), ME, NOBODY), [0x18, 0x25, 0x26, 0x27]);
        assert_eq!(says(&channel(AccountData), OTHER, NOBODY), [0; 0]);
        assert_eq!(says(&channel(Direct), ME, NOBODY), [0x1a, 0x1c, 0x1d, 0x20, 0x21, 0x22, 0x23, 0x2a]);
        let (admin, plain) =
            ([0x19, 0x1e, 0x20, 0x21, 0x22, 0x23, 0x25, 0x26, 0x27, 0x2a], [0x20, 0x21, 0x22, 0x23, 0x2a]);
        assert_eq!(says(&channel(Group), ME, ADMIN), admin);
        assert_eq!(says(&channel(Group), ME, NOBODY), plain);
        assert_eq!(says(&channel(Group), ME, MemberFlags::NO_CONTENT), [0x22, 0x23, 0x2a]);
        assert_eq!(says(&channel(Group), ME, MemberFlags::NO_METADATA), [0x20, 0x21, 0x2a]);
        let owner = [0x19, 0x1e, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x2a];
        assert_eq!(says(&channel(ProfileData), ME, ADMIN), owner);
        assert_eq!(says(&channel(ProfileData), ME, MemberFlags::INVISIBLE), [0x22, 0x23, 0x2a]);
        for channel_type in ChannelType::ALL {
            let deleted = Channel { archive: ArchiveMode::DELETED, ..channel(channel_type) };
            let in_own = channel_type == AccountData;
            assert_eq!(
                says(&deleted, ME, ADMIN).is_empty(),
                !in_own,
                "account data is never archived: {channel_type:?}"
            );
            assert_eq!(may_write(&deleted, None, ME, Kind::ChatMessage, MessageFlags::NONE), Err(DENIED));
        }
        let blocked = Channel { archive: ArchiveMode::BLOCKED, ..channel(Direct) };
        assert_eq!(says(&blocked, ME, NOBODY), [0x1a, 0x1c, 0x1d, 0x2a], "what is for oneself, and keys of groups");
    }

    #[test]
    fn receipts_and_overrides_reached_others_without_what_they_are_about() {
        let fact = Fact { id: MessageId(3), channel: ChannelId(7), sender: ME, kind: Kind::ChatMessage };
        let keys = Fact { id: MessageId(4), channel: ChannelId(7), sender: ME, kind: Kind::DirectChannelUpdate };
        let facts = HashMap::from([(fact.id, fact), (keys.id, keys)]);
        let judge = |kind, dependencies: &[(AccountId, i64)]| {
            let on = dependencies.iter().map(|(account, id)| Dependency { account: *account, message: MessageId(*id) });
            let body = Body::new(kind, kind.rule().required, &b""[..]).on(on);
            may_depend(&channel(Direct), ME, &body, &facts, ChannelId::NONE)
        };
        for kind in [Kind::MessageReceived, Kind::MessageRead, Kind::MessageOverride] {
            assert_eq!(judge(kind, &[(AccountId::NONE, 3)]), Ok(()));
            for account in [ME, OTHER] {
                assert_eq!(judge(kind, &[(account, 3)]), Err(FOR_ONE), "{kind:?}");
                assert_eq!(judge(kind, &[(AccountId::NONE, 3), (account, 3)]), Err(FOR_ONE), "{kind:?}");
            }
        }
        assert_eq!(
            judge(Kind::MessageOverride, &[(AccountId::NONE, 3), (ME, 4)]),
            Ok(()),
            "keys are for whom they are"
        );
    }

    #[test]
    fn a_message_could_build_on_the_same_one_as_often_as_its_layout_allowed() {
        let fact = Fact { id: MessageId(3), channel: ChannelId(7), sender: ME, kind: Kind::ChatMessage };
        let facts = HashMap::from([(fact.id, fact)]);
        let judge = |kind: Kind, times: usize| {
            let on = Dependency { account: AccountId::NONE, message: fact.id };
            let body = Body::new(kind, kind.rule().required, &b""[..]).on(vec![on; times]);
            may_depend(&channel(Group), ME, &body, &facts, ChannelId::NONE)
        };
        for kind in [Kind::PrivateKeys, Kind::ChatMessage, Kind::MessageRead, Kind::GroupChannelUpdate] {
            assert_eq!(judge(kind, dependencies_max(kind)), Ok(()), "{kind:?}");
            assert_eq!(judge(kind, dependencies_max(kind) + 1), Err(DENIED), "{kind:?}");
        }
        assert!(GROUP_DEPENDENCIES_MAX > usize::from(u16::MAX) / 9);
    }

    #[test]
    fn account_data_is_in_clear_and_nothing_else() {
        let sealed = may_write(&channel(AccountData), member(NOBODY), ME, Kind::Nickname, MessageFlags::NONE);
        assert!(matches!(sealed, Err(Refusal::Violation(_))));
        let chat = may_write(&channel(AccountData), member(NOBODY), ME, Kind::ChatMessage, MessageFlags::NONE);
        assert!(matches!(chat, Err(Refusal::Violation(_))));
    }

    #[test]
    fn a_group_becomes_what_it_may() {
        let group = channel(Group);
        let on = |account, message| Dependency { account, message: MessageId(message) };
        let keys = HashMap::from([(MessageId(9), OTHER)]);
        let exists = HashSet::from([ME, OTHER]);
        let judge = |channel: &Channel, revision, members: &[(AccountId, MemberFlags)], dependencies: &[Dependency]| {
            may_update_group(channel, ME, &GroupUpdate { revision, members, dependencies }, &exists, &keys)
        };
        let both = [(ME, ADMIN), (OTHER, NOBODY)];
        let key = [on(OTHER, 9)];
        assert_eq!(judge(&group, 5, &both, &key), Ok(()));
        for revision in [4, 6, 0, i64::MIN] {
            assert_eq!(judge(&group, revision, &both, &key), Err(CONCURRENT), "{revision}");
        }
        let twice = [(ME, ADMIN), (OTHER, NOBODY), (OTHER, NOBODY)];
        let stranger = [(ME, ADMIN), (AccountId(3), NOBODY)];
        let led_by_none = [(ME, NOBODY), (OTHER, NOBODY)];
        for members in [&twice[..], &stranger, &led_by_none, &[]] {
            assert_eq!(judge(&group, 5, members, &key), Err(DENIED), "{members:?}");
        }
        for dependencies in [&[][..], &[on(OTHER, 8)], &[on(OTHER, 9), on(OTHER, 9)], &[on(ME, 9)]] {
            assert_eq!(judge(&group, 5, &both, dependencies), Err(DENIED), "{dependencies:?}");
        }
        let profile = channel(ProfileData);
        assert_eq!(judge(&profile, 5, &both, &key), Err(DENIED), "followers are invisible");
        assert_eq!(judge(&profile, 5, &[(ME, ADMIN), (OTHER, MemberFlags::INVISIBLE)], &key), Ok(()));
        let two = [(ME, ADMIN), (OTHER, ADMIN.and(MemberFlags::INVISIBLE))];
        assert_eq!(judge(&profile, 5, &two, &key), Err(DENIED), "one's profile is one's own");
        let last = Channel { revision: i64::MAX, ..group };
        assert_eq!(judge(&last, i64::MIN, &both, &key), Ok(()), "numbers come round, and nothing panics");
    }

    #[test]
    fn who_hears_is_decided_by_flags_and_audience() {
        let (mine, theirs) = (Member { account: ME, flags: NOBODY }, Member { account: OTHER, flags: NOBODY });
        let both = |flags, audience| (hears(mine, ME, flags, audience), hears(theirs, ME, flags, audience));
        assert_eq!(both(MessageFlags::NONE, Audience::Members), (true, true));
        assert_eq!(both(MessageFlags::LOOPBACK, Audience::Members), (true, false));
        assert_eq!(both(MessageFlags::NO_SENDER_SYNC, Audience::Members), (false, true));
        assert_eq!(both(MessageFlags::NONE, Audience::Administrators), (true, false));
        assert!(hears(Member { flags: ADMIN, ..theirs }, ME, MessageFlags::NONE, Audience::Administrators));
        assert_eq!(audience(Kind::MessageRead, MemberFlags::INVISIBLE), Audience::Administrators);
        assert_eq!(audience(Kind::ChatMessage, MemberFlags::INVISIBLE), Audience::Members);
    }

    #[test]
    fn sealed_messages_name_their_keys_where_that_is_demanded() {
        let fact = |id, kind| (MessageId(id), Fact { id: MessageId(id), channel: ChannelId(7), sender: ME, kind });
        let facts = HashMap::from([
            fact(1, Kind::PasswordUpdate),
            fact(2, Kind::DirectChannelUpdate),
            fact(3, Kind::GroupChannelUpdate),
        ]);
        let named = |channel_type, flags, id| {
            let on = Dependency { account: AccountId::NONE, message: MessageId(id) };
            names_its_keys(&channel(channel_type), &Body::new(Kind::ChatMessage, flags, &b""[..]).on([on]), &facts)
        };
        for (channel_type, flags, good) in [
            (Loopback, MessageFlags::LOOPBACK, 1),
            (Direct, MessageFlags::LOOPBACK, 1),
            (Direct, MessageFlags::NONE, 2),
            (Group, MessageFlags::NONE, 3),
            (ProfileData, MessageFlags::NONE, 3),
        ] {
            for id in 1..=3 {
                assert_eq!(named(channel_type, flags, id), id == good, "{channel_type:?} {flags:?} {id}");
            }
            assert!(named(channel_type, flags.and(CLEAR), 9), "what is in clear needs none");
        }
    }

    #[test]
    fn deleted_wins_over_blocked() {
        let with = |archive| Channel { archive, ..channel(Direct) };
        assert_eq!(archive_after(&with(ArchiveMode::NONE), true), Some(ArchiveMode::BLOCKED));
        assert_eq!(archive_after(&with(ArchiveMode::BLOCKED), true), None);
        assert_eq!(archive_after(&with(ArchiveMode::BLOCKED), false), Some(ArchiveMode::NONE));
        assert_eq!(archive_after(&with(ArchiveMode::DELETED), false), None);
        assert_eq!(archive_after(&with(ArchiveMode::DELETED), true), None);
    }
}
