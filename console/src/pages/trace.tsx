/** One trace: its waterfall, what one span says, and what was written while it ran. */
import { useState } from "preact/hooks";
import type { LogPage, Span, TraceDetail, TraceSummary } from "../api-types.ts";
import { path } from "../api/client.ts";
import { useLive } from "../api/live.ts";
import { Tabs } from "../ui/controls.tsx";
import { Empty, Shown } from "../ui/empty.tsx";
import { absolute, plural, seconds } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { State, Tag } from "../ui/state.tsx";
import { choice, choose, to } from "../ui/url.ts";
import { Ago } from "../ui/when.tsx";
import { Lines } from "./lines.tsx";
import { SpanDetail } from "./trace-span.tsx";
import { Waterfall } from "./trace-waterfall.tsx";

/** A young trace may still get spans; an old one is looked at once. */
const YOUNG = 2;

export function TracePage({ id }: { id: string }) {
  const live = useLive<TraceDetail>(`/v1${to("traces", id)}`, YOUNG);
  const summary = live.data?.summary;
  return (
    <>
      <Head crumbs={[{ name: "Traces", href: "/traces" }, { name: summary?.name ?? `${id.slice(0, 12)}…` }]}>
        {summary && <span class="end"><a class="button" href={`/traces?app=${encodeURIComponent(summary.app)}&with=${id}`}>Compare with …</a></span>}
      </Head>
      <div class="page">
        <Shown live={live}>{(detail) => <Whole detail={detail} />}</Shown>
      </div>
    </>
  );
}

function Whole({ detail }: { detail: TraceDetail }) {
  const { summary, spans } = detail;
  const tab = choice("tab", "spans");
  const chosen = spans.find((span) => span.span === choice("span"));
  return (
    <>
      <Summary summary={summary} />
      <Tabs otherwise="spans" tabs={[["spans", `Spans (${spans.length})`], ["logs", "Logs"]]} />
      {tab === "spans" && (
        <div class={chosen ? "with-detail" : ""}>
          <Folding spans={spans} chosen={chosen} />
          {chosen && <SpanDetail span={chosen} first={summary.start} close={() => choose({ span: null }, { replace: true })} />}
        </div>
      )}
      {tab === "logs" && <TraceLogs app={summary.app} trace={summary.trace} />}
    </>
  );
}

function Folding({ spans, chosen }: { spans: readonly Span[]; chosen: Span | undefined }) {
  const [folded, setFolded] = useState<ReadonlySet<string>>(new Set());
  const fold = (id: string) => {
    const next = new Set(folded);
    if (!next.delete(id)) next.add(id);
    setFolded(next);
  };
  return <Waterfall spans={spans} folded={folded} fold={fold} chosen={chosen?.span ?? ""} choose={(id) => choose({ span: id === chosen?.span ? null : id }, { replace: true })} />;
}

export function Summary({ summary, label = "Summary" }: { summary: TraceSummary; label?: string }) {
  return (
    <section class="panel summary" aria-label={label}>
      <div class="line">
        <State level={summary.errors ? "error" : "ok"}><b>{summary.errors ? plural(summary.errors, "failed span") : "no failure"}</b></State>
        <span><b>{seconds(summary.seconds)}</b></span>
        {summary.status !== null && <span class={summary.status >= 500 ? "bad" : ""}>status {summary.status}</span>}
        <span>{plural(summary.spans, "span")} of {plural(summary.services.length, "workload")}</span>
        <Tag level={summary.kept === "error" ? "error" : summary.kept === "slow" ? "warning" : "idle"} title="why it was not sampled away">{summary.kept}</Tag>
        <span class="dim" title={absolute(summary.start)}><Ago at={summary.start} /></span>
        <code class="dim">{summary.trace}</code>
      </div>
    </section>
  );
}

function TraceLogs({ app, trace }: { app: string; trace: string }) {
  const live = useLive<LogPage>(path(`/v1${to("apps", app, "lines")}`, { trace, limit: 1000 }), YOUNG);
  return (
    <section class="panel logs" aria-label="Logs">
      <Shown live={live}>
        {({ items }) => items.length ? <Lines lines={items} /> : (
          <Empty title="No line belongs to this trace">What an application logs while it serves a request belongs to its trace by itself, if it is started with run: or writes JSON with trace_id.</Empty>
        )}
      </Shown>
    </section>
  );
}
