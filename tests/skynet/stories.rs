//! What clients live through (spec 4), each told from the sockets.

use std::collections::BTreeSet;
use std::convert::Infallible;

use base64::Engine as _;
use heliostat::chat::skynet::serve::{FILES, OUTBOX_BYTES_MAX};
use heliostat::chat::skynet::store::{KEY_FILE, Place, StoreError};
use heliostat::chat::skynet::wire::content::{ArchiveMode, ExternalFile, MemberFlags};
use heliostat::chat::skynet::wire::{
    AccountId, Body, ChannelAction, ChannelId, ChannelType, Content, CreateAccountStatus, CreateChannelStatus,
    CreateSessionStatus, DateTime, DeleteAccountStatus, Delivery, Doing, FileBlock, FileId, FromClient, Kind,
    MessageFlags, MessageId, MessageSendStatus, OnlineState, RestoreSessionStatus, ToClient, WantedChannel,
};
use heliostat::chat::skynet::{self, Config, Confirmed, Platform, StartError};
use heliostat::crypto::Secret;
use heliostat::net::listen::Door;
use heliostat::time::Clock;
use http_body_util::StreamBody;
use hyper::body::Frame;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

pub use super::promises::what_is_promised_holds_whatever_is_said;
use super::world::{Client, Ground, World, body, chat, key_hash, on, receipt, secured, seed, soon, until};

const CLEAR: MessageFlags = MessageFlags::UNENCRYPTED;
const DENIED: Result<MessageId, MessageSendStatus> = Err(MessageSendStatus::ACCESS_DENIED);
const A: &str = "alice@example.com";
const B: &str = "bob@example.com";
const C: &str = "carol@example.com";

fn own_clear() -> MessageFlags {
    MessageFlags::LOOPBACK.and(CLEAR)
}

fn is_sync_end(packet: &ToClient) -> Option<()> {
    matches!(packet, ToClient::SyncFinished {}).then_some(())
}

pub async fn registering_confirming_and_logging_in(ground: Ground) {
    let world = World::start(&ground).await;
    let mut client = world.greeted().await;
    assert_eq!(client.register("not an address", "pw").await, CreateAccountStatus::INVALID_ACCOUNT_NAME);
    assert_eq!(client.register("Alice@Example.com", "pw").await, CreateAccountStatus::SUCCESS);
    assert_eq!(client.register(A, "pw").await, CreateAccountStatus::MAIL_RESENT);
    assert_eq!(client.register(A, "other").await, CreateAccountStatus::ACCOUNT_NAME_TAKEN);
    assert_eq!(world.mail.reasons(A), 2);
    assert_eq!(client.login(A, "other").await, CreateSessionStatus::INVALID_CREDENTIALS);
    assert_eq!(client.login(A, "pw").await, CreateSessionStatus::UNCONFIRMED_ACCOUNT);
    for token in ["abcdefghijklmnop", "0123456789abcdef", "abcdefghijklmno\0", "", "ä"] {
        assert_eq!(soon(world.running.confirm(token)).await, Some(Confirmed::Invalid), "{token:?}");
    }
    assert_eq!(world.confirm(A).await, Confirmed::Done { address: A.into() });
    assert_eq!(world.confirm(A).await, Confirmed::Already { address: A.into() });
    assert_eq!(client.register(A, "pw").await, CreateAccountStatus::ACCOUNT_NAME_TAKEN);
    assert_eq!(client.login("nobody@example.com", "pw").await, CreateSessionStatus::INVALID_CREDENTIALS);
    client.push_token = "to\0ken".into();
    assert_eq!(client.login(A, "pw").await, CreateSessionStatus::INVALID_FCM_REGISTRATION_TOKEN);
    client.push_token = "token".into();
    // The same connection may try again, and it is the address that counts, however it is written.
    assert_eq!(client.login("ALICE@example.com", "pw").await, CreateSessionStatus::SUCCESS);
    let sync = client.first_sync().await;
    assert_eq!(sync.min_count, 2, "there may be another device list when its turn comes");
    let types: Vec<_> = sync.announced.iter().map(|(_, it)| it.channel_type).collect();
    assert_eq!(types, [ChannelType::Loopback, ChannelType::AccountData]);
    assert_eq!(sync.kinds(), [Kind::PasswordUpdate, Kind::MailAddress, Kind::DeviceList]);
    assert!(sync.messages.iter().all(|message| message.sender == client.account));
    let said =
        |message: &Delivery| Content::decode(message.body.kind, message.body.flags, &message.body.content).unwrap().0;
    let Content::PasswordUpdate { previous_key_hash, key_hash: kept, key_history } = said(&sync.messages[0]) else {
        panic!("{sync:?}")
    };
    assert_eq!((previous_key_hash, kept, key_history.len()), (Secret::new([0; 32]), key_hash("pw"), 0));
    assert_eq!(said(&sync.messages[1]), Content::MailAddress(A.into()));
    let Content::DeviceList(devices) = said(&sync.messages[2]) else { panic!("{sync:?}") };
    assert_eq!((devices.len(), devices[0].session), (1, client.session));
    // The next device is told to the first one.
    let second = world.device_with(A, "pw").await;
    let Content::DeviceList(devices) = said(&client.find_message(Kind::DeviceList).await) else { panic!() };
    assert_eq!(devices.iter().map(|it| it.session).collect::<Vec<_>>(), [client.session, second.session]);
    client.hears_nothing().await;
    world.stop().await;
}

pub async fn a_session_comes_back_and_hears_what_it_missed(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    bob.publish_keys().await;
    let known = [bob.loopback, bob.account_data];
    let (last, offline) = (bob.last, bob);
    let mut other = world.device(B).await;
    // Bob's first device is away while a contact is added whose keys are older than what it has heard last.
    alice.publish_keys().await;
    let channel = world.friends(&mut alice, &mut other).await;
    let mut stranger = world.greeted().await;
    let mut wrong = world.connect().await;
    (wrong.session, wrong.token) = (offline.session, Secret::new([9; 32]));
    assert_eq!(stranger.restore(&wrong, 0, &[]).await, RestoreSessionStatus::INVALID_SESSION);
    assert_eq!(
        stranger.restore(&offline, last, &[known[0], known[1], ChannelId(-4)]).await,
        RestoreSessionStatus::SUCCESS
    );
    let sync = stranger.sync().await;
    let announced: BTreeSet<_> = sync.announced.iter().map(|(channel, _)| *channel).collect();
    assert_eq!(announced, [alice.account_data, channel].into());
    assert_eq!(sync.deleted, [ChannelId(-4)], "an id that never was is none of the client's");
    let from_alice: Vec<_> = sync.messages.iter().filter(|it| it.channel == alice.account_data).collect();
    assert!(from_alice.iter().any(|it| it.body.kind == Kind::PublicKeys));
    assert!(from_alice.iter().any(|it| it.body.kind == Kind::MailAddress), "older than the last it knows");
    assert!(sync.messages.iter().all(|it| announced.contains(&it.channel) || it.id.0 > last));
    // Who is up to date hears nothing.
    let (_, sync) = world.back(&offline, stranger.last, &[known[0], known[1], alice.account_data, channel]).await;
    assert_eq!((sync.announced.len(), sync.deleted.len(), sync.messages.len()), (0, 0, 0));
    world.stop().await;
}

pub async fn a_session_is_taken_over(ground: Ground) {
    let world = World::start(&ground).await;
    let mut first = world.account(A).await;
    let (mut second, _) = world.back(&first, first.last, &[]).await;
    assert!(first.is_closed().await, "at once, and without a word");
    second.hears_nothing().await;
    let (channel, mut other) = (second.loopback, world.device(A).await);
    second.find_message(Kind::DeviceList).await;
    let id = other.say(channel, body(&Content::BlockList { accounts: vec![], channels: vec![] }, own_clear())).await;
    assert_eq!(second.find_message(Kind::BlockList).await.id, id.unwrap());
    world.stop().await;
}

pub async fn two_become_friends_and_their_keys_meet(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let mut tablet = world.device(A).await;
    alice.find_message(Kind::DeviceList).await;
    let create = |wanted| FromClient::CreateChannel { temp: ChannelId(-3), wanted };
    let status = |packet: ToClient| match packet {
        ToClient::CreateChannelResponse { temp: ChannelId(-3), status, channel, .. } => (status, channel),
        other => panic!("{other:?}"),
    };
    for nobody in [AccountId(4), alice.account] {
        alice.send(&create(WantedChannel::Direct(nobody))).await;
        assert_eq!(status(alice.next().await), (CreateChannelStatus::INVALID_COUNTERPART, ChannelId::NONE));
    }
    alice.send(&create(WantedChannel::Direct(bob.account))).await;
    // The creator: the other one's account data, the answer, then what the other one had said.
    let ToClient::CreateChannel { channel, announced } = alice.next().await else { panic!() };
    assert_eq!((channel, announced.owner), (bob.account_data, bob.account));
    let (created, direct) = status(alice.next().await);
    assert_eq!(created, CreateChannelStatus::SUCCESS);
    assert_eq!(alice.sync().await.kinds(), [Kind::MailAddress]);
    for (client, data, owner, other) in [
        (&mut tablet, bob.account_data, alice.account, bob.account),
        (&mut bob, alice.account_data, alice.account, alice.account),
    ] {
        let ToClient::CreateChannel { channel, .. } = client.next().await else { panic!() };
        assert_eq!(channel, data);
        let ToClient::CreateChannel { channel, announced } = client.next().await else { panic!() };
        assert_eq!((channel, announced.owner, announced.counterpart), (direct, owner, other));
        assert_eq!(client.sync().await.kinds(), [Kind::MailAddress]);
    }
    bob.send(&create(WantedChannel::Direct(alice.account))).await;
    assert_eq!(status(bob.next().await), (CreateChannelStatus::ALREADY_EXISTS, direct));
    // Keys of one are not enough.
    let (private_a, public_a) = alice.publish_keys().await;
    assert_eq!(bob.find_message(Kind::PublicKeys).await.id, public_a);
    bob.hears_nothing().await;
    let (private_b, public_b) = bob.publish_keys().await;
    for (client, own, others) in [(&mut alice, private_a, public_b), (&mut bob, private_b, public_a)] {
        let update = client.find_message(Kind::DirectChannelUpdate).await;
        assert_eq!((update.channel, update.sender, update.skip_count), (direct, AccountId::NONE, 0));
        let me = client.account;
        assert_eq!(update.body.dependencies, [on(me, own), on(me, others)], "each sees its own two");
    }
    // Another key, another update; and keys of nobody's are no keys.
    let (_, newer) = bob.publish_keys().await;
    assert_eq!(alice.find_message(Kind::DirectChannelUpdate).await.body.dependencies[1], on(alice.account, newer));
    let stolen = Body::new(Kind::PublicKeys, CLEAR, vec![0; 6]).on([on(bob.account, private_a)]);
    bob.post(bob.account_data, stolen).await;
    bob.seen.clear();
    assert!(bob.find_end().await, "keys that refer to another account's end the connection");
    world.stop().await;
}

