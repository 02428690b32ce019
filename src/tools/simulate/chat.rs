//! The chat side: each group has one identity, its leader logs in through the proxy, and messages go from each group to
//! the next. The books are as the ledger's: an acknowledged message has to arrive.
//!
//! The identities are made once, kept in the server's data directory and used by one simulation after the other, since the
//! directory forgets nobody: however often a server is simulated with, it is left with as many as its largest simulation
//! had groups. A queue may therefore hold what an earlier run left behind. Each message says of which run it is, inside its
//! box.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use tokio_util::sync::CancellationToken;

use crate::chat::csp::serve::KEY_FILE;
use crate::chat::csp::store::{Directory, DirectoryState, FILE};
use crate::chat::csp::wire::message::Message;
use crate::chat::csp::wire::{CspDeviceId, Identity, MessageAck, MessageFlags, MessageId};
use crate::client::ProxyStream;
use crate::client::csp::{CspClient, CspError, Draft, EndToEnd, Event, Login};
use crate::crypto::boxes::{self, Public};
use crate::crypto::{Secret, random};
use crate::files;
use crate::tools::keyfile;
use crate::wire::d2m::{DeviceId, ServerGroup};

/// The identities and their keys, in the server's data directory, and what keeps simulations from sharing them.
const IDENTITIES_FILE: &str = "simulate.identities";
const LOCK_FILE: &str = "simulate.lock";
/// Messages under way before one has to be acknowledged.
const WINDOW: usize = 4;
/// The type of a text message.
const TEXT: u8 = 0x01;
/// How long a login may take.
const LOGIN_PATIENCE: Duration = Duration::from_secs(20);

/// The identities of all groups, and what they said to each other.
#[derive(Debug)]
pub(super) struct Chat {
    server_key: Public,
    /// One for each group, and behind them those of earlier runs.
    accounts: Vec<Account>,
    groups: usize,
    /// Tells this run's messages from those of an earlier one.
    run: u64,
    books: Mutex<Books>,
    over: CancellationToken,
    /// As long as it is open, the identities are ours.
    _lock: Option<files::Held>,
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
    /// First message-id of each group.
    first_ids: Vec<u64>,
    /// By sending group: one beyond the last message that arrived for the first time.
    arrived_through: Vec<usize>,
    open: usize,
    /// Nothing new is said.
    stopped: bool,
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
    /// Messages and acknowledgements of what nobody sent.
    pub(super) foreign: u64,
}

/// Whether there is a chat server's data that identities can be made in.
pub(super) fn is_reachable(data: &Path) -> bool {
    data.join(FILE).exists() && data.join(KEY_FILE).exists()
}

impl Chat {
    /// Takes an identity for each group, and makes those that are missing in the directory of the server whose data is there.
    pub(super) async fn prepare(
        data: &Path,
        groups: usize,
        messages: usize,
        server_group: &ServerGroup,
    ) -> Result<Self> {
        let server_key = keyfile::load_secret(&data.join(KEY_FILE)).wrap_err("the chat server's key is needed")?;
        let lock = lock(data)?;
        let file = data.join(IDENTITIES_FILE);
        let kept = if file.exists() { keyfile::read_identities(&file)? } else { Vec::new() };
        let mut accounts: Vec<_> = kept.into_iter().map(|(identity, key)| Account { identity, key }).collect();
        let missing = groups.saturating_sub(accounts.len());
        accounts.extend(std::iter::repeat_with(Account::random).take(missing));
        // First the file: of an identity whose key went nowhere the directory would never be rid.
        keyfile::write_identities(&file, accounts.iter().map(|account| (account.identity, &account.key)))?;
        let directory = Directory::open(data).await.into_diagnostic()?;
        for account in accounts.iter().take(groups) {
            account
                .register(&directory, server_group)
                .await
                .wrap_err_with(|| format!("to begin anew with other identities, remove {}", file.display()))?;
        }
        directory.close().await;
        Ok(Self::new(boxes::public(&server_key), accounts, groups, messages, Some(lock)))
    }

