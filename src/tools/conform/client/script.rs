//! The script: what the mediator does, and what a client has to make of it. Cases run one after the other on the connections
//! that the client makes.

use std::time::Duration;

use bytes::Bytes;

use super::Judge;
use super::visit::{LOW_ORDER, Room, Visit, reflected};
use crate::chat::csp::wire::{FromClient, Identity, Message, MessageFlags, MessageId, ToClient};
use crate::tools::conform::finding::{Done, Finding, ensure};
use crate::wire::d2m::{ENVELOPE_MAX, FromDevice, ReflectAck, Reflected, ServerHello, SlotState, ToDevice};

/// A rule for clients.
pub(super) struct Case {
    pub(super) id: &'static str,
    pub(super) rule: &'static str,
    pub(super) needs: Needs,
    pub(super) run: for<'a> fn(&'a mut Judge) -> futures_util::future::BoxFuture<'a, Done>,
}

/// What a case cannot be tried without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Client,
    /// A file in which the client keeps what it processed.
    Journal,
    /// An identity with which it logs in to the chat server.
    Chat,
}

macro_rules! case {
    ($id:literal, $run:path, $rule:literal) => {
        case!($id, Client, $run, $rule)
    };
    ($id:literal, $needs:ident, $run:path, $rule:literal) => {
        Case { id: $id, rule: $rule, needs: Needs::$needs, run: |judge| Box::pin($run(judge)) }
    };
}

macro_rules! closes {
    ($(($id:literal, $code:literal, $again:literal, $rule:literal),)+) => {
        &[$(Case {
            id: $id,
            rule: $rule,
            needs: Needs::Client,
            run: |judge| Box::pin(after_close(judge, $code, $again)),
        },)+]
    };
}

pub(super) const HANDSHAKE: &[Case] = &[
    case!("CLIENT-3.2a", nothing_early, "Before ServerHello the client says nothing but proxy payloads."),
    case!(
        "CLIENT-3.2b",
        nothing_wrong_before_info,
        "Between ClientHello and ServerInfo it says only what a mediator may process behind ClientHello."
    ),
    case!(
        "CLIENT-3.3a",
        proves_key,
        "ClientHello proves the key, in version 0, with a device info of at most 4096 bytes."
    ),
    case!(
        "CLIENT-3.3b",
        hello_variants,
        "ServerHello may carry an explicit version 0, unknown fields and any field order."
    ),
    case!("CLIENT-3.3c", low_order, "A ServerHello with a key of low order is not answered."),
    case!(
        "CLIENT-3.3d",
        slot_state,
        "The client expects a new slot until it saw ServerInfo, and an existing one afterwards."
    ),
    case!("CLIENT-3.3e", slow_info, "A mediator that takes its time with ServerInfo is waited for."),
];

pub(super) const REFLECTION: &[Case] = &[
    case!(
        "CLIENT-4.3a",
        acks_everything,
        "Every reflected message is acknowledged, under the id it came with, and no other."
    ),
    case!("CLIENT-4.3b", killed_before_ack, "What came before a connection broke is acknowledged when it comes again."),
    case!("CLIENT-4.3c", Journal, processed_before_ack, "A message is processed before it is acknowledged."),
    case!(
        "CLIENT-4.3d",
        duplicate_acked,
        "A message that comes again after it was acknowledged is acknowledged again."
    ),
    case!("CLIENT-4.3e", Journal, duplicate_once, "A message that comes again is not processed again."),
    case!("CLIENT-4.3f", ephemeral, "Ephemeral messages do no harm, acknowledged or not."),
    case!("CLIENT-2.5a", largest, "The largest reflected message is received and acknowledged."),
    case!("CLIENT-2.1a", slowly, "A message that comes slowly and in many WebSocket frames is acknowledged."),
    case!("CLIENT-3.4a", leader_without_chat, "Promotion, also early, ends no connection."),
    case!("CLIENT-9.2a", empty_proxy, "An empty proxy payload does no harm."),
];

