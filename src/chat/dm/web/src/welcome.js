// Before anybody is logged in: unlock, make an account, or bring one back with its words.

import { button, check, dialog, field, form, h } from "./dom.js";
import { Session, register } from "./session.js";
import { Notebook, PASSPHRASE_MIN, accounts, forget, keep, unlock } from "./vault.js";
import { connect } from "./wire.js";
import { seedOf, wordsOf } from "./words.js";

const NAME_MIN = 3;
const NAME_MAX = 32;

/** Connects and logs in; whatever fails ends the connection. */
async function enter(username, seedWith) {
  const socket = connect();
  try {
    const seed = await seedWith(socket);
    const session = new Session(socket, username, seed, new Notebook(username, seed));
    await session.start();
    return session;
  } catch (error) {
    socket.removeAllListeners();
    socket.disconnect();
    throw error;
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
  const hint = h("p", { className: "quiet" }, `At least ${PASSPHRASE_MIN} characters. It seals the key of the account on this device and is sent nowhere.`);
  return {
    fields: [check("Keep the key in this browser", wanted), label, hint],
    keep: async (username, seed) => {
      if (wanted.checked) {
        await keep(username, seed, passphrase.value);
      }
    },
  };
}

function creating(entered) {
  const username = name("new-name");
  const where = keeping("new");
  const submit = async () => {
    const session = await enter(username.value, (socket) => register(socket, username.value));
    // The words are shown also when this browser cannot keep anything.
    const trouble = await where.keep(username.value, session.seed).catch((error) => error);
    await showWords(session.seed, "I have written them down");
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
    const session = await enter(username.value, async () => seed);
    await where.keep(username.value, seed);
    words.value = "";
    entered(session);
  };
  const fields = [field("Name", username), field("The 24 recovery words", words), ...where.fields];
  return h("section", { className: "card form", "aria-labelledby": "old-title" }, h("h2", { id: "old-title" }, "I have an account"),
    form({ id: "restore" }, fields, { submit, label: "Bring it back", className: "" }));
}

function unlocking(names, entered, again) {
  const choice = h("select", { id: "unlock-name" }, names.map((one) => h("option", { value: one }, one)));
  const passphrase = h("input", { type: "password", required: true, id: "unlock-passphrase", autocomplete: "current-password" });
  const submit = async () => {
    entered(await enter(choice.value, () => unlock(choice.value, passphrase.value)));
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
