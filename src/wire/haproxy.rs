//! The PROXY protocol's header, versions 1 and 2: what a TCP proxy says about a connection before anything else is said.
//!
//! Behind the header stand bytes that are not ours to read, a TLS handshake for instance. So [`decode`] never asks for a
//! byte that may not belong to the header, and whoever reads needs no buffer to give anything back. It is strict: the proxy
//! is a program of the operator's, and what it does not write as specified was not written by it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::bytes::{Reader, Truncated};

/// Longest header of version 1, its line end included, in bytes.
pub const V1_MAX: usize = 107;
/// Longest header of version 2, in bytes. The length field would allow 64 KiB; addresses need 36, the rest is for
/// extensions (a client's certificate is the largest), which are skipped.
pub const V2_MAX: usize = V2_HEAD + 4_096;

/// How version 2 begins: bytes that no other protocol begins with.
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const V2_HEAD: usize = 16;
const V1_START: &[u8; 6] = b"PROXY ";

/// What is known after some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// At least so many more bytes belong to the header; never zero.
    Read(usize),
    /// The header is whole.
    Done(Said),
}

/// What the proxy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// The connection is a client's, who comes from there.
    From(SocketAddr),
    /// The connection is the proxy's own (a health check), or it does not know whose.
    Nothing,
}

/// Why something is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Neither version begins like this.
    #[error("not a PROXY header")]
    Start,
    /// It does not end where it has to.
    #[error("too long")]
    TooLong,
    /// Version 1: no line as specified.
    #[error("version 1: {0}")]
    Line(&'static str),
    /// Version 2: a version, command, family or transport that is not specified.
    #[error("version 2: unknown {0}")]
    Unknown(&'static str),
    /// Version 2: shorter than the addresses it announces.
    #[error("version 2: no room for the addresses")]
    Addresses,
}

impl From<Truncated> for BadHeader {
    fn from(_: Truncated) -> Self {
        Self::Addresses
    }
}

/// Looks at the first bytes of a connection: all that were read, and none that [`Step::Read`] did not ask for.
///
/// # Errors
/// [`BadHeader`] as soon as it is clear that this is none.
pub fn decode(bytes: &[u8]) -> Result<Step, BadHeader> {
    let agrees = |start: &[u8]| bytes.iter().zip(start).all(|(a, b)| a == b);
    if agrees(&V2_SIGNATURE) && !bytes.is_empty() {
        v2(bytes)
    } else if agrees(V1_START) {
        v1(bytes)
    } else {
        Err(BadHeader::Start)
    }
}

fn v1(bytes: &[u8]) -> Result<Step, BadHeader> {
    /// The shortest is `PROXY UNKNOWN` and the line's end.
    const SHORTEST: usize = 15;
    if bytes.len() > V1_MAX {
        return Err(BadHeader::TooLong);
    }
    let Some(line) = bytes.strip_suffix(b"\r\n") else {
        let (said, last) = bytes.split_last().map_or((bytes, 0), |(last, said)| (said, *last));
        if last == b'\n' || said.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            return Err(BadHeader::Line("a line ends with CR and LF"));
        }
        let more = SHORTEST.saturating_sub(bytes.len()).max(if last == b'\r' { 1 } else { 2 });
        return if bytes.len() + more > V1_MAX { Err(BadHeader::TooLong) } else { Ok(Step::Read(more)) };
    };
    let line = std::str::from_utf8(line).map_err(|_| BadHeader::Line("not ASCII"))?;
    let mut words = line.split(' ').skip(1);
    let protocol = words.next();
    if protocol == Some("UNKNOWN") {
        return Ok(Step::Done(Said::Nothing));
    }
    let (Some(source), Some(destination), Some(source_port), Some(destination_port), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BadHeader::Line("not two addresses and two ports"));
    };
    let address = |text: &str| match protocol {
        Some("TCP4") => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| BadHeader::Line("not an IPv4 address")),
        Some("TCP6") => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| BadHeader::Line("not an IPv6 address")),
        _ => Err(BadHeader::Line("not TCP4, TCP6 or UNKNOWN")),
    };
    let from = SocketAddr::new(address(source)?, port(source_port)?);
    address(destination)?;
    port(destination_port)?;
    Ok(Step::Done(Said::From(from)))
}

