//! How a group becomes another one: everybody is told the new key, then all are told who is in it (spec 4.6).

use std::collections::BTreeMap;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::super::book::GroupKeys;
use super::{Acts, Talk, Work};
use crate::chat::skynet::wire::blob::ChannelKey;
use crate::chat::skynet::wire::content::{ArchiveMode, MemberFlags};
use crate::chat::skynet::wire::{
    AccountId, ChannelId, ChannelType, Content, Dependency, MessageFlags, MessageId, WantedChannel,
};
use crate::crypto::Secret;

/// How a group is to become another one.
#[derive(Debug, Clone, Default)]
pub(in crate::tools::skynet) struct Edit {
    /// What these are from now on; nothing when they are not in it any more.
    pub(in crate::tools::skynet) members: BTreeMap<AccountId, Option<MemberFlags>>,
    /// Whether who is new can read what was said before.
    pub(in crate::tools::skynet) history: bool,
}

/// A group that is about to become another one: everybody is told the new key, then all are told who is in it.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) group: ChannelId,
    pub(super) edit: Edit,
    pub(super) name: String,
    pub(super) attempt: u32,
    /// One more than what the members below are made of: who changes the group meanwhile makes this one begin again.
    pub(super) revision: i64,
    pub(super) keys: GroupKeys,
    pub(super) members: Vec<(AccountId, MemberFlags)>,
    /// Notifications on their way.
    pub(super) telling: BTreeMap<MessageId, AccountId>,
    pub(super) told: Vec<Dependency>,
    pub(super) update: Option<MessageId>,
}

impl Talk {
    /// Founds a group, or a profile.
    pub(in crate::tools::skynet) fn found_group(
        &mut self,
        channel_type: ChannelType,
        name: &str,
        members: &[AccountId],
    ) -> Acts {
        let flags =
            if channel_type == ChannelType::ProfileData { MemberFlags::INVISIBLE } else { MemberFlags::default() };
        if let Some(without) = members.iter().find(|it| !self.can_be_told(**it)) {
            let name = self.book.name_of(*without);
            self.problem(format!("{name} cannot be in it: there are no keys for a channel with them"));
        } else if members.is_empty() {
            self.problem("somebody else has to be in it");
        } else if !self.ready {
            self.problem("there is no connection");
        } else {
            let members = members.iter().map(|it| (*it, Some(flags))).collect();
            let change = Edit { members, history: false };
            let temp = self.create(WantedChannel::Other(channel_type));
            self.work = Some(Work::Found { temp, name: name.to_owned(), change });
        }
        self.take_acts()
    }

    pub(super) fn can_be_told(&mut self, account: AccountId) -> bool {
        let direct = self.book.direct(account).filter(|it| it.archive != ArchiveMode::DELETED).map(|it| it.id);
        direct.is_some_and(|direct| self.book.key(direct, MessageFlags::NONE).is_ok())
    }

    /// Changes who is in a group.
    pub(in crate::tools::skynet) fn change_group(&mut self, group: ChannelId, edit: Edit) -> Acts {
        self.change(group, edit, String::new(), 0);
        self.take_acts()
    }

    pub(super) fn change(&mut self, group: ChannelId, edit: Edit, name: String, attempt: u32) {
        let me = self.book.me;
        let Some(channel) = self.book.channel(group).filter(|it| it.is_group()) else {
            return self.problem("that is no group");
        };
        let (founding, revision) = (channel.updates.is_empty(), channel.revision.wrapping_add(1));
        // It is sealed anew, so that who cannot read what was before knows it, too.
        let name = if name.is_empty() { channel.name.clone() } else { name };
        let mut members = channel.members.clone();
        if founding {
            members.insert(me, MemberFlags::ADMINISTRATOR);
        }
        let before = members.clone();
        for (account, flags) in &edit.members {
            match flags {
                Some(flags) => drop(members.insert(*account, *flags)),
                None => drop(members.remove(account)),
            }
        }
        if !before.get(&me).is_some_and(|flags| flags.has(MemberFlags::ADMINISTRATOR)) {
            return self.problem("that is for the group's administrators");
        }
        let others: Vec<(AccountId, MemberFlags)> =
            members.iter().map(|(a, f)| (*a, *f)).filter(|(it, _)| *it != me).collect();
        if others.is_empty() {
            return self.problem("somebody else has to be in it: `/end` ends a group");
        }
        if let Some((without, _)) = others.iter().find(|(it, _)| !self.can_be_told(*it)) {
            let name = self.book.name_of(*without);
            return self.problem(format!(
                "{name} cannot be told the group's new key: there are no keys for a channel with them"
            ));
        }
        let keys = GroupKeys { channel: ChannelKey::random(), history: Some(ChannelKey::random()) };
        let mut telling = BTreeMap::new();
        for (account, flags) in others {
            // Who could read what was before still can; who is new, if that is wanted; who may change the group, has to.
            let history = founding
                || flags.has(MemberFlags::ADMINISTRATOR)
                || if before.contains_key(&account) { self.book.told_history(group, account) } else { edit.history };
            let history_key = match &keys.history {
                Some(key) if history => key.0.clone(),
                _ => Secret::new([0; 64]),
            };
            let new_key = keys.channel.0.clone();
            let content = Content::GroupChannelKeyNotify { group, new_key, history_key };
            let Some(direct) = self.book.direct(account).map(|it| it.id) else { return };
            // Kept by this account's other devices, too: they have no other way to the key, and to know who was told what.
            let Some(temp) = self.say(direct, MessageFlags::NONE, &content, None, &[]) else { return };
            telling.insert(temp, account);
        }
        let (members, told, update) = (members.into_iter().collect(), Vec::new(), None);
        let change = Change { group, edit, name, attempt, revision, keys, members, telling, told, update };
        self.work = Some(Work::Change(change));
    }

    /// Somebody was told the new key of a group. When all were, the group is told.
    pub(super) fn changed(&mut self) {
        let Some(Work::Change(change)) = &self.work else { return };
        if !change.telling.is_empty() || change.update.is_some() {
            return;
        }
        let Change { group, revision, .. } = *change;
        let (members, told) = (change.members.clone(), change.told.clone());
        let before = self.book.keys_of_group(group);
        let Some(Work::Change(change)) = &self.work else { return };
        let key_history = match (before, &change.keys.history) {
            (Some(before), Some(key)) => {
                let history = before.history.map_or([0; 64], |key| *key.0.expose());
                Bytes::from(key.seal(&Zeroizing::new([&before.channel.0.expose()[..], &history].concat())))
            }
            // There is nothing before the first.
            _ => Bytes::new(),
        };
        let content = Content::GroupChannelUpdate { revision, members, key_history };
        let temp = self.say(group, MessageFlags::UNENCRYPTED, &content, None, &told);
        match &mut self.work {
            Some(Work::Change(change)) if temp.is_some() => change.update = temp,
            _ => self.work = None,
        }
    }

    /// Ends a group for all.
    pub(in crate::tools::skynet) fn end_group(&mut self, group: ChannelId) -> Acts {
        self.say(group, MessageFlags::UNENCRYPTED, &Content::ArchiveChannel(ArchiveMode::DELETED), None, &[]);
        self.take_acts()
    }
}
