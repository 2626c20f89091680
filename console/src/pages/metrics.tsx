/** Explore the series with PromQL: several queries over one span, as a chart and as a table. */
import { useMemo } from "preact/hooks";
import { rateWindow } from "../api/panels.ts";
import { nameOf } from "../api/prometheus.ts";
import { Chart, SERIES, type Line, type Point } from "../ui/chart.tsx";
import { RANGES, Segments } from "../ui/controls.tsx";
import { Failure, Loading } from "../ui/empty.tsx";
import { clock, count, bytes, cores, plural, rate, seconds, share, type Value } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { State } from "../ui/state.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { address, choice, choices, choose, flag, go } from "../ui/url.ts";
import { unitOf, type Unit } from "../promql/complete.ts";
import { useExplored, type Explored } from "./metrics-data.ts";
import { QueryRow } from "./metrics-query.tsx";

const DRAWN = 40;
const FORMATS: Record<Unit, (value: Value) => string> = { seconds, bytes, rate, cores, share, none: (value) => count(value) };

export function MetricsPage() {
  const queries = choices("q").filter((query) => query.trim());
  const range = Math.max(10, Number(choice("range", "900")) || 900);
  const start = Number(choice("start")) || null;
  const end = Number(choice("end")) || null;
  const step = Number(choice("step")) || null;
  const live = useExplored(queries, { range, start, end, step, exemplars: !flag("plain") });
  const fixed = start !== null && end !== null;
  return (
    <>
      <Head crumbs={[{ name: "Metrics" }]}>
        {fixed ? (
          <button type="button" onClick={() => choose({ start: null, end: null })}>{clock(start)} – {clock(end)} · back to now</button>
        ) : <Segments name="range" label="Range" options={RANGES} otherwise="900" />}
        <label class="check">step
          <select aria-label="Step" value={choice("step")} onChange={(event) => choose({ step: event.currentTarget.value })}>
            {[["", "auto"], ["1", "1 s"], ["5", "5 s"], ["10", "10 s"], ["60", "1 min"], ["300", "5 min"]].map(([value, text]) => <option key={value} value={value}>{text}</option>)}
          </select>
        </label>
        <label class="check"><input type="checkbox" checked={!flag("plain")} onChange={(event) => choose({ plain: !event.currentTarget.checked })} />exemplars</label>
      </Head>
      <div class="page">
        <div class="queries">
          {(queries.length ? queries : [""]).map((query, index, all) => (
            <QueryRow key={index} letter={letter(index)} colour={index} query={query} error={live.data?.failures[index] ?? null}
              put={(text) => put(replaced(all, index, text))} remove={all.length > 1 ? () => put(all.filter((_, each) => each !== index)) : undefined} />
          ))}
          {queries.length > 0 && queries.length < 8 && <button type="button" class="quiet small" onClick={() => put([...queries, queries.at(-1)!])}>+ Another query</button>}
        </div>
        {queries.length === 0 && <Examples />}
        {live.error && live.data === null && <Failure error={live.error} retry={live.refresh} />}
        {queries.length > 0 && live.loading && <Loading what="Asking" />}
        {queries.length > 0 && live.data && <Results explored={live.data} queries={queries} />}
      </div>
    </>
  );
}

function letter(index: number): string {
  return String.fromCharCode(65 + index);
}

function replaced(all: readonly string[], index: number, text: string): string[] {
  return all.map((each, at) => (at === index ? text : each));
}

function put(queries: readonly string[]): void {
  const parts = new URLSearchParams(address.value.search);
  parts.delete("q");
  for (const query of queries) if (query.trim()) parts.append("q", query.trim());
  const text = parts.toString();
  go(address.value.path + (text && `?${text}`));
}

interface Row {
  id: string;
  letter: string;
  name: string;
  colour: string;
  values: (number | null)[];
  format: (value: Value) => string;
}

