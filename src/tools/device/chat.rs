//! The chat server, as seen by one device: logged in through the proxy, messages sealed for and opened from those whose
//! keys are in the directory.

use std::path::Path;
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};

use crate::chat::csp::serve::KEY_FILE;
use crate::chat::csp::store::Directory;
use crate::chat::csp::wire::message::Message;
use crate::chat::csp::wire::{CspDeviceId, FromClient, Identity, MessageFlags, MessageId, WireIdentity};
use crate::client::ProxyStream;
use crate::client::csp::{CspClient, CspError, CspReceiver, CspSender, Draft, EndToEnd, Event, Login};
use crate::crypto::boxes::{self, Public};
use crate::crypto::{Secret, random};
use crate::tools::keyfile;
use crate::wire::d2m::DeviceId;

/// How long a login may take.
const LOGIN_PATIENCE: Duration = Duration::from_secs(20);
/// The type of a text message; other types are not read here.
const TEXT: u8 = 0x01;

/// Who logs in where, and whose keys are known.
pub(super) struct Account {
    identity: Identity,
    key: Secret<32>,
    server_key: Public,
    directory: Directory,
}

/// A connection to the chat server.
pub(super) struct Line {
    sender: CspSender<ProxyStream>,
    receiver: CspReceiver<ProxyStream>,
    active: bool,
}

impl Account {
    /// An identity from its file; the server's key and the directory from the server's data directory.
    pub(super) async fn open(file: &Path, data: &Path) -> Result<Self> {
        let (identity, key) = keyfile::read_identity(file)?;
        let server = keyfile::load_secret(&data.join(KEY_FILE)).wrap_err("the chat server's key is needed")?;
        let directory = Directory::open(data).await.into_diagnostic()?;
        Ok(Self { identity, key, server_key: boxes::public(&server), directory })
    }

    pub(super) async fn login(&self, device: DeviceId, stream: ProxyStream) -> Result<(Line, String)> {
        let login = Login::new(self.identity, self.key.clone(), self.server_key).device(CspDeviceId(device.0));
        let client = tokio::time::timeout(LOGIN_PATIENCE, CspClient::login(stream, login)).await;
        let client = client.map_err(|_| miette!("the chat server took too long"))?.into_diagnostic()?;
        let told = format!("logged in as {}, {} messages queued", self.identity, client.login_ack().queued);
        let (sender, receiver) = client.split();
        Ok((Line { sender, receiver, active: false }, told))
    }

    /// Seals a text for somebody in the directory.
    pub(super) async fn seal(&self, to: &str, text: &str) -> Result<Message> {
        let to: Identity = to.parse().map_err(|_| miette!("{to} is not an identity"))?;
        let public = self.public_key(to).await?.ok_or_else(|| miette!("{to} is not in the directory"))?;
        let draft = Draft {
            sender: self.identity,
            receiver: to,
            id: MessageId(random::u64()),
            created_at_s: 0,
            flags: MessageFlags::SEND_PUSH,
            nickname: "",
            metadata: None,
            // A type, the text, and padding whose every byte says how long it is.
            content: &[&[TEXT][..], text.as_bytes(), &[1]].concat(),
        };
        Message::seal(&draft, &self.key, &public).into_diagnostic()
    }

    async fn public_key(&self, of: Identity) -> Result<Option<Public>> {
        Ok(self.directory.lookup(of).await.into_diagnostic()?.map(|entry| entry.public_key))
    }

    /// One line about something the chat server said.
    pub(super) async fn describe(&self, event: &Event) -> Result<String> {
        Ok(match event {
            Event::Message(message) => {
                let text = self
                    .text(message)
                    .await?
                    .map_or_else(|| format!("({} bytes)", message.message_box.len()), |text| format!("{text:?}"));
                format!("message  from={}  id={:016x}  {text}", shown(message.sender), message.id.0)
            }
            Event::MessageAck(ack) => format!("message-ack  to={}  id={:016x}", shown(ack.identity), ack.id.0),
            Event::CloseError { can_reconnect, message } => {
                format!("close-error  can-reconnect={can_reconnect}  {message:?}")
            }
            Event::Alert(text) => format!("alert  {text:?}"),
            Event::EchoRequest(bytes) | Event::EchoResponse(bytes) => {
                format!("{}  bytes={}", event.kind(), hex::encode(bytes))
            }
            Event::QueueSendComplete | Event::DeviceCookieChangeIndication | Event::Unknown(_) => {
                event.kind().to_string()
            }
        })
    }

    /// The text of a message, if it is one and from somebody whose key is known.
    async fn text(&self, message: &Message) -> Result<Option<String>> {
        let Some(sender) = message.sender.valid() else { return Ok(None) };
        let Some(public) = self.public_key(sender).await? else { return Ok(None) };
        let plain = EndToEnd::new(&self.key, &public).ok().and_then(|keys| message.open(&keys).ok());
        Ok(plain.as_deref().and_then(read_text))
    }
}

fn read_text(plain: &[u8]) -> Option<String> {
    let (&padding, rest) = plain.split_last()?;
    let padding = usize::from(padding).checked_sub(1)?;
    let content = rest.get(..rest.len().checked_sub(padding)?)?;
    match content.split_first()? {
        (&TEXT, text) => String::from_utf8(text.to_vec()).ok(),
        _ => None,
    }
}

/// An identity as it is written, whatever a server sent.
fn shown(identity: WireIdentity) -> String {
    identity.0.escape_ascii().to_string()
}

impl Line {
    /// What the chat server says next. May be cancelled without losing anything.
    pub(super) async fn next(&mut self) -> Result<Event, CspError> {
        self.receiver.next_event().await
    }

    /// Asks for messages, as the leader does, once.
    pub(super) async fn unblock(&mut self) -> Result<bool, CspError> {
        if !std::mem::replace(&mut self.active, true) {
            self.sender.unblock().await?;
            return Ok(true);
        }
        Ok(false)
    }

    pub(super) async fn send(&mut self, message: Message) -> Result<(), CspError> {
        self.sender.send_message(message).await
    }

    /// What a client owes for an event: an acknowledgement, an echo.
    pub(super) async fn answer(&mut self, event: &Event) -> Result<(), CspError> {
        match event {
            Event::Message(message) if !message.flags.has(MessageFlags::NO_ACK) => self.sender.ack(message).await,
            Event::EchoRequest(bytes) => self.sender.send(&FromClient::EchoResponse(bytes.clone())).await,
            Event::Message(_)
            | Event::EchoResponse(_)
            | Event::MessageAck(_)
            | Event::QueueSendComplete
            | Event::DeviceCookieChangeIndication
            | Event::CloseError { .. }
            | Event::Alert(_)
            | Event::Unknown(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_without_its_padding() {
        assert_eq!(read_text(b"\x01hello\x01").as_deref(), Some("hello"));
        assert_eq!(read_text(b"\x01hi\x03\x03\x03").as_deref(), Some("hi"));
        for not_a_text in [&b""[..], b"\x01", b"\x01a\x00", b"\x01a\x09", b"\x02a\x01", b"\x01\xff\x01"] {
            assert_eq!(read_text(not_a_text), None);
        }
    }
}
