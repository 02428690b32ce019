// Before anybody is logged in: unlock, make an account, or bring one back with its words.

import { newSeed } from "./crypto.js";
import { button, check, dialog, field, form, h } from "./dom.js";
import { register } from "./keeper.js";
import { Session } from "./session.js";
import { Notebook, PASSPHRASE_MIN, accounts, forget, keep, unlock } from "./vault.js";
import { call, connect, connected } from "./wire.js";
import { seedOf, wordsOf } from "./words.js";

const NAME_MIN = 3;
const NAME_MAX = 32;
/** After these it is known that there is no account of this key. */
const NEVER_MADE = ["username_taken", "username_invalid", "bad_request", "rate_limited"];

/** Connects, prepares, and logs in; whatever fails ends the connection. */
async function enter(username, seed, prepare = () => {}) {
  const socket = connect();
  try {
    await prepare(socket);
    // Its own copy: the session wipes it at its end.
    const session = new Session(socket, username, seed.slice(), new Notebook(username, seed));
    await session.start();
    return session;
  } catch (error) {
    socket.removeAllListeners();
    socket.disconnect();
    throw error;
  }
}

/** Makes the account; that its name is taken by this very key, because an answer was lost, shows when one logs in. */
async function make(username, seed) {
  let taken = null;
  const prepare = (socket) => register(socket, username, seed).catch((error) => {
    if (error.code !== "username_taken") {
      throw error;
    }
    taken = error;
  });
  try {
    return await enter(username, seed, prepare);
  } catch (error) {
    throw error.code === "wrong_response" ? (taken ?? error) : error;
  }
}

/** Whether a name can be had: before a key is kept under it. */
async function isFree(username) {
  const socket = connect();
  try {
    await connected(socket);
    return !(await call(socket, "username_exists", { username }));
  } finally {
    socket.disconnect();
  }
}

/** Shows the words of an account; resolves when the person has gone on. */
export function showWords(seed, confirm) {
  const words = h("ol", { className: "words", id: "words" }, wordsOf(seed).map((word) => h("li", {}, word)));
  return new Promise((resolve) => {
    const shown = dialog(
      "Recovery words",
      "words-dialog",
      h("p", {}, "These 24 words are the account. With them it comes back on any device; without them and without this browser it is lost. Write them down and show them to nobody."),
      words,
      button(confirm, () => shown.close(), { className: "main", id: "words-done" }),
    );
    shown.addEventListener("close", resolve);
  });
}

const name = (id) =>
  h("input", { id, required: true, minLength: NAME_MIN, maxLength: NAME_MAX, autocomplete: "username", autocapitalize: "none", spellcheck: false });

/** Whether the seed stays in this browser, and under which passphrase. */
function keeping(id) {
  const wanted = h("input", { type: "checkbox", checked: true, id: `${id}-keep` });
  const passphrase = h("input", { type: "password", required: true, minLength: PASSPHRASE_MIN, id: `${id}-passphrase`, autocomplete: "new-password" });
  const label = field("Passphrase for this browser", passphrase);
  wanted.addEventListener("change", () => {
    label.hidden = !wanted.checked;
    passphrase.required = wanted.checked;
  });
  let kept = false;
  const hint = h("p", { className: "quiet" }, `At least ${PASSPHRASE_MIN} characters. It seals the key of the account on this device and is sent nowhere.`);
  return {
    fields: [check("Keep the key in this browser", wanted), label, hint],
    keep: async (username, seed, instead = false) => {
      if (wanted.checked) {
        await keep(username, seed, passphrase.value, instead);
        kept = true;
      }
    },
    /** Of an account that never was. */
    drop: async (username) => {
      if (kept) {
        kept = false;
        await forget(username);
      }
    },
  };
}

function creating(entered) {
  const username = name("new-name");
  const where = keeping("new");
  // Of one form, however often it is sent: an account that was made without our hearing of it is still ours.
  const seed = newSeed();
  /** The name under which it was asked for. */
  let asked = null;
  const submit = async () => {
    const name = username.value;
    if (name !== asked && !(await isFree(name))) {
      throw new Error("That name is taken.");
    }
    // The key is kept and shown before anybody is told it. The words are shown also when this browser cannot keep anything.
    const trouble = await where.keep(name, seed).catch((error) => error);
    await showWords(seed, "I have written them down");
    asked = name;
    let session;
    try {
      session = await make(name, seed);
    } catch (error) {
      if (NEVER_MADE.includes(error.code)) {
        asked = null;
        await where.drop(name);
      }
      throw error;
    }
    entered(session, trouble && `The key could not be kept in this browser: ${trouble.message}`);
  };
  const fields = [field("Name", username), ...where.fields];
  return h("section", { className: "card form", "aria-labelledby": "new-title" }, h("h2", { id: "new-title" }, "New account"),
    form({ id: "create" }, fields, { submit, label: "Create the account" }));
}

function restoring(entered) {
  const username = name("old-name");
  const words = h("textarea", { id: "old-words", required: true, rows: 3, autocomplete: "off", autocapitalize: "none", spellcheck: false });
  const where = keeping("old");
  const submit = async () => {
    const seed = seedOf(words.value);
    const session = await enter(username.value, seed);
    const trouble = await where.keep(username.value, seed, true).catch((error) => error);
    words.value = "";
    entered(session, trouble && `The key could not be kept in this browser: ${trouble.message}`);
  };
  const fields = [field("Name", username), field("The 24 recovery words", words), ...where.fields];
  return h("section", { className: "card form", "aria-labelledby": "old-title" }, h("h2", { id: "old-title" }, "I have an account"),
    form({ id: "restore" }, fields, { submit, label: "Bring it back", className: "" }));
}

function unlocking(names, entered, again) {
  const choice = h("select", { id: "unlock-name" }, names.map((one) => h("option", { value: one }, one)));
  const passphrase = h("input", { type: "password", required: true, id: "unlock-passphrase", autocomplete: "current-password" });
  const submit = async () => {
    entered(await enter(choice.value, await unlock(choice.value, passphrase.value)));
  };
  const remove = () => {
    const sure = dialog(
      `Forget ${choice.value} on this device?`,
      "forget",
      h("p", {}, "The account stays on the server. Only with its recovery words does it come back."),
      button("Forget it here", async () => {
        await forget(choice.value);
        sure.close();
        again();
      }, { className: "danger" }),
    );
  };
  return h("section", { className: "card form", "aria-labelledby": "unlock-title" }, h("h2", { id: "unlock-title" }, "Unlock"),
    form({ id: "unlock" }, [field("Account", choice), field("Passphrase", passphrase)], { submit, label: "Unlock" }),
    button("Forget it on this device", remove, { className: "plain" }));
}

/** Shows the page for it in `main`; `entered` gets the session. */
export async function welcome(main, entered) {
  if (!globalThis.isSecureContext || !globalThis.crypto?.subtle) {
    main.replaceChildren(h("div", { className: "welcome" }, h("p", { className: "error" },
      "This page came over a connection that can be read and changed on the way. Open it by https, or on this machine by http://localhost.")));
    return;
  }
  const names = await accounts().catch(() => []);
  const again = () => welcome(main, entered);
  main.replaceChildren(
    h("div", { className: "welcome" },
      h("p", {}, "Messages are sealed on this page before they leave it and opened on the pages of those they are for. The server sees who writes to whom and when, not what."),
      h("div", { className: "cards" }, names.length > 0 && unlocking(names, entered, again), creating(entered), restoring(entered)),
      h("p", { className: "quiet" }, h("a", { href: "assets/licences.txt" }, "Licences of what this page is made of"))),
  );
}
