/** Who is signed in. */
import { signal } from "@preact/signals";
import type { ConsoleSession } from "../api-types.ts";
import { ApiError, get, useToken } from "./client.ts";
import { signedOut } from "./ticks.ts";

export const session = signal<ConsoleSession | null>(null);
export const sessionError = signal<ApiError | null>(null);

export async function startSession(): Promise<void> {
  try {
    const found = await get<ConsoleSession>("/v1/console/session");
    useToken(found.csrf);
    session.value = found;
    sessionError.value = null;
    signedOut.value = false;
  } catch (error) {
    if (error instanceof ApiError && (error.status === 401 || error.status === 403)) signedOut.value = true;
    else {
      sessionError.value = error instanceof ApiError ? error : new ApiError(0, "internal", String(error));
      setTimeout(() => void startSession(), 2000);
    }
  }
}

export function mayOperate(): boolean {
  return session.value?.role === "operator";
}
