import assert from "node:assert/strict";
import { test } from "node:test";
import { found } from "../src/ui/search.ts";
import { stretches } from "../src/ui/stretches.ts";
import { visibleRows } from "../src/ui/window.ts";

const entries = ["bank", "bank/accounts", "bank/web", "shop/web", "Workloads"].map((name) => ({
  name, path: `/${name}`, about: "", kind: "",
}));
const names = (text: string) => found(entries, text, ["bank"]).map((each) => each.name);

test("beginnings come before parts, parts before letters inside", () => {
  assert.deepEqual(names("bank")[0], "bank");
  assert.deepEqual(names("web").slice(0, 2).sort(), ["bank/web", "shop/web"]);
  assert.equal(names("wl")[0], "Workloads");
  assert.deepEqual(names("zzz"), []);
});

test("an id of a trace leads to that trace", () => {
  const id = "0af7651916cd43dd8448eb211c80319c";
  assert.equal(found(entries, id, ["bank"])[0]?.path, `/traces/${id}`);
});

test("of a long table what is seen is drawn, and the rest keeps its place", () => {
  const window = visibleRows(500, 30, 3000, 600, 10);
  assert.deepEqual(window, { first: 90, end: 130, above: 2700, below: 11_100 });
  assert.equal(window.above + (window.end - window.first) * 30 + window.below, 500 * 30);
  assert.deepEqual(visibleRows(3, 30, 0, 600), { first: 0, end: 3, above: 0, below: 0 });
  assert.equal(visibleRows(10, 30, 9000, 600).end, 10);
});

test("incomplete seconds in a row are one stretch", () => {
  assert.deepEqual(stretches([5, 1, 2, 3, 9], 1), [[1, 3], [5, 5], [9, 9]]);
  assert.deepEqual(stretches([10, 20, 40], 10), [[10, 20], [40, 40]]);
  assert.deepEqual(stretches([], 1), []);
});
