/** A time: how long ago, the whole of it on hover. */
import { now } from "../api/ticks.ts";
import { absolute, ago, clock, NONE, span } from "./format.ts";

export function Ago({ at }: { at: number | null | undefined }) {
  if (at === null || at === undefined) return <span class="none">{NONE}</span>;
  return (
    <time dateTime={new Date(at * 1000).toISOString()} title={absolute(at)}>
      {ago(at, now.value)}
    </time>
  );
}

/** How long something has lasted. */
export function For({ since }: { since: number | null | undefined }) {
  if (since === null || since === undefined) return <span class="none">{NONE}</span>;
  return (
    <time dateTime={new Date(since * 1000).toISOString()} title={`since ${absolute(since)}`}>
      {span(now.value - since)}
    </time>
  );
}

export function Clock({ at, fraction = false }: { at: number; fraction?: boolean }) {
  return (
    <time dateTime={new Date(at * 1000).toISOString()} title={absolute(at)}>
      {clock(at, fraction)}
    </time>
  );
}
