/** The spans of a trace as bars along its time. */
import { useMemo } from "preact/hooks";
import type { Span } from "../api-types.ts";
import { bounds, rows, type Bounds } from "../trace/tree.ts";
import { seconds } from "../ui/format.ts";
import { Mark } from "../ui/state.tsx";

interface Properties {
  spans: readonly Span[];
  folded: ReadonlySet<string>;
  fold: (id: string) => void;
  chosen: string;
  choose: (id: string) => void;
  /** The scale of another trace that stands beside it. */
  scale?: number;
  label?: string;
}

export function Waterfall({ spans, folded, fold, chosen, choose, scale, label = "Waterfall" }: Properties) {
  const list = useMemo(() => rows(spans, folded), [spans, folded]);
  const box = useMemo(() => {
    const own = bounds(spans);
    return { ...own, seconds: Math.max(own.seconds, scale ?? 0) };
  }, [spans, scale]);
  return (
    <section class="panel waterfall" aria-label={label}>
      <div class="span-row scale" aria-hidden="true">
        <span>Span</span>
        <span class="ticks">{[0, 0.25, 0.5, 0.75, 1].map((part) => <span key={part} style={{ left: `${part * 100}%` }} class={part === 1 ? "last" : ""}>{seconds(part * box.seconds)}</span>)}</span>
        <span class="long">Took</span>
      </div>
      <ul aria-label="Spans">
        {list.map(({ span, depth, children, orphan, own, critical }) => (
          <li key={span.span} class={`span-row ${span.span === chosen ? "chosen" : ""} ${span.error ? "failed" : ""} ${critical ? "critical" : ""}`}>
            <span class="what" style={{ paddingLeft: `${depth * 14}px` }}>
              {children > 0
                ? <button type="button" class="bare fold" onClick={() => fold(span.span)} aria-expanded={!folded.has(span.span)} aria-label={folded.has(span.span) ? `Show ${children} below` : "Fold"}>{folded.has(span.span) ? "▸" : "▾"}</button>
                : <span class="fold" />}
              <button type="button" class="bare name" onClick={() => choose(span.span)} aria-pressed={span.span === chosen} title={`${span.service}: ${span.name}${orphan ? "\nits parent is missing" : ""}`}>
                {span.error && <Mark level="error" label="failed" />}
                <b>{span.service}</b> {span.name}
                {orphan && <span class="doubtful"> (parent missing)</span>}
              </button>
            </span>
            <span class="bar-place" onClick={() => choose(span.span)} aria-hidden="true">
              <Bar span={span} box={box} own={own} />
            </span>
            <span class="long" title={`of which ${seconds(own)} itself`}>{seconds(span.seconds)}</span>
          </li>
        ))}
      </ul>
      <p class="legend dim">
        <span><Sample /> the application’s</span>
        <span><Sample origin="proxy" /> its proxy’s</span>
        <span class="critical"><Sample /> what the whole waited for</span>
        <span class="failed"><Sample /> failed</span>
      </p>
    </section>
  );
}

function Sample({ origin = "application" }: { origin?: Span["origin"] }) {
  return <span class="sample" aria-hidden="true"><span class={`span-bar ${origin}`} /></span>;
}

function Bar({ span, box, own }: { span: Span; box: Bounds; own: number }) {
  const left = ((span.start - box.start) / box.seconds) * 100;
  const width = Math.max(0.15, (span.seconds / box.seconds) * 100);
  return (
      <span class={`span-bar ${span.origin}`} style={{ left: `${left}%`, width: `${width}%` }} title={`${seconds(span.seconds)}, of which ${seconds(own)} itself`}>
        {span.events.map((event, index) => <span key={index} class="point" style={{ left: `${Math.min(100, Math.max(0, ((event.time - span.start) / (span.seconds || 1e-9)) * 100))}%` }} title={event.name} />)}
      </span>
  );
}
