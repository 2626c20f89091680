/** The palette: whatever has a page, found by typing a part of its name. */
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import type { Overview, WorkloadList } from "../api-types.ts";
import { useLive } from "../api/live.ts";
import { paletteOpen } from "./keys.ts";
import { PAGES } from "./pages.ts";
import { found, type Entry } from "./search.ts";
import { go, to } from "./url.ts";

const SHOWN = 60;

export function Palette() {
  return paletteOpen.value ? <Opened /> : null;
}

function Opened() {
  const dialog = useRef<HTMLDialogElement>(null);
  const list = useRef<HTMLUListElement>(null);
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const name = useId();
  const overview = useLive<Overview>("/v1/overview", Infinity);
  const workloads = useLive<WorkloadList>("/v1/workloads", Infinity);
  const entries = useMemo(
    () => all(overview.data, workloads.data), [overview.data, workloads.data],
  );
  const apps = overview.data?.apps.map((each) => each.app) ?? [];
  const matches = useMemo(() => found(entries, text, apps).slice(0, SHOWN), [entries, text]);
  const close = () => {
    paletteOpen.value = false;
  };
  const open = (entry: Entry | undefined) => {
    if (!entry) return;
    close();
    go(entry.path);
  };
  useEffect(() => {
    dialog.current?.showModal();
  }, []);
  useEffect(() => {
    list.current?.children[at]?.scrollIntoView({ block: "nearest" });
  }, [at]);
  const pressed = (event: KeyboardEvent) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by) {
      event.preventDefault();
      setAt((at + by + matches.length) % Math.max(1, matches.length));
    } else if (event.key === "Enter") {
      event.preventDefault();
      open(matches[at]);
    }
  };
  return (
    <dialog ref={dialog} class="palette" aria-label="Search" onClose={close}
      onClick={(event) => event.target === dialog.current && close()}>
      <input type="text" role="combobox" aria-expanded="true" aria-controls={name} aria-autocomplete="list"
        aria-activedescendant={matches.length ? `${name}-${at}` : undefined} autoFocus autocomplete="off" spellcheck={false}
        aria-label="Search apps, workloads, pages, and traces by id" placeholder="App, workload, page, or the id of a trace"
        value={text} onKeyDown={pressed}
        onInput={(event) => {
          setText(event.currentTarget.value);
          setAt(0);
        }} />
      <ul id={name} role="listbox" aria-label="Results" ref={list}>
        {matches.map((entry, index) => (
          <li key={entry.path + entry.name} id={`${name}-${index}`} role="option" aria-selected={index === at}
            onClick={() => open(entry)} onMouseMove={() => setAt(index)}>
            <span>{entry.name}</span>
            <span class="about">{entry.about}</span>
            <span class="kind">{entry.kind}</span>
          </li>
        ))}
      </ul>
      {matches.length === 0 && <p class="nothing">Nothing is called that.</p>}
    </dialog>
  );
}

function all(overview: Overview | null, workloads: WorkloadList | null): Entry[] {
  const entries: Entry[] = PAGES.map(({ name, path, about }) => ({ name, path, about, kind: "page" }));
  for (const { app } of overview?.apps ?? []) {
    entries.push({ name: app, path: to("map", app), about: "its map", kind: "app" });
  }
  for (const { app, name, reason } of workloads?.items ?? []) {
    entries.push({ name: `${app}/${name}`, path: to("workloads", app, name), about: reason, kind: "workload" });
  }
  return entries;
}
