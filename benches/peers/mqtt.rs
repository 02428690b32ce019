//! As much of MQTT 3.1.1 as a client needs that publishes and receives at QoS 1.

use bytes::{Buf as _, Bytes, BytesMut};

/// What a broker says.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet {
    ConnAck,
    SubAck,
    /// Of the packet with this id.
    PubAck(u16),
    /// To be acknowledged by its id.
    Publish {
        id: u16,
        payload: Bytes,
    },
}

fn packet(kind: u8, body: &[&[u8]]) -> Vec<u8> {
    let mut left: usize = body.iter().map(|part| part.len()).sum();
    let mut out = vec![kind];
    loop {
        let more = if left > 0x7f { 0x80 } else { 0 };
        out.push(u8::try_from(left & 0x7f).unwrap() | more);
        left >>= 7;
        if more == 0 {
            break;
        }
    }
    out.extend(body.concat());
    out
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// With a session that stays.
pub fn connect(client: &str) -> Vec<u8> {
    packet(0x10, &[b"\0\x04MQTT\x04", &[0], &[0, 0], &text(client)])
}

pub fn subscribe(topic: &str) -> Vec<u8> {
    packet(0x82, &[&[0, 1], &text(topic), &[1]])
}

pub fn publish(topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    packet(0x32, &[&text(topic), &id.to_be_bytes(), payload])
}

pub fn puback(id: u16) -> Vec<u8> {
    packet(0x40, &[&id.to_be_bytes()])
}

/// Takes the next whole packet out of what came.
pub fn next(buffer: &mut BytesMut) -> Option<Packet> {
    let kind = *buffer.first()?;
    let (mut len, mut at) = (0, 1);
    loop {
        let byte = *buffer.get(at)?;
        len |= usize::from(byte & 0x7f) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    if buffer.len() < at + len {
        return None;
    }
    let mut body = buffer.split_to(at + len).freeze();
    body.advance(at);
    Some(match kind & 0xf0 {
        0x20 => Packet::ConnAck,
        0x90 => Packet::SubAck,
        0x40 => Packet::PubAck(body.get_u16()),
        0x30 => {
            let topic = usize::from(body.get_u16());
            body.advance(topic);
            Packet::Publish { id: body.get_u16(), payload: body }
        }
        other => panic!("a packet of kind {other:#x}"),
    })
}
