/** The drawing: it keeps its place from second to second; the wheel zooms, dragging moves it. */
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Graph, GraphEdge, GraphNode } from "../api-types.ts";
import { edgeId, fitted, middle, path, SIZES, type Place } from "../graph/layout.ts";
import { plural, rate, seconds, share } from "../ui/format.ts";
import type { Level } from "../ui/state.tsx";

const BAD = 0.01;
/** Beyond so many, figures stand only on edges that are looked at, and only what is seen is drawn. */
const LABELLED = 60;
const MARGIN = 30;
/** Below this scale, what is written is larger, and less. */
const COMPACT = 0.75;
/** A drawing that had to be smaller than this to be seen whole is seen in part. */
const LEAST = 0.4;
const READABLE = 0.7;

interface View {
  scale: number;
  x: number;
  y: number;
}

export function MapGraph({ graph, pick, choose }: { graph: Graph; pick: string; choose: (id: string) => void }) {
  const shape = graph.nodes.map((node) => node.id).join() + graph.edges.map(edgeId).join();
  const frame = useRef<SVGSVGElement>(null);
  const [box, setBox] = useState({ width: 0, height: 0 });
  const drawing = useMemo(
    () => fitted(graph.nodes, graph.edges, box.width - 2 * MARGIN, box.height - 2 * MARGIN), [shape, box.width, box.height],
  );
  const [view, setView] = useState<View>({ scale: 1, x: MARGIN, y: MARGIN });
  const moved = useRef(false);
  const [over, setOver] = useState("");

  const fit = () => {
    if (!box.width) return;
    const whole = Math.min(1.25, (box.width - 2 * MARGIN) / drawing.width, (box.height - 2 * MARGIN) / drawing.height);
    if (whole < LEAST) {
      // Too much for one look: begin where somebody looks, or where requests come in.
      const at = drawing.nodes.get(pick) ?? [...drawing.nodes.values()].sort((a, b) => a.x - b.x || a.y - b.y)[0] ?? { x: 0, y: 0 };
      setView({ scale: READABLE, x: Math.min(MARGIN, box.width / 2 - at.x * READABLE), y: box.height / 2 - at.y * READABLE });
      return;
    }
    const scale = whole;
    setView({
      scale,
      x: Math.max(MARGIN, (box.width - drawing.width * scale) / 2),
      y: Math.max(MARGIN, (box.height - drawing.height * scale) / 2),
    });
  };
  useLayoutEffect(() => {
    if (!moved.current) fit();
  }, [drawing]);
  useEffect(() => {
    const element = frame.current;
    if (!element) return;
    const look = () => setBox({ width: element.clientWidth, height: element.clientHeight });
    look();
    const sizes = new ResizeObserver(look);
    sizes.observe(element);
    const wheel = (event: WheelEvent) => {
      event.preventDefault();
      moved.current = true;
      const box = element.getBoundingClientRect();
      setView((last) => zoomed(last, Math.exp(-event.deltaY / 500), event.clientX - box.left, event.clientY - box.top));
    };
    element.addEventListener("wheel", wheel, { passive: false });
    return () => {
      sizes.disconnect();
      element.removeEventListener("wheel", wheel);
    };
  }, []);

  const drag = (event: PointerEvent) => {
    if (event.button !== 0 || (event.target as Element).closest("[role=button]")) return;
    const element = frame.current!;
    const start = { x: event.clientX - view.x, y: event.clientY - view.y };
    element.setPointerCapture(event.pointerId);
    const move = (next: PointerEvent) => {
      moved.current = true;
      setView((last) => ({ ...last, x: next.clientX - start.x, y: next.clientY - start.y }));
    };
    const end = () => {
      element.removeEventListener("pointermove", move);
      element.removeEventListener("pointerup", end);
      element.removeEventListener("pointercancel", end);
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", end);
    element.addEventListener("pointercancel", end);
  };

  const near = new Set<string>();
  const look = over || pick;
  for (const edge of graph.edges) if (look && (edgeId(edge) === look || edge.source === look || edge.target === look)) near.add(edgeId(edge));
  const inSight = sight(view, box, graph.nodes.length);
  const compact = view.scale < COMPACT;
  const strongest = Math.max(1, ...graph.edges.map((edge) => edge.signals.rate ?? 0));
  return (
    <div class="map-frame">
      <svg ref={frame} class={`map ${look ? "looking" : ""} ${compact ? "compact" : ""}`} role="group" aria-label={`Map of ${graph.app}`} onPointerDown={drag}
        onDblClick={() => { moved.current = false; fit(); }}>
        <defs>
          {["quiet", "busy", "doubtful", "bad"].map((kind) => (
            <marker key={kind} id={`arrow-${kind}`} viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto-start-reverse">
              <path class={`arrow ${kind}`} d="M0 .8 7.4 4 0 7.2z" />
            </marker>
          ))}
        </defs>
        <g transform={`translate(${view.x} ${view.y}) scale(${view.scale})`}>
          {graph.edges.map((edge) => {
            const id = edgeId(edge);
            const points = drawing.edges.get(id);
            return points && inSight(points) && (
              <EdgeLine key={id} edge={edge} points={points} strongest={strongest} picked={pick === id} near={near.has(id)} compact={compact}
                labelled={graph.edges.length <= LABELLED || near.has(id)} choose={() => choose(id)} hover={(on) => setOver(on ? id : "")} />
            );
          })}
          {graph.nodes.map((node) => {
            const place = drawing.nodes.get(node.id);
            const dimmed = look !== "" && look !== node.id && !graph.edges.some((edge) => near.has(edgeId(edge)) && (edge.source === node.id || edge.target === node.id));
            return place && inSight([place, { x: place.x + SIZES.width, y: place.y + SIZES.height }]) && (
              <NodeBox key={node.id} node={node} place={place} picked={pick === node.id} dimmed={dimmed} compact={compact} connections={connections(graph, node)}
                choose={() => choose(node.id)} hover={(on) => setOver(on ? node.id : "")} />
            );
          })}
        </g>
      </svg>
      <div class="map-tools">
        <button type="button" class="small" onClick={() => { moved.current = true; setView((last) => zoomed(last, 1.25, 300, 200)); }} aria-label="Larger">+</button>
        <button type="button" class="small" onClick={() => { moved.current = true; setView((last) => zoomed(last, 0.8, 300, 200)); }} aria-label="Smaller">−</button>
        <button type="button" class="small" onClick={() => { moved.current = false; fit(); }}>Fit</button>
      </div>
    </div>
  );
}

/** Whether something that reaches over these points is seen; of a few, all is drawn. */
function sight({ scale, x, y }: View, box: { width: number; height: number }, nodes: number): (points: readonly Place[]) => boolean {
  if (nodes <= LABELLED || !box.width) return () => true;
  const [left, top, right, bottom] = [-x / scale, -y / scale, (box.width - x) / scale, (box.height - y) / scale];
  return (points) => {
    let [least, most, upper, lower] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const point of points) {
      least = Math.min(least, point.x);
      most = Math.max(most, point.x);
      upper = Math.min(upper, point.y);
      lower = Math.max(lower, point.y);
    }
    return most >= left && least <= right && lower >= top && upper <= bottom;
  };
}