pub async fn chat_reaches_every_device_and_receipts_come_back(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let mut tablet = world.device(A).await;
    let channel = world.friends(&mut alice, &mut bob).await;
    let id = alice.say(channel, chat("hi")).await.unwrap();
    for client in [&mut tablet, &mut bob] {
        let heard = client.find_message(Kind::ChatMessage).await;
        assert_eq!(
            (heard.id, heard.channel, heard.sender, &heard.body.content[..]),
            (id, channel, alice.account, &b"hi"[..])
        );
        assert_eq!((heard.skip_count, heard.body.version), (0, 1));
        assert!(heard.dispatched.unix_ms().is_some());
    }
    let received = bob.say(channel, receipt(Kind::MessageReceived, id)).await.unwrap();
    let read = bob.say(channel, receipt(Kind::MessageRead, id)).await.unwrap();
    for client in [&mut alice, &mut tablet] {
        assert_eq!(client.find_message(Kind::MessageReceived).await.id, received);
        let heard = client.find_message(Kind::MessageRead).await;
        assert_eq!((heard.id, heard.body.dependencies), (read, vec![on(AccountId::NONE, id)]));
    }
    // Only what one has said oneself can be edited, and only what was said is acknowledged.
    let edit = |id| Body::new(Kind::MessageOverride, MessageFlags::NONE, vec![0; 64]).on([on(AccountId::NONE, id)]);
    assert_eq!(bob.say(channel, edit(id)).await, DENIED);
    assert!(alice.say(channel, edit(id)).await.is_ok());
    assert_eq!(bob.say(channel, receipt(Kind::MessageRead, received)).await, DENIED);
    // A file that is not there.
    let flags = MessageFlags::MEDIA.and(MessageFlags::EXTERNAL_FILE);
    let with_file =
        Body { file: heliostat::chat::skynet::wire::FileId(5), ..Body::new(Kind::ChatMessage, flags, vec![0; 64]) };
    assert_eq!(alice.say(channel, with_file).await, Err(MessageSendStatus::FILE_NOT_FOUND));
    // Strangers may not say anything there, and learn nothing by it.
    let mut carol = world.account(C).await;
    assert_eq!(carol.say(channel, chat("me too")).await, DENIED);
    assert_eq!(carol.say(ChannelId(12345), chat("me too")).await, DENIED);
    world.stop().await;
}

pub async fn loopback_stays_at_home_and_no_sender_sync_leaves_it(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let mut tablet = world.device(A).await;
    let channel = world.friends(&mut alice, &mut bob).await;
    tablet.find(is_sync_end).await;
    tablet.seen.clear();
    let custom = Body::new(Kind::DirectChannelCustomization, MessageFlags::LOOPBACK, vec![7; 64]);
    let at_home = alice.say(channel, custom).await.unwrap();
    assert_eq!(tablet.find_message(Kind::DirectChannelCustomization).await.id, at_home);
    bob.hears_nothing().await;
    let notify = Body::new(Kind::GroupChannelKeyNotify, MessageFlags::NO_SENDER_SYNC, vec![7; 64]);
    let outside = alice.say(channel, notify).await.unwrap();
    assert_eq!(bob.find_message(Kind::GroupChannelKeyNotify).await.id, outside);
    tablet.hears_nothing().await;
    // The same in every sync.
    let (_, of_alice) = world.back(&alice, 0, &[]).await;
    assert!(of_alice.ids().contains(&at_home.0) && !of_alice.ids().contains(&outside.0));
    let (_, of_bob) = world.back(&bob, 0, &[]).await;
    assert!(!of_bob.ids().contains(&at_home.0) && of_bob.ids().contains(&outside.0));
    world.stop().await;
}

/// A group of its creator alone.
async fn found_group(owner: &mut Client, channel_type: ChannelType) -> ChannelId {
    owner.send(&FromClient::CreateChannel { temp: ChannelId(-9), wanted: WantedChannel::Other(channel_type) }).await;
    owner
        .find(|packet| match packet {
            ToClient::CreateChannelResponse {
                temp: ChannelId(-9),
                status: CreateChannelStatus::SUCCESS,
                channel,
                ..
            } => Some(*channel),
            _ => None,
        })
        .await
}

/// Says who is in the group, with a key for each other member, who has a direct channel with the administrator.
async fn update_group(
    admin: &mut Client,
    group: ChannelId,
    revision: i64,
    members: &[(AccountId, MemberFlags)],
    directs: &[(AccountId, ChannelId)],
) -> Result<MessageId, MessageSendStatus> {
    let mut dependencies = Vec::new();
    for (account, direct) in directs {
        let notify = Body::new(Kind::GroupChannelKeyNotify, MessageFlags::NONE, vec![7; 64]);
        dependencies.push(on(*account, admin.say(*direct, notify).await.unwrap()));
    }
    let content = Content::GroupChannelUpdate { revision, members: members.to_vec(), key_history: vec![1; 8].into() };
    admin.say(group, body(&content, CLEAR).on(dependencies)).await
}

fn members_in(update: &Delivery) -> Vec<(AccountId, MemberFlags)> {
    match Content::decode(update.body.kind, CLEAR, &update.body.content) {
        Ok((Content::GroupChannelUpdate { members, .. }, None)) => members,
        other => panic!("{other:?}"),
    }
}

pub async fn a_group_lives_and_ends(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob, mut carol) = (world.account(A).await, world.account(B).await, world.account(C).await);
    let ab = world.friends(&mut alice, &mut bob).await;
    let ac = world.friends(&mut alice, &mut carol).await;
    let group = found_group(&mut alice, ChannelType::Group).await;
    let (admin, plain) = (MemberFlags::ADMINISTRATOR, MemberFlags::default());
    let (a, b, c) = (alice.account, bob.account, carol.account);
    // Without a key for each, without an administrator, or with somebody who is not there, it does not become.
    assert_eq!(update_group(&mut alice, group, 1, &[(a, admin), (b, plain)], &[]).await, DENIED);
    assert_eq!(update_group(&mut alice, group, 1, &[(a, plain), (b, plain)], &[(b, ab)]).await, DENIED);
    assert_eq!(update_group(&mut alice, group, 1, &[(a, admin), (AccountId(5), plain)], &[]).await, DENIED);
    bob.seen.clear();
    let first = update_group(&mut alice, group, 1, &[(a, admin), (b, plain)], &[(b, ab)]).await.unwrap();
    let announced = bob
        .find(|packet| match packet {
            ToClient::CreateChannel { channel, announced } if *channel == group => Some(*announced),
            _ => None,
        })
        .await;
    assert_eq!((announced.channel_type, announced.owner), (ChannelType::Group, a));
    bob.find(is_sync_end).await;
    let heard = bob.find_message(Kind::GroupChannelUpdate).await;
    assert_eq!((heard.id, heard.body.dependencies.len()), (first, 1), "with the key that is for him");
    let nickname = body(&Content::Nickname("us".into()), MessageFlags::NONE);
    assert_eq!(bob.say(group, nickname.clone()).await, DENIED, "that is for administrators");
    let named = alice.say(group, nickname).await.unwrap();
    let before = bob.say(group, chat("before carol")).await.unwrap();
    assert_eq!(alice.find_message(Kind::ChatMessage).await.id, before);
    // Carol is new: she hears who is in it and what it is called, and asks for the rest herself.
    carol.seen.clear();
    let all = [(a, admin), (b, plain), (c, plain)];
    let second = update_group(&mut alice, group, 2, &all, &[(b, ab), (c, ac)]).await.unwrap();
    carol.find(|packet| matches!(packet, ToClient::SyncStarted { min_count: 1 }).then_some(())).await;
    assert_eq!(carol.find_message(Kind::GroupChannelUpdate).await.id, first);
    assert_eq!(carol.find_message(Kind::Nickname).await.id, named);
    carol.find(is_sync_end).await;
    assert_eq!(carol.find_message(Kind::GroupChannelUpdate).await.id, second);
    let (mut carol, sync) = world.back(&carol, 0, &[]).await;
    assert!(!sync.ids().contains(&before.0) && sync.ids().contains(&first.0) && sync.ids().contains(&named.0));
    carol
        .send(&FromClient::RequestMessages { channel: group, after: MessageId(0), before: MessageId(0), max_count: 0 })
        .await;
    assert!(carol.sync().await.ids().contains(&before.0));
    // Bob is removed.
    bob.seen.clear();
    update_group(&mut alice, group, 3, &[(a, admin), (c, MemberFlags::NO_CONTENT)], &[(c, ac)]).await.unwrap();
    bob.find(|packet| matches!(packet, ToClient::DeleteChannel { channel } if *channel == group).then_some(())).await;
    bob.seen.clear();
    bob.hears_nothing().await;
    assert_eq!(bob.say(group, chat("still here?")).await, DENIED);
    assert_eq!(carol.say(group, chat("hush")).await, DENIED);
    let said = alice.say(group, chat("quiet now")).await.unwrap();
    assert!(carol.say(group, receipt(Kind::MessageRead, said)).await.is_ok());
    // It ends, and what was said stays.
    assert_eq!(carol.say(group, body(&Content::ArchiveChannel(ArchiveMode::DELETED), CLEAR)).await, DENIED);
    assert_eq!(alice.say(group, body(&Content::ArchiveChannel(ArchiveMode::BLOCKED), CLEAR)).await, DENIED);
    alice.say(group, body(&Content::ArchiveChannel(ArchiveMode::DELETED), CLEAR)).await.unwrap();
    carol.find_message(Kind::ArchiveChannel).await;
    assert_eq!(alice.say(group, chat("anybody?")).await, DENIED);
    alice.seen.clear();
    alice
        .send(&FromClient::RequestMessages { channel: group, after: MessageId(0), before: MessageId(0), max_count: 0 })
        .await;
    assert!(alice.sync().await.ids().contains(&said.0));
    world.stop().await;
}

