//! For each close code: what it is called, what makes a mediator send it, what that needs, what a client does then.

use std::fmt::Write as _;
use std::time::Duration;

use super::relay::Hello;
use crate::group::Limits;
use crate::session::Timeouts;
use crate::wire::d2m::CloseCode;

/// How a code is provoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// In words, for a table.
    pub(super) name: &'static str,
    /// What is done, for a table.
    pub(super) how: &'static str,
    /// Whether it takes another device of the client's group, and so the group's key.
    pub(super) key: Key,
    /// What it takes with a mediator that is not ours.
    pub(super) elsewhere: Elsewhere,
    /// What a client has to do afterwards.
    pub(super) advice: &'static str,
}

/// Whether the client's group key is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    No,
    /// Another device does it with the key, and the client itself without.
    Better,
    Needed,
}

/// What a mediator that was not started here has to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// Nothing but the protocol.
    Works,
    /// Somebody has to stop it.
    Operator,
    /// A chat server that can be made to close, or that is played here.
    ChatServer,
    /// A server group that leads to nobody.
    ServerGroup,
    /// A chat server that is played here.
    Stage,
    /// It works, and takes as long as the mediator's limits are large.
    Slow,
    /// So does this, and it would do the same to every other device of the group: there must be none.
    SlowAndAlone,
    /// Nothing can be done from outside.
    Impossible,
}

pub(super) const fn plan(code: CloseCode) -> Plan {
    use Elsewhere::{ChatServer, Impossible, Operator, ServerGroup, Slow, SlowAndAlone, Stage, Works};
    let (name, how, key, elsewhere, advice) = match code {
        CloseCode::Normal => ("normal", "the client's own close, answered", Key::No, Works, "reconnect when it likes"),
        CloseCode::ShuttingDown => {
            ("shutting-down", "the mediator is stopped", Key::No, Operator, "reconnect, with back-off")
        }
        CloseCode::InternalError => (
            "internal-error",
            "the store fails while something is written",
            Key::No,
            Impossible,
            "reconnect, with back-off; what was not acknowledged is sent again",
        ),
        CloseCode::ChatServerClosed => (
            "chat-server-closed",
            "the chat server ends its connection",
            Key::No,
            ChatServer,
            "reconnect; a close-error of the chat server that came before says whether at all",
        ),
        CloseCode::ChatServerUnreachable => (
            "chat-server-unreachable",
            "the chat server refuses connections",
            Key::No,
            ServerGroup,
            "reconnect, with back-off",
        ),
        CloseCode::ChatProxyError => (
            "chat-proxy-error",
            "the chat server announces a frame that fits no container",
            Key::No,
            Stage,
            "reconnect, with back-off",
        ),
        CloseCode::ProtocolError => (
            "protocol-error",
            "a binary message of three bytes",
            Key::No,
            Works,
            "be mended; until then, reconnect with back-off",
        ),
        CloseCode::TransactionTtlReached => (
            "transaction-ttl-reached",
            "a transaction of one second, which is never committed",
            Key::No,
            Works,
            "reconnect and start the transaction over: nothing of it was delivered",
        ),
        CloseCode::UnknownMessageAcked => (
            "unknown-message-acked",
            "an acknowledgement of reflected-id ffffffff",
            Key::No,
            Works,
            "be mended; until then, reconnect with back-off",
        ),
        CloseCode::ClientIdleTimeout => {
            ("client-idle-timeout", "nothing of what the client says goes on any more", Key::No, Slow, "reconnect")
        }
        CloseCode::UnsupportedVersion => {
            ("unsupported-version", "a ClientHello of version 1", Key::No, Works, "ask for an update")
        }
        CloseCode::DeviceLimitReached => (
            "device-limit-reached",
            "other devices take every slot before the client introduces itself",
            Key::Needed,
            Works,
            "ask the user to drop a device",
        ),
        CloseCode::DuplicateConnection => (
            "duplicate-connection",
            "the same device connects once more",
            Key::Needed,
            Works,
            "leave it to the newer connection",
        ),
        CloseCode::Dropped => (
            "dropped",
            "another device of the group drops it, or it drops itself",
            Key::Better,
            Works,
            "forget the group",
        ),
        CloseCode::ReflectionQueueLimit => (
            "reflection-queue-limit",
            "another device reflects, and the client's acknowledgements are held back",
            Key::Needed,
            SlowAndAlone,
            "ask the user to link it again: its slot and what waited there are gone",
        ),
        CloseCode::DeviceSlotStateMismatch => (
            "device-slot-state-mismatch",
            "a ClientHello that expects the other slot state",
            Key::No,
            Works,
            "ask the user to link it again, or to take a new device id",
        ),
    };
    Plan { name, how, key, elsewhere, advice }
}

/// What is done to the client's hello; everything else is done once it is admitted.
pub(super) const fn hello(code: CloseCode) -> Hello {
    match code {
        CloseCode::UnsupportedVersion => Hello::OfVersion1,
        CloseCode::DeviceLimitReached => Hello::OfOneMore,
        CloseCode::DeviceSlotStateMismatch => Hello::OtherSlotState,
        CloseCode::Normal
        | CloseCode::ShuttingDown
        | CloseCode::InternalError
        | CloseCode::ChatServerClosed
        | CloseCode::ChatServerUnreachable
        | CloseCode::ChatProxyError
        | CloseCode::ProtocolError
        | CloseCode::TransactionTtlReached
        | CloseCode::UnknownMessageAcked
        | CloseCode::ClientIdleTimeout
        | CloseCode::DuplicateConnection
        | CloseCode::Dropped
        | CloseCode::ReflectionQueueLimit => Hello::Unchanged,
    }
}

/// The bounds of a mediator that is started for one code: what has to be reached is near, everything else far.
pub(super) fn bounds(code: CloseCode) -> (Limits, Timeouts) {
    let (mut limits, mut timeouts) = (Limits::default(), Timeouts::default());
    match code {
        CloseCode::DeviceLimitReached => limits.max_device_slots = 2,
        CloseCode::ReflectionQueueLimit => limits.max_queue_messages = 5,
        CloseCode::TransactionTtlReached => limits.transaction_ttl_max = Duration::from_secs(1),
        CloseCode::ClientIdleTimeout => {
            timeouts.idle = Duration::from_secs(3);
            // The answers keep a client alive that has nothing to say.
            timeouts.ping_every = Duration::from_secs(1);
        }
        _ => {}
    }
    (limits, timeouts)
}

/// All codes, for people.
pub(super) fn table() -> String {
    let mut out = format!("{:<5} {:<27} {:<12} {}\n", "code", "name", "--listen", "--url");
    for code in CloseCode::ALL {
        let Plan { name, how, key, elsewhere, .. } = plan(code);
        let listen = match key {
            Key::No => "yes",
            Key::Better => "yes, --key",
            Key::Needed => "with --key",
        };
        let url = match elsewhere {
            Elsewhere::Works => "yes",
            Elsewhere::Operator => "yes; you stop the mediator",
            Elsewhere::ChatServer => "yes; through its chat server, or --stage",
            Elsewhere::ServerGroup => "with --server-group",
            Elsewhere::Stage => "with --stage and --server-group",
            Elsewhere::Slow => "yes; takes as long as its limits say",
            Elsewhere::SlowAndAlone => "yes, in a group without other devices; takes as long as its limits say",
            Elsewhere::Impossible => "no",
        };
        // A string takes everything.
        let _written = writeln!(out, "{:<5} {name:<27} {listen:<12} {url}", code.code());
        let _written = writeln!(out, "      {}\n      by: {how}", code.meaning());
    }
    out
}
