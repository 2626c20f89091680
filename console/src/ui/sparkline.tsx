/** A line without axes: the shape of the last minute. A second without data is a gap. */
import { rate } from "./format.ts";

interface Properties {
  values: readonly (number | null)[];
  width?: number;
  height?: number;
  label: string;
}

export function Sparkline({ values, width = 132, height = 22, label }: Properties) {
  const known = values.filter((value): value is number => value !== null);
  const last = known.at(-1) ?? null;
  const top = Math.max(...known, 0) || 1;
  const step = width / Math.max(1, values.length - 1);
  const y = (value: number) => height - 2 - (value / top) * (height - 4);
  return (
    <svg class="sparkline" width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="img"
      aria-label={`${label}: ${known.length ? `now ${rate(last)}, at most ${rate(Math.max(...known))}` : "no data"}`}>
      {gaps(values).map(([from, end]) => (
        <rect key={from} class="gap" x={Math.max(0, (from - 0.5) * step)} y="0" width={(end - from) * step} height={height} />
      ))}
      <path class="area" d={areas(values, step, y, height)} />
      <path class="line" d={lines(values, step, y)} />
    </svg>
  );
}

function runs(values: readonly (number | null)[]): [number, number[]][] {
  const found: [number, number[]][] = [];
  let run: number[] | null = null;
  values.forEach((value, index) => {
    if (value === null) run = null;
    else if (run) run.push(value);
    else found.push([index, (run = [value])]);
  });
  return found;
}

function gaps(values: readonly (number | null)[]): [number, number][] {
  const found: [number, number][] = [];
  let from = -1;
  [...values, 0].forEach((value, index) => {
    if (value === null && from < 0) from = index;
    if (value !== null && from >= 0) {
      found.push([from, index]);
      from = -1;
    }
  });
  return found;
}

function lines(values: readonly (number | null)[], step: number, y: (value: number) => number): string {
  return runs(values).map(([from, run]) =>
    run.length === 1
      ? `M${fixed(from * step - 0.5)} ${fixed(y(run[0]!))}h1`
      : run.map((value, index) => `${index ? "L" : "M"}${fixed((from + index) * step)} ${fixed(y(value))}`).join("")
  ).join("");
}

function areas(values: readonly (number | null)[], step: number, y: (value: number) => number, height: number): string {
  return runs(values).map(([from, run]) => {
    const points = run.map((value, index) => `L${fixed((from + index) * step)} ${fixed(y(value))}`).join("");
    return `M${fixed(from * step)} ${height}${points}L${fixed((from + run.length - 1) * step)} ${height}Z`;
  }).join("");
}

const fixed = (value: number) => Number(value.toFixed(1));
