//! The lock, what is staged under it, and what everybody is told (sections 4.5 and 6).

use super::world::{Case, Done, Finding, Line, Needs, World, case, ensure, envelopes, messages, names};
use crate::wire::d2m::{CloseCode, DeviceId, ENCRYPTED_SCOPE_MAX, FromDevice, ToDevice, TransactionHolder};

pub(super) const CASES: &[Case] = &[
    case!(
        "D2M-A1a",
        acked_when_staged,
        "A message reflected in a transaction is acknowledged at once, not at the commit."
    ),
    case!("D2M-A2a", discarded, "When the holder disconnects, nothing that was staged is delivered."),
    case!("D2M-A3a", joined_meanwhile, "A commit delivers also to a device that joined during the transaction."),
    case!("D2M-A4a", ephemeral_staged, "An ephemeral message in a transaction is staged, in its order."),
    case!("D2M-A4b", ephemeral_staged_no_ack, "An ephemeral message in a transaction is not acknowledged."),
    case!("D2M-12.10a", nothing_before_commit, "Before the commit nothing of a transaction is delivered."),
    case!("D2M-12.10b", commit_delivers, "The commit is acknowledged and delivers everything, in order."),
    case!("D2M-12.10c", ended_behind, "TransactionEnded comes behind what the transaction delivered."),
    case!(
        "D2M-12.10d",
        disconnect_ends,
        "When the holder disconnects, the others get TransactionEnded with its id and scope."
    ),
    case!("D2M-12.10e", commit_keeps, "A commit delivers also to devices that are away."),
    case!(
        "D2M-12.11a",
        rejected,
        "Who asks for a lock that is held gets TransactionRejected with the holder's id and scope."
    ),
    case!(
        "D2M-12.11b",
        rejected_then_ended,
        "A rejected device gets TransactionEnded after the commit, behind the rejection."
    ),
    case!("D2M-12.11c", committer_not_told, "The committer gets no TransactionEnded."),
    case!("D2M-12.11d", free_again, "After TransactionEnded the lock can be had."),
    case!("D2M-12.12a", ttl_closes, "ttl = 1: the holder is closed with 4011 after about a second."),
    case!("D2M-12.12b", ttl_ends, "ttl = 1: the others get TransactionEnded, and nothing of the transaction."),
    case!("D2M-A9a", stray_commit, "Committing without holding the lock is closed with 4010."),
    case!("D2M-A9b", nested_begin, "Asking for the lock that one holds is closed with 4010."),
    case!(
        "D2M-A9c",
        commit_of_another,
        "Committing while another holds the lock is closed with 4010 and ends nothing."
    ),
    case!(
        "D2M-A21a",
        devices_meanwhile,
        "GetDevicesInfo and DropDevice are answered at once in a transaction, to the holder and to others."
    ),
    case!("D2M-A22a", slow 620, longest, "A transaction without a ttl ends its holder with 4011 after 600 s, and not before."),
    case!("D2M-A28b", short_scope, "A scope may be as short as it likes, also empty."),
    case!(
        "D2M-A36a",
        holder_again,
        "A holder that connects again loses its transaction, and the others get TransactionEnded."
    ),
    case!(
        "D2M-A38a",
        ack_behind_messages,
        "BeginTransactionAck comes behind every message that was accepted before it."
    ),
    case!("D2M-4.5a", others_reflect, "While one device holds the lock, the others reflect as ever."),
    case!("D2M-6a", holder_dropped, "Dropping the holder ends its transaction."),
    case!("D2M-6b", before_dry, "A transaction may begin before the device's queue is dry."),
    case!("D2M-2.5b", scope_limit, "A scope of 1024 bytes is accepted, a longer one closed with 4010."),
];

const SCOPE: &[u8] = b"the scope of a transaction";

fn holder() -> TransactionHolder {
    TransactionHolder { device_id: DeviceId(1), encrypted_scope: SCOPE.to_vec() }
}

/// A device that holds the lock, and one that does not; both have heard everything so far.
async fn held(world: &World) -> Result<(Line, Line), Finding> {
    let mut one = world.joins(1).await?;
    let mut two = world.joins(2).await?;
    two.dry().await?;
    one.begins(SCOPE, 0).await?;
    Ok((one, two))
}

/// Everything up to TransactionEnded; it is the last.
async fn until_ended(line: &mut Line) -> Result<Vec<ToDevice>, Finding> {
    line.until("TransactionEnded", |it| matches!(it, ToDevice::TransactionEnded(_))).await
}

fn of_the_holder(heard: &[ToDevice]) -> Done {
    let told = heard.last();
    ensure!(told == Some(&ToDevice::TransactionEnded(holder())), "it names another device or scope");
    Ok(())
}

async fn acked_when_staged(world: &World) -> Done {
    let (mut one, _two) = held(world).await?;
    for id in [1, 2] {
        one.reflect(id, b"staged").await?;
        let heard = one.heard_before_answer().await?;
        let acked = heard.iter().any(|it| matches!(it, ToDevice::ReflectAck(ack) if ack.reflect_id.0 == id));
        ensure!(acked, "before the answer to a later question came {}", names(&heard));
    }
    Ok(())
}