function Results({ explored, queries }: { explored: Explored; queries: readonly string[] }) {
  const rows = useMemo(() => rowsOf(explored, queries), [explored, queries.join("\n")]);
  const chosen = choice("only");
  const shown = rows.some((row) => row.id === chosen) ? rows.filter((row) => row.id === chosen) : rows;
  const lines: Line[] = shown.slice(0, DRAWN).map((row) => ({ label: row.id, values: row.values, colour: row.colour }));
  const format = rows[0]?.format ?? ((value: Value) => count(value));
  const points: Point[] = explored.exemplars.map(({ x, y, trace }) => ({ x, y, title: `${format(y)}, trace ${trace.slice(0, 8)}… Click to see it`, href: `/traces/${trace}` }));
  const held = explored.incomplete.count;
  return (
    <>
      <section class="panel explore-chart" aria-label="Chart">
        {rows.length === 0 ? <p class="nothing">No series has these labels in this span.</p> : (
          <Chart label="Explored series" x={explored.x} lines={lines} format={format} height={340} incomplete={explored.incomplete.points} step={explored.grid.step}
            points={points} onPoint={(point) => go(point.href)} legend={false}
            zoom={(from, to) => choose({ start: Math.floor(from), end: Math.ceil(to) })} />
        )}
      </section>
      <p class="explore-notes">
        <span>{plural(rows.length, "series", "series")}{rows.length > DRAWN && `, the first ${DRAWN} are drawn`}, step {explored.grid.step} s</span>
        {held > 0 && <State level="warning"><span class="dim">{plural(held, "incomplete second")} shaded</span></State>}
        {points.length > 0 && <span>{plural(points.length, "exemplar")}: each ◇ leads to its trace</span>}
        <span>drag over the chart to zoom</span>
      </p>
      {rows.length > 0 && (
        <section class="panel">
          <Table label="Series" columns={COLUMNS} rows={rows} id={(row) => row.id} order="series" selected={chosen}
            open={(row) => choose({ only: row.id === chosen ? null : row.id }, { replace: true })} />
        </section>
      )}
    </>
  );
}

function rowsOf(explored: Explored, queries: readonly string[]): Row[] {
  const rows: Row[] = [];
  explored.answers.forEach((answer, index) => {
    const format = FORMATS[unitOf(queries[index] ?? "")];
    for (const { labels, values } of answer ?? []) {
      const name = nameOf(labels);
      const shown = name === "{}" ? (queries[index] ?? "") : name;
      rows.push({ id: `${letter(index)} ${name}`, letter: letter(index), name: shown, colour: `series-${(rows.length % SERIES) + 1}`, values, format });
    }
  });
  return rows;
}

function known(values: (number | null)[]): number[] {
  return values.filter((value): value is number => value !== null);
}

const last = (row: Row) => row.values.at(-1) ?? row.values.at(-2) ?? null;
const least = (row: Row) => known(row.values).reduce((a, b) => Math.min(a, b), Infinity);
const most = (row: Row) => known(row.values).reduce((a, b) => Math.max(a, b), -Infinity);
const mean = (row: Row) => {
  const values = known(row.values);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
};

const COLUMNS: Column<Row>[] = [
  { key: "name", title: "Series", by: (row) => row.name, cell: (row) => <span class="series-name"><span class="swatch" style={{ background: `var(--${row.colour})` }} /><span class="faint">{row.letter}</span> <code title={row.name}>{row.name}</code></span> },
  ...([["last", "Last", last], ["least", "Least", least], ["mean", "Mean", mean], ["most", "Most", most]] as [string, string, (row: Row) => number | null][]).map(([key, title, of]): Column<Row> => ({
    key, title, number: true, width: "110px", by: of, cell: (row) => row.format(of(row)),
  })),
];

function Examples() {
  const over = `[${rateWindow(2)}]`;
  const examples: [string, string][] = [
    ["Requests a second, by workload", `sum by (workload) (rate(bedstone_requests_total${over}))`],
    ["p99 by workload", `histogram_quantile(0.99, sum by (le, workload) (rate(bedstone_request_seconds_bucket${over})))`],
    ["Failures a second, by workload and kind", `sum by (workload, kind) (rate(bedstone_request_errors_total${over}))`],
    ["Who calls whom", `sum by (caller, callee) (rate(bedstone_edge_requests_total${over}))`],
    ["Memory of instances", "bedstone_instance_memory_bytes"],
    ["Connections to databases, by state", "sum by (database, state) (bedstone_database_connections)"],
    ["Transactions that are open, by state", "sum by (state) (bedstone_transactions_open)"],
  ];
  return (
    <section class="panel" aria-label="Examples">
      <header><h2>Begin with one of these</h2><span class="more">or type a metric’s name above: names, labels and values are completed</span></header>
      <table class="plain"><tbody>
        {examples.map(([title, query]) => (
          <tr key={title}><td><a href={`/explore?q=${encodeURIComponent(query)}`}>{title}</a></td><td><code class="dim">{query}</code></td></tr>
        ))}
      </tbody></table>
    </section>
  );
}

