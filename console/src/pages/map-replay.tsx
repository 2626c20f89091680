/** The past under the map: the traffic of the app as a strip, any minute of which can be shown. */
import { useEffect, useRef, useState } from "preact/hooks";
import { usePanels, rateWindow } from "../api/panels.ts";
import { quoted, stepFor } from "../api/prometheus.ts";
import { tick } from "../api/ticks.ts";
import { SelectChoice } from "../ui/controls.tsx";
import { absolute, clock, rate } from "../ui/format.ts";
import { choice, choose } from "../ui/url.ts";

const WIDTH = 1000;
const HEIGHT = 34;
const RANGES: [string, string][] = [["900", "15 min"], ["3600", "1 h"], ["21600", "6 h"], ["86400", "24 h"]];

export function Replay({ app, at }: { app: string; at: number | null }) {
  const range = Number(choice("past", "900")) || 900;
  const step = stepFor(range);
  const of = `{app=${quoted(app)}}`;
  const over = `[${rateWindow(step)}]`;
  const live = usePanels({
    rate: `sum(rate(bedstone_gateway_requests_total${of}${over}))`,
    bad: `sum(rate(bedstone_request_errors_total${of}${over}))`,
  }, range);
  const end = live.data?.grid.end ?? tick.value?.second ?? Math.floor(Date.now() / 1000);
  const start = end - range;
  const [playing, setPlaying] = useState(false);
  const show = (second: number | null) => choose({ at: second }, { replace: true });

  // One minute of the past in each second that passes.
  useEffect(() => {
    if (!playing || at === null) return;
    const timer = setInterval(() => {
      const next = at + Math.max(5, range / 90);
      if (next >= end - 5) {
        setPlaying(false);
        show(null);
      } else show(Math.round(next));
    }, 1000);
    return () => clearInterval(timer);
  }, [playing, at, range, end]);

  const dragged = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const [held, setHeld] = useState<number | null>(null);
  const slide = (second: number) => {
    setPlaying(false);
    setHeld(second);
    clearTimeout(dragged.current);
    dragged.current = setTimeout(() => {
      setHeld(null);
      show(second >= end - 2 * step ? null : second);
    }, 120);
  };
  const position = held ?? at ?? end;
  return (
    <div class="replay" role="group" aria-label="Replay">
      <button type="button" class="small" disabled={at === null && !playing}
        onClick={() => setPlaying(!playing)} title={at === null ? "choose a minute first" : ""}>{playing ? "Pause" : "Play"}</button>
      <div class="track">
        <Strip values={live.data?.series["rate"]?.[0]?.values ?? []} bad={live.data?.series["bad"]?.[0]?.values ?? []} />
        <input type="range" aria-label="Minute that is shown" aria-valuetext={at === null ? "now" : absolute(position)} min={start} max={end} step={step}
          value={Math.min(end, Math.max(start, position))} onInput={(event) => slide(Number(event.currentTarget.value))} />
      </div>
      <span class="at nowrap" title={absolute(position)}>{at === null && held === null ? "now" : clock(position)}</span>
      <button type="button" class="small" disabled={at === null} onClick={() => { setPlaying(false); show(null); }}>Live</button>
      <SelectChoice name="past" label="How far back" options={RANGES} otherwise="900" />
    </div>
  );
}

function Strip({ values, bad }: { values: readonly (number | null)[]; bad: readonly (number | null)[] }) {
  const top = Math.max(1e-9, ...values.map((value) => value ?? 0));
  const width = WIDTH / Math.max(1, values.length);
  const bars = values.map((value, index) => value === null ? "" : `M${(index * width).toFixed(1)} ${HEIGHT}v${(-(value / top) * (HEIGHT - 4)).toFixed(1)}h${Math.max(0.6, width).toFixed(1)}V${HEIGHT}z`).join("");
  const failed = bad.map((value, index) => value ? `M${(index * width).toFixed(1)} ${HEIGHT}v${(-Math.max(2, (value / top) * (HEIGHT - 4))).toFixed(1)}h${Math.max(0.6, width).toFixed(1)}V${HEIGHT}z` : "").join("");
  return (
    <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={`Requests a second, at most ${rate(top)}`}>
      <path class="bars" d={bars} />
      <path class="failed" d={failed} />
    </svg>
  );
}
