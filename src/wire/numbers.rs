//! Numbers on the wire that have names: open, so that an unknown one survives for the log.

/// Makes a `u8` newtype with a constant and a name per number; an unknown number prints as hex.
macro_rules! named_numbers {
    ($(#[$doc:meta])* pub struct $type:ident; $($constant:ident = $number:literal $name:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(pub u8);

        #[allow(missing_docs, reason = "each is the protocol's own name")]
        impl $type {
            $(pub const $constant: Self = Self($number);)*

            /// The protocol's name, if the number has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($name),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "0x{:02x}", self.0),
                }
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}(0x{:02x})", stringify!($type), self.0)
            }
        }
    };
}

pub(crate) use named_numbers;
