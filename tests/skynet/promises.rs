//! What holds whatever is said (spec 10): several devices of several accounts do what chance wants, all at once, and afterwards
//! everything that each of them heard is looked at.
//!
//! Chance is seeded for each device, so what is said is the same each time; in which order it arrives is the machine's.
//! `HELIOSTAT_SEED` is another seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastrand::Rng;
use heliostat::chat::skynet::wire::content::MemberFlags;
use heliostat::chat::skynet::wire::{
    AccountId, Body, ChannelId, ChannelType, Content, CreateChannelStatus, Delivery, FromClient, Kind, MessageFlags,
    MessageId, MessageSendStatus, ToClient, WantedChannel,
};

use super::world::{Client, Ground, World, body, on, seed};

const ACCOUNTS: usize = 4;
const DEVICES: usize = 2;
/// What each device does.
const STEPS: usize = 30;
/// The revisions of the group that everybody who may wants to make.
const REVISIONS: std::ops::RangeInclusive<i64> = 2..=5;

/// A message that was taken.
struct Taken {
    id: MessageId,
    channel: ChannelId,
    kind: Kind,
    flags: MessageFlags,
    by: AccountId,
}

/// A device, what it heard, and what of it was taken.
struct Device {
    client: Client,
    rng: Rng,
    heard: Vec<Heard>,
    taken: Vec<Taken>,
}

enum Heard {
    Said(ToClient),
    /// It went without a word, came back, and was told what it had missed.
    Back(Vec<Delivery>),
}

impl Device {
    /// Listens until it hears what it waits for.
    async fn hears<T>(&mut self, wanted: impl Fn(&ToClient) -> Option<T>) -> T {
        loop {
            let packet = self.client.next().await;
            let found = wanted(&packet);
            self.heard.push(Heard::Said(packet));
            if let Some(found) = found {
                return found;
            }
        }
    }

    async fn says(&mut self, channel: ChannelId, body: Body) -> Result<MessageId, MessageSendStatus> {
        let (kind, flags, by) = (body.kind, body.flags, self.client.account);
        let sent = self.client.post(channel, body).await;
        let answer = |packet: &ToClient| match packet {
            ToClient::ChannelMessageResponse { temp, status, message, .. } if *temp == sent => {
                Some((*status, *message))
            }
            _ => None,
        };
        match self.hears(answer).await {
            (MessageSendStatus::SUCCESS, id) => {
                self.taken.push(Taken { id, channel, kind, flags, by });
                Ok(id)
            }
            (status, _) => Err(status),
        }
    }

    async fn creates(&mut self, other: AccountId) -> (CreateChannelStatus, ChannelId) {
        let wanted = WantedChannel::Direct(other);
        self.client.send(&FromClient::CreateChannel { temp: ChannelId(-1), wanted }).await;
        let answer = |packet: &ToClient| match packet {
            ToClient::CreateChannelResponse { status, channel, .. } => Some((*status, *channel)),
            _ => None,
        };
        self.hears(answer).await
    }

    /// A group with everybody in it, at this revision.
    async fn updates(
        &mut self,
        group: ChannelId,
        revision: i64,
        (accounts, directs): (&[AccountId], &Directs),
    ) -> Result<MessageId, MessageSendStatus> {
        let me = self.client.account;
        let mut keys = Vec::new();
        for other in accounts.iter().filter(|it| **it != me) {
            let notify = Body::new(Kind::GroupChannelKeyNotify, MessageFlags::NO_SENDER_SYNC, vec![7; 64]);
            keys.push(on(*other, self.says(directs[&pair(me, *other)], notify).await.unwrap()));
        }
        // The first two lead it.
        let flags = |at| if at < 2 { MemberFlags::ADMINISTRATOR } else { MemberFlags::default() };
        let members = accounts.iter().enumerate().map(|(at, account)| (*account, flags(at))).collect();
        let content = Content::GroupChannelUpdate { revision, members, key_history: vec![1; 8].into() };
        self.says(group, body(&content, MessageFlags::UNENCRYPTED).on(keys)).await
    }