async fn discarded(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    one.reflect(1, b"staged").await?;
    one.is_alive().await?;
    drop(one);
    let heard = messages(until_ended(&mut two).await?);
    ensure!(heard.is_empty(), "it was delivered");
    let heard = messages(two.heard_before_answer().await?);
    ensure!(heard.is_empty(), "it was delivered later");
    let (_, queue) = world.queue_of(2).await?;
    ensure!(queue.is_empty(), "it was kept");
    Ok(())
}

async fn joined_meanwhile(world: &World) -> Done {
    let (mut one, _two) = held(world).await?;
    one.reflect(1, b"staged").await?;
    one.is_alive().await?;
    let mut three = world.joins(3).await?;
    three.dry().await?;
    one.commits().await?;
    let heard = messages(until_ended(&mut three).await?);
    ensure!(envelopes(&heard) == [b"staged"], "it got {} messages", heard.len());
    Ok(())
}

async fn ephemeral_staged(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    one.reflect(1, b"1").await?;
    one.ephemeral(2, b"2").await?;
    one.reflect(3, b"3").await?;
    one.is_alive().await?;
    let early = messages(two.heard_before_answer().await?);
    ensure!(early.is_empty(), "it was delivered before the commit");
    one.commits().await?;
    let heard = messages(until_ended(&mut two).await?);
    ensure!(envelopes(&heard) == [b"1", b"2", b"3"], "not all came, or out of order");
    Ok(())
}

async fn ephemeral_staged_no_ack(world: &World) -> Done {
    let (mut one, _two) = held(world).await?;
    one.ephemeral(2, b"2").await?;
    let mut heard = one.heard_before_answer().await?;
    one.say(&FromDevice::CommitTransaction).await?;
    heard.extend(one.until("CommitTransactionAck", |it| *it == ToDevice::CommitTransactionAck).await?);
    ensure!(!heard.iter().any(|it| matches!(it, ToDevice::ReflectAck(_))), "it was acknowledged");
    Ok(())
}

async fn nothing_before_commit(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    one.reflect(1, b"staged").await?;
    // Both were asked and answered: whatever is delivered is out.
    one.is_alive().await?;
    let heard = messages(two.heard_before_answer().await?);
    ensure!(heard.is_empty(), "it was delivered");
    Ok(())
}

async fn commit_delivers(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    for id in 1..=3 {
        one.reflect(id, format!("{id}").as_bytes()).await?;
    }
    one.commits().await?;
    let mut got = Vec::new();
    while got.len() < 3 {
        got.push(two.reflected().await?);
    }
    ensure!(envelopes(&got) == [b"1", b"2", b"3"], "they came out of order");
    Ok(())
}

async fn ended_behind(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    one.reflect(1, b"1").await?;
    one.commits().await?;
    let heard = until_ended(&mut two).await?;
    of_the_holder(&heard)?;
    ensure!(messages(heard).len() == 1, "it came first");
    Ok(())
}

async fn disconnect_ends(world: &World) -> Done {
    let (one, mut two) = held(world).await?;
    drop(one);
    of_the_holder(&until_ended(&mut two).await?)
}

async fn commit_keeps(world: &World) -> Done {
    let (mut one, two) = held(world).await?;
    two.leaves().await?;
    one.reflect(1, b"1").await?;
    one.commits().await?;
    let (_, queue) = world.queue_of(2).await?;
    ensure!(envelopes(&queue) == [b"1"], "{} messages waited", queue.len());
    Ok(())
}

/// Asks for a lock that another holds, and returns who that is.
async fn is_rejected(line: &mut Line) -> Result<TransactionHolder, Finding> {
    line.begin(b"another scope", 0).await?;
    let answer = line
        .wait("TransactionRejected", |it| match it {
            ToDevice::TransactionRejected(_) | ToDevice::BeginTransactionAck => Some(it),
            _ => None,
        })
        .await?;
    match answer {
        ToDevice::TransactionRejected(by) => Ok(by),
        _ => Err("the lock was granted twice".to_owned().into()),
    }
}

async fn rejected(world: &World) -> Done {
    let (_one, mut two) = held(world).await?;
    let by = is_rejected(&mut two).await?;
    ensure!(by == holder(), "it names another device or scope");
    Ok(())
}

async fn rejected_then_ended(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    is_rejected(&mut two).await?;
    one.commits().await?;
    of_the_holder(&until_ended(&mut two).await?)
}

async fn committer_not_told(world: &World) -> Done {
    let (mut one, _two) = held(world).await?;
    one.commits().await?;
    let heard = one.heard_before_answer().await?;
    ensure!(!heard.iter().any(|it| matches!(it, ToDevice::TransactionEnded(_))), "it did");
    Ok(())
}

async fn free_again(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    is_rejected(&mut two).await?;
    one.commits().await?;
    until_ended(&mut two).await?;
    two.begins(b"another scope", 0).await
}

