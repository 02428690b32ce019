//! Stories of one device: connections that end, syncs that are cut off, others who mean no good.

use bytes::Bytes;

use super::*;
use crate::chat::skynet::wire::Announced;
use crate::chat::skynet::wire::blob::ChannelKey;
use crate::chat::skynet::wire::content::MessageType;
use crate::crypto::Secret;

const ME: AccountId = AccountId(1);
const BOB: AccountId = AccountId(2);
const LOOPBACK: ChannelId = ChannelId(11);
const GROUP: ChannelId = ChannelId(12);

fn lock() -> Lock {
    let key = |byte| ChannelKey(Secret::new([byte; 64]));
    Lock { name: "a@b.c".to_owned(), keys: AccountKeys { account_key: key(1), key_hash: Secret::new([2; 32]) } }
}

fn announced(channel: ChannelId, channel_type: ChannelType) -> ToClient {
    let (owner, created, counterpart) = (ME, DateTime::NONE, AccountId::NONE);
    ToClient::CreateChannel { channel, announced: Announced { channel_type, owner, created, counterpart } }
}

fn message(channel: ChannelId, sender: AccountId, id: i64, skip_count: i64, body: Body) -> ToClient {
    let dispatched = DateTime::from_unix_ms(0);
    ToClient::Message(Delivery { channel, sender, id: MessageId(id), skip_count, dispatched, body })
}

fn receipt(of: i64) -> Body {
    let on = Dependency { account: AccountId::NONE, message: MessageId(of) };
    Body::new(Kind::MessageReceived, MessageFlags::UNENCRYPTED, Vec::new()).on([on])
}

/// In a first sync that is not over; its channels are announced.
fn syncing() -> Talk {
    let mut talk = Talk::new(ME, SessionId(3), lock(), Zeroizing::new("pw".to_owned()));
    talk.connected();
    talk.heard(ToClient::SyncStarted { min_count: 1 });
    talk.heard(announced(LOOPBACK, ChannelType::Loopback));
    talk.heard(announced(GROUP, ChannelType::Group));
    let first = Content::PasswordUpdate {
        previous_key_hash: Secret::new([0; 32]),
        key_hash: lock().keys.key_hash,
        key_history: Bytes::new(),
    };
    let flags = MessageFlags::LOOPBACK.and(MessageFlags::UNENCRYPTED);
    let body = Body::new(Kind::PasswordUpdate, flags, first.encode(None).unwrap());
    talk.heard(message(LOOPBACK, ME, 1, -1, body));
    talk
}

fn said(acts: &[Act]) -> Vec<FromClient> {
    acts.iter().filter_map(|act| if let Act::Say(packet) = act { Some(packet.clone()) } else { None }).collect()
}

fn told(acts: &[Act]) -> Vec<Event> {
    acts.iter().filter_map(|act| if let Act::Tell(event) = act { Some(event.clone()) } else { None }).collect()
}

#[test]
fn a_channel_is_known_when_its_sync_is_over() {
    let mut talk = syncing();
    assert_eq!(talk.known(), (MessageId(1), vec![]));
    talk.heard(ToClient::SyncFinished {});
    assert_eq!(talk.known(), (MessageId(1), vec![LOOPBACK, GROUP]));
    // One that is announced later, and one whose sync is within another.
    let other = ChannelId(13);
    talk.heard(announced(other, ChannelType::Group));
    talk.heard(ToClient::SyncStarted { min_count: -1 });
    talk.heard(ToClient::SyncStarted { min_count: -1 });
    talk.heard(ToClient::SyncFinished {});
    assert_eq!(talk.known().1, [LOOPBACK, GROUP]);
    talk.heard(ToClient::SyncFinished {});
    assert_eq!(talk.known().1, [LOOPBACK, GROUP, other]);
}

