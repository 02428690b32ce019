//! The CSP chat server, as a device reaches it: each case over TCP and again through the mediator's proxy.
//!
//! Identities cannot be made from outside. They are made in the server's data directory, kept there and lent to one case at a
//! time; what still waits for one is fetched before the next gets it.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::world::{Case, Done, Finding, Needs, World, case, ensure};
use crate::chat::csp::serve::KEY_FILE;
use crate::chat::csp::store::{Directory, DirectoryState, FILE};
use crate::chat::csp::wire::handshake::AwaitServerHello;
use crate::chat::csp::wire::{
    CspDeviceId, DeviceCookie, FRAME_MAX, FRAME_MIN, Features, FromClient, Identity, Message, MessageAck, MessageFlags,
    MessageId, WireIdentity,
};
use crate::client::csp::{CspClient, CspError, Draft, EndToEnd, Event, Login};
use crate::client::{Device, ProxyStream};
use crate::crypto::boxes::{self, Public};
use crate::crypto::{Secret, random};
use crate::files;
use crate::tools::keyfile;

pub(super) const CASES: &[Case] = &[
    case!("CSP-13.2a", Csp, split_anywhere, "A login may be cut anywhere."),
    case!("CSP-13.3a", Csp, wrong_vouch, "A wrong vouch ends the connection without a word."),
    case!("CSP-13.3b", Csp, unknown_identity, "An unknown identity ends the connection without a word."),
    case!("CSP-13.3c", Csp, wrong_cookie, "A login for another connection ends the connection without a word."),
    case!("CSP-13.4a", Csp, features, "Any feature byte logs in, and so does none."),
    case!("CSP-13.5a", Csp, echo, "Echoes of 0, 8, 12 and 8172 bytes come back verbatim."),
    case!("CSP-13.6a", Csp, online, "A message reaches a receiver who is there."),
    case!("CSP-13.6b", Csp, offline, "A message waits for a receiver who is away."),
    case!("CSP-13.6c", Csp, unknown_receiver, "A message to nobody is acknowledged."),
    case!("CSP-13.6d", Csp, no_queuing, "A message that is not to be queued does not wait."),
    case!("CSP-13.6e", Csp, no_ack, "A message that wants no acknowledgement gets none, and comes once."),
    case!("CSP-13.7a", Csp, ack_names_receiver, "The acknowledgement of a message names its receiver and id."),
    case!("CSP-13.8a", Csp, redelivered, "What was not acknowledged comes again, in order."),
    case!("CSP-13.9a", Csp slow 70, short_lived, "A short-lived message is gone after 60 s."),
    case!(
        "CSP-13.10a",
        Csp,
        blocked,
        "A device of several gets neither messages nor queue-send-complete before it unblocks."
    ),
    case!("CSP-13.10b", Csp, handed_over, "Handing over between two devices loses nothing."),
    case!(
        "CSP-13.11a",
        Csp,
        displaced,
        "The same device id again ends the older with a close-error that begins with Another connection."
    ),
    case!("CSP-13.12a", Csp, idle_too_short, "An idle time-out of 29 s ends the connection."),
    case!("CSP-13.12b", Csp slow 40, idle_enforced, "An idle time-out of 30 s is accepted and enforced."),
    case!("CSP-13.13a", Csp, frame_edges, "A box of 8193 bytes or of 19 ends the connection."),
    case!(
        "CSP-13.14a",
        Csp,
        created_at,
        "The time of creation is the server's when it is 0 or in the future, and stays otherwise."
    ),
    case!("CSP-13.15a", Csp, metadata, "Metadata is left out for a receiver that does not understand it."),
    case!("CSP-13.16a", Csp, cookies, "A changed device cookie is indicated at each login until it is cleared."),
    case!("CSP-13.17a", Csp, malformed, "A malformed message ends its sender and never reaches a receiver."),
    case!("CSP-C2a", Csp, login_ack, "The acknowledgement of a login tells the time and how many messages wait."),
    case!("CSP-C5a", Csp, single_displaces, "A login without a device id displaces all others."),
    case!("CSP-C8a", Csp, of_another, "A message in the name of another ends the connection."),
];

