import assert from "node:assert/strict";
import { test } from "node:test";
import type { Span } from "../src/api-types.ts";
import { bounds, compared, rows } from "../src/trace/tree.ts";

function span(id: string, parent: string, start: number, seconds: number, more: Partial<Span> = {}): Span {
  return {
    span: id, parent, name: id, kind: "internal", origin: "application", app: "bank", service: "web", instance: "", node: "",
    start, seconds, error: false, message: "", attributes: {}, events: [], ...more,
  };
}

const spans = [span("c", "a", 5, 4), span("a", "", 0, 10), span("b", "a", 1, 3), span("d", "c", 6, 2)];

test("a waterfall is in depth-first order, siblings by their start", () => {
  assert.deepEqual(rows(spans).map(({ span: { span: id }, depth }) => [id, depth]), [["a", 0], ["b", 1], ["c", 1], ["d", 2]]);
});

test("what is below a folded span is left out", () => {
  assert.deepEqual(rows(spans, new Set(["c"])).map(({ span: { span: id } }) => id), ["a", "b", "c"]);
});

test("a span whose parent is missing stands by itself and says so; a ring of parents is still shown", () => {
  const [first] = rows([span("x", "gone", 0, 1)]);
  assert.ok(first!.orphan);
  assert.equal(rows([span("p", "q", 0, 1), span("q", "p", 0, 1)]).length, 2);
  assert.equal(rows([span("p", "p", 0, 1)]).length, 1);
});

test("own time is what no child covers, overlapping children counted once", () => {
  const own = (all: Span[]) => rows(all)[0]!.own;
  assert.equal(own(spans), 3);
  assert.equal(own([span("a", "", 0, 10), span("b", "a", 0, 6), span("c", "a", 4, 4)]), 2);
  assert.equal(own([span("a", "", 0, 1), span("b", "a", -1, 5)]), 0);
});

test("the critical path follows what ended last", () => {
  const critical = rows([...spans, span("side", "a", 5, 1)]).filter((row) => row.critical).map(({ span: { span: id } }) => id);
  assert.deepEqual(critical, ["a", "b", "c", "d"]);
});

test("who served the call is on the critical path, also if it ended after the answer; a job that was left is not", () => {
  const served = span("e", "a", 1, 12, { kind: "server" });
  const job = span("f", "a", 8, 9, { kind: "internal" });
  const critical = rows([span("a", "", 0, 10), served, span("g", "e", 2, 3), job]).filter((row) => row.critical);
  assert.deepEqual(critical.map(({ span: { span: id } }) => id), ["a", "e", "g"]);
});

test("bounds hold every span, also one that sticks out", () => {
  assert.deepEqual(bounds([...spans, span("late", "a", 9, 4)]), { start: 0, seconds: 13 });
});

test("two traces are compared by workload and name, the largest difference in own time first", () => {
  const slow = spans.map((each) => (each.span === "d" ? { ...each, seconds: 3 } : each));
  const [first] = compared(spans, slow);
  assert.equal(first!.name, "d");
  assert.deepEqual(first!.seconds, [2, 3]);
  const only = compared([], [span("n", "", 0, 1)]);
  assert.deepEqual(only[0]!.counts, [0, 1]);
});
