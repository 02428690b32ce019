// People, a new conversation, the details of one, the own profile, and the comparing of keys.

import { button, check, clockTime, dayOf, dialog, face, field, form, h, list, statusText } from "./dom.js";
import { titleOf } from "./conversation.js";
import { showWords } from "./welcome.js";

const BIOGRAPHY_MAX = 500;
const NAME_MAX = 100;

const section = (title, ...children) => h("section", {}, h("h3", {}, title), ...children);

/** A person in a list, with what can be done. */
function row(session, username, ...actions) {
  const user = session.people.person(username);
  const about = user?.biography ? ` · ${user.biography}` : "";
  const compared = session.people.verified(username) ? " · keys compared" : "";
  const said = h("span", { className: "grow" }, username, h("span", { className: "quiet" }, ` ${statusText(user)}${compared}${about}`));
  return h("li", {}, face(user, username), said, actions);
}

/** What of a person is shown in a list. */
const versionOf = (session, username) => {
  const { status, biography, profile_picture: picture } = session.people.person(username) ?? {};
  return JSON.stringify([status, biography, picture, session.people.verified(username)]);
};

/** Fills a list of people or lines, or says that there are none; what did not change stays, and who uses it is left alone. */
function put(element, items, none, { key = (item) => item, version, make }) {
  const empty = { none };
  list(element, items.length > 0 ? items : [empty], {
    key: (item) => (item === empty ? "\n" : key(item)),
    version: (item) => (item === empty ? none : version(item)),
    make: (item) => (item === empty ? h("li", { className: "quiet" }, none) : make(item)),
  });
}

/** Opens the dialog of friends; it follows what happens while it is open. */
export function people(session, { act, compare }) {
  const lists = ["requests", "friends", "outgoing", "blocked"].map((kind) => h("ul", { className: "people", id: kind }));
  const [requests, friends, outgoing, blocked] = lists;
  const everybody = h("ul", { className: "people", id: "everybody" });
  const username = h("input", { id: "friend-name", required: true, autocomplete: "off", autocapitalize: "none", spellcheck: false });
  const add = form({ id: "request" }, [field("Name", username)], {
    label: "Send a request",
    submit: async () => {
      await session.people.requestFriend(username.value.trim());
      username.value = "";
    },
  });
  const fill = () => {
    const all = (element, names, none, actions) =>
      put(element, names, none, { version: (name) => versionOf(session, name), make: (name) => row(session, name, ...actions(name)) });
    all(requests, session.people.requests, "Nobody asks.", (name) => [
      button("Accept", () => act(() => session.people.answerFriend(name, true)), { className: "main", "aria-label": `Accept ${name}` }),
      button("Refuse", () => act(() => session.people.answerFriend(name, false)), { "aria-label": `Refuse ${name}` }),
    ]);
    all(friends, session.people.friends, "Nobody yet.", (name) => [
      button("Compare keys", () => compare(name), { "aria-label": `Compare keys with ${name}` }),
      button("Unfriend", () => act(() => session.people.unfriend(name)), { "aria-label": `Unfriend ${name}` }),
      button("Block", () => act(() => session.people.block(name)), { className: "danger", "aria-label": `Block ${name}` }),
    ]);
    all(outgoing, session.people.outgoing, "None.", () => []);
    all(blocked, session.people.blocked, "Nobody.", (name) => [
      button("Unblock", () => act(() => session.people.unblock(name)), { "aria-label": `Unblock ${name}` }),
    ]);
  };
  const look = button("Show everybody on this server", () => act(async () => {
    const users = (await session.people.directory()).filter((user) => user.username !== session.username);
    list(everybody, users, { key: (user) => user.username, version: ({ username: name }) => [versionOf(session, name), session.people.friends.includes(name), session.people.blocked.includes(name)], make: ({ username: name }) => row(session, name,
      !session.people.friends.includes(name) && button("Request", () => act(() => session.people.requestFriend(name)), { "aria-label": `Send a request to ${name}` }),
      !session.people.blocked.includes(name) && button("Block", () => act(() => session.people.block(name)), { className: "danger", "aria-label": `Block ${name}` })) });
  }));
  const shown = dialog("People", "people", section("Add a friend", add), section("They ask you", requests), section("Friends", friends),
    section("You asked", outgoing), section("Blocked", blocked), section("Everybody", look, everybody));
  fill();
  session.addEventListener("people", fill);
  shown.addEventListener("close", () => session.removeEventListener("people", fill));
}