function zoomed(last: View, by: number, x: number, y: number): View {
  const scale = Math.max(0.15, Math.min(3, last.scale * by));
  const factor = scale / last.scale;
  return { scale, x: x - (x - last.x) * factor, y: y - (y - last.y) * factor };
}

export function edgeState({ signals }: GraphEdge, database: boolean): "quiet" | "busy" | "doubtful" | "bad" {
  if ((signals.errors ?? 0) >= BAD) return "bad";
  if ((signals.errors ?? 0) > 0) return "doubtful";
  return database || signals.rate ? "busy" : "quiet";
}

function EdgeLine({ edge, points, strongest, picked, near, compact, labelled, choose, hover }: {
  edge: GraphEdge; points: readonly Place[]; strongest: number; picked: boolean; near: boolean; compact: boolean; labelled: boolean; choose: () => void; hover: (on: boolean) => void;
}) {
  const database = edge.connections !== null;
  const kind = edgeState(edge, Boolean(edge.connections));
  const flow = edge.signals.rate ?? 0;
  const width = flow > 0 ? 1.2 + 5.3 * Math.sqrt(flow / strongest) : 1.2;
  const at = middle(points);
  const line = path(points);
  const figures = database ? `${edge.connections} conn.` : kind === "quiet" ? "" : rate(edge.signals.rate);
  const rest = database || kind === "quiet" ? "" : told(edge.signals.errors, edge.signals.p99, compact);
  const said = `${plain(edge.source)} to ${plain(edge.target)}: ${[figures || "no traffic", rest && `errors ${share(edge.signals.errors)}, p99 ${seconds(edge.signals.p99)}`].filter(Boolean).join(", ")}${edge.declared ? "" : ", not declared"}`;
  return (
    <g class={`edge ${kind} ${picked ? "picked" : ""} ${near ? "near" : ""} ${edge.declared ? "" : "undeclared"}`}
      onMouseEnter={() => hover(true)} onMouseLeave={() => hover(false)}>
      <path class="line" d={line} stroke-width={width} marker-end={`url(#arrow-${kind})`} />
      <g {...button(choose)} class="touched" aria-label={said} aria-pressed={picked}>
        <title>{said}</title>
        <path class="touch" d={line} />
        {labelled && figures && (
          <>
            <Ground at={at} lines={rest ? [figures, rest] : [figures]} compact={compact} />
            <text x={at.x} y={at.y - (rest ? 3 : -4)} class="figures">
              {figures}
              {rest && <tspan x={at.x} dy={compact ? 17 : 14} class="rest">{rest}</tspan>}
            </text>
          </>
        )}
      </g>
    </g>
  );
}

