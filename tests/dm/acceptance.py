"""The acceptance script of the direct messages, with python-socketio: 23 steps, each with accounts of its own, all at the
same time but for the restart, which is the last.

    pip install --requirement tests/dm/requirements.txt
    python3 tests/dm/acceptance.py http://127.0.0.1:PORT

The restart is asked for by a line on standard output, `stop` or `start`; the answer is a line on standard input, for `start`
the new address. Ends with status 0, or names the step that failed and why. The cryptography is written once more here, on
libsodium and OpenSSL, from the specification alone.
"""

import asyncio
import hashlib
import hmac
import itertools
import json
import os
import pathlib
import re
import struct
import sys
import time
import traceback

import aiohttp
import socketio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl import bindings as sodium
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

VECTORS = json.loads((pathlib.Path(__file__).parent.parent / "vectors" / "dm.json").read_text())
PATIENCE = 15
url = sys.argv[1]


class Failed(Exception):
    """What was expected did not come."""


def expect(condition, why):
    if not condition:
        raise Failed(why)


def same(got, expected, why=""):
    expect(got == expected, f"{why or 'it'} is {got!r} and not {expected!r}")


# ---- cryptography


def public(seed):
    return bytes(SigningKey(seed).verify_key).hex()


def sign(seed, data):
    return SigningKey(seed).sign(data).signature.hex()


def verifies(key, data, signature):
    try:
        VerifyKey(bytes.fromhex(key)).verify(data, bytes.fromhex(signature))
        return True
    except BadSignatureError:
        return False


def scalar(seed):
    half = bytearray(hashlib.sha512(seed).digest()[:32])
    half[0] &= 248
    half[31] = half[31] & 127 | 64
    return bytes(half)


def product(seed, key):
    """A seed's scalar times a point, encoded."""
    return sodium.crypto_scalarmult_ed25519_noclamp(scalar(seed), bytes.fromhex(key))


def agree(seed, key):
    return sodium.crypto_scalarmult(scalar(seed), sodium.crypto_sign_ed25519_pk_to_curve25519(bytes.fromhex(key)))


def x3dh(*agreements):
    extracted = hmac.digest(bytes(64), b"\xff" * 32 + b"".join(agreements), "sha512")
    return hmac.digest(extracted, b"Unmanageable\x01", "sha512")[:32]


def setup(creator, invitee, spk, ek, position, members, tree):
    keys = b"".join(map(bytes.fromhex, [creator, invitee, spk, ek]))
    return b"dm-setup-v1\0" + keys + struct.pack(">HH", position, members) + b"".join(map(bytes.fromhex, tree))


