//! Listening sockets that were opened by whoever started the process: systemd's socket activation.
//!
//! They outlive the process, so that during a restart connections wait instead of being refused; and ports below 1024 need
//! no privilege of ours. A socket is told apart by its name (`FileDescriptorName=`): `admin` is for the operator, any other
//! for devices.

use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;

/// The variable that names the sockets, in their order, with colons between.
const NAMES: &str = "LISTEN_FDNAMES";
/// The name of the operator's.
const ADMIN: &str = "admin";

/// What was handed over.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For devices.
    pub devices: Option<TcpListener>,
    /// For the operator.
    pub admin: Option<TcpListener>,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSocket {
    /// It does not listen, or not by TCP.
    #[error("socket {number}, which was handed over by whoever started this, is no TCP listener: {source}")]
    NoListener {
        /// Counted from zero.
        number: usize,
        /// What the operating system says.
        source: io::Error,
    },
    /// One more than there are doors.
    #[error(
        "more than one socket for {0} was handed over; a socket named `admin` is for the operator, any other for devices"
    )]
    Another(&'static str),
}

impl Inherited {
    /// Takes them, and the variables that tell of them out of the environment: to be called once, before there are
    /// threads. Without any, there is nothing to take.
    ///
    /// # Errors
    /// [`BadSocket`].
    pub fn take() -> Result<Self, BadSocket> {
        let names = std::env::var(NAMES).unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = ListenFd::from_env();
        let mut inherited = Self::default();
        for number in 0..sockets.len() {
            let socket = sockets.take_tcp_listener(number);
            let Some(socket) = socket.map_err(|source| BadSocket::NoListener { number, source })? else { continue };
            let (place, whose) = match names.next() {
                Some(ADMIN) => (&mut inherited.admin, "the operator"),
                _ => (&mut inherited.devices, "devices"),
            };
            if place.replace(socket).is_some() {
                return Err(BadSocket::Another(whose));
            }
        }
        Ok(inherited)
    }
}
