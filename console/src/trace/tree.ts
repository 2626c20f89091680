/** The spans of a trace as a tree, in the order in which a waterfall shows them. Pure. */
import type { Span } from "../api-types.ts";

export interface Row {
  span: Span;
  depth: number;
  children: number;
  /** Its parent is named, and not among the spans: it was dropped, or has not come yet. */
  orphan: boolean;
  /** Seconds in which none of its children ran: what it did itself. */
  own: number;
  /** Is it on the chain that made the trace take as long as it did? */
  critical: boolean;
}

/** Rows in depth-first order, siblings by start; those below a folded one are left out. */
export function rows(spans: readonly Span[], folded: ReadonlySet<string> = new Set()): Row[] {
  const known = new Map(spans.map((span) => [span.span, span]));
  const children = new Map<string, Span[]>();
  const roots: Span[] = [];
  for (const span of [...spans].sort((a, b) => a.start - b.start || (a.span < b.span ? -1 : 1))) {
    if (span.parent && span.parent !== span.span && known.has(span.parent)) children.set(span.parent, [...(children.get(span.parent) ?? []), span]);
    else roots.push(span);
  }
  const critical = criticalPath(roots, children);
  const found: Row[] = [];
  const seen = new Set<string>();
  const add = (span: Span, depth: number) => {
    if (seen.has(span.span)) return; // parents that form a ring are somebody's fault, not ours
    seen.add(span.span);
    const own = children.get(span.span) ?? [];
    found.push({ span, depth, children: own.length, orphan: Boolean(span.parent) && !known.has(span.parent), own: self(span, own), critical: critical.has(span.span) });
    if (!folded.has(span.span)) for (const child of own) add(child, depth + 1);
  };
  for (const root of roots) add(root, 0);
  if (!folded.size) for (const span of spans) add(span, 0);
  return found;
}

/** Time of a span that is covered by none of its children. */
function self(span: Span, children: readonly Span[]): number {
  let covered = 0;
  let reached = span.start;
  const end = span.start + span.seconds;
  for (const child of children) {
    const from = Math.max(reached, child.start);
    const to = Math.min(end, child.start + child.seconds);
    if (to > from) {
      covered += to - from;
      reached = to;
    }
  }
  return Math.max(0, span.seconds - covered);
}

/**
 * From the end of the first span backwards: always the child that ended last before. Who serves a
 * call may end after the caller, who had the answer already: it was waited for until then.
 */
function criticalPath(roots: readonly Span[], children: ReadonlyMap<string, readonly Span[]>): Set<string> {
  const found = new Set<string>();
  const walk = (span: Span, until: number) => {
    if (found.has(span.span)) return;
    found.add(span.span);
    let limit = until;
    const later = [...(children.get(span.span) ?? [])].sort((a, b) => b.start + b.seconds - (a.start + a.seconds));
    for (const child of later) {
      const end = child.start + child.seconds;
      if (end <= limit + 1e-6 || (child.kind === "server" && child.start < limit)) {
        walk(child, Math.min(end, limit));
        limit = child.start;
      }
    }
  };
  const longest = [...roots].sort((a, b) => b.seconds - a.seconds)[0];
  if (longest) walk(longest, longest.start + longest.seconds);
  return found;
}

export interface Bounds {
  start: number;
  seconds: number;
}

/** From the first start to the last end: clocks of two machines may differ, and a span stick out. */
export function bounds(spans: readonly Span[]): Bounds {
  const start = Math.min(...spans.map((span) => span.start));
  const end = Math.max(...spans.map((span) => span.start + span.seconds));
  return spans.length ? { start, seconds: Math.max(end - start, 1e-6) } : { start: 0, seconds: 1 };
}

export interface Compared {
  service: string;
  name: string;
  /** How many, and how long together and by themselves, in either trace. */
  counts: [number, number];
  seconds: [number, number];
  own: [number, number];
  errors: [number, number];
}

/** Two traces by workload and name of their spans, what differs most first. */
export function compared(one: readonly Span[], other: readonly Span[]): Compared[] {
  const found = new Map<string, Compared>();
  [one, other].forEach((spans, side) => {
    for (const { span, own } of rows(spans)) {
      const key = `${span.service}\n${span.name}`;
      let line = found.get(key);
      if (!line) found.set(key, (line = { service: span.service, name: span.name, counts: [0, 0], seconds: [0, 0], own: [0, 0], errors: [0, 0] }));
      line.counts[side as 0 | 1] += 1;
      line.seconds[side as 0 | 1] += span.seconds;
      line.own[side as 0 | 1] += own;
      line.errors[side as 0 | 1] += Number(span.error);
    }
  });
  const more = ({ own }: Compared) => own[1] - own[0];
  return [...found.values()].sort((a, b) => Math.abs(more(b)) - Math.abs(more(a)) || more(b) - more(a));
}