def make_group(seed, users):
    """The key of a conversation, and the parameters of create_dm."""
    width = 1 << len(users).bit_length()
    eks = [os.urandom(32) for _ in users]
    leaves = [os.urandom(32)]
    for user, ek in zip(users, eks):
        identity, spk = user["public_key"], user["spk"]
        expect(verifies(identity, bytes.fromhex(spk), user["sig"]), "the prekey is its owner's")
        leaves.append(x3dh(agree(seed, spk), agree(ek, identity), agree(ek, spk), agree(seed, identity)))
    leaves += [os.urandom(32) for _ in range(width - len(leaves))]
    secrets = [b""] * width + leaves
    keys = [""] * 2 * width
    for node in range(2 * width - 1, 1, -1):
        keys[node] = public(secrets[node])
        if node % 2 == 0:
            secrets[node // 2] = product(secrets[node], keys[node + 1])
    tree = keys[2:]
    messages = []
    for position, (user, ek) in enumerate(zip(users, eks), 1):
        signed = setup(public(seed), user["public_key"], user["spk"], public(ek), position, len(users) + 1, tree)
        messages.append({"ek": public(ek), "spk": user["spk"], "setup_sig": sign(seed, signed)})
    names = [user["username"] for user in users]
    return secrets[1], {"usernames": names, "messages": messages, "key_tree": tree}


def join_group(seed, spk_seed, creator, members, it):
    """The key of a conversation from an invitation by `creator`."""
    same(it["ik"], creator, "the creator's key")
    same(it["spk"], public(spk_seed), "the prekey")
    tree, width = it["key_tree"], (len(it["key_tree"]) + 2) // 2
    signed = setup(creator, public(seed), it["spk"], it["ek"], it["position"], members, tree)
    expect(verifies(creator, signed, it["setup_sig"]), "the tree is the creator's")
    ik, ek = it["ik"], it["ek"]
    secret = x3dh(agree(spk_seed, ik), agree(seed, ek), agree(spk_seed, ek), agree(seed, ik))
    node = width + it["position"]
    same(public(secret), tree[node - 2], "the own leaf")
    while node > 1:
        secret = product(secret, tree[(node ^ 1) - 2])
        node //= 2
    return secret


def seal(key, text):
    iv = os.urandom(12)
    return (iv + AESGCM(key).encrypt(iv, text.encode(), None)).hex()


def read(author, key, sealed, signature):
    """The text, after its signature held."""
    data = bytes.fromhex(sealed)
    expect(verifies(author, data, signature), "it is signed by its author")
    return AESGCM(key).decrypt(data[:12], data[12:], None).decode()


def vectors_hold():
    """The script's own cryptography, before it judges another's."""
    alice, bob = VECTORS["alice"], VECTORS["bob"]
    seed, spk = bytes.fromhex(bob["ik_seed"]), bytes.fromhex(bob["spk_seed"])
    for name in ("group2", "group3", "group5"):
        group = VECTORS[name]
        it = {"ik": alice["public_key"], "spk": bob["spk"], "ek": VECTORS["x3dh"]["ek"], "position": 1, "key_tree": group["key_tree"]}
        members = {"group2": 2, "group3": 3, "group5": 5}[name]
        signed = setup(it["ik"], bob["public_key"], it["spk"], it["ek"], 1, members, it["key_tree"])
        it["setup_sig"] = sign(bytes.fromhex(alice["ik_seed"]), signed)
        if name == "group2":
            same(it["setup_sig"], VECTORS["ext2_setup_sig_for_bob"]["setup_sig"], "the setup's signature")
        same(join_group(seed, spk, alice["public_key"], members, it).hex(), group["root"], name)
    key, message = bytes.fromhex(VECTORS["group2"]["root"]), VECTORS["message"]
    same(read(alice["public_key"], key, message["message"], message["signature"]), message["plaintext"])
    try:
        AESGCM(key).decrypt(bytes(12), bytes.fromhex(message["message"])[12:], None)
        raise Failed("another IV opens nothing")
    except InvalidTag:
        pass


# ---- a client

numbers = itertools.count(1)


def unique(name):
    return f"{name} {os.getpid()} {next(numbers)}"


class Client:
    """One connection: every second by WebSocket alone, the others by polling and its upgrade."""

    def __init__(self, name, seed=None, spk=None):
        self.name, self.seed, self.spk = name, seed or os.urandom(32), spk or os.urandom(32)
        self.heard = []
        self.changed = asyncio.Condition()
        self.io = socketio.AsyncClient(reconnection=False)
        self.io.on("*", self.hear)
        self.key = public(self.seed)

    async def hear(self, event, *arguments):
        self.heard.append((event, *arguments))
        async with self.changed:
            self.changed.notify_all()

    async def connects(self):
        transports = ["websocket"] if next(numbers) % 2 else ["polling", "websocket"]
        await self.io.connect(url, transports=transports, wait_timeout=PATIENCE)
        return self

    async def ask(self, event, parameters=None):
        return await self.io.call(event, parameters, timeout=PATIENCE)

    async def ok(self, event, **parameters):
        answer = await self.ask(event, parameters)
        expect(answer.get("success") is True and set(answer) == {"success", "result"}, f"{event} answers {answer!r}"[:400])
        return answer["result"]

    async def refused(self, code, event, **parameters):
        answer = await self.ask(event, parameters)
        expect(answer["success"] is False and answer.get("code") == code, f"{event} is not {code}: {answer!r}"[:400])
        expect(isinstance(answer["result"], str), f"{event} says why")

    async def hears(self, event, fits=lambda _: True, patience=PATIENCE):
        """What was or will be notified and fits."""
        found = lambda: next((it[1] for it in self.heard if it[0] == event and fits(it[1])), None)
        try:
            async with asyncio.timeout(patience), self.changed:
                await self.changed.wait_for(lambda: found() is not None)
        except TimeoutError:
            raise Failed(f"{self.name} never hears {event}; it heard {self.heard!r}"[:800]) from None
        return found()

    def count(self, event, fits=lambda _: True):
        return sum(1 for it in self.heard if it[0] == event and fits(it[1]))

    def keys(self):
        spk = public(self.spk)
        return {"public_key": self.key, "spk": spk, "sig": sign(self.seed, bytes.fromhex(spk))}

    async def registers(self):
        same(await self.ok("register", username=self.name, own_storage="kept", **self.keys()), True, "register")

    def answer_to(self, challenge):
        return sign(self.seed, b"dm-login-v1\0" + self.name.encode() + b"\0" + bytes.fromhex(challenge))

    async def logs_in(self):
        challenge = await self.ok("login", username=self.name)
        expect(re.fullmatch("[0-9a-f]{64}", challenge), challenge)
        same(await self.ok("login_challenge_response", response=self.answer_to(challenge)), True, "the login")
        return self

    async def again(self):
        """A second connection of the same account, logged in."""
        return await (await Client(self.name, self.seed, self.spk).connects()).logs_in()

    async def goes(self):
        await self.io.disconnect()

    def writes(self, key, text):
        message = seal(key, text)
        return {"message": message, "signature": sign(self.seed, bytes.fromhex(message))}

    async def sends(self, id, key, text, schedule=0, delete=0):
        sealed = self.writes(key, text)
        same(await self.ok("send_message", id=id, schedule=schedule, delete=delete, **sealed), True, "send_message")
        return sealed["message"]


async def newcomer(name):
    client = await Client(unique(name)).connects()
    await client.registers()
    return await client.logs_in()


async def people(*names):
    return await asyncio.gather(*map(newcomer, names))


async def befriend(a, b):
    await a.ok("send_friend_request", username=b.name)
    await b.ok("ack_friend_request", username=a.name, accept=True)


async def makes(creator, *invitees):
    """A conversation as its creator makes it: number and key."""
    users = [await creator.ok("get_user", username=other.name) for other in invitees]
    key, parameters = make_group(creator.seed, users)
    return await creator.ok("create_dm", **parameters), key


async def joins(client, creator, id, members):
    it = await client.hears("x3dh_notification", lambda it: it["id"] == id)
    same(it["sender"], creator.name, "the sender of the invitation")
    return join_group(client.seed, client.spk, creator.key, members, it)


async def pair():
    a, b = await people("ann", "ben")
    await befriend(a, b)
    id, key = await makes(a, b)
    await b.hears("x3dh_notification")
    return a, b, id, key


async def settled(client, by, id, key):
    """Everything that was said to this client before has arrived: it was said in order."""
    message = await by.sends(id, key, "settled")
    return await client.hears("message_notification", lambda it: it["message"] == message)


def said(heard):
    """Without what comes by itself: others come and go, and an invitation is repeated until it has certainly arrived."""
    return [it for it in heard if it[0] not in ("profile_notification", "x3dh_notification")]


# ---- the steps

strangers = []
# What makes much work waits until what has to be seen in time was seen.
armed = asyncio.Event()


async def step_1():
    a, b, c = [await Client(unique(name)).connects() for name in ("Aa", "Ba", "Ca")]
    for client in (a, b, c):
        await client.registers()
    account = lambda **more: {"username": unique("new"), "own_storage": "", **a.keys(), **more}
    await a.refused("username_taken", "register", **account(username=a.name))
    await a.refused("username_taken", "register", **account(username=a.name.lower()))
    await a.refused("username_invalid", "register", **account(username="xy"))
    await a.refused("bad_signature", "register", **account(sig=b.keys()["sig"]))
    same(len(VECTORS["bad_points"]), 7)
    for bad in VECTORS["bad_points"].values():
        await a.refused("malformed", "register", **account(public_key=bad))
        await a.refused("malformed", "register", **account(spk=bad))
    same(await c.ok("username_exists", username=a.name), True)
    same(await c.ok("username_exists", username=a.name.upper()), True)
    same(await c.ok("username_exists", username=unique("nobody")), False)
    same((await c.ask("username_exists", a.name))["result"], True, "positional")


async def step_2():
    stranger = await Client("stranger").connects()
    for event in """get_user get_full_user get_user_list set_user create_dm get_dms get_dm set_dm leave_dm send_message
            get_message get_message_history get_pinned set_message cancel_scheduled_message add_reaction remove_reaction
            ping_typing send_friend_request get_friend_requests get_outgoing_requests ack_friend_request unfriend get_friends
            block_user unblock unblock_user get_blocked join_call leave_call""".split():
        await stranger.refused("not_logged_in", event)
    # What all others do meanwhile, this one must not hear of: looked at before the restart.
    strangers.append(stranger)


async def step_3():
    a = await Client(unique("login")).connects()
    await a.registers()
    await a.refused("no_such_user", "login", username=unique("nobody"))
    await a.refused("no_challenge", "login_challenge_response", response="00" * 32)
    challenge = await a.ok("login", username=a.name)
    await a.refused("wrong_response", "login_challenge_response", response="00" * 64)
    await a.refused("no_challenge", "login_challenge_response", response=a.answer_to(challenge))
    await a.refused("not_logged_in", "get_dms")
    await a.logs_in()
    same(await a.ok("get_dms"), [])
    await a.refused("already_logged_in", "login", username=a.name)

    old = await Client(a.name, a.seed, a.spk).connects()
    challenge = await old.ok("login", username=a.name)
    same(await old.ok("login_challenge_response", response=product(a.seed, challenge).hex()), True, "v1")

    bad = await Client("bad").connects()
    for _ in range(9):
        await bad.refused("no_such_user", "login", username="nobody")
    same((await bad.ask("login", {"username": "nobody"}))["success"], False)
    await bad.refused("locked_out", "login", username=a.name)


async def step_4():
    (a,) = await people("full")
    shown = {"username", "public_key", "spk", "sig", "status", "biography", "profile_picture"}
    full = await a.ok("get_full_user")
    same(set(full), shown | {"own_storage"})
    same((full["own_storage"], full["status"], full["biography"]), ("kept", "online", ""))
    same(set(await a.ok("get_user", username=a.name)), shown)
    users = await a.ok("get_user_list")
    expect(a.name in [user["username"] for user in users], "the caller is in the list")
    expect(all(set(user) == shown for user in users), "the list shows what others may see")


async def step_5():
    a, b = await people("profile", "watcher")
    foreign = b.keys()
    same(await a.ok("set_user", biography="é" * 500), True)
    await a.refused("too_large", "set_user", biography="é" * 501)
    await a.refused("bad_request", "set_user", spk=foreign["spk"])
    await a.refused("bad_signature", "set_user", spk=foreign["spk"], sig=foreign["sig"], biography="no")
    await a.refused("bad_request", "set_user", status="asleep")
    same(await a.ok("set_user"), True)
    await a.ok("set_user", status="away", profile_picture="#aabbcc")
    of_a = lambda it: it["username"] == a.name
    seen = await b.hears("profile_notification", lambda it: of_a(it) and it["status"] == "away")
    same(seen["biography"], "é" * 500, "what was refused changed nothing; it")
    expect("own_storage" not in seen, "own_storage is its owner's")
    await b.ok("set_user", biography="heard")
    await a.hears("profile_notification", lambda it: it["username"] == b.name and it["biography"] == "heard")
    same(a.count("profile_notification", of_a), 0, "to the acting socket")
    await a.ok("set_user", spk=None, sig=None)
    same((await b.ok("get_user", username=a.name))["spk"], None, "the withdrawn prekey")


async def step_6():
    a, b = await people("asker", "asked")
    await a.ok("send_friend_request", username=b.name)
    await b.hears("friend_request_notification", lambda it: it == {"username": a.name})
    await a.refused("already_requested", "send_friend_request", username=b.name)
    await b.refused("request_waiting", "send_friend_request", username=a.name)
    await a.refused("cannot_friend_self", "send_friend_request", username=a.name)
    await a.refused("cannot_friend", "send_friend_request", username=unique("nobody"))
    same((await a.ok("get_outgoing_requests"), await b.ok("get_friend_requests")), ([b.name], [a.name]))
    await b.ok("ack_friend_request", username=a.name, accept=False)
    await a.hears("friend_request_accept_notification", lambda it: it == {"username": b.name, "accept": False})
    await b.refused("no_request", "ack_friend_request", username=a.name, accept=True)
    await befriend(a, b)
    await a.hears("friend_request_accept_notification", lambda it: it["accept"])
    await a.refused("already_friends", "send_friend_request", username=b.name)
    same((await a.ok("get_friends"), await b.ok("get_friends")), ([b.name], [a.name]))
    same((await a.ok("get_outgoing_requests"), await b.ok("get_friend_requests")), ([], []))
    await b.ok("unfriend", username=a.name)
    await a.hears("unfriend_notification", lambda it: it == {"username": b.name})
    await b.hears("unfriend_notification", lambda it: it == {"username": a.name})
    await a.refused("not_friends", "unfriend", username=b.name)


async def step_7():
    a, b = await people("maker", "made")
    key, right = make_group(a.seed, [await a.ok("get_user", username=b.name)])
    message = right["messages"][0]
    await a.refused("not_friends", "create_dm", **right)
    await befriend(a, b)
    for code, change in [
        ("bad_request", {"key_tree": right["key_tree"][1:]}),
        ("bad_request", {"usernames": [b.name] * 2, "messages": [message] * 2}),
        ("bad_request", {"usernames": [a.name]}),
        ("bad_request", {"usernames": [], "messages": []}),
        ("spk_mismatch", {"messages": [message | {"spk": a.keys()["spk"]}]}),
        ("malformed", {"key_tree": [VECTORS["bad_points"]["mixed_torsion"], right["key_tree"][1]]}),
        ("bad_signature", {"messages": [message | {"setup_sig": a.keys()["sig"]}]}),
    ]:
        await a.refused(code, "create_dm", **(right | change))
    id = await a.ok("create_dm", **right)
    same(await joins(b, a, id, 2), key, "the key that both derive")
    same((await b.hears("x3dh_notification"))["position"], 1)
    await a.refused("dm_exists", "create_dm", **right)
    await settled(a, b, id, key)
    same(a.count("x3dh_notification"), 0, "to the creator")


async def step_8():
    a, b, c = await people("founder", "present", "absent")
    await c.goes()
    id, key = await makes(a, b, c)
    same(await joins(b, a, id, 3), key)
    for time_ in ("first", "second"):
        back = await c.again()
        await back.hears("x3dh_notification", patience=5)
        same(await joins(back, a, id, 3), key, time_)
        await settled(back, a, id, key)
        same(back.count("x3dh_notification"), 1, time_)
        await back.goes()


async def step_9():
    a, b, id, key = await pair()
    (c,) = await people("outsider")
    await a.sends(id, key, "hello")
    first = await a.hears("message_notification")
    same(await b.hears("message_notification"), first, "to both the same; it")
    same(read(a.key, key, first["message"], first["signature"]), "hello")
    expect(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", first["timestamp"]), first["timestamp"])
    same((first["sender"], first["delete_timestamp"], first["pinned"], first["reactions"]), (a.name, None, False, []))
    sealed = c.writes(key, "no")
    await c.refused("no_dm_access", "send_message", id=id, schedule=0, delete=0, **sealed)
    for event in "get_dm get_message_history get_pinned ping_typing set_dm leave_dm leave_call".split():
        await c.refused("no_dm_access", event, id=id, name="no")
    await c.refused("no_dm_access", "join_call", id=id, uuid="u")
    await c.refused("no_dm_access", "get_dm", id=id + 1_000_000)
    await c.refused("no_message_access", "get_message", id=first["id"])
    await c.refused("no_message_access", "set_message", id=first["id"], pinned=True)
    await c.refused("no_message_access", "add_reaction", id=first["id"], reaction=sealed["message"], signature=sealed["signature"])
    await settled(b, a, id, key)
    same(c.count("message_notification"), 0, "to a stranger")


async def step_10():
    a, b, id, key = await pair()
    await a.refused("bad_signature", "send_message", id=id, schedule=0, delete=0, **b.writes(key, "not of a"))
    right = a.writes(key, "text")
    for schedule, delete in ((-1, 0), (0, -1), (1.5, 0)):
        await a.refused("bad_request", "send_message", id=id, schedule=schedule, delete=delete, **right)
    same(await a.ok("send_message", id=str(id), schedule="0", delete=0, **right), True)


async def step_11():
    a, b, id, key = await pair()
    start = time.monotonic()
    await a.sends(id, key, "short-lived", delete=2)
    message = await b.hears("message_notification")
    expect(message["delete_timestamp"] > message["timestamp"], "it has a time to go")
    for client in (a, b):
        await client.hears("message_delete_notification", lambda it: it == message["id"])
    expect(1.9 < time.monotonic() - start < 8, f"deleted after {time.monotonic() - start} s")
    await b.refused("no_message_access", "get_message", id=message["id"])
    expect((await settled(b, a, id, key))["id"] > message["id"], "numbers are not used again")


async def step_12():
    a, b, id, key = await pair()
    start = time.monotonic()
    await a.sends(id, key, "later, and not for long", schedule=3, delete=2)
    await a.sends(id, key, "in a minute", schedule=62)
    pending = (await a.ok("get_dm", id=id))["scheduled_messages"]
    same((await b.ok("get_dm", id=id))["scheduled_messages"], {}, "what others have scheduled")
    armed.set()
    message = await b.hears("message_notification")
    expect(time.monotonic() - start > 2.5, "it waited")
    sent = await a.hears("scheduled_message_sent_notification")
    await a.hears("message_notification", lambda it: it["id"] == message["id"])
    soon = await a.hears("scheduled_soon_notification")
    same({str(it["schedule_id"]) for it in (sent, soon)}, set(pending))
    await b.refused("no_schedule", "cancel_scheduled_message", **soon)
    same(await a.ok("cancel_scheduled_message", **soon), True)
    await a.refused("no_schedule", "cancel_scheduled_message", **soon)
    await a.refused("no_schedule", "cancel_scheduled_message", **sent)
    await b.hears("message_delete_notification", lambda it: it == message["id"])
    expect(time.monotonic() - start > 4, "it lived for its time")
    same(b.count("scheduled_message_sent_notification") + b.count("scheduled_soon_notification"), 0, "to others")


async def step_14():
    a, b, id, key = await pair()
    message = await settled(b, a, id, key)
    number, edited = message["id"], a.writes(key, "edited")
    await a.ok("set_message", id=number, **edited)
    after = await b.hears("message_change_notification", lambda it: it["message"] == edited["message"])
    same((after["id"], after["timestamp"]), (number, message["timestamp"]))
    await b.refused("not_sender", "set_message", id=number, **b.writes(key, "mine"))
    await a.refused("bad_request", "set_message", id=number, signature=edited["signature"])
    await a.refused("bad_signature", "set_message", id=number, message=edited["message"], signature=message["signature"])
    for pinned, listed in ((True, [number]), (False, [])):
        await b.ok("set_message", id=number, pinned=pinned)
        await a.hears("message_change_notification", lambda it: it["pinned"] is pinned and it["message"] == edited["message"])
        same([it["id"] for it in await a.ok("get_pinned", id=id)], listed)


async def step_15():
    a, b, id, key = await pair()
    message = await settled(b, a, id, key)
    sealed = b.writes(key, "👍")
    reaction, signature = sealed["message"], sealed["signature"]
    await b.refused("bad_signature", "add_reaction", id=message["id"], reaction=reaction, signature=message["signature"])
    number = await b.ok("add_reaction", id=message["id"], reaction=reaction, signature=signature)
    after = await a.hears("message_change_notification", lambda it: it["reactions"])
    same(after["reactions"], [{"id": number, "sender": b.name, "reaction": reaction, "signature": signature}])
    same(read(b.key, key, reaction, signature), "👍")
    await a.refused("no_reaction_access", "remove_reaction", id=number)
    await b.ok("remove_reaction", id=number)
    await a.hears("message_change_notification", lambda it: it["id"] == message["id"] and it["reactions"] == [])


async def step_16():
    await armed.wait()
    a, b, id, key = await pair()
    sealed = [a.writes(key, f"number {i}") for i in range(120)]
    await asyncio.gather(*(a.ok("send_message", id=id, schedule=0, delete=0, **one) for one in sealed))
    for count, zone in (("count", ""), ("limit", "Z")):
        cursor, pages = None, []
        while sum(map(len, pages)) < 120:
            pages.append(await b.ok("get_message_history", id=id, cursor=cursor, **{count: 50}))
            expect(pages[-1], f"pages of {list(map(len, pages))}")
            cursor = pages[-1][-1]["timestamp"] + zone
        same(list(map(len, pages)), [50, 50, 20], "the pages")
        got = [it["message"] for page in pages for it in page]
        same(got, [one["message"] for one in reversed(sealed)], "the history")
    await a.refused("bad_request", "get_message_history", id=id, cursor="yesterday", count=1)
    await a.refused("bad_request", "get_message_history", id=id, cursor=None, count=101)


async def step_17():
    a, b, id, key = await pair()
    same(await a.ok("ping_typing", id=id), True)
    same(await b.hears("typing_notification"), {"id": id, "username": a.name})
    await settled(a, b, id, key)
    same(a.count("typing_notification"), 0, "to the one who types")


async def step_18():
    a, b, id, key = await pair()
    await b.ok("set_dm", id=id, name="Ours")
    for client in (a, b):
        await client.hears("dm_notification", lambda it: it["name"] == "Ours")
    await b.ok("set_dm", id=id, name=None)
    await a.hears("dm_notification", lambda it: it["id"] == id and it["name"] is None)
    await a.refused("too_large", "set_dm", id=id, name="x" * 101)
    await b.ok("leave_dm", id=id)
    await a.hears("dm_notification", lambda it: it["users"] == [a.name])
    before = len(b.heard)
    await b.refused("no_dm_access", "get_dm", id=id)
    await settled(a, a, id, key)
    await b.refused("no_dm_access", "get_message_history", id=id)
    same(said(b.heard[before:]), [], "what the leaver hears")
    same(await b.ok("get_dms"), [])
    await a.ok("leave_dm", id=id)
    await a.refused("no_dm_access", "get_dm", id=id)
    same(await a.ok("get_dms"), [])


async def step_19():
    a, b, id, _ = await pair()
    same(await a.ok("join_call", id=id, uuid="peer-a"), {a.name: "peer-a"})
    same(await b.hears("user_joined_call"), {"id": id, "username": a.name})
    await b.hears("dm_notification", lambda it: it["users_in_call"] == [a.name])
    both = {a.name: "peer-a", b.name: "peer-b"}
    same(await b.ok("join_call", id=id, uuid="peer-b"), both)
    seen = await a.hears("dm_notification", lambda it: len(it["users_in_call"]) == 2)
    same((set(seen["users_in_call"]), seen["call_peers"]), (set(both), both))
    await a.refused("bad_request", "join_call", id=id, uuid="no spaces")
    await b.ok("leave_call", id=id)
    same(await a.hears("user_left_call"), {"id": id, "username": b.name})
    await b.refused("not_in_call", "leave_call", id=id)
    await a.goes()
    await b.hears("user_left_call", lambda it: it == {"id": id, "username": a.name})
    await b.hears("dm_notification", lambda it: it["users_in_call"] == [])


async def step_20():
    a, b, id, key = await pair()
    before = len(b.heard)
    await a.ok("block_user", username=b.name)
    await a.refused("cannot_block", "block_user", username=b.name)
    await a.refused("cannot_block", "block_user", username=a.name)
    same(await a.ok("get_blocked"), [b.name])
    for client in (a, b):
        await client.refused("not_friends", "send_message", id=id, schedule=0, delete=0, **client.writes(key, "no"))
        await client.refused("not_friends", "ping_typing", id=id)
    await b.refused("cannot_friend", "send_friend_request", username=a.name)
    same(said(b.heard[before:]), [], "what the blocked one hears")
    await a.ok("send_friend_request", username=b.name)
    same(await a.ok("get_blocked"), [], "after a request of the blocker, the list")
    await b.hears("friend_request_notification", lambda it: it["username"] == a.name)
    await b.ok("ack_friend_request", username=a.name, accept=True)
    await settled(b, a, id, key)

    (c,) = await people("third")
    await c.ok("send_friend_request", username=a.name)
    await a.ok("block_user", username=c.name)
    await a.ok("ack_friend_request", username=c.name, accept=True)
    same(await a.ok("get_blocked"), [])
    same(await c.ok("get_friends"), [a.name])
    await a.ok("block_user", username=c.name)
    await a.ok("unblock_user", username=c.name)
    await a.refused("not_blocked", "unblock", username=c.name)


async def step_21():
    a, b, id, key = await pair()
    second = await a.again()
    message = await settled(a, b, id, key)
    await second.hears("message_notification", lambda it: it["id"] == message["id"])
    await a.ok("ping_typing", id=id)
    await second.hears("typing_notification")
    await second.goes()
    await settled(a, b, id, key)
    same((await b.ok("get_user", username=a.name))["status"], "online")
    offline = lambda it: it["username"] == a.name and it["status"] == "offline"
    same(b.count("profile_notification", offline), 0, "while one socket is there")
    await a.goes()
    await b.hears("profile_notification", offline)
    same((await b.ok("get_user", username=a.name))["status"], "offline")


async def answered(ws, packet):
    """Sends what no library would: true when it is answered or the connection is closed."""
    await ws.send_str("40")
    async for message in ws:
        if message.type != aiohttp.WSMsgType.TEXT or message.data.startswith("430"):
            return True
        if message.data.startswith("40"):
            await ws.send_str(packet)
    return True


async def step_22():
    await armed.wait()
    (a,) = await people("garbler")
    odd = {"id": {}, "usernames": 7, "messages": [None], "key_tree": [[]]}
    for event in "get_user send_message create_dm set_user join_call login register".split():
        for argument in (5, -1.5, [], [[1, 2], 3], "", True, odd, (None,)):
            answer = await a.ask(event, argument)
            expect(isinstance(answer["success"], bool) and answer.get("code") != "internal", f"{event} of {argument}: {answer}")
    same((await a.ask("get_dms"))["success"], True, "no argument")
    same((await a.ask("get_dms", {"unknown": 1}))["success"], True, "an unknown key")
    await a.refused("unknown_event", "no_such_event")
    await a.refused("bad_request", "get_user", username=b"\x00\xff")
    await a.io.emit("get_user", {"username": a.name})
    await a.io.emit("ping_typing")
    same(await a.ok("get_dms"), [])
    deep, big = f'420["login",{"[" * 10_000}{"]" * 10_000}]', '420["login",{"username":"' + "x" * 2_000_000 + '"}]'
    for packet in (deep, big):
        async with aiohttp.ClientSession() as http, asyncio.timeout(PATIENCE):
            try:
                async with http.ws_connect(f"{url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket") as ws:
                    expect(await answered(ws, packet), "an answer or an end")
            except (ConnectionError, aiohttp.ClientError):
                pass  # Closed while it was sent.
    same(await a.ok("get_dms"), [], "nobody else was disturbed; it")


async def step_23():
    await armed.wait()
    a, b, id, key = await pair()
    sealed = [a.writes(key, str(i)) for i in range(1_000)]
    for one in sealed:
        await a.io.emit("send_message", {"id": id, "schedule": 0, "delete": 0, **one})
    await b.hears("message_notification", lambda it: it["message"] == sealed[-1]["message"])
    got = [it[1] for it in b.heard if it[0] == "message_notification"]
    same([it["message"] for it in got], [one["message"] for one in sealed], "the order")
    for earlier, later in itertools.pairwise(got):
        expect(later["id"] > earlier["id"] and later["timestamp"] > earlier["timestamp"], f"{earlier} before {later}")


async def wants(what):
    """Asks whoever started this to do something with the server."""
    print(what, flush=True)
    return (await asyncio.to_thread(sys.stdin.readline)).strip()


async def step_13():
    global url
    a, b, id, key = await pair()
    (c,) = await people("later")
    await c.goes()
    group, group_key = await makes(a, b, c)
    pinned = await settled(b, a, id, key)
    await a.ok("set_message", id=pinned["id"], pinned=True)
    await a.sends(id, key, "deleted while it is down", delete=1)
    gone = await b.hears("message_notification", lambda it: it["delete_timestamp"])
    await a.sends(id, key, "due while it is down", schedule=1)
    await a.sends(id, key, "due when it is back", schedule=4)
    await wants("stop")
    await asyncio.sleep(1.5)
    url = await wants("start")

    back, other = await asyncio.gather(a.again(), b.again())
    await other.hears("message_notification")
    history = await other.ok("get_message_history", id=id, cursor=None, count=50)
    texts = [read(a.key, key, it["message"], it["signature"]) for it in history]
    same(texts, ["due when it is back", "due while it is down", "settled"], "the history")
    await other.refused("no_message_access", "get_message", id=gone["id"])
    same([it["id"] for it in await back.ok("get_pinned", id=id)], [pinned["id"]])
    same((await back.ok("get_friends"), await back.ok("get_dms")), ([b.name], [id, group]))
    late = await c.again()
    same(await joins(late, a, group, 3), group_key)
    expect((await settled(other, back, id, key))["id"] > history[0]["id"], "numbers are not used again")


async def runs(name, step):
    try:
        await step()
    except Exception:
        print(f"step {name} failed: {traceback.format_exc()}", file=sys.stderr, flush=True)
        os._exit(1)


async def main():
    vectors_hold()
    together = {name[5:]: step for name, step in globals().items() if name.startswith("step_") and name != "step_13"}
    same(len(together), 22, "the steps")
    await asyncio.gather(*(runs(name, step) for name, step in together.items()))
    (stranger,) = strangers

    async def nothing():
        await stranger.ok("username_exists", username="anybody")
        same(stranger.heard, [], "what somebody hears who is not logged in")

    await runs("2", nothing)
    await runs("13", step_13)
    print("all 23 steps passed", flush=True)
    os._exit(0)


asyncio.run(main())