fn port(text: &str) -> Result<u16, BadHeader> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain).ok_or(BadHeader::Line("not a port"))
}

fn v2(bytes: &[u8]) -> Result<Step, BadHeader> {
    /// Transport and family, each pair that is specified.
    const TCP_4: u8 = 0x11;
    const TCP_6: u8 = 0x21;
    let Some((head, rest)) = bytes.split_first_chunk::<V2_HEAD>() else {
        return Ok(Step::Read(V2_HEAD - bytes.len()));
    };
    let &[.., version_command, family, high, low] = head;
    if version_command >> 4 != 2 {
        return Err(BadHeader::Unknown("version"));
    }
    let local = match version_command & 0x0f {
        0 => true,
        1 => false,
        _ => return Err(BadHeader::Unknown("command")),
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if V2_HEAD + len > V2_MAX || rest.len() > len {
        return Err(BadHeader::TooLong);
    }
    // Unspecified; IPv4, IPv6 and Unix, each as stream and as datagram.
    if !matches!(family, 0x00 | TCP_4 | 0x12 | TCP_6 | 0x22 | 0x31 | 0x32) {
        return Err(BadHeader::Unknown("family or transport"));
    }
    if rest.len() < len {
        return Ok(Step::Read(len - rest.len()));
    }
    let mut r = Reader::new(rest);
    let said = match family {
        _ if local => Said::Nothing,
        TCP_4 => {
            let (source, _destination) = (r.array::<4>()?, r.array::<4>()?);
            let (port, _destination) = (r.array()?, r.array::<2>()?);
            Said::From((source, u16::from_be_bytes(port)).into())
        }
        TCP_6 => {
            let (source, _destination) = (r.array::<16>()?, r.array::<16>()?);
            let (port, _destination) = (r.array()?, r.array::<2>()?);
            Said::From((source, u16::from_be_bytes(port)).into())
        }
        _ => Said::Nothing,
    };
    Ok(Step::Done(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as a connection does: what is asked for and nothing else. Returns what is left, too.
    fn read(mut bytes: &[u8]) -> Result<(Said, &[u8]), Option<BadHeader>> {
        let mut read = Vec::new();
        loop {
            match decode(&read).map_err(Some)? {
                Step::Done(said) => return Ok((said, bytes)),
                Step::Read(more) => {
                    assert!(more > 0);
                    let (next, rest) = bytes.split_at_checked(more).ok_or(None)?;
                    read.extend_from_slice(next);
                    bytes = rest;
                }
            }
        }
    }

    fn from(address: &str) -> Said {
        Said::From(address.parse().unwrap())
    }

    fn v2(head: &str, body: &str) -> Vec<u8> {
        [&V2_SIGNATURE[..], &hex::decode(head).unwrap(), &hex::decode(body).unwrap()].concat()
    }

    #[test]
    fn version_1_is_read_to_its_end_and_not_further() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_MAX - 16));
        let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let cases = [
            ("PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n", from("192.0.2.1:56324")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", from("255.255.255.255:65535")),
            ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", from("0.0.0.0:0")),
            ("PROXY TCP6 2001:db8::1 ::1 56324 443\r\n", from("[2001:db8::1]:56324")),
            (&format!("PROXY TCP6 {full} {full} 65535 65535\r\n"), from(&format!("[{full}]:65535"))),
            ("PROXY UNKNOWN\r\n", Said::Nothing),
            ("PROXY UNKNOWN whatever stands here\r\n", Said::Nothing),
            (&longest, Said::Nothing),
        ];
        for (header, expected) in cases {
            for after in ["", "\r\n", "GET / HTTP/1.1\r\n", "\x16\x03\x01"] {
                let bytes = format!("{header}{after}");
                assert_eq!(read(bytes.as_bytes()), Ok((expected, after.as_bytes())), "{bytes:?}");
            }
        }
    }

    #[test]
    fn version_2_is_read_to_its_end_and_not_further() {
        // Source and destination, both ports.
        let tcp4 = "c0000201 c6336407 dc04 01bb".replace(' ', "");
        let tcp6 = "20010db8000000000000000000000001 00000000000000000000000000000001 dc04 01bb".replace(' ', "");
        // An extension: type, length, value.
        let authority = "02 0003 61622e".replace(' ', "");
        let cases = [
            (v2("2111000c", &tcp4), from("192.0.2.1:56324")),
            (v2("21110012", &(tcp4.clone() + &authority)), from("192.0.2.1:56324")),
            (v2("21210024", &tcp6), from("[2001:db8::1]:56324")),
            (v2("20000000", ""), Said::Nothing),
            (v2("2011000c", &tcp4), Said::Nothing),
            (v2("21000000", ""), Said::Nothing),
            (v2("2112000c", &tcp4), Said::Nothing),
            (v2("213100d8", &"2f".repeat(216)), Said::Nothing),
            (v2("20001000", &"00".repeat(4_096)), Said::Nothing),
        ];
        for (header, expected) in cases {
            for after in [&b""[..], b"\x16\x03\x01"] {
                let bytes = [&header, after].concat();
                assert_eq!(read(&bytes), Ok((expected, after)), "{bytes:02x?}");
            }
        }
    }

    #[test]
    fn a_header_that_is_cut_off_wants_more_at_every_length() {
        let v1 = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n".to_vec();
        let v2 = v2("2111000c", "c0000201c6336407dc0401bb");
        for header in [v1, v2] {
            for len in 0..header.len() {
                assert_eq!(read(&header[..len]), Err(None), "{:02x?}", &header[..len]);
                assert!(matches!(decode(&header[..len]), Ok(Step::Read(more)) if len + more <= header.len()));
            }
        }
    }

    #[test]
    fn each_kind_of_nonsense_has_its_name() {
        let line = |text: &str| text.as_bytes().to_vec();
        let cases = [
            (line("GET / HTTP/1.1\r\n"), BadHeader::Start),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00".to_vec(), BadHeader::Start),
            (line("PROXY\tTCP4 1.1.1.1 1.1.1.1 1 1\r\n"), BadHeader::Start),
            (line("proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n"), BadHeader::Start),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n"), BadHeader::Line("a line ends with CR and LF")),
            (line("PROXY TCP4 1.1.1.1\r 1.1.1.1 1 1\r\n"), BadHeader::Line("a line ends with CR and LF")),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n"), BadHeader::Line("not two addresses and two ports")),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n"), BadHeader::Line("not two addresses and two ports")),
            (line("PROXY TCP4  1.1.1.1 1.1.1.1 1\r\n"), BadHeader::Line("not an IPv4 address")),
            (line("PROXY TCP4 ::1 1.1.1.1 1 1\r\n"), BadHeader::Line("not an IPv4 address")),
            (line("PROXY TCP4 01.1.1.1 1.1.1.1 1 1\r\n"), BadHeader::Line("not an IPv4 address")),
            (line("PROXY TCP6 1.1.1.1 ::1 1 1\r\n"), BadHeader::Line("not an IPv6 address")),
            (line("PROXY TCP4 1.1.1.1 nobody 1 1\r\n"), BadHeader::Line("not an IPv4 address")),
            (line("PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n"), BadHeader::Line("not TCP4, TCP6 or UNKNOWN")),
            (line("PROXY UNKNOWNS\r\n"), BadHeader::Line("not two addresses and two ports")),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n"), BadHeader::Line("not a port")),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n"), BadHeader::Line("not a port")),
            (line("PROXY TCP4 1.1.1.1 1.1.1.1 1 01\r\n"), BadHeader::Line("not a port")),
            (b"PROXY \xff\xff\xff\xff\xff\xff\xff\r\n".to_vec(), BadHeader::Line("not ASCII")),
            (line(&format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_MAX - 15))), BadHeader::TooLong),
            (v2("1111000c", "c0000201c6336407dc0401bb"), BadHeader::Unknown("version")),
            (v2("2211000c", "c0000201c6336407dc0401bb"), BadHeader::Unknown("command")),
            (v2("2141000c", "c0000201c6336407dc0401bb"), BadHeader::Unknown("family or transport")),
            (v2("2113000c", "c0000201c6336407dc0401bb"), BadHeader::Unknown("family or transport")),
            (v2("2111000b", "c0000201c6336407dc0401"), BadHeader::Addresses),
            (v2("2121000c", "c0000201c6336407dc0401bb"), BadHeader::Addresses),
            (v2("20001001", ""), BadHeader::TooLong),
        ];
        for (bytes, expected) in cases {
            assert_eq!(read(&bytes), Err(Some(expected)), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
}