    /// Says something that chance wants, or asks for what was said.
    async fn does_something(&mut self, world: &World, group: ChannelId, (accounts, directs): (&[AccountId], &Directs)) {
        let me = self.client.account;
        if self.rng.u8(..10) == 0 {
            let own = [group, self.client.loopback, self.client.account_data];
            let known: Vec<_> = own.into_iter().chain(mine(directs, me)).collect();
            let last = self.client.last;
            let (client, sync) = world.back(&self.client, last, &known).await;
            self.client = client;
            self.client.last = self.client.last.max(last);
            self.heard.push(Heard::Back(sync.messages));
            return;
        }
        let others: Vec<_> = accounts.iter().filter(|it| **it != me).collect();
        let direct = directs[&pair(me, *others[self.rng.usize(..others.len())])];
        if self.rng.u8(..6) == 0 {
            let channel = [ChannelId::NONE, direct, group][self.rng.usize(..3)];
            let max_count = self.rng.u16(..5);
            let (after, before) = (MessageId::NONE, MessageId::NONE);
            self.client.send(&FromClient::RequestMessages { channel, after, before, max_count }).await;
            return;
        }
        let (channel, kind, flags) = [
            (direct, Kind::ChatMessage, MessageFlags::NONE),
            (group, Kind::ChatMessage, MessageFlags::NONE),
            (direct, Kind::VerifiedKeys, MessageFlags::LOOPBACK),
            (group, Kind::BackgroundImage, MessageFlags::LOOPBACK),
            (direct, Kind::GroupChannelKeyNotify, MessageFlags::NO_SENDER_SYNC),
        ][self.rng.usize(..5)];
        // Dependencies for everybody, for one of them, or for somebody who is not even there.
        let earlier: Vec<_> = self.taken.iter().map(|it| it.id).collect();
        let mut dependencies = Vec::new();
        for _ in 0..self.rng.usize(..4) {
            let account = [AccountId::NONE, me, *others[0], *others[2]][self.rng.usize(..4)];
            dependencies.extend(self.rng.choice(&earlier).map(|message| on(account, *message)));
        }
        let content = vec![self.rng.u8(..); self.rng.usize(..200)];
        self.says(channel, Body::new(kind, flags, content).on(dependencies)).await.unwrap();
    }
}

/// The direct channels of an account.
fn mine(directs: &Directs, me: AccountId) -> impl Iterator<Item = ChannelId> + '_ {
    directs.iter().filter(move |((a, b), _)| *a == me || *b == me).map(|(_, channel)| *channel)
}

/// The direct channels of two accounts, the smaller one first.
type Directs = BTreeMap<(AccountId, AccountId), ChannelId>;

fn pair(a: AccountId, b: AccountId) -> (AccountId, AccountId) {
    (a.min(b), a.max(b))
}

/// All of them at once; returns them in their order.
async fn all<T: Send + 'static, F: Future<Output = (Device, T)> + Send + 'static>(
    devices: Vec<Device>,
    does: impl Fn(Device) -> F,
) -> (Vec<Device>, Vec<T>) {
    let tasks: Vec<_> = devices.into_iter().map(|device| tokio::spawn(does(device))).collect();
    let mut done = (Vec::new(), Vec::new());
    for task in tasks {
        let (device, result) = task.await.unwrap();
        done.0.push(device);
        done.1.push(result);
    }
    done
}

pub async fn what_is_promised_holds_whatever_is_said(ground: Ground) {
    let seed = seed();
    let world = Arc::new(World::start(&ground).await);
    let (mut devices, mut accounts) = (Vec::new(), Vec::new());
    for account in 0..ACCOUNTS {
        let name = format!("{account}@example.com");
        for at in 0..DEVICES {
            let client = if at == 0 { world.account(&name).await } else { world.device(&name).await };
            let rng = Rng::with_seed(seed ^ u64::try_from(account * DEVICES + at).unwrap() << 32);
            devices.push(Device { client, rng, heard: Vec::new(), taken: Vec::new() });
        }
        accounts.push(devices.last().unwrap().client.account);
    }

    // Everybody wants a channel with everybody, on all devices at once: each two get one.
    let everybody = accounts.clone();
    let (devices, created) = all(devices, move |mut device| {
        let mut others: Vec<_> = everybody.iter().copied().filter(|it| *it != device.client.account).collect();
        async move {
            device.rng.shuffle(&mut others);
            let mut created = Vec::new();
            for other in others {
                created.push((pair(device.client.account, other), device.creates(other).await));
            }
            (device, created)
        }
    })
    .await;
    let mut directs = Directs::new();
    let mut successes = 0;
    for (of, (status, channel)) in created.into_iter().flatten() {
        successes += usize::from(status == CreateChannelStatus::SUCCESS);
        assert!([CreateChannelStatus::SUCCESS, CreateChannelStatus::ALREADY_EXISTS].contains(&status), "{status:?}");
        assert_eq!(*directs.entry(of).or_insert(channel), channel, "the same for all");
    }
    assert_eq!((directs.len(), successes), (ACCOUNTS * (ACCOUNTS - 1) / 2, ACCOUNTS * (ACCOUNTS - 1) / 2));

    let mut devices = devices;
    let first = &mut devices[0];
    let wanted = WantedChannel::Other(ChannelType::Group);
    first.client.send(&FromClient::CreateChannel { temp: ChannelId(-1), wanted }).await;
    let created = |packet: &ToClient| match packet {
        ToClient::CreateChannelResponse { channel, .. } => Some(*channel),
        _ => None,
    };
    let group = first.hears(created).await;
    first.updates(group, 1, (&accounts, &directs)).await.unwrap();

    // All talk, and those who may want to make each revision of the group.
    let (everybody, channels, doors) = (accounts.clone(), directs.clone(), Arc::clone(&world));
    let (devices, won) = all(devices, move |mut device| {
        let (accounts, directs, world) = (everybody.clone(), channels.clone(), Arc::clone(&doors));
        async move {
            let to = (&accounts[..], &directs);
            let leads = accounts[..2].contains(&device.client.account);
            let mut revisions = REVISIONS.filter(|_| leads);
            let mut won = Vec::new();
            for _ in 0..STEPS {
                match revisions.next() {
                    Some(revision) => match device.updates(group, revision, to).await {
                        Ok(_) => won.push(revision),
                        Err(status) => assert_eq!(status, MessageSendStatus::CONCURRENT_CHANGES),
                    },
                    None => device.does_something(&world, group, to).await,
                }
            }
            (device, won)
        }
    })
    .await;
    let mut won: Vec<_> = won.into_iter().flatten().collect();
    won.sort_unstable();
    assert_eq!(won, REVISIONS.collect::<Vec<_>>(), "each revision was made once");

    // When everybody has said everything, everybody hears the rest.
    let (devices, _) = all(devices, |mut device| async move {
        device.client.send(&FromClient::DeviceListRequest {}).await;
        device.hears(|packet| matches!(packet, ToClient::DeviceListResponse { .. }).then_some(())).await;
        (device, ())
    })
    .await;
    let taken: Vec<_> = devices.iter().flat_map(|device| &device.taken).collect();
    for device in &devices {
        look(device, &taken, (&directs, group));
    }
    let backs = devices.iter().flat_map(|it| &it.heard).filter(|it| matches!(it, Heard::Back(_))).count();
    assert!(backs > 0, "nobody went and came back: another seed, please");
    Arc::into_inner(world).unwrap().stop().await;
}

