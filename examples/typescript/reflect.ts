// Two devices of a new group: one reflects, the other gets it and acknowledges. Everything by hand.
//
//     npm ci && npm start -- wss://localhost:8443 ../../heliostat-data/tls/dev-ca.pem

import { readFileSync } from "node:fs";
import { blake2b } from "@noble/hashes/blake2b";
import nacl from "tweetnacl";
import WebSocket from "ws";

const SERVER_HELLO = 0x10, CLIENT_HELLO = 0x11, SERVER_INFO = 0x12, DRY = 0x20;
const DROP_DEVICE = 0x32, DROP_DEVICE_ACK = 0x33;
const REFLECT = 0x80, REFLECT_ACK = 0x81, REFLECTED = 0x82, REFLECTED_ACK = 0x83;

const padded = (text: string) => Buffer.concat([Buffer.from(text)], 16); // with zeros
const derive = (groupKey: Uint8Array, salt: string) =>
    blake2b("", { dkLen: 32, key: groupKey, salt: padded(salt), personalization: padded("3ma-mdev") });

function u64(value: bigint): Buffer {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(value);
    return bytes;
}

// As much of protobuf as this takes: bytes shorter than 128, and a fixed 64-bit number.
const field = (number: number, value: Uint8Array) => Buffer.concat([Buffer.of(number << 3 | 2, value.length), value]);
const deviceField = (number: number, id: bigint) => Buffer.concat([Buffer.of(number << 3 | 1), u64(id)]);

class Device {
    private readonly path: nacl.BoxKeyPair; // proves the group; its public key names it
    private readonly reflectKey: Uint8Array; // seals what devices say to each other
    private socket!: WebSocket;
    private readonly heard: Buffer[] = [];
    private wake = () => {};
    private closed?: string;

    constructor(groupKey: Uint8Array, private readonly id: bigint) {
        this.path = nacl.box.keyPair.fromSecretKey(derive(groupKey, "p"));
        this.reflectKey = derive(groupKey, "r");
    }

    async connect(base: string, ca?: Buffer): Promise<void> {
        const group = Buffer.concat([field(1, this.path.publicKey), field(3, Buffer.from("a0"))]);
        const url = `${base.replace(/\/$/, "")}/${group.toString("hex")}`;
        this.socket = new WebSocket(url, { ca, perMessageDeflate: false });
        this.socket.on("message", (data: Buffer) => { this.heard.push(data); this.wake(); });
        this.socket.on("close", (code, reason) => { this.closed = `closed with ${code} (${reason})`; this.wake(); });
        this.socket.on("error", (error) => { this.closed = error.message; this.wake(); });
        // Version 0 is not written, so: 12 20, 32 bytes of ESK, 1a 20, 32 bytes of challenge.
        const hello = await this.expect(SERVER_HELLO);
        const [esk, challenge] = [hello.subarray(2, 34), hello.subarray(36, 68)];
        const nonce = nacl.randomBytes(24);
        const response = Buffer.concat([nonce, nacl.box(challenge, nonce, esk, this.path.secretKey)]);
        // A new device whose slot goes some minutes after it left: what is zero is not written.
        this.say(CLIENT_HELLO, field(2, response), deviceField(3, this.id));
        await this.expect(SERVER_INFO);
        await this.expect(DRY);
    }

    say(kind: number, ...body: Uint8Array[]): void {
        this.socket.send(Buffer.concat([Buffer.of(kind, 0, 0, 0), ...body]));
    }

    /** The next payload of a kind; a real device does something with the others, too. */
    async expect(kind: number): Promise<Buffer> {
        for (;;) {
            const container = this.heard.shift();
            if (container?.[0] === kind) return container.subarray(4);
            if (container) continue;
            if (this.closed) throw new Error(this.closed);
            await new Promise<void>((resolve) => { this.wake = resolve; });
        }
    }

    async reflect(text: string): Promise<bigint> {
        const nonce = nacl.randomBytes(24);
        const header = Buffer.of(8, 0, 0, 0, 1, 0, 0, 0); // header-length, reserved, flags, reflect-id
        this.say(REFLECT, header, nonce, nacl.secretbox(Buffer.from(text), nonce, this.reflectKey));
        return (await this.expect(REFLECT_ACK)).readBigUInt64LE(8);
    }

    async receive(): Promise<string> {
        const body = await this.expect(REFLECTED);
        const envelope = body.subarray(body[0]); // the first byte says where it begins
        const text = nacl.secretbox.open(envelope.subarray(24), envelope.subarray(0, 24), this.reflectKey);
        if (!text) throw new Error("not sealed with this group's key");
        // Only now, when it has been processed: what is acknowledged never comes again.
        this.say(REFLECTED_ACK, Buffer.alloc(4), body.subarray(4, 8));
        return Buffer.from(text).toString();
    }

    async leave(): Promise<void> {
        this.say(DROP_DEVICE, deviceField(1, this.id));
        await this.expect(DROP_DEVICE_ACK);
    }
}

const [base, caFile] = process.argv.slice(2);
if (!base) throw new Error("usage: reflect URL [CA]");
const ca = caFile ? readFileSync(caFile) : undefined;
const groupKey = nacl.randomBytes(32);
const [phone, tablet] = [new Device(groupKey, 1n), new Device(groupKey, 2n)];
await phone.connect(base, ca);
await tablet.connect(base, ca);
console.log("the phone's message is kept since", String(await phone.reflect("hello")));
console.log("the tablet got:", await tablet.receive());
await tablet.leave();
await phone.leave();