/** A conversation with one or more. */
export function newConversation(session, opened) {
  const boxes = session.people.friends.map((name) => {
    const box = h("input", { type: "checkbox", value: name });
    return { box, element: h("li", {}, check(name, box)) };
  });
  const others = h("input", { id: "others", autocomplete: "off", autocapitalize: "none", spellcheck: false });
  const submit = async () => {
    const more = others.value.split(",").map((name) => name.trim()).filter((name) => name !== "");
    const names = [...new Set([...boxes.filter(({ box }) => box.checked).map(({ box }) => box.value), ...more])];
    if (names.length === 0) {
      throw new Error("Choose somebody.");
    }
    const id = await session.create(names);
    shown.close();
    opened(id);
  };
  const friends = boxes.length > 0 ? h("ul", { className: "people", id: "choose" }, boxes.map(({ element }) => element))
    : h("p", { className: "quiet" }, "A conversation of two needs a friend: add one under People.");
  const shown = dialog("New conversation", "new-dialog",
    form({ id: "new-form" }, [
      h("fieldset", {}, h("legend", { className: "quiet" }, "Friends; several make a group"), friends),
      field("Others for a group, by name, separated by commas", others),
      h("p", { className: "quiet" }, "Nobody can be added later, and who leaves keeps the key of what was said."),
    ], { submit, label: "Begin" }));
}

/** What there is to know and to do about a conversation. */
export function details(session, id, { act, compare }) {
  const dm = session.dms.get(id);
  const name = h("input", { id: "dm-name", value: dm.name ?? "", maxLength: NAME_MAX });
  const rename = form({ id: "rename" }, [field("Name, for all members", name)], { submit: () => session.rename(id, name.value.trim()), label: "Save", className: "" });
  const members = h("ul", { className: "people" }, dm.users.map((user) => row(session, user,
    user !== session.username && button("Compare keys", () => compare(user), { "aria-label": `Compare keys with ${user}` }))));
  const scheduled = h("ul", { className: "people", id: "schedules" });
  const pins = h("ul", { className: "people", id: "pins" });
  const call = h("div", { className: "row" });
  const line = (text, at, ...actions) => h("li", {}, h("span", { className: "grow" }, text, h("span", { className: "quiet" }, ` ${dayOf(at)}, ${clockTime(at)}`)), actions);
  const fill = () => {
    put(scheduled, dm.scheduled, "None.", {
      key: (one) => one.id,
      version: (one) => one.text,
      make: (one) => line(one.text ?? "Not shown", one.at,
        button("Cancel", () => act(() => session.cancel(id, one.id)), { "aria-label": `Cancel: ${one.text}` })),
    });
    const inCall = dm.users_in_call.includes(session.username);
    call.replaceChildren(
      h("span", { className: "grow", id: "call" }, dm.users_in_call.length > 0 ? `In the call: ${dm.users_in_call.join(", ")}` : "Nobody is in a call."),
      inCall ? button("Leave the call", () => act(() => session.leaveCall(id))) : button("Join the call", () => act(() => session.joinCall(id))));
  };
  const fillPins = () => act(async () => {
    const pinned = await session.pinnedMessages(id);
    put(pins, pinned, "None.", {
      key: (one) => one.id,
      version: (one) => one.text,
      make: (one) => line(`${one.sender}: ${one.text ?? one.problem}`, one.at,
        button("Unpin", () => act(async () => {
          await session.setPinned(one, false);
          fillPins();
        }))),
    });
  });
  const leave = button("Leave the conversation", () => act(async () => {
    await session.leave(id);
    shown.close();
  }), { className: "danger" });
  const setup = { true: "Its creator has signed the tree of keys: nobody on the way has changed it.",
    false: "Its creator did not sign the tree of keys: a server that is not honest could have changed it. Compare keys, and better begin a new one." };
  const shown = dialog(titleOf(session, dm), "details", rename,
    section("Members", members, h("p", { className: "quiet" }, setup[session.signedSetup(id)] ?? "How its keys were set up was seen on another device.")),
    section("Scheduled by you", scheduled), section("Pinned", pins),
    section("Call", call, h("p", { className: "quiet" }, "This page shows and says who is in a call; it carries no sound and no picture.")),
    section("Leave", h("p", { className: "quiet" }, "Nobody can bring you back into it."), leave));
  fill();
  fillPins();
  const changed = (event) => event.detail.id === id && fill();
  session.addEventListener("dm", changed);
  shown.addEventListener("close", () => session.removeEventListener("dm", changed));
}

