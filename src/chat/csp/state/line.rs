//! What one connection decides for itself, without asking anybody: answering echoes, and when silence is too long.

use std::time::Duration;

use super::Ending;
use crate::chat::csp::wire::{CspDeviceId, FromClient, Message, MessageAck, PushToken, ToClient, Unknown};
use crate::time::Now;

/// How long a connection may be silent when it does not say (spec 6).
pub const IDLE_DEFAULT: Duration = Duration::from_secs(300);
/// The idle time-outs a client may ask for, in seconds.
pub const IDLE_S: std::ops::RangeInclusive<u16> = 30..=600;

/// What has to be decided together with other connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// This arrived.
    MessageAck(MessageAck),
    /// Messages are to come here.
    Unblock,
    /// The change of the device cookie has been noticed.
    ClearDeviceCookieChange,
    /// Where to wake this device.
    SetPushToken {
        /// For calls.
        voip: bool,
        /// Where.
        token: PushToken,
    },
    /// Whom not to wake any more.
    DeletePushTokens(Vec<CspDeviceId>),
}

/// What a frame leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum LineStep {
    /// Say this, ahead of messages.
    Reply(ToClient),
    /// Deliver this.
    Message(Message),
    /// Others have to be asked.
    Route(Request),
    /// The connection ends.
    End(Ending),
    /// Nothing; it has been heard.
    Heard,
    /// Nothing; it was not understood.
    Ignored(Unknown),
}

/// One connection after its login.
#[derive(Debug)]
pub struct Line {
    idle: Duration,
    heard: Duration,
}

impl Line {
    /// The login has just been heard.
    #[must_use]
    pub const fn new(now: Now) -> Self {
        Self { idle: IDLE_DEFAULT, heard: now.monotonic }
    }

    /// When to call [`Self::tick`], on the monotonic clock.
    #[must_use]
    pub const fn next_deadline(&self) -> Duration {
        self.heard.saturating_add(self.idle)
    }

    /// Whether silence has been too long. Calling early does nothing.
    #[must_use]
    pub fn tick(&self, now: Now) -> Option<Ending> {
        (now.monotonic >= self.next_deadline()).then_some(Ending::Idle)
    }

    /// Decides about a frame. Any complete one breaks the silence.
    pub fn handle(&mut self, now: Now, payload: FromClient) -> LineStep {
        self.heard = now.monotonic;
        match payload {
            FromClient::EchoRequest(data) => LineStep::Reply(ToClient::EchoResponse(data)),
            FromClient::EchoResponse(_) => LineStep::Heard,
            FromClient::Message(message) => LineStep::Message(message),
            FromClient::MessageAck(ack) => LineStep::Route(Request::MessageAck(ack)),
            FromClient::UnblockIncomingMessages => LineStep::Route(Request::Unblock),
            FromClient::SetPushToken(token) => LineStep::Route(Request::SetPushToken { voip: false, token }),
            FromClient::SetVoipPushToken(token) => LineStep::Route(Request::SetPushToken { voip: true, token }),
            FromClient::DeletePushTokens(devices) => LineStep::Route(Request::DeletePushTokens(devices)),
            FromClient::SetIdleTimeout(seconds) if IDLE_S.contains(&seconds) => {
                self.idle = Duration::from_secs(seconds.into());
                LineStep::Heard
            }
            FromClient::SetIdleTimeout(seconds) => LineStep::End(Ending::IdleTimeoutOutOfRange(seconds)),
            FromClient::ClearDeviceCookieChangeIndication => LineStep::Route(Request::ClearDeviceCookieChange),
            FromClient::Unknown(unknown) => LineStep::Ignored(unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Now = Now { monotonic: Duration::from_secs(100), wall_ms: 0 };

    fn later(seconds: u64) -> Now {
        START.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn csp_6_silence_ends_after_300_s_and_any_frame_breaks_it() {
        let mut line = Line::new(START);
        assert_eq!(line.tick(later(299)), None);
        assert_eq!(line.handle(later(299), FromClient::EchoResponse(Default::default())), LineStep::Heard);
        assert_eq!(line.tick(later(300)), None);
        assert_eq!(line.tick(later(599)), Some(Ending::Idle));
        assert_eq!(Ending::Idle.farewell(), None, "spec C10");
    }

    #[test]
    fn csp_13_12_idle_timeout_30_is_enforced_29_and_601_end() {
        let mut line = Line::new(START);
        assert_eq!(line.handle(START, FromClient::SetIdleTimeout(30)), LineStep::Heard);
        assert_eq!(line.next_deadline(), later(30).monotonic);
        assert_eq!((line.tick(later(29)), line.tick(later(30))), (None, Some(Ending::Idle)));
        assert_eq!(line.handle(START, FromClient::SetIdleTimeout(600)), LineStep::Heard);
        for seconds in [0, 29, 601, u16::MAX] {
            let step = line.handle(START, FromClient::SetIdleTimeout(seconds));
            assert_eq!(step, LineStep::End(Ending::IdleTimeoutOutOfRange(seconds)));
        }
        let farewell = Ending::IdleTimeoutOutOfRange(29).farewell();
        assert!(matches!(farewell, Some(ToClient::CloseError { can_reconnect: true, .. })));
    }
}
