/**
 * A layered drawing of who calls whom, from left to right: the gateway first, databases last. Pure.
 *
 * Rule: the same nodes and edges give the same drawing, in whatever order they come and whatever
 * they carry. So nothing moves from one second to the next; only what is added or gone changes it.
 *
 * The steps are Sugiyama's: break cycles, put nodes into layers, give edges that span several a place
 * in each, order the layers by barycentres, set the heights.
 */

export interface Node {
  id: string;
  kind: string;
}

export interface Edge {
  source: string;
  target: string;
}

export interface Place {
  x: number;
  y: number;
}

export interface Drawing {
  nodes: Map<string, Place>;
  /** The points that an edge passes, from the right side of its source to the left one of its target. */
  edges: Map<string, Place[]>;
  width: number;
  height: number;
}

export interface Sizes {
  width: number;
  height: number;
  /** Between layers, and between the nodes of a layer. */
  across: number;
  down: number;
}

export const SIZES: Sizes = { width: 168, height: 54, across: 124, down: 22 };

export const edgeId = ({ source, target }: Edge) => `${source}>${target}`;

interface Cell {
  id: string;
  layer: number;
  real: boolean;
  order: number;
  y: number;
  before: Cell[];
  after: Cell[];
}

export function layout(nodes: readonly Node[], edges: readonly Edge[], sizes: Sizes = SIZES): Drawing {
  const sorted = [...nodes].sort((a, b) => rank(a.kind) - rank(b.kind) || compare(a.id, b.id));
  const known = new Set(sorted.map((node) => node.id));
  const links = [...edges]
    .filter(({ source, target }) => known.has(source) && known.has(target) && source !== target)
    .sort((a, b) => compare(edgeId(a), edgeId(b)));
  const forward = acyclic(sorted, links);
  const layers = layered(sorted, forward);
  const cells = new Map<string, Cell>();
  for (const { id } of sorted) cells.set(id, cell(id, layers.get(id)!, true));
  const chains = new Map<string, Cell[]>();
  for (const { source, target, turned } of forward) chains.set(turned ? `${target}>${source}` : `${source}>${target}`, chain(cells.get(source)!, cells.get(target)!));
  const columns: Cell[][] = [];
  const all = [...cells.values(), ...new Set([...chains.values()].flatMap((each) => each.slice(1, -1)))];
  for (const each of all) (columns[each.layer] ??= []).push(each);
  for (let layer = 0; layer < columns.length; layer += 1) columns[layer] ??= [];
  ordered(columns);
  heights(columns, sizes);
  return drawn(sorted, links, cells, chains, columns, sizes);
}