#[test]
fn what_was_skipped_is_asked_for_and_not_taken_for_known() {
    let mut talk = syncing();
    talk.heard(ToClient::SyncFinished {});
    assert_eq!(said(&talk.heard(message(GROUP, BOB, 4, 0, receipt(1)))), []);
    let asked = said(&talk.heard(message(GROUP, BOB, 7, 2, receipt(1))));
    let (channel, max_count) = (ChannelId::NONE, 0);
    let (after, before) = (MessageId(4), MessageId(7));
    assert_eq!(asked, [FromClient::RequestMessages { channel, after, before, max_count }]);
    assert_eq!(said(&talk.heard(message(GROUP, BOB, 8, 0, receipt(1)))), []);
    assert_eq!(talk.known().0, MessageId(4));
    // Should the connection be lost now, they come again, and not all at once.
    talk.lost(true);
    talk.connected();
    talk.heard(ToClient::SyncStarted { min_count: 4 });
    talk.heard(message(GROUP, BOB, 5, -1, receipt(1)));
    assert_eq!(talk.known().0, MessageId(5));
    talk.heard(ToClient::SyncFinished {});
    assert_eq!(talk.known().0, MessageId(5));
    assert_eq!(said(&talk.heard(message(GROUP, BOB, 9, 1, receipt(1)))).len(), 1);
    talk.heard(ToClient::SyncStarted { min_count: 2 });
    talk.heard(message(GROUP, BOB, 6, -1, receipt(1)));
    assert_eq!(talk.known().0, MessageId(5));
    talk.heard(ToClient::SyncFinished {});
    assert_eq!(talk.known().0, MessageId(9));
}

#[test]
fn what_was_taken_is_not_said_again_and_what_was_not_is() {
    let mut talk = syncing();
    talk.heard(ToClient::SyncFinished {});
    let name = |name: &str| name.to_owned();
    let mut uploads = Vec::new();
    for text in ["one@b.c", "two@b.c"] {
        let acts = talk.change_address(&name(text));
        uploads.extend(said(&acts));
        assert!(matches!(&acts[..], [Act::Keep(kept), Act::Say(said)] if kept == said), "kept before it is said");
    }
    let [FromClient::Message(one), FromClient::Message(two)] = &uploads[..] else { panic!("{uploads:?}") };
    // The connection is lost before either is answered. While there is none, a third is added.
    talk.lost(true);
    let third = talk.change_address("three@b.c");
    assert!(matches!(&third[..], [Act::Keep(_)]), "{third:?}");
    talk.connected();
    talk.heard(ToClient::SyncStarted { min_count: 1 });
    // The first one was taken; so was the like of it that another device said before.
    talk.heard(message(LOOPBACK, ME, 2, -1, one.body.clone()));
    assert!(talk.outbox.iter().all(|it| it.temp != one.temp));
    let acts = talk.heard(ToClient::SyncFinished {});
    let again = said(&acts);
    assert_eq!(again.len(), 2, "{again:?}");
    assert_eq!(again[0], FromClient::Message(two.clone()));
    // An answer that comes twice is none.
    let answer = |temp, id| ToClient::ChannelMessageResponse {
        channel: LOOPBACK,
        temp,
        status: MessageSendStatus::SUCCESS,
        message: MessageId(id),
        skip_count: 0,
        dispatched: DateTime::NONE,
    };
    talk.heard(answer(two.temp, 3));
    talk.heard(answer(two.temp, 3));
    assert_eq!((talk.outbox.len(), talk.known().0), (1, MessageId(3)));
}

#[test]
fn of_another_session_everything_comes_anew_and_the_rest_is_gone() {
    let mut talk = syncing();
    talk.heard(ToClient::SyncFinished {});
    talk.lost(true);
    talk.renewed(SessionId(4));
    talk.connected();
    talk.heard(ToClient::SyncStarted { min_count: 0 });
    talk.heard(announced(LOOPBACK, ChannelType::Loopback));
    let events = told(&talk.heard(ToClient::SyncFinished {}));
    assert!(matches!(events[..], [Event::ChannelGone { channel: GROUP, .. }, Event::Online { .. }]), "{events:?}");
    assert_eq!(talk.known().1, [LOOPBACK]);
}

/// The server is told of no channel that was not announced in the new session: it would not announce it then.
#[test]
fn another_session_whose_first_sync_is_cut_off_begins_from_nothing() {
    let mut talk = syncing();
    talk.heard(ToClient::SyncFinished {});
    talk.lost(true);
    talk.renewed(SessionId(4));
    talk.connected();
    talk.heard(ToClient::SyncStarted { min_count: 0 });
    talk.lost(true);
    assert_eq!(talk.known().1, []);
    talk.connected();
    talk.heard(ToClient::SyncStarted { min_count: 0 });
    talk.heard(announced(LOOPBACK, ChannelType::Loopback));
    talk.heard(announced(GROUP, ChannelType::Group));
    let events = told(&talk.heard(ToClient::SyncFinished {}));
    assert!(!events.iter().any(|it| matches!(it, Event::ChannelGone { .. })), "{events:?}");
    assert_eq!(talk.known().1, [LOOPBACK, GROUP]);
}

