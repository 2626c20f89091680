/** One query, with completion of names, labels and values while it is typed. */
import { useEffect, useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import { get } from "../api/client.ts";
import { useLive } from "../api/live.ts";
import type { ApiError } from "../api/client.ts";
import type { Envelope } from "../api/prometheus.ts";
import { fitting, FUNCTIONS, placeOf } from "../promql/complete.ts";

type Names = Envelope<string[]>;
type Metadata = Envelope<Record<string, { type: string; help: string; unit: string }[]>>;

interface Offer {
  from: number;
  typed: string;
  names: string[];
}

const NOTHING: Offer = { from: 0, typed: "", names: [] };

export function QueryRow({ letter, query, error, put, remove }: {
  letter: string; colour: number; query: string; error: ApiError | null; put: (text: string) => void; remove?: (() => void) | undefined;
}) {
  const [text, setText] = useState(query);
  const [offer, setOffer] = useState<Offer>(NOTHING);
  const [at, setAt] = useState(0);
  const field = useRef<HTMLTextAreaElement>(null);
  const caret = useRef<number | null>(null);
  const list = useId();
  const metrics = useLive<Names>("/prometheus/api/v1/label/__name__/values", 60).data?.data ?? [];
  const labels = useLive<Names>("/prometheus/api/v1/labels", 60).data?.data ?? [];
  const metadata = useLive<Metadata>("/prometheus/api/v1/metadata", Infinity).data?.data ?? {};
  useEffect(() => setText(query), [query]);
  // With the text, not after it: what is typed meanwhile would be torn apart.
  useLayoutEffect(() => {
    if (caret.current === null) return;
    field.current?.focus();
    field.current?.setSelectionRange(caret.current, caret.current);
    caret.current = null;
  });

  const look = async (value: string, position: number) => {
    const place = placeOf(value, position);
    setAt(0);
    switch (place.kind) {
      case "name":
        setOffer({ ...place, names: fitting([...metrics, ...FUNCTIONS], place.typed) });
        break;
      case "label":
        setOffer({ ...place, names: fitting(labels.filter((name) => name !== "__name__"), place.typed) });
        break;
      case "value": {
        const found = await get<Names>(`/prometheus/api/v1/label/${encodeURIComponent(place.label)}/values`).catch(() => null);
        if (field.current?.value === value) setOffer({ ...place, names: fitting(found?.data ?? [], place.typed) });
        break;
      }
      default:
        setOffer(NOTHING);
    }
  };
  const take = (name: string) => {
    const end = offer.from + offer.typed.length;
    const next = text.slice(0, offer.from) + name + text.slice(end);
    setText(next);
    setOffer(NOTHING);
    caret.current = offer.from + name.length;
  };
  const pressed = (event: KeyboardEvent) => {
    const open = offer.names.length > 0;
    if (open && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      setAt((at + (event.key === "ArrowDown" ? 1 : -1) + offer.names.length) % offer.names.length);
    } else if (open && event.key === "Tab") {
      event.preventDefault();
      take(offer.names[at]!);
    } else if (open && event.key === "Escape") {
      event.preventDefault();
      setOffer(NOTHING);
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      setOffer(NOTHING);
      put(text);
    }
  };
  return (
    <div class="query">
      <span class="letter" aria-hidden="true">{letter}</span>
      <div class="query-field">
        <textarea ref={field} class="mono" rows={Math.min(4, Math.max(1, text.split("\n").length, Math.ceil(text.length / 110)))} value={text} spellcheck={false}
          placeholder="sum by (workload) (rate(bedstone_requests_total[5s]))" aria-label={`Query ${letter}`} aria-invalid={error !== null}
          aria-controls={list} aria-autocomplete="list" aria-activedescendant={offer.names.length ? `${list}-${at}` : undefined}
          onInput={(event) => {
            setText(event.currentTarget.value);
            void look(event.currentTarget.value, event.currentTarget.selectionStart);
          }}
          onKeyDown={pressed} onBlur={() => setTimeout(() => setOffer(NOTHING), 150)} />
        <ul id={list} role="listbox" aria-label="Completions" class="offers" hidden={offer.names.length === 0}>
          {offer.names.map((name, index) => (
            <li key={name} id={`${list}-${index}`} role="option" aria-selected={index === at} onMouseDown={(event) => { event.preventDefault(); take(name); }} onMouseMove={() => setAt(index)}>
              <code>{name}</code><span class="about">{metadata[name]?.[0]?.help ?? ""}</span>
            </li>
          ))}
        </ul>
        {error && <p class="bad query-error" role="alert">{error.message}</p>}
      </div>
      <button type="button" class="primary" onClick={() => put(text)} disabled={!text.trim()}>Run</button>
      {remove && <button type="button" class="quiet" onClick={remove} aria-label={`Remove query ${letter}`}>✕</button>}
    </div>
  );
}