async fn ttl_closes(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    let before = world.target.clock.now().monotonic;
    one.begins(SCOPE, 1).await?;
    one.ends_with(CloseCode::TransactionTtlReached).await?;
    let held = world.target.clock.now().monotonic.saturating_sub(before);
    ensure!(held.as_millis() >= 900, "it was closed after {held:?}");
    Ok(())
}

async fn ttl_ends(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    let mut two = world.joins(2).await?;
    two.dry().await?;
    one.begins(SCOPE, 1).await?;
    one.reflect(1, b"staged").await?;
    let heard = until_ended(&mut two).await?;
    of_the_holder(&heard)?;
    ensure!(messages(heard).is_empty(), "what was staged was delivered");
    Ok(())
}

async fn longest(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.begins(SCOPE, 0).await?;
    let before = world.target.clock.now().monotonic;
    // Reading answers pings, so it is not idle.
    let ended = tokio::time::timeout(std::time::Duration::from_secs(615), one.raw.wait_ended()).await;
    let held = world.target.clock.now().monotonic.saturating_sub(before).as_secs();
    let ended = ended.map_err(|_| format!("after {held} s it still holds the lock"))?;
    super::world::code(&ended, CloseCode::TransactionTtlReached)?;
    ensure!(held >= 595, "it was ended after {held} s");
    Ok(())
}

async fn stray_commit(world: &World) -> Done {
    world.joins(1).await?.closes_for(FromDevice::CommitTransaction.encode()).await
}

async fn nested_begin(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    one.begin(SCOPE, 0).await?;
    one.ends_with(CloseCode::ProtocolError).await?;
    of_the_holder(&until_ended(&mut two).await?)
}

async fn commit_of_another(world: &World) -> Done {
    let (_one, two) = held(world).await?;
    let mut three = world.joins(3).await?;
    three.dry().await?;
    two.closes_for(FromDevice::CommitTransaction.encode()).await?;
    let heard = three.heard_before_answer().await?;
    ensure!(!heard.iter().any(|it| matches!(it, ToDevice::TransactionEnded(_))), "the transaction was ended");
    is_rejected(&mut three).await.map(drop)
}

async fn devices_meanwhile(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    let mut three = world.joins(3).await?;
    one.is_alive().await?;
    two.is_alive().await?;
    one.drop_device(DeviceId(3)).await?;
    three.ends_with(CloseCode::Dropped).await?;
    let mut four = world.joins(4).await?;
    two.drop_device(DeviceId(4)).await?;
    four.ends_with(CloseCode::Dropped).await
}

async fn short_scope(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    for scope in [&b""[..], b"1", b"fifteen bytes.."] {
        one.begins(scope, 0).await?;
        one.commits().await?;
    }
    Ok(())
}

async fn holder_again(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    one.reflect(1, b"staged").await?;
    one.is_alive().await?;
    let _again = world.admitted(&world.config(1).existing()).await?;
    let heard = until_ended(&mut two).await?;
    of_the_holder(&heard)?;
    ensure!(messages(heard).is_empty(), "what was staged was delivered");
    two.begins(SCOPE, 0).await
}

async fn ack_behind_messages(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    let mut two = world.joins(2).await?;
    for id in 0..10 {
        two.reflects(id, b"x").await?;
    }
    // They are accepted: each was acknowledged.
    one.begin(SCOPE, 0).await?;
    let heard = one.until("BeginTransactionAck", |it| *it == ToDevice::BeginTransactionAck).await?;
    let first = messages(heard).len();
    ensure!(first == 10, "{first} of 10 came before it");
    Ok(())
}

async fn others_reflect(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    let mut three = world.joins(3).await?;
    two.reflects(1, b"x").await?;
    for line in [&mut one, &mut three] {
        ensure!(line.reflected().await?.envelope() == b"x", "another message came");
    }
    Ok(())
}

async fn holder_dropped(world: &World) -> Done {
    let (mut one, mut two) = held(world).await?;
    one.reflect(1, b"staged").await?;
    one.is_alive().await?;
    two.say(&FromDevice::DropDevice(DeviceId(1))).await?;
    let heard = until_ended(&mut two).await?;
    of_the_holder(&heard)?;
    ensure!(messages(heard).is_empty(), "what was staged was delivered");
    one.ends_with(CloseCode::Dropped).await
}

async fn before_dry(world: &World) -> Done {
    let (mut one, hello) = world.greeted(&world.config(1)).await?;
    let begin = crate::wire::d2m::BeginTransaction { encrypted_scope: SCOPE.to_vec(), ttl_s: 0 };
    let early = [FromDevice::ClientHello(Box::new(hello)), FromDevice::BeginTransaction(begin)];
    world.soon("room to write", one.raw.send_all(&early)).await??;
    one.server_info().await?;
    one.wait_for("BeginTransactionAck", ToDevice::BeginTransactionAck).await?;
    one.commits().await
}

async fn scope_limit(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.begins(&[1; ENCRYPTED_SCOPE_MAX], 0).await?;
    one.commits().await?;
    one.begin(&[1; ENCRYPTED_SCOPE_MAX + 1], 0).await?;
    one.ends_with(CloseCode::ProtocolError).await
}
