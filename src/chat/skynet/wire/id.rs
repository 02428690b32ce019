//! Who and what: the protocol's 64-bit identifiers (spec 1.5).
//!
//! Accounts, sessions, channels and files have random identifiers of any sign; 0 means none. Messages have one counter for
//! all channels, from 1 on; the temporary ids of clients are whatever the client likes.

use std::fmt;

use crate::crypto::random;
use crate::log::{LogId, Who};

macro_rules! ids {
    ($($(#[$doc:meta])* $type:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $type(pub i64);

        impl $type {
            /// None, global, or the server itself.
            pub const NONE: Self = Self(0);

            /// Whether it is nobody's and nothing's.
            #[must_use]
            pub const fn is_none(self) -> bool {
                self.0 == 0
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), self.0)
            }
        }
    )* };
}

macro_rules! random_ids {
    ($($type:ident)*) => { $(
        impl $type {
            /// One that nobody can guess, and that nothing has yet but for chance.
            #[must_use]
            pub fn random() -> Self {
                loop {
                    let id = Self(random::u64().cast_signed());
                    if !id.is_none() {
                        return id;
                    }
                }
            }
        }
    )* };
}

ids! {
    /// A user.
    AccountId;
    /// A device that is logged in.
    SessionId;
    /// A container of messages.
    ChannelId;
    /// A message, counted over all channels; or what a client calls it before it has a number.
    MessageId;
    /// A file beside the messages.
    FileId;
}
random_ids! { AccountId SessionId ChannelId FileId }

impl AccountId {
    /// How it appears in today's log.
    #[must_use]
    pub fn log_id(self) -> LogId {
        LogId::of(Who::Account(&self.0.to_le_bytes()))
    }
}
