// The list of conversations, and the one that is open.

import { button, clockTime, dayOf, face, form, h, list, statusText, until } from "./dom.js";

export const REACTIONS = ["👍", "❤️", "😂", "😮", "😢", "🎉", "✅", "👀"];
const UNITS = [["seconds", 1], ["minutes", 60], ["hours", 3_600], ["days", 86_400]];
const PREVIEW = 80;

/** How a conversation is called: by its name, or by who else is in it. */
export function titleOf(dm, me) {
  const others = dm.users.filter((name) => name !== me);
  return dm.name ?? (others.length > 0 ? others.join(", ") : "Nobody else");
}

/** The other one of a conversation of two. */
const partner = (dm, me) => (dm.users.length === 2 ? dm.users.find((name) => name !== me) : undefined);

/** A place for a length of time; 0 when it is empty. */
function duration(id, legend) {
  const number = h("input", { type: "number", id, min: 0, max: 31_536_000, inputMode: "numeric", "aria-label": `${legend}: how many` });
  const unit = h("select", { id: `${id}-unit`, "aria-label": `${legend}: unit` }, UNITS.map(([name, size]) => h("option", { value: size }, name)));
  return {
    element: h("fieldset", {}, h("legend", {}, legend), number, unit),
    seconds: () => Math.round(Number(number.value) * Number(unit.value)),
    clear: () => (number.value = ""),
  };
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
    this.talk = h("section", { className: "talk", "aria-labelledby": "title", hidden: true },
      h("header", {}, back, this.face, h("div", {}, this.title, this.subtitle), more), this.warning, this.log, this.typing, this.#composer());
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
      this.input.focus({ preventScroll: true });
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
    const me = this.session.username;
    const latest = (dm) => (dm.latest ? dm.latest.at : new Date(`${dm.created_at}Z`)).getTime();
    const dms = [...this.session.dms.values()].sort((a, b) => latest(b) - latest(a) || b.id - a.id);
    const preview = ({ latest: message }) => (message ? (message.text ?? message.problem) : "No messages yet").slice(0, PREVIEW);
    const status = (dm) => {
      const other = partner(dm, me);
      return other === undefined ? "none" : (this.session.users.get(other)?.status ?? "offline");
    };
    list(this.items, dms, {
      key: (dm) => dm.id,
      version: (dm) => JSON.stringify([titleOf(dm, me), preview(dm), dm.unread, status(dm), dm.id === this.current, dm.users_in_call.length > 0]),
      make: (dm) => {
        const other = partner(dm, me);
        const title = titleOf(dm, me);
        return h("li", {},
          h("button", { type: "button", className: "dm", "aria-current": dm.id === this.current ? "true" : null, onclick: () => this.open(dm.id) },
            face(this.session.users.get(other), other ?? title, status(dm)),
            h("span", { className: "name" }, title, other === undefined ? null : h("span", { className: "hidden-label" }, `, ${statusText(this.session.users.get(other))}`)),
            dm.unread > 0 ? h("span", { className: "badge", "aria-label": `${dm.unread} unread` }, String(dm.unread)) : h("span"),
            h("span", { className: "last" }, dm.users_in_call.length > 0 ? "In a call · " : "", preview(dm))));
      },
    });
    const unread = dms.reduce((sum, dm) => sum + dm.unread, 0);
    document.title = `${unread > 0 ? `(${unread}) ` : ""}Direct messages`;
  }

  #renderTalk() {
    const { session, dm } = this;
    const me = session.username;
    const other = partner(dm, me);
    this.title.textContent = titleOf(dm, me);
    const call = dm.users_in_call.length > 0 ? ` · in a call: ${dm.users_in_call.join(", ")}` : "";
    const who = other === undefined ? `${dm.users.length} members: ${dm.users.join(", ")}` : statusText(session.users.get(other));
    this.subtitle.textContent = who + call;
    this.face.replaceChildren(face(session.users.get(other), other ?? titleOf(dm, me), other === undefined ? "none" : undefined));
    const changed = dm.users.filter((name) => session.changed.has(name));
    this.warning.hidden = changed.length === 0;
    this.warning.replaceChildren(
      h("span", {}, `The key of ${changed.join(", ")} has changed. Either it is a new account, or the server is not honest. What the new key signs is not shown.`),
      ...changed.map((name) => button(`Compare with ${name}`, () => this.compare(name))),
    );
    this.older.hidden = !dm.more;
    this.#renderMessages();
    this.#renderTyping();
    const silent = !session.online || !session.hasKey(dm.id);
    this.send.disabled = silent;
    this.input.placeholder = session.hasKey(dm.id) ? "Write a message" : "The key of this conversation has not arrived";
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
      message.deletes && h("span", { "data-until": message.deletes.getTime() }, `deletes itself in ${until(message.deletes)}`),
      message.repeated && h("span", { className: "warn" }, "This was sent before as something else: it may be a repetition by the server"),
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
    menu.addEventListener("toggle", () => menu.open && menu.lastElementChild.scrollIntoView({ block: "nearest" }));
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

  #composer() {
    this.input = h("textarea", { id: "text", rows: 1, "aria-label": "Message", required: true, placeholder: "Write a message" });
    this.send = h("button", { type: "submit", className: "main", id: "send" }, "Send");
    const later = duration("later", "Send after");
    const gone = duration("gone", "Delete after");
    const when = h("div", { className: "when", id: "when", hidden: true }, later.element, gone.element);
    const unfold = (open) => {
      when.hidden = !open;
      timing.setAttribute("aria-expanded", String(open));
    };
    const timing = button("Timing", () => unfold(when.hidden), { id: "timing", "aria-expanded": "false", "aria-controls": "when" });
    const submit = (event) => {
      event.preventDefault();
      const text = this.input.value.trim();
      if (text === "" || this.send.disabled) {
        return;
      }
      this.send.disabled = true;
      this.act(async () => {
        try {
          await this.session.send(this.current, text, { schedule: later.seconds(), remove: gone.seconds() });
          this.input.value = "";
          later.clear();
          gone.clear();
          unfold(false);
          this.#bottom();
        } finally {
          this.send.disabled = false;
        }
      });
    };
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        composer.requestSubmit();
      }
    });
    this.input.addEventListener("input", () => this.session.typing(this.current));
    const composer = h("form", { className: "composer", onsubmit: submit, "aria-label": "Write" },
      when, h("div", { className: "row" }, h("div", { className: "grow" }, this.input), timing, this.send));
    return composer;
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
