// One Socket.IO connection: requests with answers.

import { io } from "socket.io-client";

const PATIENCE_MS = 10_000;
const PAUSE_MS = 500;
const TRIES = 8;

/** What the server did not do, with its stable code. */
export class Refused extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

/** To the server that served this page, or to `url`. */
export const connect = (url) => (url === undefined ? io({ autoConnect: false }) : io(url, { autoConnect: false, forceNew: true }));

/** Asks, and returns the result or throws `Refused`. */
export async function call(socket, event, parameters = {}) {
  for (let tries = 1; ; tries += 1) {
    let answer;
    try {
      answer = await socket.timeout(PATIENCE_MS).emitWithAck(event, parameters);
    } catch {
      throw new Refused("timeout", "The server does not answer.");
    }
    if (answer?.success === true) {
      return answer.result;
    }
    // A question that comes too soon may be put again: everything that is asked in numbers is a question.
    if (answer?.code !== "rate_limited" || tries === TRIES || !event.startsWith("get_")) {
      throw new Refused(answer?.code ?? "internal", String(answer?.result ?? "The server refused."));
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS * tries));
  }
}

/** Waits for the connection, or throws what is in its way. */
export function connected(socket) {
  return new Promise((resolve, reject) => {
    if (socket.connected) {
      resolve();
      return;
    }
    const over = (settle) => (value) => {
      socket.off("connect", good);
      socket.off("connect_error", bad);
      settle(value);
    };
    const good = over(resolve);
    const bad = over(() => reject(new Refused("offline", "The server cannot be reached.")));
    socket.on("connect", good);
    socket.on("connect_error", bad);
    socket.connect();
  });
}