pub(super) const CHAT: &[Case] = &[
    case!(
        "CLIENT-5a",
        Chat,
        blocked_until_leader,
        "A client that is logged in does not unblock the chat server before it leads."
    ),
    case!(
        "CLIENT-5b",
        Chat,
        blocked_until_login,
        "A client that leads does not unblock the chat server before its login is complete."
    ),
    case!(
        "CLIENT-5c",
        Chat,
        blocked_until_dry,
        "A client that was promoted before its queue is dry does not unblock the chat server before Dry."
    ),
    case!("CLIENT-5d", Chat, unblocks_once, "The chat server is unblocked once per connection."),
    case!(
        "CLIENT-9.1a",
        Chat,
        reflected_before_ack,
        "A chat message is acknowledged to the chat server only after the mediator acknowledged its reflection."
    ),
    case!(
        "CLIENT-9.1b",
        Chat,
        killed_before_reflect_ack,
        "A chat message whose reflection was not acknowledged is reflected again when it comes again."
    ),
];

pub(super) const ENDINGS: &[Case] = &[
    case!("CLIENT-8.1a", answers_close, "A close is answered by a close."),
    case!("CLIENT-8.2a", after_loss, "After a connection that was lost the client connects again."),
    case!("CLIENT-8.2b", backs_off, "A client that is refused again and again waits between its attempts."),
];

pub(super) const CLOSES: &[Case] = closes![
    ("CLIENT-8.1/1000", 1000, true, "After 1000 the client connects again."),
    ("CLIENT-8.1/1001", 1001, true, "After 1001 the client connects again."),
    ("CLIENT-8.1/1011", 1011, true, "After 1011 the client connects again."),
    ("CLIENT-8.1/4000", 4000, true, "After 4000 the client connects again."),
    ("CLIENT-8.1/4001", 4001, true, "After 4001 the client connects again."),
    ("CLIENT-8.1/4009", 4009, true, "After 4009 the client connects again."),
    ("CLIENT-8.1/4010", 4010, true, "After 4010 the client connects again."),
    ("CLIENT-8.1/4011", 4011, true, "After 4011 the client connects again."),
    ("CLIENT-8.1/4012", 4012, true, "After 4012 the client connects again."),
    ("CLIENT-8.1/4013", 4013, true, "After 4013 the client connects again."),
    ("CLIENT-8.1/4299", 4299, true, "After a code of no known class the client connects again, with a warning."),
    ("CLIENT-8.1/4110", 4110, false, "After 4110 the client does not connect by itself."),
    ("CLIENT-8.1/4111", 4111, false, "After 4111 the client does not connect by itself."),
    ("CLIENT-8.1/4112", 4112, false, "After 4112 the client does not connect by itself."),
    ("CLIENT-8.1/4113", 4113, false, "After 4113 the client does not connect by itself."),
    ("CLIENT-8.1/4114", 4114, false, "After 4114 the client does not connect by itself."),
    ("CLIENT-8.1/4115", 4115, false, "After 4115 the client does not connect by itself."),
    ("CLIENT-8.1/4199", 4199, false, "After any other code from 4100 to 4199 the client does not connect by itself."),
];

/// Payloads that a mediator may process behind ClientHello.
fn may_come_early(payload: &FromDevice) -> bool {
    matches!(
        payload,
        FromDevice::Proxy(_)
            | FromDevice::GetDevicesInfo
            | FromDevice::DropDevice(_)
            | FromDevice::SetSharedDeviceData(_)
            | FromDevice::BeginTransaction(_)
            | FromDevice::CommitTransaction
            | FromDevice::Reflect(_)
    )
}

async fn nothing_early(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    let said = visit.listens(judge.grace()).await;
    if let Some(first) = said.first() {
        return Err(format!("{} came", first.kind()).into());
    }
    ensure!(visit.is_open(), "it did not wait: the client {}", visit.over());
    judge.admitted_on(&mut visit, &[]).await
}

async fn nothing_wrong_before_info(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    let hello = visit.greets().await?;
    let said = visit.listens(judge.grace()).await;
    if let Some(wrong) = said.iter().find(|payload| !may_come_early(payload)) {
        return Err(format!("{} came", wrong.kind()).into());
    }
    judge.admit(&mut visit, hello.expected_slot_state, &[]).await
}

async fn proves_key(judge: &mut Judge) -> Done {
    // The decoder refuses a device info that is too long; the proof is checked with every ClientHello.
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await
}

