"use strict";

// Reads one snapshot a second from the server and puts its values where they belong. Decides nothing and sends nothing.

const HISTORY = 300;
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

let history = [];
let paused = false;
let heardAt = 0;

// ---- words

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const small = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

function count(value) {
  return value < 10 && !Number.isInteger(value) ? small.format(value) : number.format(value);
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? number.format(value) : small.format(value)} ${units[unit]}`;
}

function duration(seconds) {
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let rest = Math.max(0, Math.floor(seconds));
  const first = parts.findIndex(([, size]) => rest >= size);
  if (first < 0) {
    return "0 s";
  }
  const said = parts.slice(first, first + 2).map(([name, size]) => {
    const whole = Math.floor(rest / size);
    rest -= whole * size;
    return `${whole} ${name}`;
  });
  return said.filter((part, index) => index === 0 || !part.startsWith("0 ")).join(" ");
}

const things = (value, one, many) => `${number.format(value)} ${value === 1 ? one : many}`;

// ---- putting

function put(id, text) {
  const element = at(id);
  // Not touched when nothing changed, so that whoever reads aloud or selects text is left alone.
  if (element.textContent !== String(text)) {
    element.textContent = text;
  }
}

function level(id, text, value) {
  put(id, text);
  at(id).dataset.level = value;
}

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  return element;
}

function state(name, text) {
  if (at("state").dataset.state !== name) {
    at("state").dataset.state = name;
  }
  put("state", text);
}

// ---- charts

function chart(name, value, say) {
  const svg = at(`chart-${name}`);
  const values = history.map(value);
  const most = Math.max(1, ...values);
  // A minute at least, so that the first seconds do not look like a landslide.
  const width = Math.max(60, history.length);
  const x = (index) => 600 - (history.length - 1 - index) * (600 / (width - 1));
  const y = (it) => 154 - (it / most) * 146;
  const line = values.map((it, index) => `${x(index).toFixed(1)},${y(it).toFixed(1)}`).join(" ");
  svg.replaceChildren(draw("line", { x1: 0, x2: 600, y1: 154, y2: 154 }), draw("line", { x1: 0, x2: 600, y1: 8, y2: 8 }));
  if (values.length > 0) {
    svg.append(draw("polygon", { points: `${x(0).toFixed(1)},154 ${line} 600,154` }), draw("polyline", { points: line }));
  }
  const said = `now ${say(values.at(-1) ?? 0)}, at most ${say(Math.max(0, ...values))} in the last ${duration(values.length)}`;
  put(`chart-${name}-note`, said);
  const label = `${svg.dataset.what ??= svg.getAttribute("aria-label")}: ${said}`;
  svg.setAttribute("aria-label", label);
}

// ---- lists

function dot(device) {
  const stuck = device.state === "takes nothing";
  const shape = device.leader ? (stuck ? "leader-stuck" : "leader") : !device.connected ? "away" : stuck ? "stuck" : "here";
  const svg = draw("svg", { class: "dot", viewBox: "0 0 20 20", "aria-hidden": "true" });
  svg.append(draw("use", { href: `#dot-${shape}` }));
  const waiting = device.waiting === 0 ? "" : ` · ${number.format(device.waiting)} waiting`;
  const words = `${device.leader ? "leads, " : ""}${device.state}${waiting}`;
  return make("li", { class: "device", "data-leader": device.leader, "data-connected": device.connected, title: `${device.device}: ${words}` },
    svg, make("code", {}, device.device), make("span", { class: "quiet" }, words));
}

function lock(held) {
  const about = [`Lock held by ${held.holder} for ${duration(held.held_ms / 1000)}`];
  if (held.remaining_ms === null) {
    about.push("its time has not begun");
  } else {
    about.push(`${duration(held.remaining_ms / 1000)} left`);
  }
  if (held.staged > 0) {
    about.push(`${things(held.staged, "message", "messages")} staged`);
  }
  const box = make("div", { class: "lock" }, make("p", {}, about.join(", ")));
  if (held.remaining_ms !== null) {
    const most = held.held_ms + held.remaining_ms;
    box.append(make("meter", { min: 0, max: most, low: most / 4, optimum: most, value: held.remaining_ms, "aria-label": "time left for the transaction" }));
  }
  return box;
}

function group(it) {
  const facts = [];
  if (it.stalled > 0) {
    facts.push(`${things(it.stalled, "socket takes", "sockets take")} nothing`);
  }
  facts.push(it.deepest === 0 ? "nothing waits" : `${things(it.deepest, "message waits", "messages wait")}`);
  const card = make("li", { class: "group", "data-group": it.group },
    make("p", {}, make("code", {}, it.group), make("span", { class: "quiet" }, facts.join(", "))));
  if (it.devices === null) {
    card.append(make("p", { "data-level": "warn" }, "It does not answer: it waits for the store."));
  } else {
    card.append(make("ul", { class: "devices", "aria-label": `Devices of ${it.group}` }, ...it.devices.map(dot)));
  }
  if (it.lock !== null) {
    card.append(lock(it.lock));
  }
  return card;
}