pub async fn an_administrator_who_is_late_has_to_begin_again(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let direct = world.friends(&mut alice, &mut bob).await;
    let group = found_group(&mut alice, ChannelType::Group).await;
    let both = [(alice.account, MemberFlags::ADMINISTRATOR), (bob.account, MemberFlags::ADMINISTRATOR)];
    let (for_alice, for_bob) = ([(alice.account, direct)], [(bob.account, direct)]);
    update_group(&mut alice, group, 1, &both, &for_bob).await.unwrap();
    let (first, second) = tokio::join!(
        update_group(&mut alice, group, 2, &both, &for_bob),
        update_group(&mut bob, group, 2, &both, &for_alice),
    );
    let late = if first.is_ok() { second } else { first };
    assert!(first.is_ok() != second.is_ok());
    assert_eq!(late, Err(MessageSendStatus::CONCURRENT_CHANGES));
    update_group(&mut bob, group, 3, &both, &for_alice).await.unwrap();
    world.stop().await;
}

pub async fn the_invisible_are_seen_by_administrators_alone(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob, mut carol) = (world.account(A).await, world.account(B).await, world.account(C).await);
    let ab = world.friends(&mut alice, &mut bob).await;
    let ac = world.friends(&mut alice, &mut carol).await;
    let profile = found_group(&mut alice, ChannelType::ProfileData).await;
    let (admin, unseen) = (MemberFlags::ADMINISTRATOR, MemberFlags::INVISIBLE);
    let (a, b, c) = (alice.account, bob.account, carol.account);
    let keys = [(b, ab), (c, ac)];
    let visible = [(a, admin), (b, MemberFlags::default()), (c, unseen)];
    assert_eq!(update_group(&mut alice, profile, 1, &visible, &keys).await, DENIED, "who follows is invisible");
    let members = [(a, admin), (b, unseen), (c, unseen)];
    for client in [&mut bob, &mut carol] {
        client.seen.clear();
    }
    update_group(&mut alice, profile, 1, &members, &keys).await.unwrap();
    assert_eq!(members_in(&bob.find_message(Kind::GroupChannelUpdate).await), [(a, admin), (b, unseen)]);
    assert_eq!(members_in(&carol.find_message(Kind::GroupChannelUpdate).await), [(a, admin), (c, unseen)]);
    let post = Body::new(Kind::DaystreamMessage, MessageFlags::NONE, vec![3; 64]);
    assert_eq!(bob.say(profile, post.clone()).await, DENIED);
    let id = alice.say(profile, post).await.unwrap();
    assert_eq!(carol.find_message(Kind::DaystreamMessage).await.id, id);
    let read = bob.say(profile, receipt(Kind::MessageRead, id)).await.unwrap();
    assert_eq!(alice.find_message(Kind::MessageRead).await.id, read);
    let (_, sync) = world.back(&carol, 0, &[]).await;
    assert!(!sync.ids().contains(&read.0), "nor later");
    let update = sync.messages.iter().find(|it| it.body.kind == Kind::GroupChannelUpdate).unwrap();
    assert_eq!(members_in(update), [(a, admin), (c, unseen)]);
    world.stop().await;
}

pub async fn a_password_changes_once(ground: Ground) {
    let world = World::start(&ground).await;
    let mut alice = world.account(A).await;
    let mut tablet = world.device(A).await;
    let change = |from: &str, to: &str| {
        let key_history = vec![1; 128].into();
        let content =
            Content::PasswordUpdate { previous_key_hash: key_hash(from), key_hash: key_hash(to), key_history };
        body(&content, own_clear())
    };
    let (loopback, concurrent) = (alice.loopback, Err(MessageSendStatus::CONCURRENT_CHANGES));
    assert_eq!(alice.say(loopback, change("wrong", "new")).await, concurrent);
    let id = alice.say(loopback, change(A, "new")).await.unwrap();
    assert_eq!(tablet.find_message(Kind::PasswordUpdate).await.id, id);
    assert_eq!(tablet.say(loopback, change(A, "newer")).await, concurrent, "it was faster");
    let mut client = world.greeted().await;
    assert_eq!(client.login(A, A).await, CreateSessionStatus::INVALID_CREDENTIALS);
    assert_eq!(client.login(A, "new").await, CreateSessionStatus::SUCCESS);
    let sync = client.first_sync().await;
    let changes: Vec<_> = sync.messages.iter().filter(|it| it.body.kind == Kind::PasswordUpdate).collect();
    assert_eq!((changes.len(), changes[1].id), (2, id), "the chain is there for new devices");
    assert_eq!(changes[1].body.content, change(A, "new").content);
    world.stop().await;
}

pub async fn a_name_changes_and_the_old_one_is_an_alias_until_the_password_follows(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    world.friends(&mut alice, &mut bob).await;
    let wish = |name: &str| body(&Content::QueueMailAddressChange(name.into()), own_clear());
    let loopback = alice.loopback;
    for bad in [B, "nonsense", A] {
        assert_eq!(alice.say(loopback, wish(bad)).await, DENIED, "{bad}");
    }
    // Nobody keeps an address from others by naming it, and who lost the mail asks for it again.
    let new = "alice@example.net";
    let mut client = world.greeted().await;
    assert_eq!(client.register(new, "not mine").await, CreateAccountStatus::SUCCESS);
    let registered = world.mail.token(new);
    alice.say(loopback, wish("Alice@Example.net")).await.unwrap();
    let token = world.mail.token(new);
    assert_eq!((world.mail.reasons(new), world.mail.reasons(A)), (2, 2), "the old address is warned");
    alice.say(loopback, wish(new)).await.unwrap();
    assert_eq!((world.mail.reasons(new), world.mail.token(new)), (3, token));
    assert_eq!(soon(world.running.confirm(&registered)).await, Some(Confirmed::Invalid));
    assert_eq!(client.login(new, A).await, CreateSessionStatus::INVALID_CREDENTIALS);
    assert_eq!(world.confirm(new).await, Confirmed::Done { address: new.into() });
    for client in [&mut alice, &mut bob] {
        let heard = client.find_message(Kind::MailAddress).await;
        assert_eq!(heard.body.content, Content::MailAddress(new.into()).encode(None).unwrap());
    }
    drop((world.device_with(A, A).await, world.device_with(new, A).await));
    let (previous_key_hash, key_hash) = (key_hash(A), key_hash("new"));
    let content = Content::PasswordUpdate { previous_key_hash, key_hash, key_history: vec![1; 128].into() };
    alice.say(loopback, body(&content, own_clear())).await.unwrap();
    assert_eq!(client.login(A, "new").await, CreateSessionStatus::INVALID_CREDENTIALS);
    assert_eq!(client.login(new, "new").await, CreateSessionStatus::SUCCESS);
    client.first_sync().await;
    assert_eq!(world.greeted().await.register(A, A).await, CreateAccountStatus::SUCCESS, "the old name is free");
    world.stop().await;
}

pub async fn who_was_logged_in_could_have_mails_sent_to_anybody(mut ground: Ground) {
    ground.rates.wishes.amount = 1;
    let world = World::start(&ground).await;
    let mut alice = world.account(A).await;
    let wish = |name: &str| body(&Content::QueueMailAddressChange(name.into()), own_clear());
    assert_eq!(alice.say(alice.loopback, wish("nonsense")).await, DENIED, "that sends none");
    alice.say(alice.loopback, wish(B)).await.unwrap();
    assert_eq!(alice.say(alice.loopback, wish(C)).await, DENIED);
    assert_eq!((world.mail.reasons(B), world.mail.reasons(C)), (1, 0));
    world.stop().await;
}

pub async fn a_store_that_fails_has_said_nothing_and_ends_everybody(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let channel = world.friends(&mut alice, &mut bob).await;
    let kept = alice.say(channel, chat("kept")).await.unwrap();
    ground.runs("ALTER TABLE message RENAME TO elsewhere").await;
    assert_eq!(alice.may_say(channel, chat("lost")).await, None);
    let is_answer = |packet: &ToClient| matches!(packet, ToClient::ChannelMessageResponse { .. });
    assert!(!alice.seen.iter().any(is_answer) && bob.find_end().await);
    ground.runs("ALTER TABLE elsewhere RENAME TO message").await;
    let chats = |sync: &super::world::Sync| {
        let chats = sync.messages.iter().filter(|it| it.body.kind == Kind::ChatMessage);
        chats.map(|it| it.id).collect::<Vec<_>>()
    };
    let (mut bob, sync) = world.back(&bob, 0, &[]).await;
    assert_eq!(chats(&sync), [kept]);
    let (mut alice, sync) = world.back(&alice, 0, &[]).await;
    assert_eq!(chats(&sync), [kept]);
    let next = alice.say(channel, chat("on")).await.unwrap();
    assert_eq!(bob.find_message(Kind::ChatMessage).await.id, next);
    world.stop().await;
}