async fn hello_variants(judge: &mut Judge) -> Done {
    for variant in 0..3 {
        let mut visit = judge.visit().await?;
        let (challenge, hello) = visit.challenge();
        let esk = [&[0x12, 32][..], &hello.esk].concat();
        let challenge_field = [&[0x1a, 32][..], &hello.challenge].concat();
        let body = match variant {
            0 => [&[0x08, 0][..], &esk, &challenge_field].concat(),
            1 => [&esk[..], &challenge_field, &[0x78, 1, 0x82, 1, 2, 7, 7]].concat(),
            _ => [challenge_field, esk].concat(),
        };
        visit.say_bytes([&[0x10, 0, 0, 0][..], &body].concat().into()).await?;
        let hello = visit.client_hello(&challenge).await?;
        judge.admit(&mut visit, hello.expected_slot_state, &[]).await?;
        visit.closes(1001).await;
    }
    Ok(())
}

async fn low_order(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    visit.say(&ToDevice::ServerHello(ServerHello { version: 0, esk: LOW_ORDER, challenge: [7; 32] }.into())).await?;
    let said = visit.listens(judge.grace()).await;
    ensure!(said.is_empty(), "it was answered");
    Ok(())
}

async fn slot_state(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    let first = visit.greets().await?.expected_slot_state;
    drop(visit);
    let mut visit = judge.visit().await?;
    let second = visit.greets().await?.expected_slot_state;
    ensure!(first == second, "it expected {first:?}, was told nothing, and expects {second:?}");
    judge.admit(&mut visit, second, &[]).await?;
    visit.listens(judge.grace()).await;
    drop(visit);
    let mut visit = judge.visit().await?;
    let third = visit.greets().await?.expected_slot_state;
    ensure!(third == SlotState::Existing, "after ServerInfo it expects {third:?}");
    judge.admit(&mut visit, third, &[]).await
}

async fn slow_info(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    let hello = visit.greets().await?;
    visit.listens(judge.grace() * 5).await;
    ensure!(visit.is_open(), "the client {}", visit.over());
    judge.admit(&mut visit, hello.expected_slot_state, &[]).await
}

async fn acks_everything(judge: &mut Judge) -> Done {
    let backlog: Vec<Reflected> = (0..10).map(|_| judge.message(b"backlog")).collect();
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &backlog).await?;
    visit.acks_of(&backlog).await?;
    let live: Vec<Reflected> = (0..10).map(|_| judge.message(b"live")).collect();
    for message in &live {
        visit.reflects(message).await?;
    }
    visit.acks_of(&live).await
}

async fn killed_before_ack(judge: &mut Judge) -> Done {
    let messages: Vec<Reflected> = (0..5).map(|_| judge.message(b"before the end")).collect();
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &messages).await?;
    drop(visit);
    // Whatever it received and made of it: none of it was acknowledged here.
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &messages).await?;
    visit.acks_of(&messages).await
}

async fn processed_before_ack(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await?;
    for _ in 0..5 {
        let message = judge.message(b"to be processed");
        visit.reflects(&message).await?;
        visit.acks_of(std::slice::from_ref(&message)).await?;
        // The file is looked at when the acknowledgement is here, and the connection is cut then: what was not processed is lost.
        ensure!(judge.times_processed(&message)? > 0, "it was acknowledged and is not in the journal");
    }
    Ok(())
}

/// Delivers a message, has it acknowledged, and delivers it again on the next connection.
async fn twice(judge: &mut Judge) -> Result<Reflected, Finding> {
    let message = judge.message(b"twice");
    for _ in 0..2 {
        let mut visit = judge.visit().await?;
        judge.admitted_on(&mut visit, std::slice::from_ref(&message)).await?;
        visit.acks_of(std::slice::from_ref(&message)).await?;
        drop(visit);
    }
    Ok(message)
}

async fn duplicate_acked(judge: &mut Judge) -> Done {
    twice(judge).await.map(drop)
}

async fn duplicate_once(judge: &mut Judge) -> Done {
    let message = twice(judge).await?;
    let times = judge.times_processed(&message)?;
    ensure!(times == 1, "it is in the journal {times} times");
    Ok(())
}

async fn ephemeral(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await?;
    let typing = reflected(judge.next_id(), &judge.sealed(b"typing"), true, judge.now_ms());
    let behind = judge.message(b"behind");
    visit.reflects(&typing).await?;
    visit.reflects(&behind).await?;
    loop {
        let id = visit.ack().await?;
        if id == behind.id() {
            return Ok(());
        }
        ensure!(id == typing.id(), "{} was acknowledged and never sent", id.0);
    }
}

