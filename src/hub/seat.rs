//! A connection's place in its group.
//!
//! The session holds the [`Seat`], the actor the matching `Line`. Payloads come through the outbox, whose bound is the
//! group's: it sends no more than what the seat gave back ([`Outbox::written`]). Dropping the seat is the one way to leave,
//! and happens exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::actor::Post;
use crate::group::limits::{LINE_PAYLOADS_MAX, OUTBOX_COST, OUTBOX_PAYLOADS_MAX, cost};
use crate::group::{ConnectionId, Farewell, Input, Request};
use crate::wire::d2m::ToDevice;

pub(super) type Mailbox = mpsc::Sender<Post>;

/// Unanswered requests above which a device is not listened to: it has to take its answers first. Reflected messages do
/// not count, or a device would go unheard while its backlog flows.
const UNANSWERED_MAX: usize = 512;
/// How long a group waits for a session to let go of its chat server connection.
const LET_GO: Duration = Duration::from_secs(1);
/// Requests of one device that may wait for their way to another node, before it is not listened to.
const FAR_MAILBOX: usize = 16;
const _: () = assert!(UNANSWERED_MAX < LINE_PAYLOADS_MAX, "a device cannot overflow its line by its own requests");

/// What the group has for a connection. When there is nothing more although no close came, the group failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// To be sent.
    Payload(ToDevice),
    /// The last one: the connection is to be ended.
    Close(Farewell),
    /// The last one: the group goes on at another node, where the device finds it when it comes again.
    Moved,
}

/// The group failed: its actor is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupGone;

/// The actor's end of a connection.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) outbox: mpsc::Sender<Outgoing>,
    /// Cancelled when the group ended the connection: its chat server connection has to go at once.
    pub(super) cut: CancellationToken,
    /// Tracks the connection to the chat server.
    pub(super) proxies: TaskTracker,
}

/// The session's end of a connection.
#[derive(Debug)]
pub struct Seat {
    /// What the group has for the device.
    pub outbox: Outbox,
    /// What the device has for the group, and the way to leave.
    pub place: Place,
}

/// The session's receiving half.
#[derive(Debug)]
pub struct Outbox {
    conn: ConnectionId,
    mailbox: Mailbox,
    payloads: mpsc::Receiver<Outgoing>,
    unanswered: Arc<Unanswered>,
    /// Cost of what was written and not given back yet.
    owed: usize,
    /// The first debt is paid at once: it says that the device has its ServerInfo, of which a group elsewhere would not hear if
    /// the way there were lost before the connection ended.
    prompt: bool,
}

/// The session's sending half. Dropping it leaves the group.
#[derive(Debug)]
pub struct Place {
    conn: ConnectionId,
    mailbox: Mailbox,
    unanswered: Arc<Unanswered>,
    /// Cancelled when the group ended this connection.
    pub cut: CancellationToken,
    /// Whatever talks to the chat server for this connection runs in here: the group waits for its end before it seats
    /// or promotes anybody else.
    pub proxies: TaskTracker,
    introduced: bool,
    tasks: TaskTracker,
}

/// Requests of one connection whose answers are not on its socket yet.
#[derive(Debug, Default)]
struct Unanswered {
    count: AtomicUsize,
    fewer: Notify,
}

/// Whether the group answers this request with one payload, unless it ends the connection.
const fn is_answered(request: &Request) -> bool {
    match request {
        Request::Reflect(reflect) => !reflect.flags.ephemeral,
        Request::GetDevicesInfo
        | Request::DropDevice(_)
        | Request::BeginTransaction(_)
        | Request::CommitTransaction => true,
        Request::SetSharedDeviceData(_) | Request::ReflectedAck(_) => false,
    }
}

/// Whether this payload is such an answer.
pub(super) const fn answers(payload: &ToDevice) -> bool {
    matches!(
        payload,
        ToDevice::ReflectAck(_)
            | ToDevice::DevicesInfo(_)
            | ToDevice::DropDeviceAck(_)
            | ToDevice::BeginTransactionAck
            | ToDevice::TransactionRejected(_)
            | ToDevice::CommitTransactionAck
    )
}

pub(super) fn pair(conn: ConnectionId, mailbox: Mailbox, tasks: &TaskTracker) -> (Line, Seat) {
    let (sender, payloads) = mpsc::channel(OUTBOX_PAYLOADS_MAX);
    let (cut, proxies, unanswered) = (CancellationToken::new(), TaskTracker::new(), Arc::<Unanswered>::default());
    let place = Place {
        conn,
        mailbox: mailbox.clone(),
        unanswered: Arc::clone(&unanswered),
        cut: cut.clone(),
        proxies: proxies.clone(),
        introduced: false,
        tasks: tasks.clone(),
    };
    let outbox = Outbox { conn, mailbox, payloads, unanswered, owed: 0, prompt: false };
    (Line { outbox: sender, cut, proxies }, Seat { outbox, place })
}

/// The other end of a seat, when the group is decided elsewhere: what the session says comes out here, and what the group says
/// goes in, as it would at the group itself. Dropped before its end was said, it leaves the session with a group that failed.
#[derive(Debug)]
pub struct FarSeat {
    said: mpsc::Receiver<Post>,
    line: Line,
}

