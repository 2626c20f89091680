/** Times of a transaction: in its id, and along its line. Pure. */
import type { TransactionEvent } from "../api-types.ts";

/** The smallest id of a transaction that began at a time: ids begin with 11 digits of milliseconds. */
export function firstId(at: number): string {
  return Math.max(0, Math.floor(at * 1000)).toString(16).padStart(11, "0");
}

export interface Placed {
  event: TransactionEvent;
  /** 0 to 1 along the line. */
  x: number;
  /** Seconds since the first event. */
  since: number;
}

/**
 * Events along a line on which milliseconds and hours are both seen: each gap is as wide as its
 * logarithm, and what happened together stands a little apart.
 */
export function placed(events: readonly TransactionEvent[]): Placed[] {
  const sorted = [...events].sort((a, b) => a.at - b.at);
  const first = sorted[0]?.at ?? 0;
  let reached = 0;
  const steps = sorted.map((event, index) => {
    const gap = index === 0 ? 0 : event.at - sorted[index - 1]!.at;
    reached += index === 0 ? 0 : 0.6 + Math.log10(1 + gap * 1000);
    return { event, x: reached, since: event.at - first };
  });
  return steps.map((step) => ({ ...step, x: reached ? step.x / reached : 0 }));
}

/** Columns of a row's images, in the order in which they first come. */
export function columnsOf(images: readonly unknown[]): string[] {
  return [...new Set(images.flatMap((image) => (isRow(image) ? Object.keys(image) : [])))];
}

export function isRow(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A value of an image; null where there was no such row. */
export function cellOf(image: unknown, column: string): string | null {
  if (!isRow(image)) return null;
  const value = image[column];
  return typeof value === "string" ? value : JSON.stringify(value) ?? "";
}
