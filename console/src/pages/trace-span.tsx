/** What one span says. */
import type { Span } from "../api-types.ts";
import { absolute, seconds } from "../ui/format.ts";
import { State } from "../ui/state.tsx";
import { to } from "../ui/url.ts";

export function SpanDetail({ span, first, close }: { span: Span; first: number; close: () => void }) {
  const attributes = Object.entries(span.attributes).sort(([a], [b]) => (a < b ? -1 : 1));
  return (
    <aside class="panel span-detail" aria-label="Span">
      <header>
        <h2><State level={span.error ? "error" : "ok"}>{span.name}</State></h2>
        <button type="button" class="quiet small more" onClick={close} aria-label="Close span">✕</button>
      </header>
      <div class="body stack">
        {span.message && <p class="trouble">{span.message}</p>}
        <dl class="facts">
          <dt>Workload</dt><dd>{span.service === "gateway" || !span.app ? span.service : <a href={to("workloads", span.app, span.service)}>{span.service}</a>}</dd>
          {span.instance && <><dt>Instance</dt><dd>{span.instance}{span.node && ` on ${span.node}`}</dd></>}
          <dt>Kind</dt><dd>{span.kind}, told by {span.origin === "proxy" ? "its proxy" : span.origin === "application" ? "the application" : "the access log"}</dd>
          <dt>Began</dt><dd title={absolute(span.start)}>{seconds(Math.max(0, span.start - first))} after the trace</dd>
          <dt>Took</dt><dd>{seconds(span.seconds)}</dd>
          <dt>Id</dt><dd><code>{span.span}</code></dd>
        </dl>
        {attributes.length > 0 && (
          <>
            <h3>Attributes</h3>
            <dl class="facts attributes">{attributes.map(([name, value]) => <><dt>{name}</dt><dd><Value name={name} value={value} /></dd></>)}</dl>
          </>
        )}
        {span.events.length > 0 && (
          <>
            <h3>Events</h3>
            <dl class="facts">
              {span.events.map((event) => (
                <>
                  <dt>+{seconds(Math.max(0, event.time - span.start))}</dt>
                  <dd>{event.name}{Object.entries(event.attributes).map(([name, value]) => <div key={name} class="dim"><code>{name}={plain(value)}</code></div>)}</dd>
                </>
              ))}
            </dl>
          </>
        )}
      </div>
    </aside>
  );
}

function Value({ name, value }: { name: string; value: unknown }) {
  const text = plain(value);
  if (name === "bedstone.xid") return <a href={`/transactions?search=${encodeURIComponent(text)}&begun=0`}><code>{text}</code></a>;
  return <code>{text}</code>;
}

function plain(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}
