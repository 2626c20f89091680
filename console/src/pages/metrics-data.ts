/** What the queries of the explorer give, on one grid, with the traces that stand for some of their points. */
import { ApiError, get, path } from "../api/client.ts";
import { useKept, useLoaded, type Live } from "../api/live.ts";
import { incompleteSeconds, matrix, type Incomplete, type Series } from "../api/panels.ts";
import { grid, number, onGrid, stepFor, times, type Envelope, type Exemplars, type Grid } from "../api/prometheus.ts";
import { now, tick } from "../api/ticks.ts";

export interface Exemplar {
  x: number;
  y: number;
  trace: string;
}

export interface Explored {
  grid: Grid;
  x: number[];
  incomplete: Incomplete;
  /** One a query; null where it failed. */
  answers: (Series[] | null)[];
  failures: (ApiError | null)[];
  exemplars: Exemplar[];
}

export interface Span {
  range: number;
  start: number | null;
  end: number | null;
  step: number | null;
  exemplars: boolean;
}

export function useExplored(queries: readonly string[], span: Span): Live<Explored> {
  const range = span.start !== null && span.end !== null ? Math.max(1, span.end - span.start) : span.range;
  // Prometheus refuses more than 11,000 points.
  const step = Math.max(span.step ?? stepFor(range), Math.ceil(range / 10_000));
  const key = queries.length ? `explore ${JSON.stringify([queries, span])}` : null;
  const load = async (signal: AbortSignal): Promise<Explored> => {
    const on = grid(span.end ?? tick.peek()?.second ?? Math.floor(now.peek()) - 1, range, step);
    const failures: (ApiError | null)[] = queries.map(() => null);
    const [incomplete, exemplars, ...answers] = await Promise.all([
      incompleteSeconds(on, signal).catch((): Incomplete => ({ points: [], count: 0 })),
      span.exemplars ? found(queries, on, signal) : [],
      ...queries.map(async (query, index): Promise<Series[] | null> => {
        try {
          return (await matrix(query, on, signal)).map(({ metric, values }) => ({ labels: metric, values: onGrid(values, on) }));
        } catch (error) {
          if (signal.aborted || !(error instanceof ApiError) || error.status === 0 || error.status === 401) throw error;
          failures[index] = error;
          return null;
        }
      }),
    ]);
    return { grid: on, x: times(on), incomplete, exemplars, answers, failures };
  };
  return useKept(useLoaded(key, load, span.end === null ? step : Infinity));
}

/** Exemplars belong to histograms; who asks for anything else gets none. */
async function found(queries: readonly string[], on: Grid, signal: AbortSignal): Promise<Exemplar[]> {
  const asked = queries.filter((query) => /_bucket\b/.test(query));
  const answers = await Promise.all(asked.map((query) =>
    get<Envelope<Exemplars[]>>(path("/prometheus/api/v1/query_exemplars", { query, start: on.start, end: on.end }), signal)
      .then(({ data }) => data).catch(() => [])));
  return answers.flat().flatMap(({ exemplars }) => exemplars).flatMap(({ labels, value, timestamp }) => {
    const y = number(value);
    const trace = labels["trace_id"];
    return y !== null && trace && timestamp >= on.start && timestamp <= on.end ? [{ x: timestamp, y, trace }] : [];
  });
}
