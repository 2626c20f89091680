import assert from "node:assert/strict";
import { test } from "node:test";
import { cellOf, columnsOf, firstId, placed } from "../src/pages/transaction-times.ts";

test("an id that begins with a time is not before that time's first id, and before that of the next", () => {
  const at = 1_795_559_221.754;
  const id = "1a20fab69fa5e9f6a5f05bfae60624e";
  assert.ok(firstId(at) <= id);
  assert.ok(firstId(at + 0.002) > id);
  assert.equal(firstId(at).length, 11);
  assert.equal(firstId(0), "00000000000");
});

test("events are in order along the line, from its beginning to its end, and never on one another", () => {
  const event = (at: number) => ({ at, kind: "x", branch: null, detail: {} });
  const line = placed([event(10), event(10), event(5000), event(10.004)]);
  assert.equal(line[0]!.x, 0);
  assert.equal(line.at(-1)!.x, 1);
  for (let index = 1; index < line.length; index += 1) assert.ok(line[index]!.x - line[index - 1]!.x > 0.05);
  assert.equal(line.at(-1)!.since, 4990);
  assert.deepEqual(placed([]), []);
});

test("images of a row are told by column; a row that was not there has no cells", () => {
  assert.deepEqual(columnsOf([{ id: "a" }, null, { id: "a", stock: 2 }]), ["id", "stock"]);
  assert.equal(cellOf(null, "id"), null);
  assert.equal(cellOf({ stock: 2 }, "stock"), "2");
  assert.equal(cellOf({ stock: null }, "stock"), "null");
});