pub async fn one_process_serves_a_database_and_with_its_key(ground: Ground) {
    let world = World::start(&ground).await;
    // A database in a directory is that directory's; another one can be reached from everywhere.
    let is_file = ground.place == Place::Sqlite;
    let dir = if is_file { ground.dir.clone() } else { ground.dir.join("another") };
    let second = async || {
        let config = Config { place: ground.place.clone(), ..Config::new(dir.clone()) };
        match skynet::start_on(Vec::new(), config, Clock::system(), CancellationToken::new()).await {
            Err(StartError::Store(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(second().await, StoreError::Taken));
    world.stop().await;
    if is_file {
        std::fs::remove_file(dir.join(KEY_FILE)).unwrap();
    }
    assert!(matches!(second().await, StoreError::Key(_)));
    std::fs::write(dir.join(KEY_FILE), "00".repeat(32)).unwrap();
    assert!(matches!(second().await, StoreError::OtherKey));
}

pub async fn a_damaged_row_was_the_end_of_everybody(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob, mut carol) = (world.account(A).await, world.account(B).await, world.account(C).await);
    let (ab, ac) = (world.friends(&mut alice, &mut bob).await, world.friends(&mut alice, &mut carol).await);
    let damaged = alice.say(ab, chat("?")).await.unwrap();
    ground.runs("UPDATE message SET kind = 999 WHERE kind = 32").await;
    // Several packets are decided at once: what the others say stays.
    let (said, answered) =
        tokio::join!(carol.say(ac, chat("!")), bob.may_say(ab, receipt(Kind::MessageReceived, damaged)));
    assert_eq!(answered, None);
    loop {
        let heard = alice.find_message(Kind::ChatMessage).await.id;
        if Ok(heard) == said {
            break;
        }
    }
    let reply = alice.say(ac, chat("still here")).await.unwrap();
    assert_eq!(carol.find_message(Kind::ChatMessage).await.id, reply);
    world.stop().await;
}

pub async fn who_does_not_read_is_disconnected_and_finds_everything(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let channel = world.friends(&mut alice, &mut bob).await;
    let active = FromClient::SetClientState { online: OnlineState::ACTIVE, doing: Doing::default() };
    bob.send(&active).await;
    alice.find_message(Kind::OnlineState).await;
    let is_gone =
        |packet: &ToClient| matches!(packet, ToClient::Message(it) if it.body.kind == Kind::OnlineState).then_some(());
    let mut said = Vec::new();
    while alice.seen.iter().find_map(is_gone).is_none() {
        said.push(
            alice.say(channel, Body::new(Kind::ChatMessage, MessageFlags::NONE, vec![1; 65_000])).await.unwrap().0,
        );
        assert!(said.len() * 65_000 < 64 * 1024 * 1024, "nobody reads so much");
    }
    assert!(said.len() * 65_000 > OUTBOX_BYTES_MAX, "{}", said.len());
    assert!(bob.find_end().await);
    let (_bob, sync) = world.back(&bob, said[0] - 1, &[channel]).await;
    let heard = sync.messages.iter().filter(|it| it.body.kind == Kind::ChatMessage);
    assert_eq!(heard.map(|it| it.id.0).collect::<Vec<_>>(), said);
    world.stop().await;
}

pub async fn a_second_change_of_name_locked_the_account_out(ground: Ground) {
    let world = World::start(&ground).await;
    let mut alice = world.account(A).await;
    let (loopback, names) = (alice.loopback, [A, "alice@example.net", "alice@example.org"]);
    for new in &names[1..] {
        let wish = Content::QueueMailAddressChange((*new).into());
        alice.say(loopback, body(&wish, own_clear())).await.unwrap();
        assert_eq!(world.confirm(new).await, Confirmed::Done { address: (*new).into() });
    }
    // The first is in every key until the password follows, so it is what the password goes with, and nobody else's.
    for name in names {
        drop(world.device_with(name, A).await);
    }
    let mut client = world.greeted().await;
    assert_eq!(client.register(A, "mine now").await, CreateAccountStatus::ACCOUNT_NAME_TAKEN);
    let (previous_key_hash, key_hash) = (key_hash(A), key_hash("new"));
    let content = Content::PasswordUpdate { previous_key_hash, key_hash, key_history: vec![1; 128].into() };
    alice.say(loopback, body(&content, own_clear())).await.unwrap();
    for old in &names[..2] {
        assert_eq!(client.login(old, "new").await, CreateSessionStatus::INVALID_CREDENTIALS);
    }
    assert_eq!(client.login(names[2], "new").await, CreateSessionStatus::SUCCESS);
    world.stop().await;
}

pub async fn an_account_is_deleted_and_its_contacts_hear_of_it(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let mut tablet = world.device(A).await;
    let channel = world.friends(&mut alice, &mut bob).await;
    tablet.find(is_sync_end).await;
    tablet.seen.clear();
    alice.send(&FromClient::DeleteAccount { key_hash: key_hash("wrong") }).await;
    let refused = ToClient::DeleteAccountResponse { status: DeleteAccountStatus::INVALID_CREDENTIALS };
    assert_eq!(alice.next().await, refused);
    alice.send(&FromClient::DeleteAccount { key_hash: key_hash(A) }).await;
    assert_eq!(alice.next().await, ToClient::DeleteAccountResponse { status: DeleteAccountStatus::SUCCESS });
    assert!(alice.is_closed().await && tablet.is_closed().await);
    let archived = bob.find_message(Kind::ArchiveChannel).await;
    assert_eq!((archived.channel, archived.sender, &archived.body.content[..]), (channel, AccountId::NONE, &[2][..]));
    assert_eq!(bob.say(channel, chat("hello?")).await, DENIED);
    bob.send(&FromClient::CreateChannel { temp: ChannelId(-1), wanted: WantedChannel::Direct(alice.account) }).await;
    let status = |packet: &ToClient| match packet {
        ToClient::CreateChannelResponse { status, .. } => Some(*status),
        _ => None,
    };
    assert_eq!(bob.find(status).await, CreateChannelStatus::INVALID_COUNTERPART);
    let mut again = world.greeted().await;
    assert_eq!(again.restore(&tablet, 0, &[]).await, RestoreSessionStatus::INVALID_SESSION);
    assert_eq!(again.login(A, A).await, CreateSessionStatus::INVALID_CREDENTIALS);
    assert_eq!(again.register(A, A).await, CreateAccountStatus::SUCCESS, "the name is free");
    let (mut bob, sync) = world.back(&bob, 0, &[]).await;
    assert!(sync.announced.iter().any(|(id, _)| *id == alice.account_data), "old keys stay readable");
    bob.send(&FromClient::DeleteAccount { key_hash: key_hash(B) }).await;
    assert_eq!(bob.next().await, ToClient::DeleteAccountResponse { status: DeleteAccountStatus::SUCCESS });
    world.stop().await;
}

pub async fn blocking_archives_and_unblocking_opens_again(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob, mut carol) = (world.account(A).await, world.account(B).await, world.account(C).await);
    let channel = world.friends(&mut alice, &mut bob).await;
    let group = found_group(&mut bob, ChannelType::Group).await;
    let members = [(bob.account, MemberFlags::ADMINISTRATOR), (alice.account, MemberFlags::default())];
    let key = [(alice.account, channel)];
    update_group(&mut bob, group, 1, &members, &key).await.unwrap();
    let list = |accounts, channels| body(&Content::BlockList { accounts, channels }, own_clear());
    let loopback = alice.loopback;
    alice.say(loopback, list(vec![bob.account, carol.account, bob.account], vec![group])).await.unwrap();
    let left = |packet: &ToClient| matches!(packet, ToClient::DeleteChannel { .. }).then(|| packet.clone());
    assert_eq!(alice.find(left).await, ToClient::DeleteChannel { channel: group });
    for client in [&mut alice, &mut bob] {
        assert_eq!(client.find_message(Kind::ArchiveChannel).await.body.content[..], [1]);
        assert_eq!(client.say(channel, chat("anybody?")).await, DENIED);
    }
    let custom = Body::new(Kind::DirectChannelCustomization, MessageFlags::LOOPBACK, vec![7; 64]);
    assert!(bob.say(channel, custom).await.is_ok(), "what is said to oneself passes");
    // Who is blocked creates no channel, and who blocks is not invited again.
    carol.send(&FromClient::CreateChannel { temp: ChannelId(-1), wanted: WantedChannel::Direct(alice.account) }).await;
    let status = |packet: &ToClient| match packet {
        ToClient::CreateChannelResponse { status, .. } => Some(*status),
        _ => None,
    };
    assert_eq!(carol.find(status).await, CreateChannelStatus::BLOCKED);
    alice.seen.clear();
    update_group(&mut bob, group, 2, &members, &key).await.unwrap();
    alice.find_message(Kind::GroupChannelKeyNotify).await;
    alice.hears_nothing().await;
    alice.say(loopback, list(vec![], vec![channel])).await.unwrap();
    bob.seen.clear();
    bob.hears_nothing().await;
    alice.say(loopback, list(vec![], vec![])).await.unwrap();
    assert_eq!(bob.find_message(Kind::ArchiveChannel).await.body.content[..], [0]);
    assert!(bob.say(channel, chat("again")).await.is_ok());
    world.stop().await;
}

pub async fn messages_are_requested_by_bounds_and_counts(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let channel = world.friends(&mut alice, &mut bob).await;
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(alice.say(channel, chat(&n.to_string())).await.unwrap().0);
    }
    let mut bob = world.device(B).await;
    let mut ask = async |channel, after, before, max_count| {
        let (after, before) = (MessageId(after), MessageId(before));
        bob.send(&FromClient::RequestMessages { channel, after, before, max_count }).await;
        let sync = bob.sync().await;
        bob.hears_nothing().await;
        sync.ids()
    };
    assert_eq!(ask(channel, 0, 0, 0).await, ids);
    assert_eq!(ask(channel, ids[1], ids[4], 0).await, ids[2..4]);
    assert_eq!(ask(channel, ids[1], 0, 2).await, ids[2..4], "from a bound on");
    assert_eq!(ask(channel, 0, ids[4], 2).await, ids[2..4], "scrolling back");
    assert_eq!(ask(channel, 0, 0, 2).await, ids[4..]);
    assert_eq!(ask(ChannelId(77), 0, 0, 0).await, [0; 0]);
    assert_eq!(ask(alice.loopback, 0, 0, 0).await, [0; 0]);
    let all = ask(ChannelId::NONE, 0, 0, 0).await;
    assert!(all.len() > ids.len() && ids.iter().all(|id| all.contains(id)));
    world.stop().await;
}

