// The list of conversations, and the one that is open.

import { troubleText } from "./bonds.js";
import { Composer } from "./composer.js";
import { button, clockTime, dayOf, face, form, h, list, statusText, until } from "./dom.js";

export const REACTIONS = ["👍", "❤️", "😂", "😮", "😢", "🎉", "✅", "👀"];
const PREVIEW = 80;

/**
 * How a conversation is called: by the one it was made with, as this account knows it, or as a group of those who are in it. A name
 * that somebody gave it stands beside that, never in its place.
 */
export function titleOf(session, dm) {
  const { partner } = session.about(dm.id);
  const name = dm.name ? `“${dm.name}”` : "";
  if (partner !== undefined) {
    return [partner, name].filter(Boolean).join(" ");
  }
  const others = dm.users.filter((one) => one !== session.username);
  return `${["Group", name].filter(Boolean).join(" ")}: ${others.join(", ") || "nobody else"}`;
}

export class Conversations {
  /** `act` runs something and shows what went wrong; `details` opens the dialog of a conversation. */
  constructor(session, { act, details, compare, create }) {
    this.session = session;
    this.act = act;
    this.compare = compare;
    this.current = null;
    this.editing = null;
    this.items = h("ul", { id: "dms" });
    const start = button("New conversation", create, { className: "main", id: "new-dm" });
    this.nav = h("nav", { className: "list", "aria-label": "Conversations" }, h("div", {}, start), this.items);

    this.title = h("h2", { id: "title", tabIndex: -1 });
    this.subtitle = h("p", { className: "quiet", id: "subtitle" });
    this.face = h("span");
    const back = button("Back", () => this.leave(), { className: "back" });
    const more = button("Details", () => details(this.current), { id: "details-open" });
    this.warning = h("div", { className: "notice", role: "alert", hidden: true });
    this.older = button("Older messages", () => act(() => this.#olderOnes()), { id: "older" });
    this.messages = h("ol", { id: "messages" });
    this.log = h("div", { className: "log", role: "log", "aria-label": "Messages", tabIndex: 0 }, this.older, this.messages);
    this.typing = h("p", { className: "typing", role: "status", id: "typing" });
    this.composer = new Composer({ act, send: (id, text, when) => this.#send(id, text, when), typing: (id) => session.typing(id) });
    this.talk = h("section", { className: "talk", "aria-labelledby": "title", hidden: true },
      h("header", {}, back, this.face, h("div", {}, this.title, this.subtitle), more), this.warning, this.log, this.typing, this.composer.element);
    this.empty = h("div", { className: "empty" }, h("p", {}, "Open a conversation, or begin one."));
    this.element = [this.nav, this.talk, this.empty];
    // What counts down does so while somebody looks.
    this.clock = setInterval(() => this.#count(), 1_000);
  }

  close() {
    clearInterval(this.clock);
  }

  get dm() {
    return this.session.dms.get(this.current);
  }

  open(id) {
    this.current = id;
    this.editing = null;
    document.body.dataset.pane = "talk";
    this.render();
    this.act(() => this.session.openDm(id));
    this.#bottom();
    this.title.focus({ preventScroll: true });
    if (matchMedia("(hover: hover)").matches) {
      this.composer.focus();
    }
  }

  leave() {
    const id = this.current;
    this.current = null;
    document.body.dataset.pane = "list";
    this.render();
    this.items.querySelector(`[data-key="${id}"] button`)?.focus();
  }

  // ---- what is shown

  render() {
    if (this.current !== null && !this.dm) {
      this.current = null;
      document.body.dataset.pane = "list";
    }
    this.#renderList();
    this.talk.hidden = this.current === null;
    this.empty.hidden = this.current !== null;
    if (this.dm) {
      this.#renderTalk();
    }
  }

  #renderList() {
    const latest = (dm) => (dm.latest ? dm.latest.at : new Date(`${dm.created_at}Z`)).getTime();
    const dms = [...this.session.dms.values()].sort((a, b) => latest(b) - latest(a) || b.id - a.id);
    const preview = ({ latest: message }) => (message ? (message.text ?? message.problem) : "No messages yet").slice(0, PREVIEW);
    const status = (dm) => {
      const other = this.session.about(dm.id).partner;
      return other === undefined ? "none" : (this.session.people.users.get(other)?.status ?? "offline");
    };
    list(this.items, dms, {
      key: (dm) => dm.id,
      version: (dm) => JSON.stringify([titleOf(this.session, dm), preview(dm), dm.unread, status(dm), dm.id === this.current, dm.users_in_call.length > 0]),
      make: (dm) => {
        const other = this.session.about(dm.id).partner;
        const title = titleOf(this.session, dm);
        return h("li", {},
          h("button", { type: "button", className: "dm", "aria-current": dm.id === this.current ? "true" : null, onclick: () => this.open(dm.id) },
            face(this.session.people.users.get(other), other ?? title, status(dm)),
            h("span", { className: "name" }, title, other === undefined ? null : h("span", { className: "hidden-label" }, `, ${statusText(this.session.people.users.get(other))}`)),
            dm.unread > 0 ? h("span", { className: "badge", "aria-label": `${dm.unread} unread` }, String(dm.unread)) : h("span"),
            h("span", { className: "last" }, dm.users_in_call.length > 0 ? "In a call · " : "", preview(dm))));
      },
    });
    const unread = dms.reduce((sum, dm) => sum + dm.unread, 0);
    document.title = `${unread > 0 ? `(${unread}) ` : ""}Direct messages`;
  }

  #renderTalk() {
    const { session, dm } = this;
    const { partner: other, by, trouble } = session.about(dm.id);
    const title = titleOf(session, dm);
    this.title.textContent = title;
    const call = dm.users_in_call.length > 0 ? ` · in a call: ${dm.users_in_call.join(", ")}` : "";
    const made = by === undefined ? "" : ` · made by ${by === session.username ? "you" : by}`;
    const who = other === undefined ? `${dm.users.length} members: ${dm.users.join(", ")}${made}`
      : `${statusText(session.people.users.get(other))}${session.people.verified(other) ? " · keys compared" : ""}`;
    this.subtitle.textContent = who + call;
    this.face.replaceChildren(face(session.people.users.get(other), other ?? title, other === undefined ? "none" : undefined));
    this.#renderWarning(trouble, other);
    this.older.hidden = !dm.more;
    this.#renderMessages();
    this.#renderTyping();
    const placeholder = trouble === null ? "Write a message" : trouble === "key" ? troubleText(trouble) : "Nothing is sent here";
    this.composer.show(dm.id, !session.online || trouble !== null, placeholder);
  }

  /** What stands above the messages for as long as it is so. */
  #renderWarning(trouble, other) {
    const { session, dm } = this;
    const changed = dm.users.filter((name) => session.people.changed.has(name));
    const said = JSON.stringify([dm.id, trouble, changed]);
    const nothing = changed.length === 0 && (trouble === null || trouble === "key");
    this.warning.hidden = nothing;
    if (said === this.warning.dataset.said) {
      return;
    }
    this.warning.dataset.said = said;
    const take = () => session.takeUnsigned(dm.id);
    this.warning.replaceChildren(...[
      !nothing && trouble !== null && h("span", {}, troubleText(trouble, other)),
      trouble === "unsigned" && button("Write here all the same", () => this.act(take), { className: "danger", id: "take-unsigned" }),
      changed.length > 0 && h("span", {}, `The key of ${changed.join(", ")} has changed. Either it is a new account, or the server is not honest. What the new key signs is not shown.`),
      ...changed.map((name) => button(`Compare with ${name}`, () => this.compare(name))),
    ].filter(Boolean));
  }

  #renderMessages() {
    const atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
    const items = [];
    let day = null;
    for (const message of this.dm.messages.values()) {
      if (dayOf(message.at) !== day) {
        day = dayOf(message.at);
        items.push({ day });
      }
      items.push(message);
    }
    list(this.messages, items, {
      key: (item) => item.day ?? item.id,
      version: (item) => JSON.stringify([item, item.id !== undefined && item.id === this.editing]),
      make: (item) => (item.day ? h("li", { className: "day" }, item.day) : this.#message(item)),
      // Who edits it, or chooses what to do with it, is not disturbed by what others do to it.
      hold: (item, element) => (item.id === this.editing && element.querySelector("form") !== null)
        || (item.id !== this.editing && element.querySelector("details[open]") !== null),
    });
    if (atEnd) {
      this.#bottom();
    }
  }

  #bottom() {
    this.log.scrollTop = this.log.scrollHeight;
  }

  renderTyping(id) {
    if (id === this.current) {
      this.#renderTyping();
    }
  }

  #renderTyping() {
    const names = [...this.dm.typing.keys()];
    this.typing.textContent = names.length === 0 ? "" : `${names.join(", ")} ${names.length === 1 ? "is" : "are"} typing …`;
  }

