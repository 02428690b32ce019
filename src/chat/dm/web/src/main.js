// The page: who is logged in, and which of its parts is shown.

import { Conversations } from "./conversation.js";
import { compare, details, newConversation, people, profile } from "./dialogs.js";
import { button, h } from "./dom.js";
import { welcome } from "./welcome.js";

const NOTICES_MAX = 5;
const main = document.getElementById("main");
const state = document.getElementById("state");
const tools = document.getElementById("tools");
const notices = document.getElementById("notices");

/** Shows a line until it is dismissed; `actions` are what can be done about it, each a text and a function. */
function notify(text, level = "warn", ...actions) {
  const done = (work) => () => {
    notice.remove();
    work?.();
  };
  const notice = h("div", { className: "notice", "data-level": level }, h("span", {}, text),
    actions.map(([label, work]) => button(label, done(work))), button("Dismiss", done(), { className: "plain" }));
  notices.append(notice);
  while (notices.childElementCount > NOTICES_MAX) {
    notices.firstElementChild.remove();
  }
  return notice;
}

/** Runs something a person asked for, and says what went wrong. */
async function act(work) {
  try {
    return await work();
  } catch (error) {
    notify(error.message);
  }
}

function entered(session, trouble) {
  if (trouble) {
    notify(trouble);
  }
  const shown = { act, compare: (name) => compare(session, name, { act }) };
  const conversations = new Conversations(session, {
    ...shown,
    details: (id) => details(session, id, shown),
    create: () => newConversation(session, (id) => conversations.open(id)),
  });
  const count = h("span", { className: "badge", hidden: true });
  const lock = async () => {
    conversations.close();
    await session.close();
    // Nothing of it stays in the memory of the page.
    location.reload();
  };
  tools.replaceChildren(
    h("button", { type: "button", id: "people-open", onclick: () => people(session, shown) }, "People ", count),
    button(session.username, () => profile(session, shown), { id: "profile-open", "aria-label": `Your profile, ${session.username}` }),
    button("Lock", lock, { id: "lock" }),
  );
  main.replaceChildren(...conversations.element);
  document.body.dataset.pane = "list";

  const retry = button("Try now", () => session.again(), { id: "retry", hidden: true });
  tools.prepend(retry);
  const connection = () => {
    const waits = session.trying ? "trying again" : "not tried again";
    state.dataset.state = session.online ? "online" : "offline";
    state.textContent = session.online ? "Connected" : `Not connected; ${waits}${session.trouble ? `: ${session.trouble}` : ""}`;
    retry.hidden = session.online;
    conversations.render();
  };
  /** Notices of requests that wait, by who asks. */
  const asking = new Map();
  const requests = () => {
    for (const [username, notice] of asking) {
      if (!session.people.requests.includes(username)) {
        notice.remove();
        asking.delete(username);
      }
    }
    count.hidden = session.people.requests.length === 0;
    count.textContent = String(session.people.requests.length);
    count.setAttribute("aria-label", `${session.people.requests.length} waiting`);
    conversations.render();
  };
  const seen = () => {
    if (!document.hidden && conversations.dm) {
      conversations.dm.unread = 0;
    }
    conversations.render();
  };
  const on = (event, handle) => session.addEventListener(event, (happened) => handle(happened.detail));
  on("connection", connection);
  on("all", () => conversations.render());
  on("people", requests);
  on("dm", () => conversations.render());
  on("message", seen);
  on("typing", ({ id }) => conversations.renderTyping(id));
  on("warning", ({ text }) => notify(text));
  on("key", ({ username }) => notify(`The key of ${username} has changed.`, "warn", ["Compare", () => shown.compare(username)]));
  on("soon", ({ id }) => notify("A scheduled message is sent within a minute.", "info", ["Details", () => details(session, id, shown)]));
  on("request", ({ username }) => {
    asking.get(username)?.remove();
    asking.set(username, notify(`${username} asks to be your friend.`, "info", ["People", () => people(session, shown)]));
    requests();
  });
  on("answer", ({ username, accept }) => {
    notify(accept ? `${username} is now your friend.` : `${username} has refused.`, "info");
    requests();
  });
  document.addEventListener("visibilitychange", seen);
  connection();
  requests();
}

welcome(main, entered);