/// What a session says to its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Something the device asks for.
    Request(Request),
    /// Payloads of this cost are on the device's socket: as much more may be sent. The first time also: the device has its
    /// ServerInfo.
    Written(usize),
    /// The last one: the connection is over, its chat server connection too.
    Left {
        /// Whether the device got its ServerInfo.
        introduced: bool,
    },
}

/// A seat whose group is elsewhere, and its other end.
pub(super) fn far_pair(conn: ConnectionId, tasks: &TaskTracker) -> (FarSeat, Seat) {
    let (mailbox, said) = mpsc::channel(FAR_MAILBOX);
    let (line, mut seat) = pair(conn, mailbox, tasks);
    seat.outbox.prompt = true;
    (FarSeat { said, line }, seat)
}

impl FarSeat {
    /// What the session says next; `None` when it is gone. Safe to drop while waiting.
    pub async fn next(&mut self) -> Option<Said> {
        loop {
            match self.said.recv().await? {
                Post::Input(Input::Says(_, request)) => return Some(Said::Request(request)),
                Post::Input(Input::Written(_, cost)) => return Some(Said::Written(cost)),
                Post::Input(Input::Leave { introduced, .. }) => return Some(Said::Left { introduced }),
                // Nobody else knows this mailbox, and a session says nothing else.
                Post::Input(_) | Post::Join(_) | Post::Ask(_) => {}
            }
        }
    }

    /// Passes on what the group says. It says no more than the session has room for; whoever nevertheless does ends the connection.
    ///
    /// # Errors
    /// [`SessionGone`] when nobody will read it.
    pub fn send(&self, payload: ToDevice) -> Result<(), SessionGone> {
        self.line.outbox.try_send(Outgoing::Payload(payload)).map_err(|_| SessionGone)
    }

    /// Ends the connection behind everything that was sent, and returns when the chat server's is closed, or should be.
    pub async fn end(&mut self, last: Outgoing) {
        self.line.end(last).await;
    }
}

/// The session ended, or takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionGone;

impl Line {
    /// The last word, and the end of the chat server's connection; returns whether the session let go of that in time.
    pub(super) async fn end(&self, last: Outgoing) -> bool {
        let _gone = self.outbox.try_send(last);
        self.cut.cancel();
        self.proxies.close();
        // The chat server must see this connection end before it sees the next one, or the next leader.
        tokio::time::timeout(LET_GO, self.proxies.wait()).await.is_ok()
    }
}

impl Outbox {
    /// The next thing to send; `None` when the group failed.
    pub async fn next(&mut self) -> Option<Outgoing> {
        self.payloads.recv().await
    }

    /// The next thing to send, if there is one already.
    pub fn try_next(&mut self) -> Option<Outgoing> {
        self.payloads.try_recv().ok()
    }

    /// A payload was written to the socket: its cost is given back, so that the group can send more. Small debts are
    /// collected, which cannot stall anything, since an outbox is full only when more than that is owed.
    pub async fn written(&mut self, payload: &ToDevice) {
        self.owed = self.owed.saturating_add(cost(payload));
        if self.owed >= OUTBOX_COST / 4 || std::mem::take(&mut self.prompt) {
            let paid = std::mem::take(&mut self.owed);
            let _gone = self.mailbox.send(Post::Input(Input::Written(self.conn, paid))).await;
        }
        if answers(payload) {
            self.unanswered.count.fetch_sub(1, Ordering::Relaxed);
            self.unanswered.fewer.notify_one();
        }
    }
}

impl Place {
    /// Payloads of this cost are on the device's socket: what [`Outbox::written`] says, for a session that is on another node.
    ///
    /// # Errors
    /// [`GroupGone`] when the group failed.
    pub async fn written(&self, cost: usize) -> Result<(), GroupGone> {
        self.mailbox.send(Post::Input(Input::Written(self.conn, cost))).await.map_err(|_| GroupGone)
    }

    /// This connection's id.
    #[must_use]
    pub const fn conn(&self) -> ConnectionId {
        self.conn
    }

    /// Passes on what the device says. Waits while the group has too much to do.
    ///
    /// # Errors
    /// [`GroupGone`] when the group failed.
    pub async fn say(&self, request: Request) -> Result<(), GroupGone> {
        if is_answered(&request) {
            self.unanswered.count.fetch_add(1, Ordering::Relaxed);
        }
        self.mailbox.send(Post::Input(Input::Says(self.conn, request))).await.map_err(|_| GroupGone)
    }

    /// Waits until the device has taken enough of its answers to be listened to again.
    pub async fn listening(&self) {
        while self.unanswered.count.load(Ordering::Relaxed) >= UNANSWERED_MAX {
            self.unanswered.fewer.notified().await;
        }
    }

    /// The ServerInfo reached the socket: the device knows that it is registered.
    pub const fn introduced(&mut self) {
        self.introduced = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A group that never heard of this connection lets the message pass.
        let leave = Post::Input(Input::Leave { conn: self.conn, introduced: self.introduced });
        match self.mailbox.try_send(leave) {
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            // Behind everything this connection said, and a drop cannot wait.
            Err(TrySendError::Full(leave)) => {
                let mailbox = self.mailbox.clone();
                self.tasks.spawn(async move { mailbox.send(leave).await.is_ok() });
            }
        }
    }
}