#[test]
fn what_was_kept_leads_to_the_same() {
    let mut talk = syncing();
    talk.heard(ToClient::SyncFinished {});
    talk.heard(message(GROUP, BOB, 4, 0, receipt(1)));
    talk.change_address("one@b.c");
    talk.heard(announced(ChannelId(13), ChannelType::Group));
    let mut again = Talk::new(ME, SessionId(3), lock(), Zeroizing::new("pw".to_owned()));
    let (heard, kept) = talk.digest();
    heard.into_iter().for_each(|packet| again.replay_heard(packet));
    kept.into_iter().for_each(|packet| again.replay_said(packet));
    again.replayed();
    assert_eq!(again.known(), (MessageId(4), vec![LOOPBACK, GROUP]), "what was not complete is not now");
    assert!(again.outbox.iter().eq(talk.outbox.iter()));
    assert_eq!(again.outbox.number(), talk.outbox.number());
    assert!(again.acts.is_empty() && !again.ready && !again.fresh);
    assert_eq!(again.digest(), talk.digest());
}

fn clear(content: &Content) -> Body {
    Body::new(content.kind(), MessageFlags::UNENCRYPTED, content.encode(None).unwrap())
}

/// Anybody can add anybody to a group, and call it and themselves what they like.
#[test]
fn nobody_takes_somebody_elses_place_by_a_name() {
    let (mallory, group) = (AccountId(3), ChannelId(22));
    let mut talk = syncing();
    for (n, (who, address, nickname)) in
        [(BOB, "bob@b.c", "Bob"), (mallory, "mallory@b.c", "bob@b.c")].into_iter().enumerate()
    {
        let n = i64::try_from(n).unwrap();
        let (data, direct) = (ChannelId(30 + n), ChannelId(40 + n));
        for (channel, channel_type, counterpart) in
            [(data, ChannelType::AccountData, AccountId::NONE), (direct, ChannelType::Direct, who)]
        {
            let announced = Announced { channel_type, owner: who, created: DateTime::NONE, counterpart };
            talk.heard(ToClient::CreateChannel { channel, announced });
        }
        let said = [Content::MailAddress(address.to_owned()), Content::Nickname(nickname.to_owned())];
        for (at, content) in said.iter().enumerate() {
            talk.heard(message(data, who, 10 + 2 * n + i64::try_from(at).unwrap(), -1, clear(content)));
        }
    }
    let (with_bob, with_mallory) = (ChannelId(40), ChannelId(41));
    talk.heard(announced(group, ChannelType::Group));
    let mut id = 20;
    let mut calls_the_group = |talk: &mut Talk, name: &str| {
        id += 1;
        talk.heard(message(group, mallory, id, -1, clear(&Content::Nickname(name.to_owned()))));
    };
    calls_the_group(&mut talk, "bob@b.c");
    talk.heard(ToClient::SyncFinished {});
    assert_eq!(talk.find_channel("bob@b.c"), Ok(with_bob));
    assert_eq!(talk.find_person("bob@b.c"), Ok(BOB));
    assert_eq!(talk.find_channel("MALLORY@b.c"), Ok(with_mallory));
    assert_eq!(talk.channel_name(with_bob), "Bob");
    assert_eq!(talk.channel_name(with_mallory), "bob@b.c (mallory@b.c)");
    assert_eq!(talk.channel_name(group), "bob@b.c (#22)");
    // Nor by a name that is no address.
    calls_the_group(&mut talk, "Bob");
    assert!(talk.find_channel("Bob").unwrap_err().contains("several"));
    assert_eq!(talk.channel_name(group), "Bob (#22)");
    calls_the_group(&mut talk, "us");
    assert_eq!((talk.find_channel("us"), talk.find_channel("Bob")), (Ok(group), Ok(with_bob)));
    assert_eq!(talk.find_channel("#22"), Ok(group));
}

fn taken(upload: &Upload, id: i64) -> ToClient {
    ToClient::ChannelMessageResponse {
        channel: upload.channel,
        temp: upload.temp,
        status: MessageSendStatus::SUCCESS,
        message: MessageId(id),
        skip_count: 0,
        dispatched: DateTime::from_unix_ms(0),
    }
}