  #count() {
    this.session.expire();
    for (const element of this.messages.querySelectorAll("[data-until]")) {
      element.textContent = `deletes itself in ${until(Number(element.dataset.until))}`;
    }
  }

  // ---- one message

  #message(message) {
    const own = message.sender === this.session.username;
    const body = message.id === this.editing
      ? this.#editor(message)
      : h("p", { className: message.problem ? "text problem" : "text", dir: "auto" }, message.text ?? `${message.problem}.`);
    const notes = [
      message.pinned && h("span", {}, "pinned"),
      message.goes !== null && h("span", { "data-until": message.goes }, `deletes itself in ${until(message.goes)}`),
    ];
    const who = h("p", { className: "who" }, h("b", {}, own ? "You" : message.sender), " ", h("time", { dateTime: message.at.toISOString() }, clockTime(message.at)));
    return h("li", { className: own ? "message own" : "message" },
      who, body, this.#menu(message, own), h("div", { className: "notes" }, notes), this.#reactions(message));
  }

  #menu(message, own) {
    const menu = h("details", { className: "menu" });
    const item = (text, work, more = {}) => button(text, () => {
      menu.open = false;
      this.act(work);
    }, more);
    const react = (face) => item(face, () => this.session.react(message, face), { "aria-label": `React with ${face}` });
    menu.append(
      h("summary", { "aria-label": `Actions for the message of ${own ? "yours" : message.sender} at ${clockTime(message.at)}` }, "⋯"),
      h("div", {},
        h("div", { className: "faces", role: "group", "aria-label": "React" }, REACTIONS.map(react)),
        item(message.pinned ? "Unpin" : "Pin", () => this.session.setPinned(message, !message.pinned)),
        own && message.text !== null && item("Edit", () => this.#edit(message.id))),
    );
    menu.addEventListener("toggle", () => {
      if (menu.open) {
        menu.lastElementChild.scrollIntoView({ block: "nearest" });
      } else if (this.dm) {
        // What changed while it was open.
        this.#renderMessages();
      }
    });
    menu.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && menu.open) {
        menu.open = false;
        menu.firstElementChild.focus();
      }
    });
    menu.addEventListener("focusout", (event) => {
      if (event.relatedTarget !== null && !menu.contains(event.relatedTarget)) {
        menu.open = false;
      }
    });
    return menu;
  }

  #edit(id) {
    this.editing = id;
    this.#renderMessages();
    this.messages.querySelector("form textarea")?.focus();
  }

  #editor(message) {
    const text = h("textarea", { value: message.text, rows: 2, required: true, "aria-label": "New text" });
    const submit = async () => {
      await this.session.edit(message, text.value);
      this.#edit(null);
    };
    const editor = form({}, [text], { submit, label: "Save" });
    editor.lastElementChild.append(button("Cancel", () => this.#edit(null)));
    editor.addEventListener("keydown", (event) => event.key === "Escape" && this.#edit(null));
    return editor;
  }

  #reactions(message) {
    const byText = Map.groupBy(message.reactions.filter(({ text }) => text !== null), ({ text }) => text);
    const faces = [...byText].map(([text, all]) => {
      const own = all.find(({ sender }) => sender === this.session.username);
      const names = all.map(({ sender }) => sender).join(", ");
      const toggle = () => (own ? this.session.unreact(own) : this.session.react(message, text));
      const label = { "aria-pressed": String(own !== undefined), "aria-label": `${text} by ${names}`, title: names };
      return button(`${text} ${all.length}`, () => this.act(toggle), label);
    });
    const bad = message.reactions.filter(({ text }) => text === null).length;
    const unread = bad > 0 && h("span", { className: "unread" }, `${bad} not shown`);
    return h("div", { className: "reactions" }, faces, unread);
  }

  // ---- writing

  async #send(id, text, when) {
    await this.session.send(id, text, when);
    if (id === this.current) {
      this.#bottom();
    }
  }

  async #olderOnes() {
    const height = this.log.scrollHeight;
    this.log.setAttribute("aria-busy", "true");
    await this.session.older(this.current);
    // What was in sight stays in sight.
    this.log.scrollTop += this.log.scrollHeight - height;
    this.log.removeAttribute("aria-busy");
  }
}
