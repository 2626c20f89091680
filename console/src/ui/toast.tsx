/** What came of an action, said once and gone after a while. */
import { signal } from "@preact/signals";

const said = signal<{ id: number; text: string }[]>([]);
let next = 0;

export function say(text: string): void {
  const id = ++next;
  said.value = [...said.value, { id, text }];
  setTimeout(() => {
    said.value = said.value.filter((each) => each.id !== id);
  }, 6000);
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {said.value.map(({ id, text }) => <div key={id} class="toast">{text}</div>)}
    </div>
  );
}