/// Looks at everything that a device heard.
fn look(device: &Device, taken: &[&Taken], (directs, group): (&Directs, ChannelId)) {
    let me = device.client.account;
    let own: BTreeSet<_> = device.taken.iter().map(|it| it.id).collect();
    let is_member = |channel| channel == group || mine(directs, me).any(|it| it == channel);
    // What others said and this one may hear.
    let hears = |it: &&&Taken| {
        !own.contains(&it.id)
            && is_member(it.channel)
            && (it.by == me || !it.flags.has(MessageFlags::LOOPBACK))
            && !(it.by == me && it.flags.has(MessageFlags::NO_SENDER_SYNC))
    };
    let visible: BTreeSet<_> = taken.iter().filter(hears).map(|it| it.id).collect();
    let (mut depth, mut last) = (0, MessageId::NONE);
    let mut came = BTreeSet::new();
    for heard in &device.heard {
        let packet = match heard {
            Heard::Said(packet) => packet,
            Heard::Back(missed) => {
                // What was under way when it went is over.
                depth = 0;
                // Of channels that it did not say it knows the past comes as well.
                for message in missed.iter().filter(|it| is_member(it.channel)) {
                    is_for(message, me);
                    assert!(came.insert(message.id), "{:?} twice", message.id);
                    last = last.max(message.id);
                }
                continue;
            }
        };
        match packet {
            ToClient::SyncStarted { .. } => depth += 1,
            ToClient::SyncFinished {} => {
                depth -= 1;
                assert!(depth >= 0, "more ends than beginnings");
            }
            ToClient::ChannelMessageResponse { message, skip_count, .. } if !message.is_none() => {
                assert!(*message > last && *skip_count == 0, "{message:?} behind {last:?}");
                last = *message;
            }
            ToClient::Message(message) => {
                is_for(message, me);
                if message.skip_count == -1 {
                    assert!(depth > 0, "neither live nor in a sync: {message:?}");
                    continue;
                }
                assert!(message.id > last, "{:?} behind {last:?}", message.id);
                last = message.id;
                // The protocol's own count: what has a smaller number and did not come (spec 2.7).
                let skipped = visible.range(..message.id).filter(|it| !came.contains(*it)).count();
                assert_eq!(i64::try_from(skipped), Ok(message.skip_count), "{message:?}");
                assert!(came.insert(message.id) && !own.contains(&message.id), "{:?} twice", message.id);
            }
            _ => {}
        }
    }
    assert_eq!(depth, 0, "each sync ended once");
    for it in taken.iter().filter(|it| !own.contains(&it.id)) {
        assert_eq!(came.contains(&it.id), visible.contains(&it.id), "{:?} {:?}", it.kind, it.id);
    }
}

/// A message is for those who get it, and so is all that it builds on.
fn is_for(message: &Delivery, me: AccountId) {
    let heard = &message.body;
    assert!(!heard.flags.has(MessageFlags::LOOPBACK) || message.sender == me, "not for this account: {message:?}");
    assert!(!heard.flags.has(MessageFlags::NO_SENDER_SYNC) || message.sender != me, "not for its sender: {message:?}");
    assert!(
        heard.dependencies.iter().all(|it| it.account.is_none() || it.account == me),
        "not for this account: {message:?}"
    );
}
