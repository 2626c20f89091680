/** Lines read so far, with those of a further page. Pure. */
import type { StructuredLine } from "../api-types.ts";

export const KEPT = 2000;

/** A page may begin with lines that are here already: those of the very time that was asked for. */
export function added(lines: StructuredLine[], page: readonly StructuredLine[]): StructuredLine[] {
  if (!page.length) return lines;
  const first = page[0]!.time;
  const seen = new Set<string>();
  for (let index = lines.length - 1; index >= 0 && lines[index]!.time >= first; index -= 1) seen.add(identity(lines[index]!));
  const fresh = page.filter((line) => !seen.has(identity(line)));
  return fresh.length ? [...lines, ...fresh].slice(-KEPT) : lines;
}

function identity({ time, instance, text }: StructuredLine): string {
  return `${time} ${instance} ${text}`;
}

/** The words that name levels differ; four are told apart. */
export function levelOf(level: string): "error" | "warning" | "debug" | "info" | "" {
  switch (level.toLowerCase()) {
    case "error":
    case "err":
    case "critical":
    case "fatal":
    case "panic":
      return "error";
    case "warning":
    case "warn":
      return "warning";
    case "debug":
    case "trace":
      return "debug";
    case "info":
    case "notice":
      return "info";
    default:
      return "";
  }
}
