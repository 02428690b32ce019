// One Socket.IO connection: requests with answers, and coming back when it was lost.

import { io } from "socket.io-client";

const PATIENCE_MS = 10_000;
const PAUSE_MS = 500;
const TRIES = 8;
/** How long after a connection that did not hold the next one is tried: twice as long each time. */
const RETURN_AFTER_MS = 1_000;
const RETURN_AFTER_MAX_MS = 300_000;
/** How long one has to hold to be one. */
const HOLDS_MS = 30_000;

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
    // What comes too soon was not done and may be put again. Everything that is asked in numbers is a question, or what is kept.
    if (answer?.code !== "rate_limited" || tries === TRIES || !/^get_|^set_user$/.test(event)) {
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

/**
 * A connection on which everything begins anew each time it stands. `begin` is called then, with a function that says whether it
 * still stands; `lost` when it no longer does, with what was in the way, if something was, and with whether it is tried again:
 * after what is `hopeless` it is not, before `again`.
 */
export class Line {
  #socket;
  #begin;
  #lost;
  #hopeless;
  #failures = 0;
  #holds = null;
  #next = null;
  #closed = false;

  constructor(socket, { begin, lost, hopeless }) {
    this.#socket = socket;
    this.#begin = begin;
    this.#lost = lost;
    this.#hopeless = hopeless;
  }

  /** Connects and begins; throws when it does not come to that. Afterwards it goes on by itself. */
  async open() {
    await connected(this.#socket);
    this.#socket.on("connect", () => this.#stands());
    this.#socket.on("disconnect", () => {
      this.#lost(null, true);
      this.#later();
    });
    await this.#begin(this.#standing());
    this.#hold();
  }

  /** Now, and as if nothing had failed yet. */
  again() {
    this.#socket.disconnect();
    this.#failures = 0;
    clearTimeout(this.#next);
    this.#socket.connect();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#next);
    clearTimeout(this.#holds);
    this.#socket.removeAllListeners();
    this.#socket.disconnect();
  }

  #hold() {
    clearTimeout(this.#holds);
    this.#holds = setTimeout(() => (this.#failures = 0), HOLDS_MS);
  }

  #standing() {
    const { id } = this.#socket;
    return () => this.#socket.id === id && !this.#closed;
  }

  async #stands() {
    const standing = this.#standing();
    try {
      await this.#begin(standing);
      standing() && this.#hold();
    } catch (error) {
      // Lost again by now: the next one has its own turn.
      if (standing()) {
        const hopeless = this.#hopeless(error);
        this.#socket.disconnect();
        hopeless && clearTimeout(this.#next);
        this.#lost(error, !hopeless);
      }
    }
  }

  /** By our own clock, not the library's, which comes back at once whenever a connection stood for a moment. */
  #later() {
    clearTimeout(this.#holds);
    clearTimeout(this.#next);
    if (!this.#closed) {
      this.#socket.disconnect();
      const wait = Math.min(RETURN_AFTER_MS * 2 ** this.#failures, RETURN_AFTER_MAX_MS);
      this.#failures += 1;
      this.#next = setTimeout(() => this.#socket.connect(), wait);
    }
  }
}
