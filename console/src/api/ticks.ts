/** The clock of the console: each finished second, as the server tells it. */
import { effect, signal } from "@preact/signals";
import type { Tick } from "../api-types.ts";
import { ApiError, open } from "./client.ts";
import { follow, type Connection } from "./ndjson.ts";

export const tick = signal<Tick | null>(null);
export const connection = signal<Connection>("connecting");
/** Whether the page is seen; a hidden one asks for nothing. */
export const visible = signal(!document.hidden);
/** A person stopped the clock: what is shown stays. */
export const paused = signal(false);
export const signedOut = signal(false);

/** Seconds since the epoch, once a second; by the server's clock where the two differ. */
export const now = signal(Date.now() / 1000);
let ahead = 0;

document.addEventListener("visibilitychange", () => {
  visible.value = !document.hidden;
});
setInterval(() => {
  if (visible.peek()) now.value = Date.now() / 1000 - ahead;
}, 1000);

function received(next: Tick): void {
  const difference = Date.now() / 1000 - (next.second + 1);
  ahead = Math.abs(difference) > 5 ? difference : 0;
  tick.value = next;
}

/** Follows the ticks while the page is seen. */
export function startTicks(): void {
  effect(() => {
    if (!visible.value || paused.value || signedOut.value) return;
    const ending = new AbortController();
    void follow<Tick>({
      open: (signal) => open("/v1/ticks", signal),
      each: received,
      state: (state) => {
        // Between two attempts it stays "broken": the mark shall not blink.
        if (state !== "connecting" || connection.peek() !== "broken") connection.value = state;
      },
      final: (error) => {
        if (error instanceof ApiError && error.status === 401) signedOut.value = true;
        return signedOut.peek();
      },
      silence: 6000,
      signal: ending.signal,
    });
    return () => ending.abort();
  });
}