async fn largest(judge: &mut Judge) -> Done {
    /// Nonce and tag of a sealed envelope.
    const SEAL: usize = 40;
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await?;
    let message = judge.message(&vec![0x5a; ENVELOPE_MAX - SEAL]);
    ensure!(message.envelope().len() == ENVELOPE_MAX, "the envelope has {} bytes", message.envelope().len());
    visit.reflects(&message).await?;
    visit.acks_of(&[message]).await
}

async fn slowly(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await?;
    let message = judge.message(&[7; 1_000]);
    visit.say_slowly(message.container(), 10, judge.grace() / 5).await?;
    visit.acks_of(&[message]).await
}

/// Shows that the client still does its work.
async fn still_works(judge: &mut Judge, visit: &mut Visit) -> Done {
    let message = judge.message(b"still there");
    visit.reflects(&message).await?;
    visit.acks_of(&[message]).await
}

async fn leader_without_chat(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    let hello = visit.greets().await?;
    judge.info(&mut visit, hello.expected_slot_state, 0).await?;
    visit.say(&ToDevice::RolePromotedToLeader).await?;
    visit.say(&ToDevice::ReflectionQueueDry).await?;
    still_works(judge, &mut visit).await
}

async fn empty_proxy(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await?;
    visit.say(&ToDevice::Proxy(Bytes::new())).await?;
    still_works(judge, &mut visit).await
}

/// A client that is admitted, has no Dry, and whose login waits for its acknowledgement.
async fn logging_in(judge: &mut Judge) -> Result<(Visit, Room, ToDevice), Finding> {
    let plan = judge.chat()?;
    let mut visit = judge.visit().await?;
    let hello = visit.greets().await?;
    judge.info(&mut visit, hello.expected_slot_state, 0).await?;
    let (room, ack) = visit.chat_login(&plan).await?;
    Ok((visit, room, ToDevice::Proxy(Bytes::copy_from_slice(&ack))))
}

/// Takes exception to an unblock that came too early.
async fn is_blocked(judge: &Judge, visit: &mut Visit, room: &mut Room) -> Done {
    let said = visit.chat_listens(room, judge.grace()).await?;
    ensure!(!said.contains(&FromClient::UnblockIncomingMessages), "it unblocked the chat server");
    ensure!(visit.is_open(), "the client {}", visit.over());
    Ok(())
}

async fn unblocks(visit: &mut Visit, room: &mut Room) -> Done {
    visit.chat_hears(room, "unblock-incoming-messages", |it| *it == FromClient::UnblockIncomingMessages).await
}

async fn blocked_until_leader(judge: &mut Judge) -> Done {
    let (mut visit, mut room, ack) = logging_in(judge).await?;
    visit.say(&ack).await?;
    visit.say(&ToDevice::ReflectionQueueDry).await?;
    is_blocked(judge, &mut visit, &mut room).await?;
    visit.say(&ToDevice::RolePromotedToLeader).await?;
    unblocks(&mut visit, &mut room).await
}

async fn blocked_until_login(judge: &mut Judge) -> Done {
    let (mut visit, mut room, ack) = logging_in(judge).await?;
    visit.say(&ToDevice::ReflectionQueueDry).await?;
    visit.say(&ToDevice::RolePromotedToLeader).await?;
    is_blocked(judge, &mut visit, &mut room).await?;
    visit.say(&ack).await?;
    unblocks(&mut visit, &mut room).await
}

async fn blocked_until_dry(judge: &mut Judge) -> Done {
    let (mut visit, mut room, ack) = logging_in(judge).await?;
    visit.say(&ack).await?;
    visit.say(&ToDevice::RolePromotedToLeader).await?;
    is_blocked(judge, &mut visit, &mut room).await?;
    // What it does when they come in the wrong order is its business; it may stay blocked.
    visit.say(&ToDevice::ReflectionQueueDry).await?;
    still_works(judge, &mut visit).await
}

/// A client that leads, with a chat server that it unblocked.
async fn leading(judge: &mut Judge) -> Result<(Visit, Room), Finding> {
    let (mut visit, mut room, ack) = logging_in(judge).await?;
    visit.say(&ack).await?;
    visit.say(&ToDevice::ReflectionQueueDry).await?;
    visit.say(&ToDevice::RolePromotedToLeader).await?;
    unblocks(&mut visit, &mut room).await?;
    visit.chat_says(&mut room, &ToClient::QueueSendComplete).await?;
    Ok((visit, room))
}

