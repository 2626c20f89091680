/**
 * Streams of JSON lines, followed for ever.
 *
 * Rules: a record is given once it is whole; a stream that ends, breaks or falls silent is opened
 * again after a pause that doubles up to `longest` and starts anew with the first record; whoever
 * aborts the signal hears nothing more.
 */

/** The records of one body; throws where the body breaks off within a line. */
export async function* records<T>(body: ReadableStream<Uint8Array>): AsyncGenerator<T> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      let from = 0;
      for (let end = rest.indexOf("\n"); end >= 0; end = rest.indexOf("\n", from)) {
        const line = rest.slice(from, end).trim();
        from = end + 1;
        if (line) yield JSON.parse(line) as T;
      }
      rest = rest.slice(from);
      if (done) break;
    }
    if (rest.trim()) throw new Error("the stream broke off within a record");
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

export type Connection = "connecting" | "open" | "broken";

export interface Following<T> {
  /** Opens the stream; throws what the API answered where it refuses. */
  open(signal: AbortSignal): Promise<ReadableStream<Uint8Array>>;
  each(record: T): void;
  state?(state: Connection, error?: unknown): void;
  /** Whether to give up after this failure (a refusal stays one). */
  final?(error: unknown): boolean;
  signal: AbortSignal;
  /** Milliseconds without a record after which the stream counts as broken; 0: any silence is fine. */
  silence?: number;
  first?: number;
  longest?: number;
  sleep?(milliseconds: number, signal: AbortSignal): Promise<void>;
}

/** Follows a stream until the signal is aborted, or its failure is final. */
export async function follow<T>(options: Following<T>): Promise<void> {
  const { open, each, signal, silence = 0, first = 500, longest = 8000, sleep = pause } = options;
  const state = options.state ?? (() => undefined);
  let wait = first;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop);
    let watch: ReturnType<typeof setTimeout> | undefined;
    const heard = () => {
      clearTimeout(watch);
      if (silence) watch = setTimeout(stop, silence);
    };
    try {
      state("connecting");
      heard();
      for await (const record of records<T>(await open(attempt.signal))) {
        if (signal.aborted) return;
        heard();
        wait = first;
        state("open");
        each(record);
      }
      if (signal.aborted) return;
      state("broken");
    } catch (error) {
      if (signal.aborted) return;
      state("broken", error);
      if (options.final?.(error)) return;
    } finally {
      clearTimeout(watch);
      signal.removeEventListener("abort", stop);
      attempt.abort();
    }
    await sleep(wait, signal);
    wait = Math.min(wait * 2, longest);
  }
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