fn is_refused(events: &[Event]) -> bool {
    events.iter().any(|it| matches!(it, Event::Refused { .. }))
}

/// The server keeps the newest list alone: it cannot show that the older one was taken before.
#[test]
fn what_another_device_said_meanwhile_is_not_undone() {
    let mut talk = syncing();
    talk.heard(ToClient::SyncFinished {});
    let list = |who: &[AccountId]| {
        let content = Content::BlockList { accounts: who.to_vec(), channels: Vec::new() };
        let flags = MessageFlags::LOOPBACK.and(MessageFlags::UNENCRYPTED);
        Body::new(Kind::BlockList, flags, content.encode(None).unwrap())
    };
    for others in [Some(AccountId(9)), None] {
        let uploads = said(&talk.block(Some(BOB), None, true));
        let [FromClient::Message(_)] = &uploads[..] else { panic!("{uploads:?}") };
        talk.lost(true);
        talk.connected();
        talk.heard(ToClient::SyncStarted { min_count: 1 });
        if let Some(other) = others {
            talk.heard(message(LOOPBACK, ME, 5, -1, list(&[other])));
        }
        let acts = talk.heard(ToClient::SyncFinished {});
        assert_eq!(said(&acts), if others.is_some() { vec![] } else { uploads });
        assert_eq!(is_refused(&told(&acts)), others.is_some());
        assert_eq!(talk.outbox.is_empty(), others.is_some());
    }
}

/// A server forgets what is said in a profile after a day, and ends the connection of whoever says something about it then.
#[test]
fn nothing_is_said_of_what_the_server_does_not_have_any_more() {
    let mut talk = syncing();
    let profile = ChannelId(15);
    talk.heard(announced(profile, ChannelType::ProfileData));
    talk.heard(announced(ChannelId(16), ChannelType::AccountData));
    talk.heard(ToClient::SyncFinished {});
    // How much is said about it.
    let about = |acts: &[Act]| {
        let uploads = said(acts).into_iter();
        let uploads = uploads.filter_map(|it| if let FromClient::Message(it) = it { Some(it) } else { None });
        uploads.filter(|it| it.body.dependencies.iter().any(|on| on.message == MessageId(5))).count()
    };
    let key = ChannelKey(Secret::new([7; 64]));
    let daystream = Content::DaystreamMessage { message_type: MessageType::PLAINTEXT, text: "today".to_owned() };
    let sealed = Body::new(Kind::DaystreamMessage, MessageFlags::NONE, key.seal(&daystream.encode(None).unwrap()));
    talk.heard(message(profile, BOB, 5, 0, sealed));
    talk.unacknowledged.insert(MessageId(5));
    talk.at(DAYSTREAM_MS - 1);
    assert_eq!(about(&talk.heard(message(GROUP, BOB, 6, 0, receipt(1)))), 1, "received");
    assert_eq!(about(&talk.read(profile, MessageId(i64::MAX))), 1);
    talk.lost(false);
    talk.at(DAYSTREAM_MS);
    talk.connected();
    talk.heard(ToClient::SyncStarted { min_count: 0 });
    let acts = talk.heard(ToClient::SyncFinished {});
    assert_eq!(about(&acts), 0);
    assert_eq!(acts.iter().filter(|it| matches!(it, Act::Drop(_))).count(), 2);
    assert_eq!(about(&talk.read(profile, MessageId(i64::MAX))), 0);
    talk.unacknowledged.insert(MessageId(5));
    assert_eq!(about(&talk.heard(message(GROUP, BOB, 7, 0, receipt(1)))), 0);
    assert!(talk.unacknowledged.is_empty());
}