function closed(row) {
  return make("tr", { "data-code": row.code },
    make("th", { scope: "row" }, make("code", {}, row.code === "none" ? "–" : row.code)),
    make("td", {}, row.meaning), make("td", { class: "number" }, number.format(row.count)));
}

// ---- a snapshot

function overall(now) {
  if (now.draining) {
    state("draining", `Draining: ${things(now.connections, "connection", "connections")} left`);
  } else if (!now.ready) {
    state("not-ready", "Not ready");
  } else if (now.degraded.length > 0) {
    state("degraded", `Degraded: ${now.degraded.map((it) => it.what).join(", ")}`);
  } else {
    state("ready", "Ready");
  }
  const said = now.degraded.map((it) => `${it.what}: ${it.why}`);
  if (now.durability === "memory") {
    said.push("Nothing is kept: everything is lost when this process ends.");
  }
  if (at("notices").dataset.said !== said.join("\n")) {
    at("notices").dataset.said = said.join("\n");
    at("notices").replaceChildren(...said.map((text) => make("p", { class: "notice" }, text)));
  }
}

function certificate(it) {
  if (it === null) {
    level("certificate-state", "No TLS at this door", "quiet");
    put("certificate-names", "–");
    put("certificate-pin", "–");
    return;
  }
  const days = things(Math.abs(it.days_left), "day", "days");
  if (it.days_left < 0) {
    level("certificate-state", `Expired ${days} ago`, "bad");
  } else if (it.days_left < 14) {
    level("certificate-state", `Expires soon: ${days} left`, "warn");
  } else {
    level("certificate-state", `Valid: ${days} left`, "good");
  }
  put("certificate-names", it.names.join(", ") || "–");
  put("certificate-pin", it.pin);
}

function upstream(now) {
  const lately = now.upstream.lately;
  const asked = Object.values(lately).some((times) => times > 0) || now.upstream.open > 0;
  const failed = (lately.timeout ?? 0) + (lately.unreachable ?? 0);
  put("upstream-open", count(now.upstream.open));
  put("upstream-connected", count(lately.connected ?? 0));
  put("upstream-failed", count(failed));
  const away = now.degraded.filter((it) => it.what === "upstream").length;
  if (away > 0) {
    level("upstream-state", `${things(away, "address does", "addresses do")} not answer`, "bad");
  } else if (failed > 0) {
    level("upstream-state", "Some were not reached lately", "warn");
  } else if (!asked) {
    level("upstream-state", "Not asked for lately", "quiet");
  } else {
    level("upstream-state", "Reached whenever asked for", "good");
  }
}

function show(now) {
  put("version", now.version);
  overall(now);
  put("connections", count(now.connections));
  put("groups-awake", count(now.groups.awake));
  put("groups-asleep", count(now.groups_asleep));
  put("reflects", count(now.rates.reflects));
  put("reflect-bytes", bytes(now.rates.reflect_bytes));
  put("proxy-bytes", bytes(now.rates.to_chat + now.rates.to_device));
  put("to-chat", bytes(now.rates.to_chat));
  put("to-device", bytes(now.rates.to_device));
  put("deepest", count(now.groups.deepest));
  put("lagging", count(now.groups.lagging));
  put("stalled", count(now.groups.stalled));
  put("locked", `${things(now.groups.locked, "lock", "locks")} held`);
  put("durability", now.durability === "fsync" ? "fsync: acknowledged means on disk" : `${now.durability}: nothing is kept`);
  put("uptime", duration(now.uptime_s));
  put("log", now.log ?? "as started");
  chart("connections", (it) => it.connections, count);
  chart("reflects", (it) => it.reflects, (it) => `${count(it)}/s`);
  at("groups").replaceChildren(...now.groups.shown.map(group));
  at("groups-none").hidden = now.groups.shown.length > 0;
  at("closed").replaceChildren(...now.closed.map(closed));
  at("closed-none").hidden = now.closed.length > 0;
  upstream(now);
  certificate(now.certificate);
}

// ---- the stream

let last = null;

function listen() {
  const events = new EventSource("events");
  events.addEventListener("history", (event) => {
    history = JSON.parse(event.data);
  });
  events.addEventListener("snapshot", (event) => {
    heardAt = Date.now();
    last = JSON.parse(event.data);
    history.push({ connections: last.connections, reflects: last.rates.reflects });
    history = history.slice(-HISTORY);
    if (!paused) {
      show(last);
    }
  });
  // The browser tries again by itself unless the server refused.
  events.addEventListener("error", () => {
    const since = heardAt === 0 ? "" : ` since ${new Date(heardAt).toLocaleTimeString()}`;
    state("lost", `No answer from the server${since}`);
    if (events.readyState === EventSource.CLOSED) {
      setTimeout(listen, 5000);
    }
  });
}

at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  put("pause", paused ? "Resume" : "Pause");
  if (!paused && last !== null) {
    show(last);
  }
});

listen();