pub async fn presence_is_the_accounts_and_actions_are_the_sessions(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let mut tablet = world.device(A).await;
    let channel = world.friends(&mut alice, &mut bob).await;
    tablet.find(is_sync_end).await;
    tablet.seen.clear();
    let state = |online, doing| FromClient::SetClientState { online, doing };
    let (idle, typing) = (Doing::default(), Doing { action: ChannelAction::TYPING, channel });
    alice.send(&state(OnlineState::ACTIVE, idle)).await;
    assert_eq!(bob.find_message(Kind::OnlineState).await.body.content[..], [1]);
    tablet.send(&state(OnlineState::ACTIVE, idle)).await;
    alice.send(&state(OnlineState::ACTIVE, typing)).await;
    let account = alice.account;
    for client in [&mut bob, &mut tablet] {
        assert_eq!(client.next().await, ToClient::ChannelAction { channel, account, action: ChannelAction::TYPING });
    }
    // The last one to go takes the account with it, and what is done ends with the connection.
    drop(alice);
    for client in [&mut bob, &mut tablet] {
        assert_eq!(client.next().await, ToClient::ChannelAction { channel, account, action: ChannelAction::NONE });
    }
    drop(tablet);
    let gone = bob.find_message(Kind::OnlineState).await;
    let (Content::OnlineState(since), _) = Content::decode(Kind::OnlineState, CLEAR, &gone.body.content).unwrap()
    else {
        panic!()
    };
    assert!(since.is_some_and(|since| since.unix_ms().is_some()));
    // In a channel of others nothing is done.
    let mut carol = world.account(C).await;
    carol.send(&state(OnlineState::INACTIVE, typing)).await;
    carol.hears_nothing().await;
    bob.hears_nothing().await;
    let (_, sync) = world.back(&bob, 0, &[]).await;
    assert_eq!(sync.kinds().iter().filter(|kind| **kind == Kind::OnlineState).count(), 1, "only the newest is kept");
    world.stop().await;
}

pub async fn who_was_there_at_a_crash_was_there_for_ever(ground: Ground) {
    // A server that ends without another word, in a runtime of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let started = runtime.spawn(async move { (World::start(&ground).await, ground) });
    let (world, ground) = soon(started).await.unwrap();
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    world.friends(&mut alice, &mut bob).await;
    let active = || FromClient::SetClientState { online: OnlineState::ACTIVE, doing: Doing::default() };
    let is_there = |said: &Delivery| match Content::decode(Kind::OnlineState, said.body.flags, &said.body.content) {
        Ok((Content::OnlineState(since), None)) => since.is_none(),
        other => panic!("{other:?}"),
    };
    alice.send(&active()).await;
    assert!(is_there(&bob.find_message(Kind::OnlineState).await));
    // Nothing of it is left, and with it the lock of its directory; but nothing of it could end what it did, either.
    tokio::task::spawn_blocking(move || runtime.shutdown_timeout(std::time::Duration::from_secs(20))).await.unwrap();
    assert!(alice.find_end().await && bob.find_end().await);
    drop(world);

    let world = World::start(&ground).await;
    let (mut bob, sync) = world.back(&bob, 0, &[]).await;
    let said = |it: &&Delivery| it.body.kind == Kind::OnlineState && it.sender == alice.account;
    assert!(!is_there(sync.messages.iter().rfind(said).unwrap()));
    // And who deletes the account goes.
    let (mut alice, _) = world.back(&alice, 0, &[]).await;
    alice.send(&active()).await;
    assert!(is_there(&bob.find_message(Kind::OnlineState).await));
    alice.send(&FromClient::DeleteAccount { key_hash: key_hash(A) }).await;
    assert!(!is_there(&bob.find_message(Kind::OnlineState).await));
    world.stop().await;
}

pub async fn searching_finds_names_and_nicknames_and_only_the_newest_is_kept(mut ground: Ground) {
    let plain =
        Platform { application: "plain".into(), forward_profiles: false, ..ground.settings.platforms[0].clone() };
    ground.settings.platforms.push(plain);
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    assert_eq!(world.greeted().await.register("unconfirmed@example.com", "x").await, CreateAccountStatus::SUCCESS);
    let (data, nick) = (bob.account_data, |name: &str| body(&Content::Nickname(name.into()), CLEAR));
    bob.say(data, nick("Robert")).await.unwrap();
    let newest = bob.say(data, nick("Bobby Tables")).await.unwrap();
    let mut search = async |query: &str| {
        alice.send(&FromClient::SearchAccount { query: query.into() }).await;
        let ToClient::SearchAccountResponse { found } = alice.next().await else { panic!() };
        let sync = alice.sync().await;
        (found.into_iter().map(|it| it.name).collect::<Vec<_>>(), sync)
    };
    let (found, sync) = search("TABLES").await;
    assert_eq!(found, [B]);
    assert_eq!((sync.ids(), sync.messages[0].channel), (vec![newest.0], ChannelId::NONE));
    assert_eq!(sync.messages[0].sender, bob.account);
    assert_eq!(search("BOB@").await.0, [B]);
    for nothing in ["", "robert", "alice", "unconfirmed", "%"] {
        assert_eq!(search(nothing).await.0, [""; 0], "{nothing:?}");
    }
    // Who cannot stand messages outside of channels is not told any.
    let mut plain = world.connect().await;
    plain.greet_as("plain").await;
    assert_eq!(plain.login(A, A).await, CreateSessionStatus::SUCCESS);
    plain.first_sync().await;
    plain.send(&FromClient::SearchAccount { query: "tables".into() }).await;
    let ToClient::SearchAccountResponse { found } = plain.next().await else { panic!() };
    assert_eq!(found[0].account, bob.account);
    plain.hears_nothing().await;
    let (_, sync) = world.back(&bob, 0, &[]).await;
    assert_eq!(sync.messages.iter().filter(|it| it.body.kind == Kind::Nickname).count(), 1);
    world.stop().await;
}

/// Something a client may say when it is logged in.
type Says = fn(&Client) -> FromClient;

pub async fn what_is_out_of_the_protocol_ends_that_connection_alone(ground: Ground) {
    let world = World::start(&ground).await;
    let mut bystander = world.account(A).await;
    let platform = |application: &str| FromClient::ConnectionHandshake {
        protocol_version: 3,
        application: application.into(),
        version_code: 60,
    };
    let early: [&[u8]; 6] = [
        &[0x32, 0, 0, 0],
        &[0x10, 0, 0, 0],
        &[0x01, 1, 0, 0, 0],
        &[0x00, 2, 0, 0, 3, 0],
        &[0x2d, 2, 0, 0, 1, 0xff],
        &[0x00, 0xff, 0xff, 0xff],
    ];
    for bytes in early {
        let mut client = world.connect().await;
        client.send_bytes(bytes).await;
        assert!(client.is_closed().await, "{bytes:02x?}");
    }
    let mut client = world.connect().await;
    client.send(&platform("toaster/unknown")).await;
    assert!(client.is_closed().await);
    // Too old: told so, may say hello again, and nothing else.
    let mut client = world.connect().await;
    let old = FromClient::ConnectionHandshake {
        protocol_version: 2,
        application: super::world::PLATFORM.into(),
        version_code: 60,
    };
    for _ in 0..2 {
        client.send(&old).await;
        assert!(matches!(client.next().await, ToClient::ConnectionResponse { .. }));
    }
    client.send(&FromClient::CreateAccount { name: B.into(), key_hash: key_hash("x") }).await;
    assert!(client.is_closed().await);

    let late: [(&str, Says); 9] = [
        ("a second login", |_| FromClient::CreateSession {
            name: A.into(),
            key_hash: key_hash(A),
            push_token: String::new(),
        }),
        ("a loopback channel", |_| {
            let wanted = WantedChannel::Other(ChannelType::Loopback);
            FromClient::CreateChannel { temp: ChannelId(-1), wanted }
        }),
        ("an action nowhere", |_| {
            let doing = Doing { action: ChannelAction::TYPING, channel: ChannelId::NONE };
            FromClient::SetClientState { online: OnlineState::ACTIVE, doing }
        }),
        ("what only the server says", |me| me.upload(Body::new(Kind::MailAddress, CLEAR, vec![0]))),
        ("bad flags", |me| me.upload(Body::new(Kind::Nickname, MessageFlags(0x22), vec![0]))),
        ("a name that ends before it is over", |me| me.upload(Body::new(Kind::Nickname, CLEAR, vec![9]))),
        ("a picture without the file that it has", |me| {
            me.upload(body(&Content::ProfileImage(String::new()), CLEAR.and(MessageFlags::MEDIA)))
        }),
        ("keys of nothing", |me| me.upload(Body::new(Kind::PublicKeys, CLEAR, vec![0; 6]))),
        ("a dependency that is not there", |me| {
            me.upload(Body::new(Kind::Nickname, CLEAR, vec![0]).on([on(AccountId::NONE, MessageId(1 << 40))]))
        }),
    ];
    for (what, packet) in late {
        let mut client = world.device(A).await;
        bystander.find_message(Kind::DeviceList).await;
        client.send(&packet(&client)).await;
        assert!(client.is_closed().await, "{what}");
        bystander.hears_nothing().await;
    }
    world.stop().await;
}

/// While several talk, one comes back again and again with what it has: nothing may be missing, and nothing come twice.
pub async fn nothing_is_lost_or_doubled_between_sync_and_live(ground: Ground) {
    const EACH: i64 = 40;
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let channel = world.friends(&mut alice, &mut bob).await;
    let speakers = [world.device(A).await, world.device(A).await, alice];
    let talk = speakers.map(|mut speaker| {
        tokio::spawn(async move {
            let (mut said, mut before) = (Vec::new(), 0);
            for _ in 0..EACH {
                let id = speaker.say(channel, chat("x")).await.unwrap().0;
                assert!(id > before, "numbers rise on every connection");
                before = id;
                said.push(id);
            }
            said
        })
    });
    let mut heard = Vec::new();
    let (mut known, mut last, mut chance) = (Vec::new(), bob.last, fastrand::Rng::with_seed(seed()));
    let mut rounds = 0;
    let keep = |packet: ToClient, heard: &mut Vec<i64>, last: &mut i64| {
        if let ToClient::Message(message) = packet {
            assert!(message.id.0 > *last, "{} behind {last}", message.id.0);
            *last = message.id.0;
            if message.channel == channel && message.body.kind == Kind::ChatMessage {
                heard.push(message.id.0);
            }
        }
    };
    loop {
        let over = talk.iter().all(|it| it.is_finished());
        let (mut back, sync) = world.back(&bob, last, &known).await;
        known.extend(sync.announced.iter().map(|(channel, _)| *channel));
        for message in sync.messages {
            // Of a channel that was not known the past comes as well.
            if message.id.0 > last {
                keep(ToClient::Message(message), &mut heard, &mut last);
            }
        }
        rounds += 1;
        if over {
            break;
        }
        // A few live ones, as many as chance wants, then gone without a farewell.
        for _ in 0..chance.u8(..16) {
            let live = tokio::time::timeout(std::time::Duration::from_millis(20), back.next()).await;
            let Ok(packet) = live else { break };
            keep(packet, &mut heard, &mut last);
        }
    }
    let mut said = Vec::new();
    for speaker in talk {
        said.extend(speaker.await.unwrap());
    }
    said.sort_unstable();
    assert_eq!(heard, said, "in {rounds} rounds");
    world.stop().await;
}