/// Identities of conformance runs, and what keeps two runs from sharing them.
const IDENTITIES_FILE: &str = "conform.identities";
const LOCK_FILE: &str = "conform.lock";
/// How many there are. No case takes more than two.
const IDENTITIES: usize = 8;

/// A chat server, and who may log in to it.
#[derive(Debug)]
pub(super) struct Room {
    address: String,
    server_key: Public,
    free: Mutex<Vec<Person>>,
    /// Two for each permit.
    pairs: Semaphore,
    _lock: files::Held,
}

#[derive(Debug, Clone)]
struct Person {
    identity: Identity,
    key: Secret<32>,
    public: Public,
}

impl Person {
    fn new(identity: Identity, key: Secret<32>) -> Self {
        Self { identity, public: boxes::public(&key), key }
    }
}

impl Room {
    /// Takes the identities, and makes those that are missing.
    pub(super) async fn open(data: &Path, address: String, server_group: &str) -> Result<Self> {
        if !(data.join(FILE).exists() && data.join(KEY_FILE).exists()) {
            return Err(miette!(
                help = "name the server's data directory with --data DIR",
                "{} is not the data directory of a chat server",
                data.display()
            ));
        }
        let server_key = keyfile::load_secret(&data.join(KEY_FILE)).wrap_err("the chat server's key is needed")?;
        let lock = lock(data)?;
        let file = data.join(IDENTITIES_FILE);
        let kept = if file.exists() { keyfile::read_identities(&file)? } else { Vec::new() };
        let missing = IDENTITIES.saturating_sub(kept.len());
        let fresh = std::iter::repeat_with(|| (Identity::random(), Secret::random())).take(missing);
        let people: Vec<_> = kept.into_iter().chain(fresh).map(|(identity, key)| Person::new(identity, key)).collect();
        // First the file: of an identity whose key went nowhere the directory would never be rid.
        keyfile::write_identities(&file, people.iter().map(|person| (person.identity, &person.key)))?;
        let directory = Directory::open(data).await.into_diagnostic()?;
        for person in &people {
            match directory.lookup(person.identity).await.into_diagnostic()? {
                None => directory.add(person.identity, &person.public, server_group).await.into_diagnostic()?,
                Some(entry) if entry.public_key == person.public && entry.state == DirectoryState::Active => {}
                Some(_) => {
                    return Err(miette!(
                        "{} is of no use any more: to begin anew with other identities, remove {}",
                        person.identity,
                        file.display()
                    ));
                }
            }
        }
        directory.close().await;
        let pairs = Semaphore::new(people.len() / 2);
        let server_key = boxes::public(&server_key);
        Ok(Self { address, server_key, free: Mutex::new(people), pairs, _lock: lock })
    }
}

fn lock(data: &Path) -> Result<files::Held> {
    let path = data.join(LOCK_FILE);
    let held = files::hold(&path).into_diagnostic().wrap_err_with(|| format!("{} cannot be used", path.display()))?;
    held.ok_or_else(|| miette!("another conformance run uses the chat identities in {}", data.display()))
}

/// What carries CSP in a case: a socket, or the proxy of a device.
trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}
type Carried = Box<dyn Carrier>;
type Client = CspClient<Carried>;

/// The stream of a device's proxy, and the device: it must not end before.
struct Proxied {
    stream: ProxyStream,
    _device: Device,
}

mod proxied {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Proxied;

    impl AsyncRead for Proxied {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Proxied {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(cx, buf)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }
}

/// Two people, and what a case needs to be one of them.
struct Stay<'a> {
    world: &'a World,
    room: &'a Room,
    people: Vec<Person>,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.room.free.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.people);
    }
}

impl<'a> Stay<'a> {
    async fn begin(world: &'a World) -> Result<(Self, Person, Person), Finding> {
        let room = world.target.room.as_ref().ok_or_else(|| Finding::Untried("no chat server is known".to_owned()))?;
        let closed = |_| Finding::Untried("the chat server was given up".to_owned());
        let permit = room.pairs.acquire().await.map_err(closed)?;
        let people: Vec<Person> = {
            let mut free = room.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.drain(..2).collect()
        };
        let stay = Self { world, room, people, _permit: permit };
        let [a, b] = &stay.people[..] else { return Err(Finding::Untried("there are no two people".to_owned())) };
        let (a, b) = (a.clone(), b.clone());
        for person in [&a, &b] {
            stay.fetch_everything(person).await?;
        }
        Ok((stay, a, b))
    }

