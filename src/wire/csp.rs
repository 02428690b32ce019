//! The outside of the Chat Server Protocol, as seen by one who holds no keys.
//!
//! From the server a connection is a server-hello of 80 bytes, a login-ack of 32 bytes, then frames: a little-endian
//! u16 and that many bytes. Devices expect each of these alone in one proxy payload, so the mediator has to find the
//! seams (D2M spec, proxying).

use super::delimit::{BadUnit, Cut, Delimiter};

/// Length of the server-hello, in bytes.
pub const SERVER_HELLO: usize = 80;
/// Length of the login-ack, in bytes.
pub const LOGIN_ACK: usize = 32;
/// Length of a frame's length prefix, in bytes.
pub const FRAME_PREFIX: usize = 2;

/// What the server side of a CSP connection is about to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    ServerHello,
    LoginAck,
    Frame,
}

/// Finds the seams in what a CSP server sends.
#[derive(Debug)]
pub struct ServerStream {
    expect: Expect,
    frame_max: usize,
}

impl ServerStream {
    /// A connection from its first byte. `frame_max` is the longest frame body that is let through, in bytes.
    #[must_use]
    pub const fn new(frame_max: usize) -> Self {
        Self { expect: Expect::ServerHello, frame_max }
    }
}

impl Delimiter for ServerStream {
    fn cut(&mut self, pending: &[u8]) -> Result<Cut, BadUnit> {
        let len = match self.expect {
            Expect::ServerHello => SERVER_HELLO,
            Expect::LoginAck => LOGIN_ACK,
            Expect::Frame => {
                let Some(prefix) = pending.first_chunk::<FRAME_PREFIX>() else { return Ok(Cut::More) };
                let len = usize::from(u16::from_le_bytes(*prefix));
                if len > self.frame_max {
                    return Err(BadUnit { len });
                }
                FRAME_PREFIX + len
            }
        };
        if pending.len() < len {
            return Ok(Cut::More);
        }
        self.expect = match self.expect {
            Expect::ServerHello => Expect::LoginAck,
            Expect::LoginAck | Expect::Frame => Expect::Frame,
        };
        Ok(Cut::Unit(len))
    }
}

#[cfg(test)]
mod tests {
    use super::super::delimit::Cutter;
    use super::*;

    fn units(stream: &[u8], step: usize) -> Vec<usize> {
        let mut cutter = Cutter::new(ServerStream::new(65_530));
        let mut out = Vec::new();
        for piece in stream.chunks(step) {
            cutter.buffer().extend_from_slice(piece);
            while let Some(unit) = cutter.next_unit().unwrap() {
                out.push(unit.len());
            }
        }
        out
    }

    #[test]
    fn hello_ack_and_frames_are_found_however_tcp_cuts_them() {
        let mut stream = vec![0xaa; 80 + 32];
        stream.extend_from_slice(&[3, 0, 1, 2, 3]);
        stream.extend_from_slice(&[0, 0]); // an empty frame is a unit of two bytes
        stream.extend_from_slice(&[20, 0, 1]); // incomplete: no unit
        for step in [1, 2, 7, 79, 80, 81, 112, 113, stream.len()] {
            assert_eq!(units(&stream, step), [80, 32, 5, 2], "in steps of {step}");
        }
    }

    #[test]
    fn a_frame_that_fits_no_container_is_refused_by_its_prefix_alone() {
        let mut cutter = Cutter::new(ServerStream::new(65_530));
        cutter.buffer().extend_from_slice(&[0; 112]);
        cutter.buffer().extend_from_slice(&65_531_u16.to_le_bytes());
        assert!(cutter.next_unit().unwrap().is_some());
        assert!(cutter.next_unit().unwrap().is_some());
        assert_eq!(cutter.next_unit(), Err(BadUnit { len: 65_531 }));
    }
}