/** What keeps an edge's line, as thick and red as it may be, from running through its figures. */
function Ground({ at, lines, compact }: { at: Place; lines: readonly string[]; compact: boolean }) {
  const [letter, line] = compact ? [8.4, 17] : [6.5, 14];
  const width = Math.max(...lines.map((each) => each.length)) * letter + 8;
  const height = lines.length * line + 4;
  return <rect class="ground" x={at.x - width / 2} y={at.y - height / 2 - (lines.length > 1 ? 1 : 0)} width={width} height={height} rx="4" />;
}

/** Open connections to a database, of all who use it; null for what is none. */
function connections(graph: Graph, node: GraphNode): number | null {
  if (node.kind !== "database") return null;
  return graph.edges.reduce((sum, edge) => sum + (edge.target === node.id ? edge.connections ?? 0 : 0), 0);
}

/** Failures and latency; where there is little room, the worse of the two. */
function told(errors: number | null, p99: number | null, compact: boolean): string {
  const failing = errors ? share(errors) : "";
  const slow = p99 === null ? "" : seconds(p99);
  return compact ? failing || slow : [failing, slow].filter(Boolean).join(" · ");
}

function shortened(text: string, most: number): string {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** What makes a shape one that can be chosen, by mouse and by key. */
function button(choose: () => void) {
  return {
    role: "button" as const,
    tabIndex: 0,
    onClick: choose,
    onKeyDown: (event: KeyboardEvent) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose();
    },
  };
}

function plain(id: string): string {
  return id.slice(id.indexOf(":") + 1);
}

const KINDS: Record<GraphNode["kind"], string> = { gateway: "gateway", workload: "", database: "database", external: "outside" };

function NodeBox({ node, place, picked, dimmed, compact, connections, choose, hover }: {
  node: GraphNode; place: Place; picked: boolean; dimmed: boolean; compact: boolean; connections: number | null; choose: () => void; hover: (on: boolean) => void;
}) {
  const level: Level = node.health;
  const { signals } = node;
  const short = node.wanted > 0 && node.ready < node.wanted;
  const figures = connections !== null ? plural(connections, "connection") : signals.rate === null ? "" : [rate(signals.rate), told(signals.errors, signals.p99, compact)].filter(Boolean).join(" · ");
  const said = `${node.kind} ${node.name}, ${node.health}${node.reason && `: ${node.reason}`}${figures && `, ${figures}`}`;
  return (
    <g {...button(choose)} class={`node ${level} ${node.kind} ${picked ? "picked" : ""} ${dimmed ? "dimmed" : ""}`} aria-label={said} aria-pressed={picked}
      transform={`translate(${place.x} ${place.y})`}
      onMouseEnter={() => hover(true)} onMouseLeave={() => hover(false)}>
      <title>{said}</title>
      <rect class="box" width={SIZES.width} height={SIZES.height} rx={node.kind === "database" ? 14 : 7} />
      <Shape level={level} />
      <text class="name" x="30" y="23">{shortened(node.name, compact ? 10 : 16)}</text>
      <text class={`count ${short ? "short" : ""}`} x={SIZES.width - 11} y="23">{node.kind === "workload" ? `${node.ready}/${node.wanted}` : compact ? "" : KINDS[node.kind]}</text>
      <text class="figures" x="12" y="41">{figures || "no traffic"}</text>
    </g>
  );
}

function Shape({ level }: { level: Level }) {
  const place = "translate(11 12.5)";
  switch (level) {
    case "warning":
      return <path class="shape" transform={place} d="M6 1.2 11.3 10.6H.7z" />;
    case "error":
      return <path class="shape" transform={place} d="M6 .6 11.4 6 6 11.4.6 6z" />;
    case "ok":
      return <circle class="shape" transform={place} cx="6" cy="6" r="4" />;
    default:
      return <circle class="shape hollow" transform={place} cx="6" cy="6" r="3.4" />;
  }
}
