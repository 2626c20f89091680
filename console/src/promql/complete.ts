/** What may follow at a place of a PromQL expression, and in which unit its result is. Pure. */

export const FUNCTIONS = [
  "rate", "increase", "irate", "sum", "avg", "min", "max", "count", "topk", "bottomk", "histogram_quantile",
  "avg_over_time", "min_over_time", "max_over_time", "sum_over_time", "count_over_time", "last_over_time", "quantile_over_time",
  "absent", "abs", "ceil", "clamp", "clamp_max", "clamp_min", "delta", "deriv", "floor", "round", "sort", "sort_desc", "by", "without",
];

export interface Known {
  metrics: readonly string[];
  labels: readonly string[];
}

export type Place =
  | { kind: "name"; from: number; typed: string }
  | { kind: "label"; from: number; typed: string }
  | { kind: "value"; from: number; typed: string; label: string }
  | { kind: "none" };

/** Where the caret is: at the name of a metric, a label, or within a label's value. */
export function placeOf(text: string, caret: number): Place {
  const before = text.slice(0, caret);
  const value = /([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)\s*"([^"]*)$/.exec(before);
  const braces = before.lastIndexOf("{") > before.lastIndexOf("}");
  if (braces && value) return { kind: "value", from: caret - value[2]!.length, typed: value[2]!, label: value[1]! };
  const inText = (before.match(/"/g)?.length ?? 0) % 2 === 1;
  if (inText) return { kind: "none" };
  const word = /[a-zA-Z_:][\w:]*$/.exec(before)?.[0] ?? "";
  const start = caret - word.length;
  if (/\[[^\]]*$/.test(before)) return { kind: "none" };
  const grouping = /\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*$/.test(before.slice(0, start));
  if (braces || grouping) return { kind: "label", from: start, typed: word };
  return word ? { kind: "name", from: start, typed: word } : { kind: "none" };
}

/** Names that fit what was typed: beginnings first, then whatever contains it. */
export function fitting(names: readonly string[], typed: string, most = 12): string[] {
  const wanted = typed.toLowerCase();
  const starts = names.filter((name) => name.toLowerCase().startsWith(wanted));
  const contains = wanted ? names.filter((name) => !name.toLowerCase().startsWith(wanted) && name.toLowerCase().includes(wanted)) : [];
  const found = [...starts, ...contains];
  return found.length === 1 && found[0] === typed ? [] : found.slice(0, most);
}

export type Unit = "seconds" | "bytes" | "rate" | "cores" | "share" | "none";

/** The unit of an expression's result, as far as its names say. */
export function unitOf(query: string): Unit {
  const divided = /\)\s*\/|\}\s*\/|\w\s*\/\s*\w/.test(query.replace(/"[^"]*"/g, '""'));
  if (/histogram_quantile\s*\(/.test(query)) return /bytes/.test(query) ? "bytes" : "seconds";
  if (divided) return /_sum\b/.test(query) && /_count\b/.test(query) ? "seconds" : "share";
  const perSecond = /\bi?rate\s*\(/.test(query);
  if (perSecond) return /cpu_seconds_total/.test(query) ? "cores" : /bytes(_total)?\b/.test(query) ? "bytes" : "rate";
  if (/_bytes\b|_bytes_total\b/.test(query)) return "bytes";
  if (/_seconds\b/.test(query) && !/_count\b|_bucket\b/.test(query)) return "seconds";
  return "none";
}