pub async fn of_two_who_create_the_same_channel_one_does(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let (a, b) = (alice.account, bob.account);
    let create = async |client: &mut Client, other| {
        let wanted = WantedChannel::Direct(other);
        client.send(&FromClient::CreateChannel { temp: ChannelId(-1), wanted }).await;
        let answer = |packet: &ToClient| match packet {
            ToClient::CreateChannelResponse { status, channel, .. } => Some((*status, *channel)),
            _ => None,
        };
        client.find(answer).await
    };
    let (first, second) = tokio::join!(create(&mut alice, b), create(&mut bob, a));
    let statuses: BTreeSet<_> = [first.0, second.0].into();
    assert_eq!(statuses, [CreateChannelStatus::SUCCESS, CreateChannelStatus::ALREADY_EXISTS].into());
    assert_eq!(first.1, second.1, "and it is the same");
    world.stop().await;
}

pub async fn a_restart_loses_nothing_that_was_answered(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let channel = world.friends(&mut alice, &mut bob).await;
    let mut said = Vec::new();
    for n in 0..20 {
        said.push(alice.say(channel, chat(&n.to_string())).await.unwrap().0);
    }
    world.stop().await;
    let world = World::start(&ground).await;
    let (_, sync) = world.back(&bob, bob.last.min(said[0] - 1), &[channel, bob.loopback, bob.account_data]).await;
    let heard: Vec<_> = sync.messages.iter().filter(|it| it.channel == channel).map(|it| it.id.0).collect();
    assert_eq!(heard, said);
    let (mut alice, _) = world.back(&alice, alice.last, &[]).await;
    assert!(alice.say(channel, chat("on")).await.unwrap().0 > said[19], "no number is used again");
    world.stop().await;
}

pub async fn what_is_too_old_is_forgotten(mut ground: Ground) {
    let day = std::time::Duration::from_secs(86_400);
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let direct = world.friends(&mut alice, &mut bob).await;
    let wish = body(&Content::QueueMailAddressChange("alice@example.net".into()), own_clear());
    alice.say(alice.loopback, wish).await.unwrap();
    assert_eq!(world.greeted().await.register(C, C).await, CreateAccountStatus::SUCCESS);
    let (wished, unconfirmed) = (world.mail.token("alice@example.net"), world.mail.token(C));
    let profile = found_group(&mut alice, ChannelType::ProfileData).await;
    let members = [(alice.account, MemberFlags::ADMINISTRATOR), (bob.account, MemberFlags::INVISIBLE)];
    update_group(&mut alice, profile, 1, &members, &[(bob.account, direct)]).await.unwrap();
    let post = alice.say(profile, Body::new(Kind::DaystreamMessage, MessageFlags::NONE, vec![3; 64])).await.unwrap();
    let read = bob.say(profile, receipt(Kind::MessageRead, post)).await.unwrap();
    let chatted = alice.say(direct, chat("hi")).await.unwrap();
    let other = bob.say(direct, receipt(Kind::MessageRead, chatted)).await.unwrap();
    world.stop().await;

    ground.later = day - std::time::Duration::from_secs(3_600);
    let world = World::start(&ground).await;
    assert_eq!(world.greeted().await.register(C, "other").await, CreateAccountStatus::ACCOUNT_NAME_TAKEN);
    let heard = world.back(&bob, 0, &[]).await.1.ids();
    assert!([post, read, other].iter().all(|it| heard.contains(&it.0)));
    world.stop().await;

    ground.later = day;
    let world = World::start(&ground).await;
    for token in [wished, unconfirmed] {
        assert_eq!(soon(world.running.confirm(&token)).await, Some(Confirmed::Invalid));
    }
    let mut client = world.greeted().await;
    assert_eq!(client.login(C, C).await, CreateSessionStatus::INVALID_CREDENTIALS);
    assert_eq!(client.register(C, "other").await, CreateAccountStatus::SUCCESS, "the name is free");
    let heard = world.back(&bob, 0, &[]).await.1.ids();
    assert!(!heard.contains(&post.0), "a daystream lasts a day");
    assert!(!heard.contains(&read.0) && heard.contains(&other.0), "and what was said about it no longer");
    world.stop().await;

    ground.later = day * 190;
    let world = World::start(&ground).await;
    let mut late = world.greeted().await;
    assert_eq!(late.restore(&bob, 0, &[]).await, RestoreSessionStatus::INVALID_SESSION);
    assert_eq!(late.login(B, B).await, CreateSessionStatus::SUCCESS, "the connection may try otherwise");
    world.stop().await;
}

pub async fn sessions_were_there_for_ever_and_any_number_of_them(mut ground: Ground) {
    let devices = |list: &Delivery| match Content::decode(Kind::DeviceList, list.body.flags, &list.body.content) {
        Ok((Content::DeviceList(devices), None)) => devices.into_iter().map(|it| it.session).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let newest = |sync: &super::world::Sync| {
        devices(sync.messages.iter().rfind(|it| it.body.kind == Kind::DeviceList).expect("a device list"))
    };
    let world = World::start(&ground).await;
    let alice = world.account(A).await;
    let mut client = world.greeted().await;
    client.push_token = "t".repeat(5_000);
    assert_eq!(client.login(A, A).await, CreateSessionStatus::INVALID_FCM_REGISTRATION_TOKEN);
    world.stop().await;

    // What was away the longest makes room.
    ground.settings.sessions_max = 2;
    let world = World::start(&ground).await;
    let gone = world.device(A).await.session;
    world.stop().await;
    let world = World::start(&ground).await;
    let (mut phone, sync) = world.back(&alice, 0, &[]).await;
    assert_eq!(newest(&sync), [alice.session, gone]);
    let tablet = world.device(A).await;
    assert_eq!(devices(&phone.find_message(Kind::DeviceList).await), [alice.session, tablet.session]);
    world.stop().await;

    // One comes back, and the other never does.
    ground.later = ground.settings.session_age_max / 2;
    let world = World::start(&ground).await;
    let (_, sync) = world.back(&alice, 0, &[]).await;
    assert_eq!(newest(&sync), [alice.session, tablet.session]);
    world.stop().await;
    ground.later = ground.settings.session_age_max + std::time::Duration::from_secs(3_600);
    let world = World::start(&ground).await;
    let (_, sync) = world.back(&alice, 0, &[]).await;
    assert_eq!(newest(&sync), [alice.session]);
    world.stop().await;
}

pub async fn who_is_strict_takes_sealed_messages_with_their_keys_only(mut ground: Ground) {
    ground.settings.strict_dependencies = true;
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let channel = world.friends(&mut alice, &mut bob).await;
    assert_eq!(alice.say(channel, chat("with which key?")).await, DENIED);
    let first = world.back(&alice, 0, &[]).await;
    let (mut alice, sync) = first;
    let password = sync.messages.iter().find(|it| it.body.kind == Kind::PasswordUpdate).unwrap().id;
    let keys = Body::new(Kind::PrivateKeys, MessageFlags::LOOPBACK, vec![1; 64]);
    assert_eq!(alice.say(alice.loopback, keys.clone()).await, DENIED);
    assert!(alice.say(alice.loopback, keys.on([on(AccountId::NONE, password)])).await.is_ok());
    world.stop().await;
}

pub async fn who_does_not_acknowledge_is_woken_once_until_it_comes(mut ground: Ground) {
    // Bob acknowledges within this, however busy the machine is.
    ground.settings.push_after = Some(std::time::Duration::from_secs(4));
    let mut world = World::start(&ground).await;
    let (mut alice, mut bob, mut carol) = (world.account(A).await, world.account(B).await, world.account(C).await);
    let ab = world.friends(&mut alice, &mut bob).await;
    let ac = world.friends(&mut alice, &mut carol).await;
    let mut phones = Vec::new();
    for name in [B, C] {
        let mut phone = world.greeted().await;
        phone.push_token = format!("the phone of {name}");
        assert_eq!(phone.login(name, name).await, CreateSessionStatus::SUCCESS);
        phone.first_sync().await;
        phones.push(phone);
    }
    let [mut bobs, carols] = <[Client; 2]>::try_from(phones).unwrap_or_else(|_| unreachable!());
    // Bob acknowledges on any of his devices; Carol, who was written to later, does not.
    let id = alice.say(ab, chat("hi bob")).await.unwrap();
    bob.say(ab, receipt(Kind::MessageReceived, id)).await.unwrap();
    alice.say(ac, chat("hi carol")).await.unwrap();
    let wake = soon(world.woken.recv()).await.unwrap();
    assert_eq!((wake.session, wake.push_token.as_str()), (carols.session, "the phone of carol@example.com"));
    // She was woken and has not come: what follows does not wake her again.
    alice.say(ac, chat("carol?")).await.unwrap();
    alice.say(ab, chat("bob?")).await.unwrap();
    assert_eq!(soon(world.woken.recv()).await.unwrap().session, bobs.session);
    let (_carols, _) = world.back(&carols, 0, &[]).await;
    alice.say(ac, chat("there you are")).await.unwrap();
    assert_eq!(soon(world.woken.recv()).await.unwrap().session, carols.session);
    // A device that cannot be woken any more has to log in again.
    bob.seen.clear();
    world.running.lost().session(bobs.session).await;
    assert!(bobs.find_end().await);
    bob.find_message(Kind::DeviceList).await;
    assert_eq!(world.greeted().await.restore(&bobs, 0, &[]).await, RestoreSessionStatus::INVALID_SESSION);
    world.stop().await;
}

pub async fn who_finds_no_place_is_dropped_and_comes_again(mut ground: Ground) {
    ground.connections_max = 2;
    let world = World::start(&ground).await;
    let (mut first, second) = (world.greeted().await, world.greeted().await);
    assert!(world.is_full().await);
    assert_eq!(first.login(A, A).await, CreateSessionStatus::INVALID_CREDENTIALS, "others are not disturbed");
    drop(second);
    // When the server has noticed that the place is free.
    until(async || !world.is_full().await).await;
    world.stop().await;
}

pub async fn both_versions_of_tls_are_spoken_and_plain_where_it_is_said(mut ground: Ground) {
    let world = World::start(&ground).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let tcp = tokio::net::TcpStream::connect(world.address()).await.unwrap();
        let mut client = Client::over(secured(tcp, &[version]).await.unwrap());
        client.greet().await;
        assert_eq!(client.login(A, A).await, CreateSessionStatus::INVALID_CREDENTIALS);
    }
    let mut plain = tokio::net::TcpStream::connect(world.address()).await.unwrap();
    plain.write_all(&[0x32, 0, 0, 0, 0]).await.unwrap();
    let mut answer = Vec::new();
    soon(plain.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer[0], 0x15, "an alert of TLS, and nothing of Skynet");
    world.stop().await;
    ground.door = Door::default();
    let world = World::start(&ground).await;
    assert_eq!(world.greeted().await.login(A, A).await, CreateSessionStatus::INVALID_CREDENTIALS);
    world.stop().await;
}

