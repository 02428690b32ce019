//! What a connection may say at which point (spec 2.1). Whatever else it says ends it, without an answer.

use crate::chat::skynet::wire::{ConnectionState, FromClient, Release};

/// A kind of client that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// As the client calls itself, as `android/de.vectordata.skynet`.
    pub application: String,
    /// The newest version.
    pub latest: Release,
    /// Older ones are told that there is a newer one.
    pub recommended_from: i32,
    /// Older ones are not served.
    pub required_from: i32,
    /// Whether a search is followed by the public profiles of those it found. Not for clients that cannot stand messages outside
    /// of channels.
    pub forward_profiles: bool,
}

impl Platform {
    /// What to think of a client of this kind.
    #[must_use]
    pub fn judge(&self, protocol_matches: bool, version_code: i32) -> ConnectionState {
        if !protocol_matches || version_code < self.required_from {
            ConnectionState::MustUpgrade(self.latest.clone())
        } else if version_code < self.recommended_from {
            ConnectionState::CanUpgrade(self.latest.clone())
        } else {
            ConnectionState::Valid
        }
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Nothing was said.
    New,
    /// A handshake was answered; the client is good enough.
    Initialised,
    /// A handshake was answered; the client is too old.
    Outdated,
    /// A session is bound to it.
    Authenticated,
}

impl Line {
    /// Whether this may be said now.
    #[must_use]
    pub const fn accepts(self, packet: &FromClient) -> bool {
        let early = match packet {
            FromClient::ConnectionHandshake { .. } => return !matches!(self, Self::Authenticated),
            FromClient::CreateAccount { .. } | FromClient::CreateSession { .. } | FromClient::RestoreSession { .. } => {
                true
            }
            FromClient::DeleteAccount { .. }
            | FromClient::CreateChannel { .. }
            | FromClient::RequestMessages { .. }
            | FromClient::SearchAccount { .. }
            | FromClient::DeviceListRequest {}
            | FromClient::SetClientState { .. }
            | FromClient::Message(_) => false,
        };
        match self {
            Self::New | Self::Outdated => false,
            Self::Initialised => early,
            Self::Authenticated => !early,
        }
    }

    /// After a handshake that was answered like this.
    #[must_use]
    pub const fn greeted(state: &ConnectionState) -> Self {
        match state {
            ConnectionState::Valid | ConnectionState::CanUpgrade(_) => Self::Initialised,
            ConnectionState::MustUpgrade(_) => Self::Outdated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::skynet::wire::{OnlineState, SessionId};
    use crate::crypto::Secret;

    #[test]
    fn each_state_accepts_what_the_table_says() {
        let handshake =
            FromClient::ConnectionHandshake { protocol_version: 3, application: String::new(), version_code: 0 };
        let early = [
            FromClient::CreateAccount { name: String::new(), key_hash: Secret::new([0; 32]) },
            FromClient::CreateSession {
                name: String::new(),
                key_hash: Secret::new([0; 32]),
                push_token: String::new(),
            },
            FromClient::RestoreSession {
                session: SessionId(1),
                token: Secret::new([0; 32]),
                last_message: Default::default(),
                channels: Vec::new(),
            },
        ];
        let late = [
            FromClient::DeviceListRequest {},
            FromClient::SetClientState { online: OnlineState::ACTIVE, doing: Default::default() },
            FromClient::DeleteAccount { key_hash: Secret::new([0; 32]) },
        ];
        for (line, again, before, after) in [
            (Line::New, true, false, false),
            (Line::Initialised, true, true, false),
            (Line::Outdated, true, false, false),
            (Line::Authenticated, false, false, true),
        ] {
            assert_eq!(line.accepts(&handshake), again, "{line:?}");
            assert!(early.iter().all(|packet| line.accepts(packet) == before), "{line:?}");
            assert!(late.iter().all(|packet| line.accepts(packet) == after), "{line:?}");
        }
    }

    #[test]
    fn versions_are_judged_by_their_platform() {
        let latest = Release { code: 60, name: "1.0".into() };
        let platform = Platform {
            application: "x".into(),
            latest: latest.clone(),
            recommended_from: 60,
            required_from: 50,
            forward_profiles: false,
        };
        assert_eq!(platform.judge(true, 60), ConnectionState::Valid);
        assert_eq!(platform.judge(true, 59), ConnectionState::CanUpgrade(latest.clone()));
        assert_eq!(platform.judge(true, 49), ConnectionState::MustUpgrade(latest.clone()));
        assert_eq!(platform.judge(false, 60), ConnectionState::MustUpgrade(latest));
        assert_eq!(Line::greeted(&platform.judge(true, 0)), Line::Outdated);
        assert_eq!(Line::greeted(&platform.judge(true, 50)), Line::Initialised);
    }
}
