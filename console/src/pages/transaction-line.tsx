/** The events of a transaction along a line, one lane for each branch. */
import type { BranchDetail, TransactionEvent } from "../api-types.ts";
import { clock, seconds } from "../ui/format.ts";
import { placed } from "./transaction-times.ts";

const LANE = 30;
const LEFT = 190;
const WIDTH = 1000;

export function Line({ events, branches }: { events: readonly TransactionEvent[]; branches: readonly BranchDetail[] }) {
  const line = placed(events);
  if (!line.length) return null;
  const lanes = new Map<number | null, number>([[null, 0], ...branches.map((branch, index): [number, number] => [branch.number, index + 1])]);
  const x = (at: number) => LEFT + 16 + at * (WIDTH - LEFT - 60);
  const y = (branch: number | null) => (lanes.get(branch) ?? 0) * LANE + 20;
  const height = (branches.length + 1) * LANE + 30;
  const decided = line.find(({ event }) => event.kind === "decided");
  return (
    <section class="panel" aria-label="Time line">
      <header><h2>Time line</h2><span class="more">gaps are drawn by their logarithm</span></header>
      <svg class="tx-line" viewBox={`0 0 ${WIDTH} ${height}`} role="img" aria-label={`${line.length} events in ${seconds(line.at(-1)!.since)}`}>
        <text x="14" y={y(null) + 4} class="lane">transaction</text>
        {branches.map((branch) => (
          <text key={branch.number} x="14" y={y(branch.number) + 4} class="lane">{branch.number} · {branch.mode} · {participant(branch.resource)}</text>
        ))}
        {decided && <line class="decision" x1={x(decided.x)} x2={x(decided.x)} y1="6" y2={height - 24} />}
        {[null, ...branches.map((branch) => branch.number)].map((branch) => {
          const own = line.filter(({ event }) => event.branch === branch);
          const first = own[0];
          return first && <line key={branch} class="span" x1={x(first.x)} x2={x(own.at(-1)!.x)} y1={y(branch)} y2={y(branch)} />;
        })}
        {line.map(({ event, x: at, since }, index) => (
          <g key={index} class={`event ${kindOf(event)}`} transform={`translate(${x(at)} ${y(event.branch)})`}>
            <title>{`${event.kind} at ${clock(event.at, true)}, ${seconds(since)} after it began`}</title>
            <circle r="4.5" />
            <text y="-8">{event.kind}</text>
          </g>
        ))}
        <text class="axis" x={x(0)} y={height - 8}>{clock(line[0]!.event.at, true)}</text>
        <text class="axis end" x={x(1)} y={height - 8}>+{seconds(line.at(-1)!.since)}</text>
      </svg>
    </section>
  );
}

function kindOf({ kind, detail }: TransactionEvent): string {
  if (kind === "stuck") return "bad";
  if (kind === "failed" || "error" in detail) return "doubtful";
  return kind === "decided" ? "decided" : "";
}

/** `http://orders/.bedstone/transactions/at/stock` → `orders stock`. */
function participant(resource: string): string {
  const found = /^https?:\/\/([^/]+)\/.*\/([^/]+)$/.exec(resource);
  const text = found ? `${found[1]} ${found[2]}` : resource.replace(/^local:/, "");
  return text.length > 20 ? `${text.slice(0, 19)}…` : text;
}