/// A message that names a file.
fn naming(kind: Kind, flags: MessageFlags, file: FileId) -> Body {
    let flags = flags.and(MessageFlags::MEDIA).and(MessageFlags::EXTERNAL_FILE);
    if !flags.has(CLEAR) {
        return Body { file, ..Body::new(kind, flags, vec![4; 64]) };
    }
    let external = ExternalFile { content_type: "image/png".into(), length: 1, key: Secret::new([4; 32]) };
    let block = FileBlock {
        name: "portrait.png".into(),
        created: DateTime::NONE,
        written: DateTime::NONE,
        thumbnail_type: "image/png".into(),
        thumbnail: bytes::Bytes::new(),
        external: Some(external),
    };
    let content = Content::ProfileImage(String::new());
    Body { file, ..Body::new(content.kind(), flags, content.encode(Some(&block)).unwrap()) }
}

/// The status of an answer, and one of its headers.
fn said<'a>(answer: &'a http::Response<bytes::Bytes>, name: &str) -> (u16, &'a str) {
    let header = answer.headers().get(name).unwrap_or_else(|| panic!("no {name}: {answer:?}"));
    (answer.status().as_u16(), header.to_str().unwrap())
}

/// Where a ticket leads to, and the file it is for.
fn ticket(answer: &http::Response<bytes::Bytes>) -> (String, FileId) {
    assert_eq!(answer.status(), 307, "{answer:?}");
    let header = |name: &str| answer.headers()[name].to_str().unwrap();
    (header("location").to_owned(), FileId(header("x-skynet-fileid").parse().unwrap()))
}

/// Leaves a file.
async fn uploaded(world: &World, by: &Client, bytes: &[u8]) -> FileId {
    let (location, file) = ticket(&world.asks("PUT", &by.file_api("upload"), &[], b"").await);
    let answer = world.asks("PUT", &location, &[], bytes).await;
    assert_eq!(answer.status(), 201, "{answer:?}");
    file
}

/// What somebody gets of a file.
async fn fetched(world: &World, by: &Client, file: FileId) -> Result<bytes::Bytes, u16> {
    let answer = world.asks("GET", &by.file_api(&file.0.to_string()), &[], b"").await;
    if answer.status() != 307 {
        return Err(answer.status().as_u16());
    }
    let answer = world.asks("GET", &ticket(&answer).0, &[], b"").await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    Ok(answer.into_body())
}

pub async fn files_are_for_those_who_see_a_message_that_names_them(ground: Ground) {
    let world = World::start(&ground).await;
    let (mut alice, mut bob, mut carol) = (world.account(A).await, world.account(B).await, world.account(C).await);
    let (ab, bc) = (world.friends(&mut alice, &mut bob).await, world.friends(&mut bob, &mut carol).await);
    // Somebody else's session, or token.
    let mixed = format!("/api/filetransfer/upload?session={}&token={}", bob.session.0, alice.web_token);
    for nobody in ["/api/filetransfer/upload", "/api/filetransfer/upload?session=1&token=x", &mixed] {
        assert_eq!(world.asks("PUT", nobody, &[], b"").await.status(), 401, "{nobody}");
    }
    // It is nobody's until all of it has come.
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    let (location, file) = ticket(&world.asks("PUT", &alice.file_api("upload"), &[], b"unasked").await);
    let photo = || naming(Kind::ChatMessage, MessageFlags::NONE, file);
    let not_found = Err(MessageSendStatus::FILE_NOT_FOUND);
    assert_eq!(alice.say(ab, photo()).await, not_found);
    assert_eq!(fetched(&world, &alice, file).await, Err(404));
    let answer = world.asks("PUT", &location, &[], &bytes).await;
    assert_eq!(said(&answer, "upload-complete"), (201, "?1"));
    let etag = answer.headers()["etag"].clone();
    assert_eq!(world.asks("PUT", &location, &[], &bytes).await.status(), 409, "it is what it is");
    // Then it is its owner's, until a message names it.
    assert_eq!(fetched(&world, &bob, file).await, Err(403));
    assert_eq!(bob.say(ab, photo()).await, DENIED);
    assert_eq!(fetched(&world, &alice, file).await.unwrap(), bytes);
    assert_eq!(fetched(&world, &alice, FileId(file.0 ^ 1)).await, Err(404));
    assert_eq!(alice.say(ab, naming(Kind::ChatMessage, MessageFlags::NONE, FileId::NONE)).await, not_found);
    alice.say(ab, photo()).await.unwrap();
    assert_eq!(bob.find_message(Kind::ChatMessage).await.body.file, file);
    assert_eq!(fetched(&world, &bob, file).await.unwrap(), bytes);
    assert_eq!(fetched(&world, &carol, file).await, Err(403));
    assert_eq!(carol.say(bc, photo()).await, DENIED);
    bob.say(bc, photo()).await.unwrap();
    assert_eq!(fetched(&world, &carol, file).await.unwrap(), bytes);
    // What is for oneself is, wherever it is said.
    let background = uploaded(&world, &alice, b"").await;
    alice.say(ab, naming(Kind::BackgroundImage, MessageFlags::LOOPBACK, background)).await.unwrap();
    assert_eq!(fetched(&world, &alice, background).await.unwrap(), b""[..]);
    assert_eq!(fetched(&world, &bob, background).await, Err(403));
    // Parts, and what a ticket is good for.
    let (download, _) = ticket(&world.asks("GET", &bob.file_api(&file.0.to_string()), &[], b"").await);
    let part = world.asks("GET", &download, &[("Range", "bytes=99999-100001")], b"").await;
    assert_eq!(said(&part, "content-range"), (206, "bytes 99999-100001/200000"));
    assert_eq!(part.body()[..], bytes[99_999..=100_001]);
    let beyond = world.asks("GET", &download, &[("Range", "bytes=200000-")], b"").await;
    assert_eq!(said(&beyond, "content-range"), (416, "bytes */200000"));
    let changed = world.asks("GET", &download, &[("Range", "bytes=0-0"), ("If-Range", "\"another\"")], b"").await;
    assert_eq!(
        (changed.status().as_u16(), changed.body().len(), &changed.headers()["etag"]),
        (200, bytes.len(), &etag)
    );
    let head = world.asks("HEAD", &download, &[], b"").await;
    assert_eq!((said(&head, "content-length"), head.body().len()), ((200, "200000"), 0));
    let other = download.replace(&file.0.to_string(), &background.0.to_string());
    for (method, wrong) in
        [("PUT", &download), ("GET", &location), ("GET", &other), ("GET", &download[..90].to_owned())]
    {
        assert_eq!(world.asks(method, wrong, &[], b"").await.status(), 401, "{method} {wrong}");
    }
    // Who is no member any more sees nothing any more.
    carol.send(&FromClient::DeleteAccount { key_hash: key_hash(C) }).await;
    assert!(carol.find_end().await);
    assert_eq!(fetched(&world, &carol, file).await, Err(401));
    world.stop().await;
}

