import assert from "node:assert/strict";
import { test } from "node:test";
import { edgeId, layout, middle, path, SIZES, type Edge, type Node } from "../src/graph/layout.ts";

const node = (id: string, kind = "workload"): Node => ({ id, kind });
const edges = (text: string): Edge[] => text.split(" ").map((part) => {
  const [source, target] = part.split(">") as [string, string];
  return { source, target };
});

const bank: [Node[], Edge[]] = [
  [node("gw", "gateway"), node("web"), node("accounts"), node("risk"), node("ledger", "database"), node("savings", "database")],
  edges("gw>web web>accounts web>risk accounts>ledger accounts>savings"),
];

test("the gateway is first, databases are last, and who is called stands right of who calls", () => {
  const { nodes } = layout(...bank);
  const x = (id: string) => nodes.get(id)!.x;
  assert.ok(x("gw") < x("web") && x("web") < x("accounts") && x("accounts") < x("ledger"));
  assert.equal(x("ledger"), x("savings"));
  assert.equal(x("accounts"), x("risk"));
});

test("the same graph is drawn the same, in whatever order it comes", () => {
  const [nodes, links] = bank;
  const one = layout(nodes, links);
  const other = layout([...nodes].reverse(), [...links].reverse());
  assert.deepEqual([...one.nodes].sort(), [...other.nodes].sort());
  assert.deepEqual([...one.edges].sort(), [...other.edges].sort());
});

test("no two nodes overlap, also where a hundred stand in a layer", () => {
  const many = Array.from({ length: 100 }, (_, index) => node(`w${index}`));
  const links = many.map(({ id }) => ({ source: "gw", target: id }));
  const { nodes, height } = layout([node("gw", "gateway"), ...many], links);
  const ys = many.map(({ id }) => nodes.get(id)!.y).sort((a, b) => a - b);
  for (let index = 1; index < ys.length; index += 1) assert.ok(ys[index]! - ys[index - 1]! >= SIZES.height + SIZES.down - 1);
  assert.ok(ys[0]! >= 0 && ys.at(-1)! + SIZES.height <= height + 1);
});

test("a cycle is drawn, each of its edges from its source to its target", () => {
  const links = edges("a>b b>c c>a");
  const { nodes, edges: paths } = layout([node("a"), node("b"), node("c")], links);
  for (const edge of links) {
    const points = paths.get(edgeId(edge))!;
    const from = nodes.get(edge.source)!;
    assert.ok(Math.abs(points[0]!.y - (from.y + SIZES.height / 2)) < 1, edgeId(edge));
    assert.ok(points.length >= 2);
  }
});

test("an edge over several layers has a place in each, and passes no node", () => {
  const { nodes, edges: paths } = layout([node("a"), node("b"), node("c"), node("d")], edges("a>b b>c c>d a>d"));
  const points = paths.get("a>d")!;
  assert.equal(points.length, 6);
  for (const id of ["b", "c"]) {
    const { x, y } = nodes.get(id)!;
    const there = points.find((point) => point.x === x)!;
    assert.ok(there.y <= y || there.y >= y + SIZES.height, id);
  }
});

test("two services that swap their databases do not cross where they need not", () => {
  const { nodes } = layout(
    [node("a"), node("b"), node("x", "database"), node("y", "database")], edges("a>y b>x"),
  );
  assert.equal(nodes.get("a")!.y < nodes.get("b")!.y, nodes.get("y")!.y < nodes.get("x")!.y);
});

test("what nothing leads to is drawn too, and an edge to nowhere is not", () => {
  const { nodes, edges: paths, width } = layout([node("alone")], edges("alone>gone alone>alone"));
  assert.deepEqual(nodes.get("alone"), { x: 0, y: 0 });
  assert.equal(paths.size, 0);
  assert.equal(width, SIZES.width);
  assert.deepEqual(layout([], []).nodes.size, 0);
});

test("five hundred services are drawn within a frame or few", () => {
  const many = Array.from({ length: 500 }, (_, index) => node(`w${index}`));
  const links = many.flatMap(({ id }, index) => [1, 2, 3].map((by) => ({ source: id, target: `w${index * 3 + by}` })));
  assert.equal(layout(many, links).nodes.size, 500);
});

test("a path is smooth and its label lies on it", () => {
  const points = [{ x: 0, y: 0 }, { x: 100, y: 50 }];
  assert.equal(path(points), "M0 0C50 0 50 50 100 50");
  assert.deepEqual(middle(points), { x: 50, y: 25 });
  assert.equal(path([]), "");
});
