/** The series behind a row of charts: asked for together, on one grid, with the seconds that were incomplete. */
import type { Seconds } from "../api-types.ts";
import { get, path } from "./client.ts";
import { useKept, useLoaded, type Live } from "./live.ts";
import { grid, onGrid, rangePath, stepFor, times, type Envelope, type Grid, type MatrixSeries, type QueryResult } from "./prometheus.ts";
import { now, tick } from "./ticks.ts";

export interface Series {
  labels: Record<string, string>;
  values: (number | null)[];
}

export interface Panels {
  grid: Grid;
  x: number[];
  incomplete: number[];
  /** For each query, by name. */
  series: Record<string, Series[]>;
}

/** The window that a rate needs at a step: at least three samples, whatever was rolled up. */
export function rateWindow(step: number): string {
  return `${Math.max(4, 2 * step)}s`;
}

/** Beyond this, an incomplete second is too narrow to be seen. */
const SEEN = 3 * 3600;

export interface Incomplete {
  /** The points of the grid that they touch. */
  points: number[];
  /** How many seconds. */
  count: number;
}

export async function incompleteSeconds({ start, end, step }: Grid, signal: AbortSignal): Promise<Incomplete> {
  if (end - start > SEEN) return { points: [], count: 0 };
  const found = await get<Seconds>(path("/v1/seconds", { start: Math.floor(start), end: Math.ceil(end) }), signal);
  const seconds = Object.keys(found.incomplete).map(Number);
  return { points: [...new Set(seconds.map((second) => Math.round(second / step) * step))], count: seconds.length };
}

export async function matrix(query: string, on: Grid, signal: AbortSignal): Promise<MatrixSeries[]> {
  const { data } = await get<Envelope<QueryResult>>(rangePath(query, on), signal);
  return data.resultType === "matrix" ? data.result : [];
}

/** Queries over the last `range` seconds, again with each tick or each step. */
export function usePanels(queries: Record<string, string>, range: number): Live<Panels> {
  const step = stepFor(range);
  const key = `panels ${range} ${JSON.stringify(queries)}`;
  return useKept(useLoaded<Panels>(key, async (signal) => {
    const on = grid(tick.peek()?.second ?? Math.floor(now.peek()) - 1, range, step);
    const [incomplete, ...answers] = await Promise.all([
      incompleteSeconds(on, signal),
      ...Object.values(queries).map((query) => matrix(query, on, signal)),
    ]);
    const series: Record<string, Series[]> = {};
    Object.keys(queries).forEach((name, index) => {
      series[name] = answers[index]!.map(({ metric, values }) => ({ labels: metric, values: onGrid(values, on) }));
    });
    return { grid: on, x: times(on), incomplete: incomplete!.points, series };
  }, step));
}
