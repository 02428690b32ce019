// Where one writes, without a browser: as much of elements as it needs.

import assert from "node:assert/strict";
import test from "node:test";

import { Composer } from "../src/composer.js";

class Element {
  value = "";
  hidden = false;
  disabled = false;
  placeholder = "";
  handlers = {};

  addEventListener(name, handle) {
    this.handlers[name] = handle;
  }
  setAttribute() {}
  append() {}
}

test("each conversation has its own draft, and what is written while something is sent stays", async () => {
  globalThis.document = { createElement: () => new Element() };
  const sent = [];
  let answer;
  const composer = new Composer({
    act: (work) => work(),
    send: (...what) => new Promise((resolve) => {
      sent.push(what);
      answer = resolve;
    }),
    typing: () => {},
  });
  const write = (text) => (composer.input.value = text);
  const submit = () => composer.element.handlers.submit({ preventDefault: () => {} });
  const answered = async () => {
    answer();
    await new Promise((resolve) => setImmediate(resolve));
  };
  composer.show(1, false, "to Bob");
  write("for Bob");
  composer.later.number.value = "5";
  composer.show(2, false, "to Carol");
  assert.deepEqual([composer.input.value, composer.later.number.value, composer.when.hidden], ["", "", true]);
  write("for Carol");
  submit();
  assert.ok(composer.button.disabled);
  submit();
  write("for Carol, and more");
  await answered();
  assert.equal(composer.input.value, "for Carol, and more");
  composer.show(1, false, "to Bob");
  assert.deepEqual([composer.input.value, composer.later.number.value, composer.when.hidden], ["for Bob", "5", false]);
  // Sent, and gone elsewhere before the answer.
  submit();
  composer.show(2, false, "to Carol");
  await answered();
  assert.equal(composer.input.value, "for Carol, and more");
  composer.show(1, true, "nothing is sent");
  assert.deepEqual([composer.input.value, composer.later.number.value, composer.button.disabled], ["", "", true]);
  write("nobody hears");
  submit();
  assert.deepEqual(sent.map(([id, text]) => [id, text]), [[2, "for Carol"], [1, "for Bob"]]);
});
