/** Two traces side by side, on one scale, and where their time differs. */
import type { Span, TraceDetail } from "../api-types.ts";
import { useLive } from "../api/live.ts";
import { compared, bounds, type Compared } from "../trace/tree.ts";
import { Shown } from "../ui/empty.tsx";
import { seconds } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { choice, choose, to } from "../ui/url.ts";
import { Summary } from "./trace.tsx";
import { Waterfall } from "./trace-waterfall.tsx";

const NONE: ReadonlySet<string> = new Set();

export function ComparePage({ ids }: { ids: [string, string] }) {
  const one = useLive<TraceDetail>(`/v1${to("traces", ids[0])}`, Infinity);
  const other = useLive<TraceDetail>(`/v1${to("traces", ids[1])}`, Infinity);
  const scale = Math.max(...[one, other].map((live) => (live.data ? bounds(live.data.spans).seconds : 0)));
  return (
    <>
      <Head crumbs={[{ name: "Traces", href: "/traces" }, { name: "Compare" }]}>
        <span class="end"><a class="button" href={to("traces", ids[1], ids[0])}>Swap</a></span>
      </Head>
      <div class="page stack">
        <div class="columns halves">
          {[one, other].map((live, side) => (
            <Shown key={ids[side]} live={live}>
              {({ summary, spans }) => (
                <div class="stack compare-side">
                  <a class="strong" href={to("traces", summary.trace)}>{side === 0 ? "A" : "B"} · {summary.name}</a>
                  <Summary summary={summary} label={`Summary of ${"AB"[side]}`} />
                  <Narrow spans={spans} scale={scale} label={`Waterfall of ${"AB"[side]}`} />
                </div>
              )}
            </Shown>
          ))}
        </div>
        {one.data && other.data && <Differences one={one.data.spans} other={other.data.spans} />}
      </div>
    </>
  );
}

function Narrow({ spans, scale, label }: { spans: readonly Span[]; scale: number; label: string }) {
  return <Waterfall label={label} spans={spans} folded={NONE} fold={() => undefined} scale={scale} chosen={choice("span")} choose={(id) => choose({ span: id === choice("span") ? null : id }, { replace: true })} />;
}

function Differences({ one, other }: { one: readonly Span[]; other: readonly Span[] }) {
  return (
    <section class="panel" aria-label="Differences">
      <header><h2>Where the time differs</h2><span class="more">own: without what it waited for in others</span></header>
      <Table label="Differences" columns={COLUMNS} rows={compared(one, other)} id={(each) => `${each.service} ${each.name}`} order="differences" />
    </section>
  );
}

function difference(value: number) {
  if (Math.abs(value) < 5e-6) return <span class="faint">same</span>;
  return <span class={value > 0 ? "bad" : ""}>{value > 0 ? "+" : "−"}{seconds(Math.abs(value))}</span>;
}

const COLUMNS: Column<Compared>[] = [
  { key: "name", title: "Span", by: (each) => `${each.service} ${each.name}`, cell: (each) => <><b>{each.service}</b> {each.name}</> },
  { key: "counts", title: "Times A / B", number: true, width: "110px", cell: (each) => <span class={each.counts[0] === each.counts[1] ? "dim" : "doubtful"}>{each.counts[0]} / {each.counts[1]}</span> },
  { key: "a", title: "Own A", number: true, width: "100px", by: (each) => each.own[0], cell: (each) => each.counts[0] ? seconds(each.own[0]) : <span class="none">–</span> },
  { key: "b", title: "Own B", number: true, width: "100px", by: (each) => each.own[1], cell: (each) => each.counts[1] ? seconds(each.own[1]) : <span class="none">–</span> },
  { key: "difference", title: "Difference", number: true, width: "120px", by: (each) => each.own[1] - each.own[0], cell: (each) => difference(each.own[1] - each.own[0]) },
  { key: "errors", title: "Failed A / B", number: true, width: "110px", cell: (each) => <span class={each.errors[0] || each.errors[1] ? "bad" : "faint"}>{each.errors[0]} / {each.errors[1]}</span> },
];