async fn unblocks_once(judge: &mut Judge) -> Done {
    let (mut visit, mut room) = leading(judge).await?;
    still_works(judge, &mut visit).await?;
    is_blocked(judge, &mut visit, &mut room).await.map_err(|_| "it unblocked the chat server again".to_owned().into())
}

/// A message that nobody can open but whoever has the key: clients reflect and acknowledge also what they cannot read.
fn chat_message(judge: &mut Judge) -> Result<Message, Finding> {
    let plan = judge.chat()?;
    Ok(Message {
        sender: Identity::random().into(),
        receiver: plan.identity.into(),
        id: MessageId(u64::from(judge.next_id())),
        created_at_s: u32::try_from(judge.now_ms() / 1_000).unwrap_or_default(),
        flags: MessageFlags::default(),
        nickname: [0; 32],
        metadata_box: Bytes::new(),
        nonce: crate::crypto::random::bytes(),
        message_box: Bytes::from_static(&[0x5a; 48]),
    })
}

/// The reflect with which the client hands on a chat message.
async fn next_reflect(visit: &mut Visit) -> Result<ReflectAck, Finding> {
    loop {
        if let FromDevice::Reflect(reflect) = visit.next("the reflection of the chat message").await?
            && !reflect.flags.ephemeral
        {
            return Ok(ReflectAck { reflect_id: reflect.reflect_id, timestamp_ms: 1 });
        }
    }
}

fn acks(said: &FromClient, message: &Message) -> bool {
    matches!(said, FromClient::MessageAck(ack) if ack.id == message.id && ack.identity == message.sender)
}

async fn reflected_before_ack(judge: &mut Judge) -> Done {
    let (mut visit, mut room) = leading(judge).await?;
    let message = chat_message(judge)?;
    visit.chat_says(&mut room, &ToClient::Message(message.clone())).await?;
    let mut ack = next_reflect(&mut visit).await?;
    ack.timestamp_ms = judge.now_ms();
    let said = visit.chat_listens(&mut room, judge.grace()).await?;
    ensure!(!said.iter().any(|said| acks(said, &message)), "it was acknowledged before");
    visit.say(&ToDevice::ReflectAck(ack)).await?;
    visit.chat_hears(&mut room, "the acknowledgement of the chat message", |said| acks(said, &message)).await
}

async fn killed_before_reflect_ack(judge: &mut Judge) -> Done {
    let (mut visit, mut room) = leading(judge).await?;
    let message = chat_message(judge)?;
    visit.chat_says(&mut room, &ToClient::Message(message.clone())).await?;
    next_reflect(&mut visit).await?;
    drop(visit);
    let (mut visit, mut room) = leading(judge).await?;
    visit.chat_says(&mut room, &ToClient::Message(message.clone())).await?;
    let mut ack = next_reflect(&mut visit).await?;
    ack.timestamp_ms = judge.now_ms();
    visit.say(&ToDevice::ReflectAck(ack)).await?;
    visit.chat_hears(&mut room, "the acknowledgement of the chat message", |said| acks(said, &message)).await
}

async fn answers_close(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await?;
    ensure!(visit.closes(1001).await, "the client {}", visit.over());
    Ok(())
}

async fn after_loss(judge: &mut Judge) -> Done {
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await?;
    drop(visit);
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await
}

async fn backs_off(judge: &mut Judge) -> Done {
    /// More than a client that doubles a delay of 50 ms makes in that time.
    const TOO_MANY: usize = 12;
    const A_WHILE: Duration = Duration::from_secs(2);
    let attempts = judge.refuses_for(A_WHILE).await;
    ensure!(attempts <= TOO_MANY, "{attempts} attempts in {A_WHILE:?}");
    Ok(())
}

async fn after_close(judge: &mut Judge, code: u16, again: bool) -> Done {
    let mut visit = judge.visit().await?;
    judge.admitted_on(&mut visit, &[]).await?;
    visit.closes(code).await;
    drop(visit);
    if again {
        let mut visit = judge.visit().await?;
        return judge.admitted_on(&mut visit, &[]).await;
    }
    let came = judge.comes_within(judge.quiet()).await;
    judge.starts_again();
    ensure!(!came, "it connected again");
    Ok(())
}
