/** States, told by shape and colour alike: nobody has to see colours. */
import type { ComponentChildren } from "preact";

export type Level = "ok" | "warning" | "error" | "unknown" | "idle";

const SHAPES: Record<Level, ComponentChildren> = {
  ok: <circle cx="6" cy="6" r="4" />,
  warning: <path d="M6 1.2 11.3 10.6H.7z" />,
  error: <path d="M6 .6 11.4 6 6 11.4.6 6z" />,
  unknown: <circle cx="6" cy="6" r="3.4" class="hollow" />,
  idle: <circle cx="6" cy="6" r="2.2" />,
};

/** A mark; `label` is what is said of it where no text stands beside. */
export function Mark({ level, label }: { level: Level; label?: string }) {
  return (
    <svg class={`mark ${level}`} viewBox="0 0 12 12" role={label ? "img" : undefined}
      aria-label={label} aria-hidden={label ? undefined : "true"}>
      {label && <title>{label}</title>}
      {SHAPES[level]}
    </svg>
  );
}

/** A state in words with its mark. */
export function State({ level, children }: { level: Level; children: ComponentChildren }) {
  return (
    <span class={`state ${level}`}>
      <Mark level={level} />
      <span>{children}</span>
    </span>
  );
}

export function Tag({ level = "idle", children, title }: { level?: Level; children: ComponentChildren; title?: string }) {
  return <span class={`tag ${level}`} title={title}>{children}</span>;
}

/** The level of an instance's phase. */
export function phaseLevel(phase: string): Level {
  switch (phase) {
    case "ready":
      return "ok";
    case "unready":
    case "failed":
    case "backoff":
      return "error";
    case "pending":
    case "preparing":
    case "starting":
    case "draining":
      return "warning";
    default:
      return "idle";
  }
}
