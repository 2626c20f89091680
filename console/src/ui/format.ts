/** Numbers and times for people: never without a unit, never with digits that say nothing. */

export const NONE = "–";
export type Value = number | null | undefined;

/** Three significant digits, no exponent, thousands with a thin space. */
export function digits(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1000) return Math.round(value).toLocaleString("en").replaceAll(",", "\u2009");
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return trimmed(value.toFixed(1));
  if (size >= 1) return trimmed(value.toFixed(2));
  if (size >= 0.001) return trimmed(value.toFixed(2 - Math.floor(Math.log10(size))));
  return value.toPrecision(2);
}

function trimmed(text: string): string {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

export function rate(value: Value): string {
  return known(value) ? `${scaled(value)}/s` : NONE;
}

export function count(value: Value, unit = ""): string {
  return known(value) ? `${scaled(value)}${unit && ` ${unit}`}` : NONE;
}

function scaled(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e9) return `${digits(value / 1e9)}G`;
  if (size >= 1e6) return `${digits(value / 1e6)}M`;
  if (size >= 1e4) return `${digits(value / 1e3)}k`;
  return digits(value);
}

/** A share (0 to 1) in per cent; what is not nothing is never shown as 0. */
export function share(value: Value): string {
  if (!known(value)) return NONE;
  if (value > 0 && value < 0.0001) return "<0.01\u202f%";
  return `${digits(value * 100)}\u202f%`;
}

export function seconds(value: Value): string {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0 ms";
  if (size < 0.001) return `${digits(value * 1e6)} µs`;
  if (size < 1) return `${digits(value * 1000)} ms`;
  if (size < 60) return `${digits(value)} s`;
  return span(value);
}

/** A span of time in its two largest units: `2 h 5 min`. */
export function span(value: number): string {
  const whole = Math.max(0, Math.round(value));
  if (whole < 60) return `${whole} s`;
  const units: [number, string][] = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const first = units.findIndex(([size]) => whole >= size);
  const [size, unit] = units[first]!;
  const next = units[first + 1];
  const rest = next ? Math.floor((whole % size) / next[0]) : 0;
  const head = `${Math.floor(whole / size)} ${unit}`;
  return rest && next ? `${head} ${rest} ${next[1]}` : head;
}

export function bytes(value: Value): string {
  if (!known(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = value;
  let unit = 0;
  while (Math.abs(size) >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${digits(size)} ${units[unit]}`;
}

export function cores(value: Value): string {
  return known(value) ? `${digits(Math.round(value * 1000) / 1000)} ${value === 1 ? "core" : "cores"}` : NONE;
}

function known(value: Value): value is number {
  return value !== null && value !== undefined && Number.isFinite(value);
}

/** How long ago, or in how long: `now`, `5 s ago`, `in 3 min`. */
export function ago(at: number, now: number): string {
  const past = now - at;
  if (Math.abs(past) < 2) return "now";
  if (past < 0) return `in ${coarse(-past)}`;
  return `${coarse(past)} ago`;
}

/** One unit, rounded down: what was 119 s ago was 1 min ago. */
function coarse(value: number): string {
  if (value < 60) return `${Math.floor(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  if (value < 86400) return `${Math.floor(value / 3600)} h`;
  return `${Math.floor(value / 86400)} d`;
}

const two = (value: number) => String(value).padStart(2, "0");

/** `14:03:27` of the reader's own time. */
export function clock(at: number, fraction = false): string {
  const date = new Date(at * 1000);
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return fraction ? `${time}.${String(date.getMilliseconds()).padStart(3, "0")}` : time;
}

/** The time of today; with the day before it for any other. */
export function moment(at: number, now: number): string {
  const date = new Date(at * 1000);
  if (date.toDateString() === new Date(now * 1000).toDateString()) return clock(at);
  return `${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(at).slice(0, 5)}`;
}

/** `2026-11-28 14:03:27 +01:00`: no doubt about the zone. */
export function absolute(at: number): string {
  const date = new Date(at * 1000);
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const offset = -date.getTimezoneOffset();
  const zone = `${offset < 0 ? "-" : "+"}${two(Math.floor(Math.abs(offset) / 60))}:${two(Math.abs(offset) % 60)}`;
  return `${day} ${clock(at)} ${zone}`;
}

/** Reads `90`, `90s`, `5m`, `2h`, `1d` as seconds; null where it is none. */
export function parseSpan(text: string): number | null {
  const found = /^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)?\s*$/.exec(text);
  if (!found) return null;
  const unit = { ms: 0.001, s: 1, m: 60, min: 60, h: 3600, d: 86400 }[found[2] ?? "s"] ?? 1;
  return Number(found[1]) * unit;
}

export function plural(value: number, one: string, many = `${one}s`): string {
  return `${digits(value)} ${value === 1 ? one : many}`;
}
