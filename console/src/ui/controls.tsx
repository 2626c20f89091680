/** Small controls whose state is in the address. */
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { choice, choose, linked } from "./url.ts";

/** One of a few; each is a link, so that it can be opened beside. */
export function Segments({ name, options, otherwise, label }: {
  name: string; options: [string, ComponentChildren][]; otherwise: string; label: string;
}) {
  const now = choice(name, otherwise);
  return (
    <div class="segments" role="group" aria-label={label}>
      {options.map(([value, text]) => (
        <a key={value} href={linked({ [name]: value === otherwise ? null : value })} aria-current={value === now ? "true" : undefined}>{text}</a>
      ))}
    </div>
  );
}

export function Tabs({ tabs, otherwise }: { tabs: [string, ComponentChildren][]; otherwise: string }) {
  const now = choice("tab", otherwise);
  return (
    <nav class="tabs" aria-label="Parts of this page">
      {tabs.map(([value, text]) => (
        <a key={value} href={linked({ tab: value === otherwise ? null : value })} aria-current={value === now ? "page" : undefined}>{text}</a>
      ))}
    </nav>
  );
}

/** A text that is put into the address a moment after it was typed. */
export function TextChoice({ name, label, placeholder, width = 180, mono }: {
  name: string; label: string; placeholder: string; width?: number; mono?: boolean;
}) {
  const now = choice(name);
  const [text, setText] = useState(now);
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const typed = useRef(now);
  useEffect(() => {
    if (now !== typed.current) {
      typed.current = now;
      setText(now); // history was walked
    }
  }, [now]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const put = (value: string) => {
    typed.current = value;
    choose({ [name]: value }, { replace: true });
  };
  return (
    <input type="search" aria-label={label} placeholder={placeholder} value={text} class={mono ? "mono" : ""} spellcheck={false}
      autocomplete="off" style={{ width: `${width}px` }}
      onInput={(event) => {
        const value = event.currentTarget.value;
        setText(value);
        clearTimeout(timer.current);
        timer.current = setTimeout(() => put(value), 200);
      }}
      onKeyDown={(event) => {
        if (event.key === "Enter") {
          clearTimeout(timer.current);
          put(event.currentTarget.value);
        }
      }} />
  );
}

export function SelectChoice({ name, label, options, otherwise = "" }: {
  name: string; label: string; options: [string, string][]; otherwise?: string;
}) {
  return (
    <select aria-label={label} value={choice(name, otherwise)}
      onChange={(event) => choose({ [name]: event.currentTarget.value === otherwise ? null : event.currentTarget.value })}>
      {options.map(([value, text]) => <option key={value} value={value}>{text}</option>)}
    </select>
  );
}

export function FlagChoice({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <label class="check">
      <input type="checkbox" checked={choice(name) === "1"} onChange={(event) => choose({ [name]: event.currentTarget.checked })} />
      {children}
    </label>
  );
}

export const RANGES: [string, string][] = [["300", "5 min"], ["900", "15 min"], ["3600", "1 h"], ["21600", "6 h"], ["86400", "24 h"]];

export function RangeChoice({ otherwise = "300" }: { otherwise?: string }) {
  return <Segments name="range" label="Range" options={RANGES} otherwise={otherwise} />;
}

export function rangeChoice(otherwise = 300): number {
  const seconds = Number(choice("range", String(otherwise)));
  return seconds >= 10 && seconds <= 31 * 86400 ? seconds : otherwise;
}