    /// Leaves nothing of an earlier case in a mailbox.
    async fn fetch_everything(&self, person: &Person) -> Done {
        let mut client = self.login(self.login_of(person)).await?;
        client.send(&FromClient::ClearDeviceCookieChangeIndication).await?;
        loop {
            match self.event(&mut client, "queue-send-complete").await? {
                Event::Message(message) => client.ack(&message).await?,
                Event::QueueSendComplete => return self.echoes(&mut client, b"done").await,
                _ => {}
            }
        }
    }

    fn login_of(&self, person: &Person) -> Login {
        // Every case without a cookie of its own presents the same.
        Login::new(person.identity, person.key.clone(), self.room.server_key).cookie(DeviceCookie([0x11; 16]))
    }

    async fn carrier(&self) -> Result<Carried, Finding> {
        if self.world.through_proxy {
            let config = self.world.config(random::u64() >> 1);
            // Through the world, so that it is removed afterwards.
            let device = self.world.device(&config).await?;
            return Ok(Box::new(device));
        }
        let socket =
            self.world.soon("a connection to the chat server", TcpStream::connect(&self.room.address)).await??;
        socket.set_nodelay(true)?;
        Ok(Box::new(socket))
    }

    async fn try_login(&self, login: Login) -> Result<Result<Client, CspError>, Finding> {
        let carrier = self.carrier().await?;
        self.world.soon("an answer to the login", CspClient::login(carrier, login)).await
    }

    async fn login(&self, login: Login) -> Result<Client, Finding> {
        Ok(self.try_login(login).await??)
    }

    /// A person with one device, who has seen the queue empty.
    async fn alone(&self, person: &Person) -> Result<Client, Finding> {
        let mut client = self.login(self.login_of(person)).await?;
        let queue = self.queue(&mut client).await?;
        ensure!(queue.is_empty(), "{} messages waited", queue.len());
        Ok(client)
    }

    async fn device(&self, person: &Person, device: u64) -> Result<Client, Finding> {
        self.login(self.login_of(person).device(CspDeviceId(device))).await
    }

    async fn event(&self, client: &mut Client, due: &str) -> Result<Event, Finding> {
        loop {
            match self.world.soon(due, client.next_event()).await? {
                Ok(Event::DeviceCookieChangeIndication) => {}
                Ok(event) => return Ok(event),
                Err(error) => return Err(Finding::Broken(format!("{due} was due: {error}"))),
            }
        }
    }

    /// Messages up to queue-send-complete, none of them acknowledged.
    async fn queue(&self, client: &mut Client) -> Result<Vec<Message>, Finding> {
        let mut messages = Vec::new();
        loop {
            match self.event(client, "queue-send-complete").await? {
                Event::Message(message) => messages.push(message),
                Event::QueueSendComplete => return Ok(messages),
                other => return Err(format!("{} came", other.kind()).into()),
            }
        }
    }

    async fn message(&self, client: &mut Client) -> Result<Message, Finding> {
        match self.event(client, "a message").await? {
            Event::Message(message) => Ok(message),
            other => Err(format!("{} came where a message was due", other.kind()).into()),
        }
    }

    async fn echoes(&self, client: &mut Client, data: &[u8]) -> Done {
        client.echo(data.to_vec()).await?;
        let answer = self.event(client, "an echo").await?;
        ensure!(answer == Event::EchoResponse(Bytes::copy_from_slice(data)), "{} came", answer.kind());
        Ok(())
    }

    /// Sends and sees it acknowledged.
    async fn sends(&self, client: &mut Client, message: Message) -> Done {
        let ack = Event::MessageAck(MessageAck { identity: message.receiver, id: message.id });
        client.send_message(message).await?;
        let answer = self.event(client, "the message's acknowledgement").await?;
        ensure!(answer == ack, "{} came, or it names another receiver or id", answer.kind());
        Ok(())
    }

