// Where one writes: a text, and when it is sent and deletes itself. Each conversation has a draft of its own.

import { button, h } from "./dom.js";

const UNITS = [["seconds", 1], ["minutes", 60], ["hours", 3_600], ["days", 86_400]];
const EMPTY = { text: "", later: "", gone: "" };

/** A place for a length of time; 0 when it is empty. */
function duration(id, legend) {
  const number = h("input", { type: "number", id, min: 0, max: 31_536_000, inputMode: "numeric", "aria-label": `${legend}: how many` });
  const unit = h("select", { id: `${id}-unit`, "aria-label": `${legend}: unit` }, UNITS.map(([name, size]) => h("option", { value: size }, name)));
  return {
    number,
    element: h("fieldset", {}, h("legend", {}, legend), number, unit),
    seconds: () => Math.round(Number(number.value) * Number(unit.value)),
  };
}

export class Composer {
  #drafts = new Map();
  #current = null;
  #busy = false;
  #silent = true;

  /** `send` sends a text to a conversation, `typing` says that somebody writes there; `act` shows what went wrong. */
  constructor({ act, send, typing }) {
    this.input = h("textarea", { id: "text", rows: 1, "aria-label": "Message", required: true });
    this.button = h("button", { type: "submit", className: "main", id: "send" }, "Send");
    this.later = duration("later", "Send after");
    this.gone = duration("gone", "Delete after");
    this.when = h("div", { className: "when", id: "when", hidden: true }, this.later.element, this.gone.element);
    this.timing = button("Timing", () => this.#unfold(this.when.hidden), { id: "timing", "aria-expanded": "false", "aria-controls": "when" });
    const submit = (event) => {
      event.preventDefault();
      const text = this.input.value.trim();
      if (text !== "" && !this.button.disabled) {
        act(() => this.#submit(text, send));
      }
    };
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.element.requestSubmit();
      }
    });
    this.input.addEventListener("input", () => typing(this.#current));
    this.element = h("form", { className: "composer", onsubmit: submit, "aria-label": "Write" },
      this.when, h("div", { className: "row" }, h("div", { className: "grow" }, this.input), this.timing, this.button));
  }

  focus() {
    this.input.focus({ preventScroll: true });
  }

  /** Shows the draft of a conversation, in which something can be said or not. */
  show(id, silent, placeholder) {
    if (id !== this.#current) {
      this.#drafts.set(this.#current, this.#draft);
      this.#current = id;
      this.#draft = this.#drafts.get(id) ?? EMPTY;
    }
    this.#silent = silent;
    this.input.placeholder = placeholder;
    this.#enable();
  }

  get #draft() {
    return { text: this.input.value, later: this.later.number.value, gone: this.gone.number.value };
  }

  set #draft({ text, later, gone }) {
    this.input.value = text;
    this.later.number.value = later;
    this.gone.number.value = gone;
    this.#unfold(later !== "" || gone !== "");
  }

  #unfold(open) {
    this.when.hidden = !open;
    this.timing.setAttribute("aria-expanded", String(open));
  }

  #enable() {
    this.button.disabled = this.#silent || this.#busy;
  }

  async #submit(text, send) {
    const [id, sent] = [this.#current, this.#draft];
    this.#busy = true;
    this.#enable();
    try {
      await send(id, text, { schedule: this.later.seconds(), remove: this.gone.seconds() });
      // What was written meanwhile stays, here and elsewhere.
      const same = (draft) => JSON.stringify(draft) === JSON.stringify(sent);
      if (id !== this.#current) {
        same(this.#drafts.get(id)) && this.#drafts.delete(id);
      } else if (same(this.#draft)) {
        this.#draft = EMPTY;
      }
    } finally {
      this.#busy = false;
      this.#enable();
    }
  }
}