    fn new(
        server_key: Public,
        accounts: Vec<Account>,
        groups: usize,
        messages: usize,
        lock: Option<files::Held>,
    ) -> Self {
        let chat = Self {
            server_key,
            accounts,
            groups,
            run: random::u64(),
            books: Mutex::new(Books {
                messages: vec![vec![State::default(); messages]; groups],
                first_ids: (0..groups).map(|_| random::u64()).collect(),
                arrived_through: vec![0; groups],
                open: groups * messages,
                stopped: false,
                tally: ChatTally::default(),
            }),
            over: CancellationToken::new(),
            _lock: lock,
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

    /// From here on nothing new is said. It is over when what was said has been acknowledged and has arrived.
    pub(super) fn stop(&self) {
        let mut books = self.books();
        books.stopped = true;
        let under_way = |state: &&State| state.said_on != 0 && !(state.acked && state.arrived);
        books.open = books.messages.iter().flatten().filter(under_way).count();
        self.settle(&books);
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
                        self.acked(group, *ack);
                    }
                }
            }
        }
    }

    /// The next message a group has to say, or say again, if it may.
    fn next(&self, group: usize, connection: u64) -> Option<Message> {
        let (account, to) = (self.accounts.get(group)?, self.accounts.get(self.receiver(group))?);
        let mut books = self.books();
        let (first_id, stopped) = (*books.first_ids.get(group)?, books.stopped);
        let messages = books.messages.get_mut(group)?;
        let under_way = messages.iter().filter(|state| state.said_on == connection && !state.acked).count();
        if under_way >= WINDOW {
            return None;
        }
        let may_say = |state: &State| state.said_on != connection && !state.acked && !(stopped && state.said_on == 0);
        let at = messages.iter().position(may_say)?;
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
            content: &[&[TEXT][..], format!("run {:016x} message {at}", self.run).as_bytes(), &[1]].concat(),
        };
        Message::seal(&draft, &account.key, &boxes::public(&to.key)).ok()
    }

    /// An acknowledgement is of a message that was said, and names its receiver.
    fn acked(&self, group: usize, ack: MessageAck) {
        let to = self.accounts.get(self.receiver(group)).map(|account| account.identity);
        let mut books = self.books();
        let found = books.find(group, ack.id).filter(|(_, state)| state.said_on != 0);
        let Some((_, state)) = found.filter(|_| to.is_some_and(|to| ack.identity == to)) else {
            books.tally.foreign += 1;
            return;
        };
        if !std::mem::replace(&mut state.acked, true) {
            let done = state.arrived;
            books.tally.acked += 1;
            books.open -= usize::from(done);
        }
        self.settle(&books);
    }

    fn arrived(&self, receiver: usize, message: &Message) {
        let read = self.read(receiver, message);
        if read.is_some_and(|read| read.run != self.run) {
            // An earlier run left it in the queue.
            return;
        }
        let mut books = self.books();
        let found = read
            .filter(|read| self.receiver(read.sender) == receiver)
            .and_then(|read| Some((read, books.find(read.sender, message.id)?)))
            .filter(|(read, (at, _))| read.at == *at);
        let Some((Read { sender, at, .. }, (_, state))) = found else {
            books.tally.foreign += 1;
            return;
        };
        let (first, acked) = (!std::mem::replace(&mut state.arrived, true), state.acked);
        if !first {
            books.tally.duplicates += 1;
            return;
        }
        books.tally.delivered += 1;
        books.open -= usize::from(acked);
        if let Some(through) = books.arrived_through.get_mut(sender) {
            let behind = at < *through;
            *through = (*through).max(at + 1);
            books.tally.misordered += u64::from(behind);
        }
        self.settle(&books);
    }

    /// What is in a message, if it is for this receiver and from one of ours.
    fn read(&self, receiver: usize, message: &Message) -> Option<Read> {
        let to = self.accounts.get(receiver).filter(|account| message.receiver == account.identity)?;
        let (sender, from) = self.accounts.iter().enumerate().find(|(_, from)| message.sender == from.identity)?;
        let plain = message.open(&EndToEnd::new(&to.key, &boxes::public(&from.key)).ok()?).ok()?;
        let text = std::str::from_utf8(plain.strip_prefix(&[TEXT])?.strip_suffix(&[1])?).ok()?;
        let (run, at) = text.strip_prefix("run ")?.split_once(" message ")?;
        Some(Read { sender, run: u64::from_str_radix(run, 16).ok()?, at: at.parse().ok()? })
    }

    fn settle(&self, books: &Books) {
        if books.open == 0 {
            self.over.cancel();
        }
    }

    fn receiver(&self, group: usize) -> usize {
        (group + 1) % self.groups.max(1)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a message says inside its box.
#[derive(Debug, Clone, Copy)]
struct Read {
    sender: usize,
    run: u64,
    at: usize,
}

/// Two simulations with the same identities would throw each other out.
fn lock(data: &Path) -> Result<files::Held> {
    let path = data.join(LOCK_FILE);
    let held = files::hold(&path).into_diagnostic().wrap_err_with(|| format!("{} cannot be used", path.display()))?;
    held.ok_or_else(|| {
        miette!(
            help = "wait until it is over, or say --no-csp",
            "another simulation uses the chat identities in {}",
            data.display()
        )
    })
}

impl Account {
    fn random() -> Self {
        Self { identity: Identity::random(), key: Secret::random() }
    }

    /// Makes sure that the directory knows the identity under this key.
    async fn register(&self, directory: &Directory, server_group: &ServerGroup) -> Result<()> {
        let public = boxes::public(&self.key);
        match directory.lookup(self.identity).await.into_diagnostic()? {
            None => directory.add(self.identity, &public, server_group.as_str()).await.into_diagnostic(),
            Some(entry) if entry.public_key == public && entry.state == DirectoryState::Active => Ok(()),
            Some(_) => Err(miette!("the identity {} is revoked, or somebody else's", self.identity)),
        }
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
        self.lost == 0 && self.misordered == 0 && self.foreign == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two groups that say two messages each.
    fn chat() -> Chat {
        Chat::new([7; 32], vec![Account::random(), Account::random()], 2, 2, None)
    }

    fn ack(message: &Message) -> MessageAck {
        MessageAck { identity: message.receiver, id: message.id }
    }

    #[test]
    fn it_is_over_when_everything_was_acknowledged_and_arrived() {
        let chat = chat();
        for group in [0, 1] {
            while let Some(message) = chat.next(group, 1) {
                assert!(!chat.is_over());
                chat.arrived(chat.receiver(group), &message);
                chat.acked(group, ack(&message));
            }
        }
        assert!(chat.is_over());
        let expected = ChatTally { sent: 4, acked: 4, delivered: 4, ..ChatTally::default() };
        assert_eq!(chat.tally(), expected);
    }

    #[test]
    fn when_it_is_stopped_only_what_was_said_is_waited_for() {
        let chat = chat();
        let message = chat.next(0, 1).unwrap();
        chat.stop();
        assert!(chat.next(0, 1).is_none() && chat.next(1, 1).is_none() && !chat.is_over());
        assert_eq!(chat.next(0, 2).unwrap().id, message.id, "said again on another connection");
        chat.arrived(1, &message);
        chat.acked(0, ack(&message));
        assert!(chat.is_over());
        assert_eq!(chat.tally().lost, 0);
    }

    #[test]
    fn an_acknowledged_message_that_does_not_arrive_is_lost() {
        let chat = chat();
        let message = chat.next(0, 1).unwrap();
        assert_eq!(chat.tally().lost, 0);
        chat.acked(0, ack(&message));
        assert_eq!(chat.tally().lost, 1);
        chat.arrived(0, &message);
        assert_eq!((chat.tally().lost, chat.tally().foreign), (1, 1), "it arrived at the wrong group");
        chat.arrived(1, &message);
        assert_eq!((chat.tally().lost, chat.tally().foreign), (0, 1));
    }

    #[test]
    fn what_nobody_sent_is_a_fault_and_what_an_earlier_run_left_is_not() {
        let mut chat = chat();
        let (first, second) = (chat.next(0, 1).unwrap(), chat.next(0, 1).unwrap());
        let mut changed = first.clone();
        changed.message_box = changed.message_box.iter().map(|byte| byte ^ 1).collect();
        chat.arrived(1, &changed);
        chat.arrived(1, &Message { id: second.id, ..first.clone() });
        chat.acked(0, MessageAck { identity: first.sender, ..ack(&first) });
        chat.acked(0, MessageAck { id: MessageId(first.id.0.wrapping_sub(1)), ..ack(&first) });
        chat.acked(1, ack(&first));
        assert_eq!(chat.tally(), ChatTally { sent: 2, foreign: 5, ..ChatTally::default() });
        chat.run = chat.run.wrapping_add(1);
        chat.arrived(1, &first);
        assert_eq!(chat.tally().foreign, 5);
    }

    #[tokio::test]
    async fn the_identities_of_one_simulation_serve_the_next_and_nobody_else_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(KEY_FILE), "07".repeat(32)).unwrap();
        let server_group = ServerGroup::new("a0").unwrap();
        let prepare = async |groups| Chat::prepare(dir.path(), groups, 1, &server_group).await;
        let directory = Directory::open(dir.path()).await.unwrap();
        let mut first = None;
        for (groups, identities) in [(2, 2), (3, 3), (2, 3)] {
            let chat = prepare(groups).await.unwrap();
            assert!(prepare(2).await.unwrap_err().to_string().contains("another simulation"));
            let of_first_group = chat.accounts[0].identity;
            assert_eq!(*first.get_or_insert(of_first_group), of_first_group);
            assert_eq!((chat.groups, directory.list().await.unwrap().len()), (groups, identities));
        }
        directory.revoke(first.unwrap()).await.unwrap();
        assert!(format!("{:?}", prepare(2).await.unwrap_err()).contains("simulate.identities"));
    }

    #[test]
    fn what_was_not_acknowledged_is_said_again_on_the_next_connection() {
        let chat = chat();
        let (first, second) = (chat.next(0, 1).unwrap(), chat.next(0, 1).unwrap());
        assert!(chat.next(0, 1).is_none());
        chat.acked(0, ack(&first));
        let again = chat.next(0, 3).unwrap();
        assert_eq!(again.id, second.id);
        chat.arrived(1, &second);
        chat.arrived(1, &again);
        chat.arrived(1, &first);
        let tally = chat.tally();
        assert_eq!((tally.sent, tally.duplicates, tally.misordered), (3, 1, 1));
    }
}