function rank(kind: string): number {
  return { gateway: 0, external: 1, workload: 2, database: 3 }[kind] ?? 2;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function cell(id: string, layer: number, real: boolean): Cell {
  return { id, layer, real, order: 0, y: 0, before: [], after: [] };
}

interface Forward extends Edge {
  /** It was turned round, to break a cycle. */
  turned: boolean;
}

/** Turns every edge that leads back to where a walk from the sources came from. */
function acyclic(nodes: readonly Node[], edges: readonly Edge[]): Forward[] {
  const out = new Map<string, Edge[]>();
  const called = new Set<string>();
  for (const edge of edges) {
    out.set(edge.source, [...(out.get(edge.source) ?? []), edge]);
    called.add(edge.target);
  }
  const state = new Map<string, "open" | "done">();
  const found: Forward[] = [];
  const walk = (start: string) => {
    // A stack of our own: a long chain of calls shall not overflow the engine's.
    const stack: [string, number][] = [[start, 0]];
    state.set(start, "open");
    while (stack.length) {
      const top = stack.at(-1)!;
      const edge = out.get(top[0])?.[top[1]];
      if (!edge) {
        state.set(top[0], "done");
        stack.pop();
        continue;
      }
      top[1] += 1;
      const back = state.get(edge.target) === "open";
      found.push(back ? { source: edge.target, target: edge.source, turned: true } : { ...edge, turned: false });
      if (!state.has(edge.target)) {
        state.set(edge.target, "open");
        stack.push([edge.target, 0]);
      }
    }
  };
  for (const node of nodes) if (!called.has(node.id) && !state.has(node.id)) walk(node.id);
  for (const node of nodes) if (!state.has(node.id)) walk(node.id);
  return found;
}

/** Each node one layer after the last of its callers; all databases together at the end. */
function layered(nodes: readonly Node[], edges: readonly Forward[]): Map<string, number> {
  const waiting = new Map<string, number>(nodes.map(({ id }) => [id, 0]));
  for (const { target } of edges) waiting.set(target, waiting.get(target)! + 1);
  const layer = new Map<string, number>(nodes.map(({ id }) => [id, 0]));
  const out = new Map<string, string[]>();
  for (const { source, target } of edges) out.set(source, [...(out.get(source) ?? []), target]);
  const gateways = nodes.some(({ kind }) => kind === "gateway");
  // Whoever nobody calls stands beside what the gateway calls, not beside the gateway.
  for (const { id, kind } of nodes) if (gateways && kind !== "gateway" && waiting.get(id) === 0) layer.set(id, 1);
  const ready = nodes.filter(({ id }) => waiting.get(id) === 0).map(({ id }) => id);
  while (ready.length) {
    const id = ready.shift()!;
    for (const target of out.get(id) ?? []) {
      layer.set(target, Math.max(layer.get(target)!, layer.get(id)! + 1));
      waiting.set(target, waiting.get(target)! - 1);
      if (waiting.get(target) === 0) ready.push(target);
    }
  }
  const workloads = nodes.filter(({ kind }) => kind !== "database").map(({ id }) => layer.get(id)!);
  const last = Math.max(0, ...workloads) + (workloads.length ? 1 : 0);
  for (const { id, kind } of nodes) if (kind === "database") layer.set(id, Math.max(last, layer.get(id)!));
  return layer;
}

/** The cells that an edge passes: in each layer between its ends, a place of its own. */
function chain(source: Cell, target: Cell): Cell[] {
  const cells = [source];
  for (let layer = source.layer + 1; layer < target.layer; layer += 1) cells.push(cell(`${source.id}>${target.id}@${layer}`, layer, false));
  cells.push(target);
  for (let index = 1; index < cells.length; index += 1) {
    cells[index - 1]!.after.push(cells[index]!);
    cells[index]!.before.push(cells[index - 1]!);
  }
  return cells;
}

const SWEEPS = 12;

/** Orders each layer by where its neighbours are; keeps the best of all sweeps. */
function ordered(columns: Cell[][]): void {
  for (const column of columns) number(column);
  let best = crossings(columns);
  let kept = columns.map((column) => [...column]);
  for (let sweep = 0; sweep < SWEEPS && best > 0; sweep += 1) {
    const down = sweep % 2 === 0;
    const way = down ? columns : [...columns].reverse();
    for (const column of way) {
      const middle = new Map(column.map((each) => [each, barycentre(down ? each.before : each.after, each.order)]));
      column.sort((a, b) => middle.get(a)! - middle.get(b)! || a.order - b.order);
      number(column);
    }
    const now = crossings(columns);
    if (now < best) {
      best = now;
      kept = columns.map((column) => [...column]);
    }
  }
  columns.forEach((column, index) => {
    column.splice(0, column.length, ...kept[index]!);
    number(column);
  });
}

function number(column: Cell[]): void {
  column.forEach((each, index) => {
    each.order = index;
  });
}

function barycentre(cells: Cell[], otherwise: number): number {
  return cells.length ? cells.reduce((sum, each) => sum + each.order, 0) / cells.length : otherwise;
}

export function crossings(columns: Cell[][]): number {
  let found = 0;
  for (const column of columns) {
    const pairs = column.flatMap((each) => each.after.map((next): [number, number] => [each.order, next.order]));
    for (let i = 0; i < pairs.length; i += 1) {
      for (let j = i + 1; j < pairs.length; j += 1) {
        const [a, b] = [pairs[i]!, pairs[j]!];
        if ((a[0] - b[0]) * (a[1] - b[1]) < 0) found += 1;
      }
    }
  }
  return found;
}

/** Heights that pull a node to the middle of its neighbours and keep the order and the distance. */
function heights(columns: Cell[][], { height, down }: Sizes): void {
  const tall = (each: Cell) => (each.real ? height : height * 0.45);
  for (const column of columns) {
    let y = 0;
    for (const each of column) {
      each.y = y + tall(each) / 2;
      y += tall(each) + down;
    }
    for (const each of column) each.y -= (y - down) / 2;
  }
  for (let round = 0; round < 16; round += 1) {
    const way = round % 2 === 0 ? columns : [...columns].reverse();
    for (const column of way) settle(column, round % 2 === 0, tall, down);
  }
}

function settle(column: Cell[], forwards: boolean, tall: (each: Cell) => number, down: number): void {
  if (!column.length) return;
  const wanted = column.map((each) => {
    const near = forwards ? each.before : each.after;
    const both = near.length ? near : forwards ? each.after : each.before;
    return both.length ? both.reduce((sum, next) => sum + next.y, 0) / both.length : each.y;
  });
  const apart = (index: number) => (tall(column[index - 1]!) + tall(column[index]!)) / 2 + down;
  const lower = [...wanted];
  for (let index = 1; index < lower.length; index += 1) lower[index] = Math.max(lower[index]!, lower[index - 1]! + apart(index));
  const upper = [...wanted];
  for (let index = upper.length - 2; index >= 0; index -= 1) upper[index] = Math.min(upper[index]!, upper[index + 1]! - apart(index + 1));
  column.forEach((each, index) => {
    each.y = (lower[index]! + upper[index]!) / 2;
  });
}

function drawn(
  nodes: readonly Node[], links: readonly Edge[], cells: Map<string, Cell>, chains: Map<string, Cell[]>, columns: Cell[][], sizes: Sizes,
): Drawing {
  const every = columns.flat();
  const ys = every.length ? every.map((each) => each.y) : [0];
  const top = Math.min(...ys) - sizes.height / 2;
  const bottom = Math.max(...ys) + sizes.height / 2;
  const x = (layer: number) => layer * (sizes.width + sizes.across);
  const round = (value: number) => Math.round(value * 2) / 2;
  const places = new Map<string, Place>();
  for (const { id } of nodes) {
    const each = cells.get(id)!;
    places.set(id, { x: x(each.layer), y: round(each.y - top - sizes.height / 2) });
  }
  const paths = new Map<string, Place[]>();
  for (const edge of links) {
    const passed = chains.get(edgeId(edge)) ?? [];
    const points = passed.flatMap((each, index): Place[] => {
      const y = round(each.y - top);
      if (index === 0) return [{ x: x(each.layer) + sizes.width, y }];
      if (index === passed.length - 1) return [{ x: x(each.layer), y }];
      return [{ x: x(each.layer), y }, { x: x(each.layer) + sizes.width, y }];
    });
    // One that was turned round is drawn along the same way, against it.
    paths.set(edgeId(edge), passed[0]?.id === edge.source ? points : points.reverse());
  }
  return { nodes: places, edges: paths, width: x(Math.max(0, columns.length - 1)) + sizes.width, height: bottom - top };
}

const APART = [22, 34, 50, 72, 96];
const LARGE = 150;

/** The drawing that fills a frame best: where its width is what limits it, the nodes stand further apart. */
export function fitted(nodes: readonly Node[], edges: readonly Edge[], width: number, height: number): Drawing {
  let best = layout(nodes, edges);
  if (nodes.length > LARGE) return best;
  for (const down of APART.slice(1)) {
    const wider = layout(nodes, edges, { ...SIZES, down });
    if (wider.height * Math.min(1.25, width / wider.width) > height) break;
    best = wider;
  }
  return best;
}

/** A smooth path through points that lie from left to right (or back). */
export function path(points: readonly Place[]): string {
  const [first, ...rest] = points;
  if (!first) return "";
  let text = `M${first.x} ${first.y}`;
  let last = first;
  for (const point of rest) {
    const half = (point.x - last.x) / 2;
    text += point.y === last.y ? `L${point.x} ${point.y}` : `C${last.x + half} ${last.y} ${point.x - half} ${point.y} ${point.x} ${point.y}`;
    last = point;
  }
  return text;
}

/** Where the label of an edge stands: the middle of its first stretch between two layers. */
export function middle(points: readonly Place[]): Place {
  const [a, b] = [points[0], points[1]];
  return a && b ? { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 } : { x: 0, y: 0 };
}
