/** Which theme is chosen: the system's, or one that was asked for and is remembered. */

export type Choice = "system" | "dark" | "light";
const KEY = "bedstone.theme";

export function chosen(): Choice {
  try {
    const value = localStorage.getItem(KEY);
    return value === "dark" || value === "light" ? value : "system";
  } catch {
    return "system"; // storage may be forbidden; the system's theme needs none
  }
}

export function remember(choice: Choice): void {
  try {
    if (choice === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, choice);
  } catch {
    // not remembered, then
  }
}

/** Puts the theme on the document; gives which one it is. */
export function applied(): "dark" | "light" {
  const choice = chosen();
  const dark = choice === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : choice === "dark";
  document.documentElement.dataset["theme"] = dark ? "dark" : "light";
  return dark ? "dark" : "light";
}
