/** What the palette finds. Pure. */

export interface Entry {
  name: string;
  path: string;
  about: string;
  kind: string;
}

/**
 * Entries that contain the letters of `text` in their order, best first: whole beginnings before
 * beginnings of a part, these before anything inside. An id of a trace or a transaction is offered
 * as such: whether it exists is known when it is asked for.
 */
export function found(entries: readonly Entry[], text: string, apps: readonly string[]): Entry[] {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [...entries];
  const scored: [number, Entry][] = [];
  for (const entry of entries) {
    const points = score(entry.name.toLowerCase(), wanted);
    if (points > 0) scored.push([points, entry]);
  }
  scored.sort(([a], [b]) => b - a);
  const named = scored.map(([, entry]) => entry);
  const ids: Entry[] = [];
  if (/^[0-9a-f]{32}$/.test(wanted)) ids.push({ name: wanted, path: `/traces/${wanted}`, about: "", kind: "trace" });
  if (/^[0-9a-z-]{8,64}$/i.test(text.trim()) && /\d/.test(wanted)) {
    for (const app of apps) {
      const path = `/transactions/${encodeURIComponent(app)}/${encodeURIComponent(text.trim())}`;
      ids.push({ name: text.trim(), path, about: `of ${app}`, kind: "transaction" });
    }
  }
  return [...named, ...ids];
}

export function score(name: string, wanted: string): number {
  if (name === wanted) return 100;
  if (name.startsWith(wanted)) return 80 - name.length / 100;
  if (name.split(/[/\s-]/).some((part) => part.startsWith(wanted))) return 60 - name.length / 100;
  if (name.includes(wanted)) return 40 - name.length / 100;
  let from = 0;
  for (const letter of wanted) {
    from = name.indexOf(letter, from) + 1;
    if (from === 0) return 0;
  }
  return 20 - name.length / 100;
}
