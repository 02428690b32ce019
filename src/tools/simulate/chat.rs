//! The chat side: each group has one identity, its leader logs in through the proxy, and messages go from each group to
//! the next. The books are as the ledger's: an acknowledged message has to arrive.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, WrapErr as _};
use tokio_util::sync::CancellationToken;

use crate::chat::csp::serve::KEY_FILE;
use crate::chat::csp::store::{Directory, FILE};
use crate::chat::csp::wire::message::Message;
use crate::chat::csp::wire::{CspDeviceId, Identity, MessageFlags, MessageId, WireIdentity};
use crate::client::ProxyStream;
use crate::client::csp::{CspClient, CspError, Draft, EndToEnd, Event, Login};
use crate::crypto::boxes::{self, Public};
use crate::crypto::{Secret, random};
use crate::tools::keyfile;
use crate::wire::d2m::{DeviceId, ServerGroup};

/// Messages under way before one has to be acknowledged.
const WINDOW: usize = 4;
/// How long a login may take.
const LOGIN_PATIENCE: Duration = Duration::from_secs(20);

/// The identities of all groups, and what they said to each other.
#[derive(Debug)]
pub(super) struct Chat {
    server_key: Public,
    accounts: Vec<Account>,
    books: Mutex<Books>,
    over: CancellationToken,
}

#[derive(Debug)]
struct Account {
    identity: Identity,
    key: Secret<32>,
}

#[derive(Debug)]
struct Books {
    /// By sending group, in the order they are said.
    messages: Vec<Vec<State>>,
    /// First message-id of each group: a queue may hold messages of an earlier run.
    first_ids: Vec<u64>,
    /// By sending group: one beyond the last message that arrived for the first time.
    arrived_through: Vec<usize>,
    open: usize,
    tally: ChatTally,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// On which connection of its sender it was said last; 0 for none.
    said_on: u64,
    acked: bool,
    arrived: bool,
}

/// The chat side of the closing table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ChatTally {
    pub(super) sent: u64,
    pub(super) acked: u64,
    pub(super) delivered: u64,
    pub(super) duplicates: u64,
    pub(super) lost: u64,
    pub(super) misordered: u64,
}

/// Whether there is a chat server's data that identities can be made in.
pub(super) fn is_reachable(data: &Path) -> bool {
    data.join(FILE).exists() && data.join(KEY_FILE).exists()
}

impl Chat {
    /// Makes an identity for each group in the directory of the server whose data is there.
    pub(super) async fn prepare(
        data: &Path,
        groups: usize,
        messages: usize,
        server_group: &ServerGroup,
    ) -> Result<Self> {
        let server_key = keyfile::load_secret(&data.join(KEY_FILE)).wrap_err("the chat server's key is needed")?;
        let directory = Directory::open(data).await.into_diagnostic()?;
        let mut accounts = Vec::with_capacity(groups);
        for _ in 0..groups {
            let account = Account { identity: Identity::random(), key: Secret::random() };
            let public = boxes::public(&account.key);
            directory.add(account.identity, &public, server_group.as_str()).await.into_diagnostic()?;
            accounts.push(account);
        }
        directory.close().await;
        Ok(Self::new(boxes::public(&server_key), accounts, messages))
    }

    fn new(server_key: Public, accounts: Vec<Account>, messages: usize) -> Self {
        let groups = accounts.len();
        let chat = Self {
            server_key,
            accounts,
            books: Mutex::new(Books {
                messages: vec![vec![State::default(); messages]; groups],
                first_ids: (0..groups).map(|_| random::u64()).collect(),
                arrived_through: vec![0; groups],
                open: groups * messages,
                tally: ChatTally::default(),
            }),
            over: CancellationToken::new(),
        };
        chat.settle(&chat.books());
        chat
    }

    /// Whether everything that was to be said has been acknowledged and has arrived.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Returns when it is over.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Closes the books.
    pub(super) fn tally(&self) -> ChatTally {
        let books = self.books();
        let states = || books.messages.iter().flatten();
        ChatTally { lost: states().filter(|state| state.acked && !state.arrived).count() as u64, ..books.tally }
    }

    /// Counts what moves.
    pub(super) fn moved(&self) -> u64 {
        let tally = self.books().tally;
        tally.acked + tally.delivered
    }

    /// One connection of a group's leader.
    pub(super) async fn converse(&self, group: usize, device: DeviceId, stream: ProxyStream) -> Result<(), CspError> {
        let Some(account) = self.accounts.get(group) else { return Ok(()) };
        let login = Login::new(account.identity, account.key.clone(), self.server_key).device(CspDeviceId(device.0));
        let client = tokio::time::timeout(LOGIN_PATIENCE, CspClient::login(stream, login));
        let mut client = client.await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        client.unblock().await?;
        // Any number that is no other connection's.
        let connection = random::u64() | 1;
        loop {
            match self.next(group, connection) {
                Some(message) => client.send_message(message).await?,
                None => {
                    let event = client.next_event().await?;
                    if let Event::Message(message) = &event {
                        self.arrived(group, message);
                        client.ack(message).await?;
                    } else if let Event::MessageAck(ack) = &event {
                        self.acked(group, ack.id);
                    }
                }
            }
        }
    }

