/**
 * What a page shows, kept current: fetched once for all who show it, and again with each tick.
 *
 * Rules: what was shown stays until something newer is there (nothing flickers); of one path at most
 * one request is under way; who leaves takes its requests along; what was left is kept for a while,
 * so that going back shows it at once.
 */
import { effect, signal, type Signal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { ApiError, get } from "./client.ts";
import { signedOut, tick, visible } from "./ticks.ts";

export interface Live<T> {
  data: T | null;
  error: ApiError | null;
  /** Asked for, and nothing is there yet. */
  loading: boolean;
  /** Asks again at once. */
  refresh(): void;
}

/** Asks for something; the signal ends it. */
export type Load<T> = (signal: AbortSignal) => Promise<T>;

class Entry {
  readonly data: Signal<unknown> = signal(null);
  readonly error: Signal<ApiError | null> = signal(null);
  readonly readers = new Map<symbol, number>();
  under: AbortController | null = null;
  asked = 0;
  left = 0;

  constructor(readonly load: Load<unknown>) {}

  every(): number {
    return Math.min(...this.readers.values());
  }

  async fetch(): Promise<void> {
    if (this.under) return;
    const ending = new AbortController();
    this.under = ending;
    try {
      const found = await this.load(ending.signal);
      this.error.value = null;
      this.data.value = found;
    } catch (error) {
      if (ending.signal.aborted) return;
      if (error instanceof ApiError && error.status === 401) signedOut.value = true;
      this.error.value =
        error instanceof ApiError ? error : new ApiError(0, "internal", String(error));
    } finally {
      if (this.under === ending) this.under = null;
    }
  }

  /** Once more, even if an answer is on its way: it may be older than a change just made. */
  again(): void {
    this.under?.abort();
    this.under = null;
    void this.fetch();
  }
}

const KEPT = 60;
const entries = new Map<string, Entry>();

effect(() => {
  const second = tick.value?.second;
  if (second === undefined || !visible.value || signedOut.value) return;
  for (const [path, entry] of entries) {
    if (entry.readers.size === 0) {
      entry.left ||= second;
      if (second - entry.left > KEPT) entries.delete(path);
    } else if (second - entry.asked >= entry.every()) {
      entry.asked = second;
      void entry.fetch();
    }
  }
});

/** Fetches every shown path again: after a change that was made here. */
export function refreshAll(): void {
  for (const entry of entries.values()) if (entry.readers.size) entry.again();
}

/**
 * What a path gives now.
 *
 * @param path null asks for nothing.
 * @param every so many seconds; Infinity: once.
 */
export function useLive<T>(path: string | null, every = 1): Live<T> {
  return useLoaded<T>(path, (signal) => get<T>(path ?? "", signal), every);
}

/** As `useLive`, for what takes more than one path: `key` names it, and says all that it depends on. */
export function useLoaded<T>(key: string | null, load: Load<T>, every = 1): Live<T> {
  const who = useRef(Symbol("reader"));
  const entry = useMemo(() => (key === null ? null : found(key, load)), [key]);
  useEffect(() => {
    if (!entry) return;
    const me = who.current;
    entry.readers.set(me, every);
    entry.left = 0;
    entry.asked = tick.peek()?.second ?? 0;
    void entry.fetch();
    return () => {
      entry.readers.delete(me);
      if (entry.readers.size === 0) {
        entry.under?.abort();
        entry.under = null;
      }
    };
  }, [entry, every]);
  const data = (entry?.data.value ?? null) as T | null;
  const error = entry?.error.value ?? null;
  return { data, error, loading: entry !== null && data === null && error === null, refresh: () => entry?.again() };
}

function found(key: string, load: Load<unknown>): Entry {
  let entry = entries.get(key);
  if (!entry) entries.set(key, (entry = new Entry(load)));
  return entry;
}

/** As a live value, but what an earlier question gave is shown until the new one answers. */
export function useKept<T>(live: Live<T>): Live<T> {
  const last = useRef<T | null>(null);
  if (live.data !== null) last.current = live.data;
  return { ...live, data: live.data ?? last.current, loading: live.loading && last.current === null };
}
