/** Series, by Prometheus's HTTP API, aligned on one grid of seconds so that a gap stays a gap. */
import { path } from "./client.ts";

export interface Envelope<T> {
  status: "success" | "error";
  data: T;
  warnings?: string[];
}

export interface MatrixSeries {
  metric: Record<string, string>;
  values: [number, string][];
}

export interface VectorSample {
  metric: Record<string, string>;
  value: [number, string];
}

export type QueryResult =
  | { resultType: "matrix"; result: MatrixSeries[] }
  | { resultType: "vector"; result: VectorSample[] }
  | { resultType: "scalar" | "string"; result: [number, string] };

export interface Exemplars {
  seriesLabels: Record<string, string>;
  exemplars: { labels: Record<string, string>; value: string; timestamp: number }[];
}

/** The points of a chart: whole steps, so that the same second has the same place in every answer. */
export interface Grid {
  start: number;
  end: number;
  step: number;
}

/** The grid of the last `range` seconds before `end`. */
export function grid(end: number, range: number, step: number): Grid {
  const last = Math.floor(end / step) * step;
  return { start: last - Math.ceil(range / step) * step, end: last, step };
}

/** A step that gives a chart some hundred points: never finer than what was stored. */
export function stepFor(range: number): number {
  for (const step of [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600]) {
    if (range / step <= 400) return step;
  }
  return 7200;
}

export function rangePath(query: string, { start, end, step }: Grid): string {
  return path("/prometheus/api/v1/query_range", { query, start, end, step });
}

export function times({ start, end, step }: Grid): number[] {
  return Array.from({ length: Math.round((end - start) / step) + 1 }, (_, index) => start + index * step);
}

/** A series on the grid: null where it has no point, or one that is no number. */
export function onGrid(values: readonly [number, string][], { start, end, step }: Grid): (number | null)[] {
  const found = new Array<number | null>(Math.round((end - start) / step) + 1).fill(null);
  for (const [time, text] of values) {
    const index = Math.round((time - start) / step);
    const value = number(text);
    if (index >= 0 && index < found.length && value !== null) found[index] = value;
  }
  return found;
}

export function number(text: string): number | null {
  if (text === "+Inf") return null;
  const value = Number(text);
  return Number.isFinite(value) ? value : null;
}

/** `name{label="value"}`, as PromQL writes it; without the labels that all of them share. */
export function nameOf(metric: Record<string, string>, shared: ReadonlySet<string> = new Set()): string {
  const { __name__: name = "", ...labels } = metric;
  const shown = Object.entries(labels).filter(([label]) => !shared.has(label));
  const text = shown.map(([label, value]) => `${label}=${JSON.stringify(value)}`).join(", ");
  return shown.length ? `${name}{${text}}` : name || "{}";
}

/** A label's value within a query. */
export function quoted(value: string): string {
  return JSON.stringify(value);
}