/// Going through what was kept, record by record, leads to the same as living through it did, wherever connections were cut.
#[test]
fn what_was_appended_leads_to_the_same_wherever_it_was_cut() {
    enum Kept {
        Heard(ToClient),
        Acts(Acts),
        Connected,
    }
    for seed in 0..200 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let new = || Talk::new(ME, SessionId(3), lock(), Zeroizing::new("pw".to_owned()));
        let (mut live, mut kept) = (new(), Vec::new());
        live.connected();
        let (mut id, mut line, mut taken_ids) = (1, Vec::<Upload>::new(), 0);
        for _ in 0..60 {
            let packet = match dice.u8(..12) {
                0 => announced([LOOPBACK, GROUP, ChannelId(13)][dice.usize(..3)], ChannelType::Group),
                1 | 2 => ToClient::SyncStarted { min_count: 0 },
                3..6 => ToClient::SyncFinished {},
                6 | 7 => {
                    id += 1;
                    message(GROUP, BOB, id, [0, 0, -1, 2][dice.usize(..4)], receipt(1))
                }
                8 if !line.is_empty() => {
                    id += 1;
                    taken_ids += 1;
                    taken(&line.remove(0), id)
                }
                9 => {
                    let acts = live.change_address(&format!("{id}@b.c"));
                    line.extend(
                        said(&acts)
                            .into_iter()
                            .filter_map(|it| if let FromClient::Message(upload) = it { Some(upload) } else { None }),
                    );
                    kept.push(Kept::Acts(acts));
                    continue;
                }
                10 => {
                    kept.push(Kept::Acts(live.lost(dice.bool())));
                    kept.push(Kept::Connected);
                    line.clear();
                    live.connected();
                    continue;
                }
                _ => continue,
            };
            kept.push(Kept::Heard(packet.clone()));
            let acts = live.heard(packet);
            line.extend(
                said(&acts)
                    .into_iter()
                    .filter_map(|it| if let FromClient::Message(upload) = it { Some(upload) } else { None }),
            );
            kept.push(Kept::Acts(acts));
        }
        let mut again = new();
        for it in kept {
            match it {
                Kept::Heard(packet) => again.replay_heard(packet),
                Kept::Connected => again.replay_connected(),
                Kept::Acts(acts) => acts.into_iter().for_each(|act| match act {
                    Act::Keep(packet) => again.replay_said(packet),
                    Act::Drop(temp) => again.replay_dropped(temp),
                    Act::Say(_) | Act::Tell(_) | Act::Seal(_) | Act::Erase => {}
                }),
            }
        }
        let state = |talk: &Talk| (talk.open_syncs, talk.ready, talk.gap, talk.last, talk.highest, talk.fresh);
        assert_eq!(state(&again), state(&live), "seed {seed}");
        assert_eq!(again.known(), live.known(), "seed {seed}");
        assert_eq!(again.digest(), live.digest(), "seed {seed}, {taken_ids} answers");
        again.replayed();
        assert_eq!(again.open_syncs, 0);
    }
}

/// A page of what nobody says is not what somebody looks for; and each page begins where the one before ended.
#[test]
fn looking_back_goes_on_until_there_is_something_to_see() {
    let mut talk = syncing();
    talk.heard(ToClient::SyncFinished {});
    let asks = |acts: &[Act]| {
        let asked = said(acts).into_iter();
        let before = |it| if let FromClient::RequestMessages { before, .. } = it { Some(before.0) } else { None };
        asked.filter_map(before).collect::<Vec<_>>()
    };
    let said_by_bob = || Body::new(Kind::ChatMessage, MessageFlags::NONE, vec![0; 64]);
    let page = |talk: &mut Talk, messages: Vec<(i64, Body)>| {
        talk.heard(ToClient::SyncStarted { min_count: -1 });
        for (id, body) in messages {
            talk.heard(message(GROUP, BOB, id, -1, body));
        }
        talk.heard(ToClient::SyncFinished {})
    };
    talk.heard(message(GROUP, BOB, 900, 0, said_by_bob()));
    assert_eq!(asks(&talk.older(GROUP)), [900]);
    let acts = page(&mut talk, (800..900).map(|id| (id, receipt(1))).collect());
    assert_eq!((asks(&acts), talk.is_busy()), (vec![800], true));
    let acts = page(&mut talk, vec![(700, said_by_bob()), (799, receipt(1))]);
    assert_eq!((asks(&acts), talk.is_busy()), (vec![], false));
    // Cut off, it is asked for again.
    assert_eq!(asks(&talk.older(GROUP)), [700]);
    talk.lost(true);
    talk.connected();
    assert_eq!(asks(&page(&mut talk, vec![])), [700]);
    let acts = page(&mut talk, vec![]);
    assert!(matches!(&told(&acts)[..], [Event::Note { text }] if text.contains("nothing older")), "{acts:?}");
    assert!(!talk.is_busy());
}