    async fn ends(&self, client: &mut Client) -> Done {
        loop {
            match self.world.soon("the end of the connection", client.next_event()).await? {
                Err(CspError::Closed(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
                Ok(Event::CloseError { .. } | Event::DeviceCookieChangeIndication | Event::QueueSendComplete) => {}
                Ok(other) => return Err(format!("{} came", other.kind()).into()),
            }
        }
    }

    /// A handshake up to the bytes of the login.
    async fn login_bytes(&self, login: &Login) -> Result<(Carried, Vec<u8>), Finding> {
        let mut carrier = self.carrier().await?;
        let (wait, hello) =
            AwaitServerHello::start(login.server_public_keys.clone(), Secret::random(), random::bytes());
        carrier.write_all(&hello).await?;
        let mut answer = [0; crate::wire::csp::SERVER_HELLO];
        self.world.soon("server-hello", carrier.read_exact(&mut answer)).await??;
        let login = wait.login(&answer, login.identity, &login.client_key, &login.introduction);
        let (_, bytes) = login.map_err(|error| Finding::Broken(error.to_string()))?;
        Ok((carrier, bytes))
    }

    async fn closes_silently(&self, mut carrier: Carried) -> Done {
        let mut rest = Vec::new();
        let _end = self.world.soon("the end of the connection", carrier.read_to_end(&mut rest)).await?;
        ensure!(rest.is_empty(), "{} bytes came first", rest.len());
        Ok(())
    }
}

fn draft(from: &Person, to: &Person, id: u64, change: impl FnOnce(&mut Draft<'_>)) -> Result<Message, Finding> {
    let content = format!("\x01message {id}\x01");
    let mut draft = Draft {
        sender: from.identity,
        receiver: to.identity,
        id: MessageId(id),
        created_at_s: 0,
        flags: MessageFlags::default(),
        nickname: "nick",
        metadata: Some(b"metadata"),
        content: content.as_bytes(),
    };
    change(&mut draft);
    Message::seal(&draft, &from.key, &to.public).map_err(|_| Finding::Broken("a key of low order".to_owned()))
}

fn message(from: &Person, to: &Person, id: u64) -> Result<Message, Finding> {
    draft(from, to, id, |_| {})
}

fn flagged(from: &Person, to: &Person, id: u64, flags: MessageFlags) -> Result<Message, Finding> {
    draft(from, to, id, |draft| draft.flags = flags)
}

fn ids(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(|message| message.id.0).collect()
}

async fn split_anywhere(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    let login = stay.login_of(&a).device(CspDeviceId(1));
    for at in [1, 31, 128, 143, 144, 145, 160] {
        let (mut carrier, bytes) = stay.login_bytes(&login).await?;
        let (head, tail) = bytes.split_at(at);
        carrier.write_all(head).await?;
        carrier.flush().await?;
        tokio::time::sleep(Duration::from_millis(5)).await;
        carrier.write_all(tail).await?;
        let mut ack = [0; crate::wire::csp::LOGIN_ACK];
        let got = stay.world.soon("login-ack", carrier.read_exact(&mut ack)).await?;
        ensure!(got.is_ok(), "cut behind byte {at}: no login-ack");
    }
    Ok(())
}

async fn refused(stay: &Stay<'_>, login: &Login) -> Done {
    let (mut carrier, bytes) = stay.login_bytes(login).await?;
    carrier.write_all(&bytes).await?;
    carrier.flush().await?;
    stay.closes_silently(carrier).await
}

async fn wrong_vouch(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    refused(&stay, &Login { client_key: Secret::random(), ..stay.login_of(&a) }).await
}

async fn unknown_identity(world: &World) -> Done {
    let (stay, ..) = Stay::begin(world).await?;
    let nobody = Person::new(Identity::random(), Secret::random());
    refused(&stay, &stay.login_of(&nobody)).await
}

async fn wrong_cookie(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    let (_other, bytes) = stay.login_bytes(&stay.login_of(&a)).await?;
    let (mut carrier, _) = stay.login_bytes(&stay.login_of(&a)).await?;
    carrier.write_all(&bytes).await?;
    carrier.flush().await?;
    stay.closes_silently(carrier).await
}

async fn features(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    for features in [None, Some(0x00), Some(0x01), Some(0x03), Some(0xff)] {
        let login = stay.login_of(&a).features(features.map(Features));
        if let Err(error) = stay.try_login(login).await? {
            return Err(format!("{features:02x?}: {error}").into());
        }
    }
    stay.login(stay.login_of(&a).legacy("1.0;A;en/CH;;")).await.map(drop)
}

async fn echo(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    let mut client = stay.alone(&a).await?;
    for len in [0, 8, 12, crate::chat::csp::wire::DATA_MAX] {
        stay.echoes(&mut client, &vec![0xa5; len]).await?;
    }
    Ok(())
}

async fn online(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let (mut from, mut to) = (stay.alone(&a).await?, stay.alone(&b).await?);
    let sent = message(&a, &b, 1)?;
    stay.sends(&mut from, sent.clone()).await?;
    let got = stay.message(&mut to).await?;
    let keys = EndToEnd::new(&b.key, &a.public).map_err(|_| "a key of low order".to_owned())?;
    ensure!((got.sender, got.id, got.nonce) == (sent.sender, sent.id, sent.nonce), "its header was changed");
    ensure!(got.open(&keys).is_ok() && got.metadata_box == sent.metadata_box, "its boxes were changed");
    Ok(())
}

async fn offline(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    for id in 1..=5 {
        stay.sends(&mut from, message(&a, &b, id)?).await?;
    }
    let mut to = stay.login(stay.login_of(&b)).await?;
    let queue = ids(&stay.queue(&mut to).await?);
    ensure!(queue == [1, 2, 3, 4, 5], "{queue:?} came of 1 to 5");
    Ok(())
}

async fn unknown_receiver(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    let nobody = Person::new(Identity::random(), Secret::random());
    stay.sends(&mut from, message(&a, &nobody, 1)?).await?;
    stay.sends(&mut from, message(&a, &a, 2)?).await?;
    let receiver = WireIdentity(*b"no-body!");
    stay.sends(&mut from, Message { receiver, ..message(&a, &nobody, 3)? }).await
}

async fn no_queuing(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    stay.sends(&mut from, flagged(&a, &b, 1, MessageFlags::NO_QUEUING)?).await?;
    stay.sends(&mut from, message(&a, &b, 2)?).await?;
    let mut to = stay.login(stay.login_of(&b)).await?;
    let queue = ids(&stay.queue(&mut to).await?);
    ensure!(queue == [2], "{queue:?} waited");
    // Who is there gets it.
    stay.sends(&mut from, flagged(&a, &b, 3, MessageFlags::NO_QUEUING)?).await?;
    ensure!(stay.message(&mut to).await?.id.0 == 3, "another message came");
    Ok(())
}

async fn no_ack(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let (mut from, mut to) = (stay.alone(&a).await?, stay.alone(&b).await?);
    from.send_message(flagged(&a, &b, 1, MessageFlags::NO_ACK)?).await?;
    // The acknowledgement of the next is the next that comes.
    stay.sends(&mut from, message(&a, &b, 2)?).await?;
    for id in [1, 2] {
        let got = stay.message(&mut to).await?;
        ensure!(got.id.0 == id, "message {} came where {id} was due", got.id.0);
    }
    let mut to = stay.login(stay.login_of(&b)).await?;
    let queue = ids(&stay.queue(&mut to).await?);
    ensure!(queue == [2], "{queue:?} came again");
    Ok(())
}

async fn ack_names_receiver(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    stay.sends(&mut from, message(&a, &b, 0x0102_0304_0506_0708)?).await
}

async fn redelivered(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    for id in 1..=4 {
        stay.sends(&mut from, message(&a, &b, id)?).await?;
    }
    let mut to = stay.login(stay.login_of(&b)).await?;
    let queue = stay.queue(&mut to).await?;
    for message in queue.iter().filter(|message| message.id.0 == 2) {
        to.ack(message).await?;
    }
    stay.echoes(&mut to, b"acked").await?;
    drop(to);
    let mut to = stay.login(stay.login_of(&b)).await?;
    let queue = ids(&stay.queue(&mut to).await?);
    ensure!(queue == [1, 3, 4], "{queue:?} came of 1, 3, 4");
    Ok(())
}

async fn short_lived(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    stay.sends(&mut from, flagged(&a, &b, 1, MessageFlags::SHORT_LIVED)?).await?;
    stay.sends(&mut from, message(&a, &b, 2)?).await?;
    tokio::time::sleep(Duration::from_secs(62)).await;
    let mut to = stay.login(stay.login_of(&b)).await?;
    let queue = ids(&stay.queue(&mut to).await?);
    ensure!(queue == [2], "{queue:?} came");
    Ok(())
}

async fn blocked(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    stay.sends(&mut from, message(&a, &b, 1)?).await?;
    let mut to = stay.device(&b, 1).await?;
    stay.echoes(&mut to, b"first").await?;
    stay.sends(&mut from, message(&a, &b, 2)?).await?;
    stay.echoes(&mut to, b"second").await?;
    to.unblock().await?;
    let queue = ids(&stay.queue(&mut to).await?);
    ensure!(queue == [1, 2], "{queue:?} came");
    Ok(())
}

async fn handed_over(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    let (mut one, mut two) = (stay.device(&b, 1).await?, stay.device(&b, 2).await?);
    for id in 1..=4 {
        stay.sends(&mut from, message(&a, &b, id)?).await?;
    }
    one.unblock().await?;
    let first = stay.queue(&mut one).await?;
    for message in first.iter().take(2) {
        one.ack(message).await?;
    }
    stay.echoes(&mut one, b"acked").await?;
    two.unblock().await?;
    let second = ids(&stay.queue(&mut two).await?);
    ensure!(ids(&first) == [1, 2, 3, 4] && second == [3, 4], "{:?} and then {second:?} came", ids(&first));
    stay.echoes(&mut one, b"still here").await
}

/// The older connection is told why it ends.
async fn is_displaced(stay: &Stay<'_>, old: &mut Client) -> Done {
    match stay.event(old, "close-error").await? {
        Event::CloseError { can_reconnect, message } => {
            ensure!(message.starts_with("Another connection"), "the text is {message:?}");
            ensure!(!can_reconnect, "it may reconnect");
            stay.ends(old).await
        }
        other => Err(format!("{} came where close-error was due", other.kind()).into()),
    }
}

async fn displaced(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    let (mut old, mut other) = (stay.device(&a, 1).await?, stay.device(&a, 2).await?);
    let _new = stay.device(&a, 1).await?;
    is_displaced(&stay, &mut old).await?;
    stay.echoes(&mut other, b"not concerned").await
}

async fn single_displaces(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    let mut devices = [stay.device(&a, 1).await?, stay.device(&a, 2).await?];
    let _new = stay.alone(&a).await?;
    for device in &mut devices {
        is_displaced(&stay, device).await?;
    }
    Ok(())
}

async fn idle_too_short(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    let mut client = stay.alone(&a).await?;
    client.set_idle_timeout(29).await?;
    stay.ends(&mut client).await
}

async fn idle_enforced(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    let mut client = stay.alone(&a).await?;
    client.set_idle_timeout(30).await?;
    stay.echoes(&mut client, b"accepted").await?;
    tokio::time::sleep(Duration::from_secs(27)).await;
    let end = tokio::time::timeout(Duration::from_secs(1), client.next_event()).await;
    ensure!(end.is_err(), "it ended too early");
    stay.ends(&mut client).await
}

async fn frame_edges(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    for len in [FRAME_MIN - 1, FRAME_MAX + 1] {
        let mut client = stay.alone(&a).await?;
        let length = u16::try_from(len).unwrap_or_default().to_le_bytes();
        client.send_raw(&length).await?;
        stay.ends(&mut client).await?;
    }
    Ok(())
}

async fn created_at(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let (mut from, mut to) = (stay.alone(&a).await?, stay.alone(&b).await?);
    let now = u32::try_from(world.target.clock.now().wall_ms / 1_000).unwrap_or_default();
    for (id, said, kept) in [(1, 0, false), (2, now.saturating_add(86_400), false), (3, now - 86_400, true)] {
        stay.sends(&mut from, draft(&a, &b, id, |draft| draft.created_at_s = said)?).await?;
        let got = stay.message(&mut to).await?.created_at_s;
        let fits = if kept { got == said } else { got.abs_diff(now) < 1_200 };
        ensure!(fits, "{said} became {got}; it is {now}");
    }
    Ok(())
}

async fn metadata(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    stay.sends(&mut from, message(&a, &b, 1)?).await?;
    for (features, understands) in [(Some(Features(0)), false), (Some(Features(1)), true), (None, false)] {
        let mut to = stay.login(stay.login_of(&b).features(features)).await?;
        let queue = stay.queue(&mut to).await?;
        let told: Vec<bool> = queue.iter().map(|message| !message.metadata_box.is_empty()).collect();
        ensure!(told == [understands], "features {features:?}: messages with metadata: {told:?}");
    }
    Ok(())
}

async fn cookies(world: &World) -> Done {
    let (stay, a, _) = Stay::begin(world).await?;
    let indicated = async |cookie: u8, clear: bool| -> Result<bool, Finding> {
        let mut client = stay.login(stay.login_of(&a).cookie(DeviceCookie([cookie; 16]))).await?;
        let mut seen = false;
        loop {
            match world.soon("queue-send-complete", client.next_event()).await?? {
                Event::DeviceCookieChangeIndication => seen = true,
                Event::QueueSendComplete => break,
                other => return Err(format!("{} came", other.kind()).into()),
            }
        }
        if clear {
            client.send(&FromClient::ClearDeviceCookieChangeIndication).await?;
        }
        stay.echoes(&mut client, b"x").await?;
        Ok(seen)
    };
    // The cookie of the other cases, which is cleared.
    for (cookie, clear, expected) in
        [(0x11, false, false), (0x22, false, true), (0x22, true, true), (0x22, false, false), (0x11, true, true)]
    {
        let seen = indicated(cookie, clear).await?;
        ensure!(seen == expected, "cookie {cookie:02x}: a change was indicated: {seen}");
    }
    Ok(())
}

async fn malformed(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let whole = FromClient::Message(message(&a, &b, 1)?).encode();
    // Too short for its fields, and metadata too short to be a box.
    let cut = whole.get(..100).unwrap_or_default().to_vec();
    let mut short_metadata = whole.to_vec();
    if let Some(length) = short_metadata.get_mut(34..36) {
        length.copy_from_slice(&[3, 0]);
    }
    for container in [cut, short_metadata] {
        let mut from = stay.alone(&a).await?;
        from.send_container(&container).await?;
        stay.ends(&mut from).await?;
    }
    stay.alone(&b).await.map(drop)
}

async fn login_ack(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    for id in 1..=3 {
        stay.sends(&mut from, message(&a, &b, id)?).await?;
    }
    let to = stay.login(stay.login_of(&b)).await?;
    let ack = to.login_ack();
    let off_by = ack.time_ms.abs_diff(world.target.clock.now().wall_ms) / 1_000;
    ensure!(off_by < 1_200, "its clock is off by {off_by} s");
    ensure!(ack.queued == 3, "3 messages wait, it tells {}", ack.queued);
    Ok(())
}

async fn of_another(world: &World) -> Done {
    let (stay, a, b) = Stay::begin(world).await?;
    let mut from = stay.alone(&a).await?;
    from.send_message(Message { sender: b.identity.into(), ..message(&a, &b, 1)? }).await?;
    stay.ends(&mut from).await?;
    stay.alone(&b).await.map(drop)
}

impl World {
    /// A device whose proxy leads to the chat server.
    async fn device(&self, config: &crate::client::DeviceConfig) -> Result<Proxied, Finding> {
        self.sees(config.device_id);
        let mut device = self.soon("an admitted device", Device::connect(&self.target.mediator, config)).await??;
        let stream = device.proxy_stream().ok_or_else(|| "the proxy stream was taken".to_owned())?;
        Ok(Proxied { stream, _device: device })
    }
}

/// What a device of the chat cases is called in the map of results.
pub(super) fn suffix(through_proxy: bool) -> &'static str {
    if through_proxy { "/proxy" } else { "/tcp" }
}
