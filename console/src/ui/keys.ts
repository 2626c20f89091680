/** Keys that work everywhere: `g` and a letter jumps to a page, `j`/`k` move in the list that is shown. */
import { signal } from "@preact/signals";
import { go } from "./url.ts";
import { toggle } from "./theme.ts";
import { PAGES } from "./pages.ts";

export const paletteOpen = signal(false);
export const helpOpen = signal(false);

interface List {
  move(by: number): void;
  /** Whether there was something to open. */
  open(): boolean;
}

const lists: List[] = [];

/** Makes a list the one that `j`, `k` and Enter are for, until it is gone. */
export function listKeys(list: List): () => void {
  lists.push(list);
  return () => {
    const at = lists.indexOf(list);
    if (at >= 0) lists.splice(at, 1);
  };
}

const JUMP = 1200;
let jumping = 0;

export function startKeys(): void {
  document.addEventListener("keydown", pressed);
}

function pressed(event: KeyboardEvent): void {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    paletteOpen.value = !paletteOpen.value;
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const target = event.target as HTMLElement;
  if (target.closest("input, textarea, select, [contenteditable], dialog")) return;
  if (jumping && Date.now() - jumping < JUMP) {
    jumping = 0;
    const page = PAGES.find((each) => each.key === event.key);
    if (page) {
      event.preventDefault();
      go(page.path);
    }
    return;
  }
  switch (event.key) {
    case "/":
      event.preventDefault();
      paletteOpen.value = true;
      break;
    case "?":
      helpOpen.value = true;
      break;
    case "g":
      jumping = Date.now();
      break;
    case "T":
      toggle();
      break;
    case "j":
    case "k":
      lists.at(-1)?.move(event.key === "j" ? 1 : -1);
      break;
    case "Enter":
      if (!target.closest("a, button, summary, [role=button]") && lists.at(-1)?.open()) event.preventDefault();
      break;
  }
}
