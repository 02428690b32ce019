"""Two devices of a new group: one reflects, the other gets it and acknowledges. Everything by hand.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python reflect.py wss://localhost:8443 ../../heliostat-data/tls/dev-ca.pem
"""

import asyncio
import hashlib
import secrets
import ssl
import struct
import sys

from nacl.public import Box, PrivateKey, PublicKey
from nacl.secret import SecretBox
from websockets.asyncio.client import connect

SERVER_HELLO, CLIENT_HELLO, SERVER_INFO, DRY = 0x10, 0x11, 0x12, 0x20
DROP_DEVICE, DROP_DEVICE_ACK = 0x32, 0x33
REFLECT, REFLECT_ACK, REFLECTED, REFLECTED_ACK = 0x80, 0x81, 0x82, 0x83


def derive(group_key, salt):
    return hashlib.blake2b(b"", digest_size=32, key=group_key, salt=salt, person=b"3ma-mdev").digest()


# As much of protobuf as this takes: lengths below 16384, and fields of a known kind.
def length(n):
    return bytes([n]) if n < 0x80 else bytes([n & 0x7F | 0x80, n >> 7])


def field(number, value):
    return bytes([number << 3 | 2]) + length(len(value)) + value


def byte_fields(body):
    found, at = {}, 0
    while at < len(body):
        number, kind, at = body[at] >> 3, body[at] & 7, at + 1
        value, shift = 0, 0
        while True:  # a number, or the length of bytes
            value, shift, at = value | (body[at] & 0x7F) << shift, shift + 7, at + 1
            if body[at - 1] < 0x80:
                break
        if kind == 2:
            found[number], at = body[at : at + value], at + value
    return found


class Device:
    def __init__(self, group_key, device_id):
        self.path_key = PrivateKey(derive(group_key, b"p"))  # proves the group; its public key names it
        self.reflect_key = SecretBox(derive(group_key, b"r"))  # seals what devices say to each other
        self.device_id = device_id

    async def connect(self, base, tls):
        group = field(1, bytes(self.path_key.public_key)) + field(3, b"a0")
        self.socket = await connect(base.rstrip("/") + "/" + group.hex(), ssl=tls, compression=None)
        hello = byte_fields(await self.expect(SERVER_HELLO))
        box = Box(self.path_key, PublicKey(hello[2]))
        response = bytes(box.encrypt(hello[3], secrets.token_bytes(24)))  # nonce, tag, challenge: 72 bytes
        # A new device whose slot goes some minutes after it left: what is zero is not written.
        await self.say(CLIENT_HELLO, field(2, response) + b"\x19" + struct.pack("<Q", self.device_id))
        await self.expect(SERVER_INFO)
        await self.expect(DRY)

    async def say(self, kind, body):
        await self.socket.send(bytes([kind, 0, 0, 0]) + body)

    async def expect(self, kind):
        """The next payload of a kind; a real device does something with the others, too."""
        async for container in self.socket:
            if container[0] == kind:
                return container[4:]
        raise SystemExit(f"closed with {self.socket.close_code} ({self.socket.close_reason})")

    async def reflect(self, text):
        await self.say(REFLECT, struct.pack("<BBHI", 8, 0, 0, 1) + bytes(self.reflect_key.encrypt(text)))
        return struct.unpack_from("<Q", await self.expect(REFLECT_ACK), 8)[0]

    async def receive(self):
        body = await self.expect(REFLECTED)
        text = self.reflect_key.decrypt(body[body[0] :])  # the first byte says where the envelope begins
        # Only now, when it has been processed: what is acknowledged never comes again.
        await self.say(REFLECTED_ACK, bytes(4) + body[4:8])
        return text

    async def leave(self):
        await self.say(DROP_DEVICE, b"\x09" + struct.pack("<Q", self.device_id))
        await self.expect(DROP_DEVICE_ACK)


async def main(base, ca=None):
    tls = ssl.create_default_context(cafile=ca) if base.startswith("wss:") else None
    group_key = secrets.token_bytes(32)
    phone, tablet = Device(group_key, 1), Device(group_key, 2)
    await phone.connect(base, tls)
    await tablet.connect(base, tls)
    print("the phone's message is kept since", await phone.reflect(b"hello"))
    print("the tablet got:", (await tablet.receive()).decode())
    await tablet.leave()
    await phone.leave()


asyncio.run(main(*sys.argv[1:]))
