// Elements, made of names and texts. Nothing becomes markup that was not written here.

/** An element: properties, `on…` handlers, `aria-…`/`data-…` attributes, then children (elements, texts, or nothing). */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) {
      continue;
    }
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else if (name in element && !name.includes("-")) {
      element[name] = value;
    } else {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const button = (text, onclick, more = {}) => h("button", { type: "button", onclick, ...more }, text);

export const field = (text, input) => h("label", {}, text, input);

export const check = (text, input) => h("label", { className: "check" }, input, text);

const controls = (element) => [...element.querySelectorAll("button, summary, input, textarea, select")];

/**
 * Makes the children of `parent` those of `items`. An element stays for as long as its item does and its `version` is the
 * same, or `hold` says that it is in use: whoever reads it or selects its text is left alone. Where one is moved or made anew,
 * the focus goes to what stands in the place of what had it.
 */
export function list(parent, items, { key, version, make, hold = () => false }) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const focused = document.activeElement;
  const home = [...before].find(([, child]) => child.contains(focused));
  const nth = home && controls(home[1]).indexOf(focused);
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    const state = String(version(item));
    let element = before.get(name);
    before.delete(name);
    if (element === undefined || (element.dataset.version !== state && !hold(item, element))) {
      const fresh = make(item);
      fresh.dataset.key = name;
      fresh.dataset.version = state;
      if (element === place) {
        place = place?.nextElementSibling ?? null;
      }
      element?.remove();
      element = fresh;
    }
    if (element === place) {
      place = place.nextElementSibling;
    } else {
      parent.insertBefore(element, place);
    }
  }
  before.forEach((element) => element.remove());
  if (home && document.activeElement !== focused) {
    const now = [...parent.children].find((child) => child.dataset.key === home[0]);
    now && controls(now)[nth]?.focus({ preventScroll: true });
  }
}

/** A form that does one thing, says what went wrong in it, and cannot be sent twice at once. */
export function form(properties, fields, { submit, label, className = "main" }) {
  const error = h("p", { className: "error", role: "alert" });
  const send = h("button", { type: "submit", className }, label);
  const onsubmit = async (event) => {
    event.preventDefault();
    error.textContent = "";
    send.disabled = true;
    try {
      await submit();
    } catch (problem) {
      error.textContent = problem.message;
    } finally {
      send.disabled = false;
    }
  };
  return h("form", { className: "form", onsubmit, ...properties }, fields, error, h("div", { className: "row" }, send));
}

/** A modal dialog with a title; ends with the Escape key, with its button, or with `close`. */
export function dialog(title, id, ...children) {
  const heading = h("h2", { id: `${id}-title` }, title);
  const element = h("dialog", { id, "aria-labelledby": `${id}-title` });
  const close = () => element.close();
  element.append(
    h("div", {}, h("header", {}, heading, button("Close", close, { className: "plain" })), ...children),
  );
  element.addEventListener("close", () => element.remove());
  document.getElementById("dialogs").append(element);
  element.showModal();
  return element;
}

/** A colour a person has chosen for itself, or one that is made of the name; and the status beside it. */
export function face(user, name, status = user?.status ?? "offline") {
  const chosen = /^#[0-9a-f]{6}$/i.test(user?.profile_picture ?? "") ? user.profile_picture : null;
  const element = h("span", { className: "face", "aria-hidden": "true", "data-status": status }, [...name][0]?.toUpperCase() ?? "");
  if (chosen) {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(chosen.slice(at, at + 2), 16));
    element.style.backgroundColor = chosen;
    element.style.color = 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#000" : "#fff";
  }
  return element;
}

const STATUS = { online: "online", away: "away", dnd: "do not disturb", offline: "offline" };
export const statusText = (user) => STATUS[user?.status] ?? "offline";

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const date = new Intl.DateTimeFormat(undefined, { dateStyle: "full" });
export const clockTime = (at) => clock.format(at);
export const dayOf = (at) => date.format(at);

/** How long something is from now, in the largest unit. */
export function until(at) {
  const seconds = Math.max(0, Math.round((at - Date.now()) / 1000));
  const [size, unit] = [[86_400, "d"], [3_600, "h"], [60, "min"], [1, "s"]].find(([size]) => seconds >= size) ?? [1, "s"];
  return `${Math.round(seconds / size)} ${unit}`;
}
