/** The address holds the whole state of a page: where it is, and every choice made on it. */
import { computed, signal } from "@preact/signals";

export interface Address {
  path: string;
  search: string;
}

const current = signal<Address>({ path: location.pathname, search: location.search });
export const address = computed(() => current.value);

addEventListener("popstate", () => {
  current.value = { path: location.pathname, search: location.search };
});

/** Goes to an address of this console. `replace`: without a step in the history. */
export function go(href: string, { replace = false } = {}): void {
  const url = new URL(href, location.origin);
  if (url.origin !== location.origin) return;
  if (url.pathname === location.pathname && url.search === location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", url.pathname + url.search);
  const moved = url.pathname !== current.peek().path;
  current.value = { path: url.pathname, search: url.search };
  if (moved) document.querySelector("main")?.scrollTo(0, 0);
}

/** Follows links of ours without loading anything; whoever wants a new tab gets one. */
export function followLinks(): void {
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button !== 0) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = (event.target as Element | null)?.closest?.("a[href]") as HTMLAnchorElement | SVGAElement | null;
    const href = link?.getAttribute("href");
    if (!link || !href || !href.startsWith("/") || link.getAttribute("target")) return;
    event.preventDefault();
    go(href);
  });
}

export type Choices = Record<string, string | number | boolean | null | undefined>;

/** A search with some choices changed; what is empty or false is left out. */
export function withChoices(search: string, choices: Choices): string {
  const parts = new URLSearchParams(search);
  for (const [name, value] of Object.entries(choices)) {
    if (value === null || value === undefined || value === "" || value === false) parts.delete(name);
    else parts.set(name, value === true ? "1" : String(value));
  }
  const text = parts.toString();
  return text ? `?${text}` : "";
}

/** One choice of this page. */
export function choice(name: string, otherwise = ""): string {
  return new URLSearchParams(current.value.search).get(name) ?? otherwise;
}

export function choices(name: string): string[] {
  return new URLSearchParams(current.value.search).getAll(name);
}

export function flag(name: string): boolean {
  return choice(name) === "1";
}

/** Changes choices of this page; `replace` for what is typed or dragged. */
export function choose(changed: Choices, { replace = false } = {}): void {
  const { path, search } = current.peek();
  go(path + withChoices(search, changed), { replace });
}

/** The link to this page with some choices changed. */
export function linked(changed: Choices): string {
  const { path, search } = current.value;
  return path + withChoices(search, changed);
}

/** The parts of a path, decoded: `/workloads/bank/web` → `["workloads", "bank", "web"]`. */
export function parts(path: string): string[] {
  return path.split("/").filter(Boolean).map(decode);
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** A path of parts, encoded. */
export function to(...names: string[]): string {
  return `/${names.map(encodeURIComponent).join("/")}`;
}