    /// The next message a group has to say, or say again, if it may.
    fn next(&self, group: usize, connection: u64) -> Option<Message> {
        let (account, to) = (self.accounts.get(group)?, self.accounts.get(self.receiver(group))?);
        let mut books = self.books();
        let first_id = *books.first_ids.get(group)?;
        let messages = books.messages.get_mut(group)?;
        let under_way = messages.iter().filter(|state| state.said_on == connection && !state.acked).count();
        if under_way >= WINDOW {
            return None;
        }
        let at = messages.iter().position(|state| state.said_on != connection && !state.acked)?;
        if let Some(state) = messages.get_mut(at) {
            state.said_on = connection;
        }
        books.tally.sent += 1;
        drop(books);
        let draft = Draft {
            sender: account.identity,
            receiver: to.identity,
            id: MessageId(first_id.wrapping_add(at as u64)),
            created_at_s: 0,
            flags: MessageFlags::SEND_PUSH,
            nickname: "simulated",
            metadata: None,
            content: &[&[0x01][..], format!("message {at}").as_bytes(), &[0x01]].concat(),
        };
        Message::seal(&draft, &account.key, &boxes::public(&to.key)).ok()
    }

    fn acked(&self, group: usize, id: MessageId) {
        let mut books = self.books();
        let Some((_, state)) = books.find(group, id) else { return };
        if !std::mem::replace(&mut state.acked, true) {
            let done = state.arrived;
            books.tally.acked += 1;
            books.open -= usize::from(done);
        }
        self.settle(&books);
    }

    fn arrived(&self, receiver: usize, message: &Message) {
        let Some(from) = self.sender(receiver, message.sender) else { return };
        let (Some(sender), Some(account)) = (self.accounts.get(from), self.accounts.get(receiver)) else { return };
        let opens =
            EndToEnd::new(&account.key, &boxes::public(&sender.key)).is_ok_and(|keys| message.open(&keys).is_ok());
        let mut books = self.books();
        let found = books.find(from, message.id).filter(|_| opens);
        let Some((at, state)) = found else {
            // Of an earlier run, or changed on its way.
            return;
        };
        let (first, acked) = (!std::mem::replace(&mut state.arrived, true), state.acked);
        if !first {
            books.tally.duplicates += 1;
            return;
        }
        books.tally.delivered += 1;
        books.open -= usize::from(acked);
        if let Some(through) = books.arrived_through.get_mut(from) {
            let behind = at < *through;
            *through = (*through).max(at + 1);
            books.tally.misordered += u64::from(behind);
        }
        self.settle(&books);
    }

    fn settle(&self, books: &Books) {
        if books.open == 0 {
            self.over.cancel();
        }
    }

    fn receiver(&self, group: usize) -> usize {
        (group + 1) % self.accounts.len().max(1)
    }

    /// The group before, if it is the one that says to have sent this.
    fn sender(&self, receiver: usize, identity: WireIdentity) -> Option<usize> {
        let from = (receiver + self.accounts.len()).checked_sub(1)? % self.accounts.len().max(1);
        let account = self.accounts.get(from)?;
        (WireIdentity::from(account.identity) == identity).then_some(from)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn find(&mut self, group: usize, id: MessageId) -> Option<(usize, &mut State)> {
        let at = usize::try_from(id.0.wrapping_sub(*self.first_ids.get(group)?)).ok()?;
        Some((at, self.messages.get_mut(group)?.get_mut(at)?))
    }
}

impl ChatTally {
    pub(super) const fn is_clean(&self) -> bool {
        self.lost == 0 && self.misordered == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two groups that say two messages each.
    fn chat() -> Chat {
        let account = || Account { identity: Identity::random(), key: Secret::random() };
        Chat::new([7; 32], vec![account(), account()], 2)
    }

    #[test]
    fn it_is_over_when_everything_was_acknowledged_and_arrived() {
        let chat = chat();
        for group in [0, 1] {
            while let Some(message) = chat.next(group, 1) {
                assert!(!chat.is_over());
                chat.arrived(chat.receiver(group), &message);
                chat.acked(group, message.id);
            }
        }
        assert!(chat.is_over());
        let expected = ChatTally { sent: 4, acked: 4, delivered: 4, ..ChatTally::default() };
        assert_eq!(chat.tally(), expected);
    }

    #[test]
    fn an_acknowledged_message_that_does_not_arrive_is_lost() {
        let chat = chat();
        let message = chat.next(0, 1).unwrap();
        assert_eq!(chat.tally().lost, 0);
        chat.acked(0, message.id);
        assert_eq!(chat.tally().lost, 1);
        chat.arrived(0, &message);
        assert_eq!(chat.tally().lost, 1, "it arrived at the wrong group");
        chat.arrived(1, &message);
        assert_eq!(chat.tally().lost, 0);
    }

    #[test]
    fn what_was_not_acknowledged_is_said_again_on_the_next_connection() {
        let chat = chat();
        let (first, second) = (chat.next(0, 1).unwrap(), chat.next(0, 1).unwrap());
        assert!(chat.next(0, 1).is_none());
        chat.acked(0, first.id);
        let again = chat.next(0, 3).unwrap();
        assert_eq!(again.id, second.id);
        chat.arrived(1, &second);
        chat.arrived(1, &again);
        chat.arrived(1, &first);
        let tally = chat.tally();
        assert_eq!((tally.sent, tally.duplicates, tally.misordered), (3, 1, 1));
    }
}