pub async fn uploads_are_gone_on_with_checked_and_bounded(mut ground: Ground) {
    ground.settings.files.length_max = 100_000;
    ground.settings.files.per_account_max = 150_000;
    let world = World::start(&ground).await;
    let (alice, bob) = (world.account(A).await, world.account(B).await);
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let begin = async |by: &Client| ticket(&world.asks("PUT", &by.file_api("upload"), &[], b"").await);
    let (location, file) = begin(&alice).await;
    let patch = async |range: &str, part: &[u8]| {
        let answer = world.asks("PATCH", &location, &[("Content-Range", range)], part).await;
        let offset = answer.headers().get("upload-offset").map(|it| it.to_str().unwrap().to_owned());
        (answer.status().as_u16(), offset.unwrap_or_default())
    };
    let look = async |location: &str| {
        let answer = world.asks("HEAD", location, &[], b"").await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-length"), header("upload-offset"));
        (answer.status().as_u16(), header("upload-offset"), header("upload-complete"))
    };
    assert_eq!(patch("bytes 0-49999/*", &bytes[..50_000]).await, (204, "50000".into()));
    assert_eq!(look(&location).await, (200, "50000".into(), "?0".into()));
    assert_eq!(patch("bytes 60000-99999/100000", &bytes[60_000..]).await, (409, "50000".into()));
    for bad in ["bytes 50000-50001/2", "bytes 50000-50009/100000", "all of it"] {
        assert_eq!(patch(bad, b"x").await.0, 400, "{bad}");
    }
    assert_eq!(patch("bytes 99999-100000/100001", b"xx").await.0, 413);
    assert_eq!(patch("bytes 40000-99999/100000", &bytes[40_000..]).await, (204, "100000".into()));
    assert_eq!(look(&location).await, (200, "100000".into(), "?1".into()));
    assert_eq!(fetched(&world, &alice, file).await.unwrap(), bytes);

    // Who says what it is to be is told when it is not.
    let (location, _) = begin(&alice).await;
    let digest =
        |of: &[u8]| format!("sha-256=:{}:", base64::engine::general_purpose::STANDARD.encode(Sha256::digest(of)));
    let with = async |location: &str, digest: String, bytes: &[u8]| {
        world.asks("PUT", location, &[("Repr-Digest", &digest)], bytes).await.status().as_u16()
    };
    assert_eq!(with(&location, digest(b"b"), b"a").await, 422);
    assert_eq!(look(&location).await, (200, "0".into(), "?0".into()));
    assert_eq!(with(&location, digest(b"a"), b"a").await, 201);
    // An account has so much and no more, however it is asked for; others do not notice.
    let (location, _) = begin(&alice).await;
    assert_eq!(world.asks("PUT", &location, &[], &bytes[..50_000]).await.status(), 507);
    let chunks = |bytes: &[u8]| {
        let frames: Vec<_> =
            bytes.chunks(1_000).map(|it| Ok::<_, Infallible>(Frame::data(it.to_vec().into()))).collect();
        StreamBody::new(futures_util::stream::iter(frames))
    };
    assert_eq!(world.asks_with("PUT", &location, &[], chunks(&bytes[..50_000])).await.status(), 507);
    assert_eq!(world.asks_with("PUT", &location, &[], chunks(&bytes[..49_999])).await.status(), 201);
    assert_eq!(world.asks("PUT", &alice.file_api("upload"), &[], b"").await.status(), 507);
    // What nobody knows the length of took all that was left, and kept it when it was over; so did what was refused for good.
    let (unknown, _) = begin(&bob).await;
    let range = [("Content-Range", "bytes 0-999/*")];
    assert_eq!(world.asks("PATCH", &unknown, &range, &bytes[..1_000]).await.status(), 204);
    assert_eq!(with(&begin(&bob).await.0, digest(b"b"), &bytes[..60_000]).await, 422);
    assert_eq!(world.asks("PUT", &begin(&bob).await.0, &[], &bytes).await.status(), 201);
    // What is interrupted is kept as far as it came.
    let (location, file) = begin(&bob).await;
    let path = location.split_once("localhost").unwrap().1.split_once('/').unwrap().1;
    let mut broken = world.web().await;
    let head = format!("PUT /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n");
    soon(broken.write_all(&[head.as_bytes(), &bytes[..300]].concat())).await.unwrap();
    soon(broken.flush()).await.unwrap();
    // Nobody else brings it meanwhile.
    until(async || world.asks("PUT", &location, &[], b"x").await.status() == 409).await;
    drop(broken);
    until(async || look(&location).await.1 == "300").await;
    let mut rest = (0, String::new());
    // The interrupted attempt may still be on its way out.
    until(async || {
        let range = [("Content-Range", "bytes 300-999/1000")];
        let answer = world.asks("PATCH", &location, &range, &bytes[300..1_000]).await;
        rest = (answer.status().as_u16(), format!("{:?}", answer.headers().get("upload-complete")));
        rest.0 == 204
    })
    .await;
    assert_eq!(rest.1, "Some(\"?1\")");
    assert_eq!(fetched(&world, &bob, file).await.unwrap(), bytes[..1_000]);
    // Who asks whether to send at all is told to where it is taken, and not where it is not.
    let (location, _) = begin(&bob).await;
    let path = location.split_once("localhost").unwrap().1.split_once('/').unwrap().1;
    for (path, answers) in [(bob.file_api("upload"), "HTTP/1.1 307 "), (format!("/{path}"), "HTTP/1.1 100 Continue")] {
        let mut asking = world.web().await;
        let head =
            format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n");
        soon(asking.write_all(head.as_bytes())).await.unwrap();
        soon(asking.flush()).await.unwrap();
        let mut answer = vec![0; answers.len()];
        soon(asking.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, answers.as_bytes());
    }
    until(async || world.asks("PUT", &bob.file_api("upload"), &[], b"").await.status() != 307).await;
    let answer = world.asks("PUT", &bob.file_api("upload"), &[], b"").await;
    assert!(answer.status() == 429 && answer.headers().contains_key("retry-after"), "{answer:?}");
    world.stop().await;
}

pub async fn files_go_when_nobody_can_have_them_any_more(mut ground: Ground) {
    let dir = ground.dir.join(FILES);
    let on_disk = |files: &[FileId]| {
        let names = std::fs::read_dir(&dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|name| name != "database" && name != "lost");
        let wanted = files.iter().map(|it| format!("{:016x}", it.0)).collect::<BTreeSet<_>>();
        names.collect::<BTreeSet<_>>() == wanted
    };
    let world = World::start(&ground).await;
    let (mut alice, mut bob) = (world.account(A).await, world.account(B).await);
    let direct = world.friends(&mut alice, &mut bob).await;
    let mut files = Vec::new();
    for n in 0..5 {
        files.push(uploaded(&world, &alice, &[n]).await);
    }
    let [portrait, newer, default, sent, unnamed] = files[..] else { unreachable!() };
    let (data, loopback) = (alice.account_data, alice.loopback);
    alice.say(data, naming(Kind::ProfileImage, CLEAR, portrait)).await.unwrap();
    assert_eq!(fetched(&world, &bob, portrait).await.unwrap(), [0][..]);
    // The next portrait takes the place of the one before, and the same one again takes nobody's.
    for _ in 0..2 {
        alice.say(data, naming(Kind::ProfileImage, CLEAR, newer)).await.unwrap();
        assert_eq!(fetched(&world, &bob, portrait).await, Err(404));
        assert_eq!(fetched(&world, &bob, newer).await.unwrap(), [1][..]);
    }
    assert_eq!(
        alice.say(direct, naming(Kind::ChatMessage, MessageFlags::NONE, portrait)).await,
        Err(MessageSendStatus::FILE_NOT_FOUND)
    );
    alice.say(loopback, naming(Kind::BackgroundImage, MessageFlags::LOOPBACK, default)).await.unwrap();
    alice.say(direct, naming(Kind::ChatMessage, MessageFlags::NONE, sent)).await.unwrap();
    until(async || on_disk(&[newer, default, sent, unnamed])).await;

    // Nobody named it for a day. What nobody goes on with goes sooner, and a crash's leavings are moved aside at once.
    let (location, half) = ticket(&world.asks("PUT", &alice.file_api("upload"), &[], b"").await);
    let part = [("Content-Range", "bytes 0-3/9")];
    assert_eq!(world.asks("PATCH", &location, &part, b"half").await.status(), 204);
    assert!(dir.join(format!("{:016x}.part", half.0)).exists());
    world.stop().await;
    std::fs::write(dir.join("00000000000000ff.part"), "half").unwrap();
    ground.later = std::time::Duration::from_secs(86_400);
    let world = World::start(&ground).await;
    assert!(dir.join("lost/00000000000000ff.part").exists());
    until(async || on_disk(&[newer, default, sent])).await;
    let (mut alice, _) = world.back(&alice, 0, &[]).await;
    assert_eq!(fetched(&world, &alice, unnamed).await, Err(404));
    let last = uploaded(&world, &alice, b"last").await;
    // With an account goes what only it could have. What others were told they still know.
    alice.send(&FromClient::DeleteAccount { key_hash: key_hash(A) }).await;
    assert!(alice.find_end().await);
    assert_eq!(fetched(&world, &bob, sent).await.unwrap(), [3][..]);
    until(async || on_disk(&[newer, sent])).await;
    assert_eq!(fetched(&world, &bob, last).await, Err(404));
    world.stop().await;
}

pub async fn load(mut ground: Ground, lasts: std::time::Duration) {
    const GROUPS: usize = 20;
    const MEMBERS: usize = 10;
    ground.connections_max = GROUPS * MEMBERS;
    for rate in [&mut ground.rates.packets, &mut ground.rates.costly] {
        rate.amount = 1_000_000;
    }
    let world = World::start(&ground).await;
    let clock = Clock::system();
    let mut groups = Vec::new();
    for group in 0..GROUPS {
        let mut members = Vec::new();
        for member in 0..MEMBERS {
            members.push(world.account(&format!("m{member}@group{group}.example")).await);
        }
        let (admin, others) = members.split_first_mut().unwrap();
        let (mut all, mut keys) = (vec![(admin.account, MemberFlags::ADMINISTRATOR)], Vec::new());
        for other in others {
            keys.push((other.account, world.friends(admin, other).await));
            all.push((other.account, MemberFlags::default()));
        }
        let channel = found_group(admin, ChannelType::Group).await;
        update_group(admin, channel, 1, &all, &keys).await.unwrap();
        groups.push((channel, members));
    }
    let begun = clock.now().monotonic;
    let mut talks = Vec::new();
    for (channel, members) in groups {
        let members = members.into_iter().map(|mut member| {
            tokio::spawn(async move {
                let (mut said, mut slowest) = (Vec::new(), std::time::Duration::ZERO);
                while clock.now().monotonic < begun + lasts {
                    let asked = clock.now().monotonic;
                    said.push(member.say(channel, chat(&"x".repeat(100))).await.unwrap().0);
                    slowest = slowest.max(clock.now().monotonic - asked);
                }
                (member, said, slowest)
            })
        });
        talks.push((channel, members.collect::<Vec<_>>()));
    }
    let (mut messages, mut deliveries, mut slowest) = (0, 0, std::time::Duration::ZERO);
    for (channel, talk) in talks {
        let (mut members, mut all) = (Vec::new(), BTreeSet::new());
        for member in talk {
            let (member, said, slow) = member.await.unwrap();
            slowest = slowest.max(slow);
            messages += said.len();
            all.extend(said.iter().copied());
            members.push((member, said));
        }
        for (mut member, said) in members {
            let own: BTreeSet<_> = said.into_iter().collect();
            let mut missing: BTreeSet<_> = all.difference(&own).copied().collect();
            deliveries += missing.len();
            while !missing.is_empty() {
                let ToClient::Message(message) = member.next().await else { continue };
                if message.channel == channel && message.body.kind == Kind::ChatMessage {
                    assert!(missing.remove(&message.id.0), "{:?} twice, or its own", message.id);
                }
            }
            member.seen.retain(|packet| matches!(packet, ToClient::Message(it) if it.body.kind == Kind::ChatMessage));
            assert!(member.seen.is_empty(), "nothing comes twice");
            member.hears_nothing().await;
        }
    }
    let seconds = lasts.as_secs_f64();
    println!(
        "{messages} messages, {deliveries} deliveries in {seconds} s: {:.0} and {:.0} per second, the slowest answer after {slowest:?}",
        messages as f64 / seconds,
        deliveries as f64 / seconds,
    );
    world.stop().await;
}