/** What two people compare by another way. It follows what the server names while it is open. */
export function compare(session, username, { act }) {
  const body = h("div", {});
  const digits = (id, key) => h("p", { className: "digits", id }, key.digits);
  const fill = () => act(async () => {
    const { known, named, verified } = await session.people.comparison(username);
    const same = button("It is the same", () => act(() => session.people.confirmKey(username, known.key)), { className: "main", id: "same-key" });
    const parts = [section("The key that is known", digits("fingerprint", known),
      verified ? h("p", { id: "compared" }, "You have compared it.") : same)];
    if (named) {
      const accept = button("It is the right one: use the new key", () => act(async () => {
        await session.acceptKey(username, named.key);
        shown.close();
      }), { className: "danger", id: "accept-key" });
      parts.push(section("The key that the server names now", digits("fingerprint-new", named),
        h("p", {}, `Take it only after ${username} has read out the same digits.`), accept));
    }
    body.replaceChildren(...parts);
  });
  const shown = dialog(`Keys of you and ${username}`, "compare",
    h("p", {}, `${username} sees the same digits. Compare them where nobody can change them: face to face, or by telephone.`), body);
  const changed = (event) => event.detail.username === username && fill();
  fill();
  session.addEventListener("key", changed);
  session.addEventListener("verified", changed);
  shown.addEventListener("close", () => {
    session.removeEventListener("key", changed);
    session.removeEventListener("verified", changed);
  });
}

/** What others see of this account, and its keys. */
export function profile(session, { act }) {
  const { me } = session.people;
  const status = h("select", { id: "status" }, ["online", "away", "dnd", "offline"].map((value) =>
    h("option", { value, selected: me.status === value }, statusText({ status: value }))));
  const biography = h("textarea", { id: "biography", rows: 3, maxLength: BIOGRAPHY_MAX, value: me.biography });
  const colour = h("input", { type: "color", id: "colour", value: /^#[0-9a-f]{6}$/i.test(me.profile_picture) ? me.profile_picture : "#55677a" });
  const done = h("p", { role: "status", className: "quiet" });
  const save = form({ id: "profile-form" }, [field("Status", status), field("About you", biography), field("Colour", colour)], {
    label: "Save",
    submit: async () => {
      done.textContent = "";
      await session.setProfile({ status: status.value, biography: biography.value, profile_picture: colour.value });
      done.textContent = "Saved.";
    },
  });
  const wanted = h("input", { type: "checkbox", checked: session.signedOnly });
  wanted.addEventListener("change", () => (session.signedOnly = wanted.checked));
  const keyDone = h("p", { role: "status", className: "quiet" });
  const keys = (work, said) => () => act(async () => {
    keyDone.textContent = "";
    await work();
    keyDone.textContent = said;
  });
  dialog(session.username, "profile", section("What others see", save, done),
    section("Keys",
      check("Refuse invitations whose tree of keys is not signed", wanted),
      h("div", { className: "row" },
        button("Show the recovery words", () => showWords(session.seed, "Done")),
        button("Replace the prekey", keys(() => session.replacePrekey(), "There is a new prekey.")),
        button("Withdraw the prekey", keys(() => session.withdrawPrekey(), "Nobody can invite you until you replace it."))),
      keyDone));
}
