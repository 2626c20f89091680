/** Pictures of the pages: thin strokes, nothing that shouts. */
import type { ComponentChildren } from "preact";

const PATHS: Record<string, ComponentChildren> = {
  Overview: <path d="M2.5 8.5 8 3l5.5 5.5M4 7.5V13h8V7.5" />,
  Map: <><circle cx="3.5" cy="8" r="1.7" /><circle cx="12.5" cy="3.7" r="1.7" /><circle cx="12.5" cy="12.3" r="1.7" /><path d="m5 7.2 6-2.8M5 8.8l6 2.8" /></>,
  Workloads: <><rect x="2.5" y="2.5" width="11" height="4.4" rx="1" /><rect x="2.5" y="9.1" width="11" height="4.4" rx="1" /><path d="M5 4.7h.01M5 11.3h.01" /></>,
  Traffic: <path d="M2 5.2h10.5M9.8 2.5l2.7 2.7-2.7 2.7M14 10.8H3.5M6.2 8.1l-2.7 2.7 2.7 2.7" />,
  Transactions: <><circle cx="8" cy="8" r="5.6" /><path d="M5.4 8.2 7.3 10l3.4-3.8" /></>,
  Traces: <path d="M2.5 3.5h6M5 6.5h6.5M6.5 9.5H12M9 12.5h4.5" />,
  Metrics: <path d="M2.5 2.5v11h11M4.8 10.2 7.3 7l2.2 1.8L13 4.2" />,
  Alerts: <path d="M8 2.3a3.7 3.7 0 0 0-3.7 3.7c0 3.8-1.6 4.7-1.6 4.7h10.6s-1.6-.9-1.6-4.7A3.7 3.7 0 0 0 8 2.3ZM6.8 13.2a1.3 1.3 0 0 0 2.4 0" />,
  Changes: <><path d="M3 8a5 5 0 1 1 1.5 3.6M3 12.5V9.7h2.8" /><path d="M8 5.4V8l1.8 1.2" /></>,
};

export function Icon({ name }: { name: string }) {
  return <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">{PATHS[name]}</svg>;
}
