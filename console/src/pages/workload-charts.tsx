/** The golden signals of a workload over time. */
import { usePanels, rateWindow, type Panels } from "../api/panels.ts";
import { quoted, stepFor } from "../api/prometheus.ts";
import { Chart, SERIES, type Line } from "../ui/chart.tsx";
import { RangeChoice, rangeChoice } from "../ui/controls.tsx";
import { Shown } from "../ui/empty.tsx";
import { bytes, cores, count, rate, seconds } from "../ui/format.ts";
import { go } from "../ui/url.ts";

const QUANTILES: [string, string, string][] = [["p99", "0.99", "series-1"], ["p90", "0.9", "series-2"], ["p50", "0.5", "series-8"]];

function queries(app: string, workload: string, step: number): Record<string, string> {
  const of = `{app=${quoted(app)}, workload=${quoted(workload)}}`;
  const over = `[${rateWindow(step)}]`;
  return {
    rate: `sum(rate(bedstone_requests_total${of}${over}))`,
    errors: `sum by (kind) (rate(bedstone_request_errors_total${of}${over}))`,
    ...Object.fromEntries(QUANTILES.map(([name, q]) => [name, `histogram_quantile(${q}, sum by (le) (rate(bedstone_request_seconds_bucket${of}${over})))`])),
    ready: `sum(bedstone_instance_up${of})`,
    cpu: `sum by (instance) (rate(bedstone_instance_cpu_seconds_total${of}${over}))`,
    memory: `sum by (instance) (bedstone_instance_memory_bytes${of})`,
  };
}

export function SignalCharts({ app, workload }: { app: string; workload: string }) {
  const range = rangeChoice();
  const asked = queries(app, workload, stepFor(range));
  const live = usePanels(asked, range);
  return (
    <section aria-label="Signals">
      <div class="bar"><RangeChoice /><Legend /></div>
      <Shown live={live}>{(panels) => <Four panels={panels} asked={asked} range={range} />}</Shown>
    </section>
  );
}

function Legend() {
  return <span class="faint">shaded: seconds that not every node answered for; a gap: nothing was measured</span>;
}

function Four({ panels, asked, range }: { panels: Panels; asked: Record<string, string>; range: number }) {
  const { x, series, incomplete, grid } = panels;
  const common = { x, incomplete, step: grid.step, sync: "workload", height: 148 };
  const errors = series["errors"]!.filter(({ values }) => values.some(Boolean));
  const requests: Line[] = [{ label: "requests", values: series["rate"]![0]?.values ?? none(x), colour: "series-1", fill: true }];
  const failed: Line[] = errors.length
    ? errors.map(({ labels, values }, index) => ({ label: labels["kind"] ?? "errors", values, colour: index ? `series-${(index % SERIES) + 1}` : "error", fill: true }))
    : [{ label: "errors", values: zero(series["rate"]![0]?.values ?? none(x)), colour: "error" }];
  const latency = QUANTILES.map(([name, , colour]): Line => ({ label: name, values: series[name]![0]?.values ?? none(x), colour }));
  return (
    <div class="charts">
      <Panel title="Requests" query={asked["rate"]!} range={range}><Chart label="Requests a second" lines={requests} format={rate} {...common} /></Panel>
      <Panel title="Errors by kind" query={asked["errors"]!} range={range}><Chart label="Errors a second" lines={failed} format={rate} least={0.5} {...common} /></Panel>
      <Panel title="Latency" query={asked["p99"]!} range={range}><Chart label="Latency" lines={latency} format={seconds} {...common} /></Panel>
      <Panel title="Ready instances" query={asked["ready"]!} range={range}><Chart label="Instances that are ready" lines={[{ label: "ready", values: series["ready"]![0]?.values ?? none(x), colour: "series-1", fill: true }]} format={(value) => count(value)} {...common} /></Panel>
      <Panel title="CPU" query={asked["cpu"]!} range={range}><Chart label="CPU by instance" lines={each(series["cpu"]!)} format={cores} {...common} /></Panel>
      <Panel title="Memory" query={asked["memory"]!} range={range}><Chart label="Memory by instance" lines={each(series["memory"]!)} format={bytes} {...common} /></Panel>
    </div>
  );
}

function Panel({ title, query, range, children }: { title: string; query: string; range: number; children: preact.ComponentChildren }) {
  const href = `/explore?q=${encodeURIComponent(query)}&range=${range}`;
  return (
    <section class="panel chart-panel" aria-label={title}>
      <header><h2>{title}</h2><a class="more" href={href} onClick={(event) => { event.preventDefault(); go(href); }}>explore</a></header>
      {children}
    </section>
  );
}

const none = (x: number[]) => new Array<number | null>(x.length).fill(null);
/** No failures where there were requests: nought, not a gap. */
const zero = (values: (number | null)[]) => values.map((value) => (value === null ? null : 0));

function each(series: { labels: Record<string, string>; values: (number | null)[] }[]): Line[] {
  return series.slice(0, SERIES).map(({ labels, values }, index) => ({ label: short(labels["instance"] ?? ""), values, colour: `series-${(index % SERIES) + 1}` }));
}

/** Instances are told apart by their ends: `accounts-3fa9c2d1-0` → `3fa9c2d1-0`. */
function short(name: string): string {
  return name.split("-").slice(-2).join("-") || name;
}
