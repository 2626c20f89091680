/** Requests to the API: with the session's cookie, the token against forgery, and failures as `ApiError`. */
import type { Problem } from "../api-types.ts";

/** What the API refused, in its own words; `status` 0: it was not reached. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly hint: string | null = null,
  ) {
    super(message);
  }
}

let token = "";

/** What every change carries from now on. */
export function useToken(csrf: string): void {
  token = csrf;
}

export type Query = Record<string, string | number | boolean | null | undefined>;

/** A path with the parts of a query that have a value. */
export function path(base: string, query: Query = {}): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "" && value !== false) {
      search.set(name, String(value));
    }
  }
  const text = search.toString();
  return text ? `${base}?${text}` : base;
}

async function request(method: string, url: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = { accept: "application/json" };
  if (method !== "GET") headers["x-bedstone-csrf"] = token;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response: Response;
  try {
    response = await fetch(url, {
      method,
      headers,
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal ? { signal } : {}),
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "unavailable", "the server cannot be reached", "it is tried again by itself");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response: Response): Promise<ApiError> {
  const fallback = `the server answered ${response.status} ${response.statusText}`.trim();
  try {
    // Prometheus's API has an error format of its own.
    const body = (await response.json()) as Partial<Problem> & { error?: string; errorType?: string };
    const message = body.message ?? body.error ?? fallback;
    return new ApiError(response.status, body.code ?? body.errorType ?? "internal", message, body.hint ?? null);
  } catch {
    return new ApiError(response.status, "internal", fallback);
  }
}

export async function get<T>(url: string, signal?: AbortSignal): Promise<T> {
  return (await (await request("GET", url, undefined, signal)).json()) as T;
}

export async function post<T>(url: string, body: unknown = {}): Promise<T> {
  return (await (await request("POST", url, body)).json()) as T;
}

export async function remove<T>(url: string): Promise<T> {
  return (await (await request("DELETE", url)).json()) as T;
}

export async function open(url: string, signal: AbortSignal): Promise<ReadableStream<Uint8Array>> {
  const response = await request("GET", url, undefined, signal);
  if (!response.body) throw new ApiError(0, "unavailable", "the stream is empty");
  return response.body;
}

export function isRefusal(error: unknown): boolean {
  return error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429;
}
