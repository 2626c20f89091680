/** The theme as a signal: charts draw anew when it changes. */
import { signal } from "@preact/signals";
import { applied, chosen, remember, type Choice } from "./theme-store.ts";

export const theme = signal<"dark" | "light">(applied());
export const choice = signal<Choice>(chosen());

export function choose(next: Choice): void {
  remember(next);
  choice.value = next;
  theme.value = applied();
}

/** From one theme to the other; the system's own is found again by choosing it twice. */
export function toggle(): void {
  choose(theme.value === "dark" ? "light" : "dark");
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  theme.value = applied();
});

/** A colour of the style sheet, for canvases. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
