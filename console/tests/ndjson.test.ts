import assert from "node:assert/strict";
import { test } from "node:test";
import { follow, records, type Connection } from "../src/api/ndjson.ts";

function body(...chunks: (string | Uint8Array)[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(typeof chunk === "string" ? new TextEncoder().encode(chunk) : chunk);
      controller.close();
    },
  });
}

/** Gives its chunks and then neither more nor an end. */
function silent(signal: AbortSignal, ...chunks: string[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(new TextEncoder().encode(chunk));
      signal.addEventListener("abort", () => controller.error(new DOMException("aborted", "AbortError")));
    },
  });
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

test("records are whole however the chunks are cut, even within a character", async () => {
  const bytes = new TextEncoder().encode('{"a":"é"}\n\n{"a":2}\n');
  for (let cut = 0; cut <= bytes.length; cut += 1) {
    assert.deepEqual(await all(records(body(bytes.slice(0, cut), bytes.slice(cut)))), [{ a: "é" }, { a: 2 }]);
  }
});

test("a body that breaks off within a record gives those before it, then fails", async () => {
  const found: unknown[] = [];
  await assert.rejects(async () => {
    for await (const record of records(body('{"a":1}\n{"a":'))) found.push(record);
  }, /broke off/);
  assert.deepEqual(found, [{ a: 1 }]);
});

test("a stream that ends or is refused is opened again, after pauses that double and start anew with a record", async () => {
  const ending = new AbortController();
  const waits: number[] = [];
  const states: Connection[] = [];
  const got: number[] = [];
  const attempts = [
    () => { throw new Error("refused"); },
    () => { throw new Error("refused"); },
    () => { throw new Error("refused"); },
    () => body("1\n"),
    () => body("2\n3\n"),
  ];
  await follow<number>({
    open: async () => attempts.shift()!(),
    each: (record) => {
      got.push(record);
      if (record === 3) ending.abort();
    },
    state: (state) => states.push(state),
    signal: ending.signal,
    first: 500,
    longest: 1500,
    sleep: async (wait) => { waits.push(wait); },
  });
  assert.deepEqual(got, [1, 2, 3]);
  assert.deepEqual(waits, [500, 1000, 1500, 500]);
  assert.deepEqual(states.slice(0, 2), ["connecting", "broken"]);
  assert.equal(states.at(-1), "open");
});

test("a stream that falls silent counts as broken", async () => {
  const ending = new AbortController();
  let opened = 0;
  await follow<number>({
    open: async (signal) => {
      opened += 1;
      return opened === 1 ? silent(signal, "1\n") : body("2\n");
    },
    each: (record) => record === 2 && ending.abort(),
    signal: ending.signal,
    silence: 20,
    sleep: async () => undefined,
  });
  assert.equal(opened, 2);
});

test("a final failure is not tried again", async () => {
  let opened = 0;
  await follow<number>({
    open: async () => {
      opened += 1;
      throw new Error("401");
    },
    each: () => undefined,
    final: () => true,
    signal: new AbortController().signal,
    sleep: async () => assert.fail("it must not wait"),
  });
  assert.equal(opened, 1);
});

test("who aborts hears nothing more", async () => {
  const ending = new AbortController();
  const got: number[] = [];
  await follow<number>({
    open: async () => body("1\n2\n3\n"),
    each: (record) => {
      got.push(record);
      ending.abort();
    },
    signal: ending.signal,
    sleep: async () => assert.fail("it must not wait"),
  });
  assert.deepEqual(got, [1]);
});
