/**
 * Charts over time, drawn by uPlot. Rules: a missing value is a gap, never a line across; seconds
 * that were not complete are shaded; zooming chooses a span for the whole page; points lead on.
 */
import { useEffect, useRef } from "preact/hooks";
import { useComputed, useSignal } from "@preact/signals";
import type { Signal } from "@preact/signals";
import uPlot from "uplot";
import { absolute, bytes, clock } from "./format.ts";
import { stretches } from "./stretches.ts";
import { colour, theme } from "./theme.ts";

export interface Line {
  label: string;
  values: (number | null)[];
  /** A name of the style sheet: `series-1`, `error`. */
  colour: string;
  fill?: boolean;
  dash?: boolean;
}

/** Something that happened at a time with a value: an exemplar. */
export interface Point {
  x: number;
  y: number;
  title: string;
  href: string;
}

interface Properties {
  label: string;
  x: number[];
  lines: Line[];
  format: (value: number | null | undefined) => string;
  height?: number;
  /** Seconds that were incomplete. */
  incomplete?: readonly number[];
  step?: number;
  points?: Point[];
  onPoint?: (point: Point) => void;
  zoom?: (start: number, end: number) => void;
  /** Charts of one name share the cursor. */
  sync?: string;
  legend?: boolean;
  least?: number;
}

export const SERIES = 8;
/** Steps of an axis of bytes. */
const POWERS = Array.from({ length: 50 }, (_, power) => 2 ** power);
const FONT = "11px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

export function Chart(properties: Properties) {
  const { label, x, lines, format, height = 150, legend = true } = properties;
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(properties);
  latest.current = properties;
  const cursor = useSignal<number | null>(null);
  const shape = lines.map((line) => `${line.label} ${line.colour} ${line.fill} ${line.dash}`).join("\n") + theme.value;

  useEffect(() => {
    const element = place.current;
    if (!element) return;
    const made = new uPlot(options(latest, element.clientWidth, height, cursor), data(latest.current), element);
    plot.current = made;
    const sizes = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height }));
    sizes.observe(element);
    return () => {
      sizes.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape, height]);

  useEffect(() => {
    plot.current?.setData(data(latest.current));
  }, [x, lines, properties.points, properties.incomplete]);

  return (
    <figure class="chart">
      <div class="canvas" ref={place} role="img" aria-label={`${label}: ${said(lines, format)}`} />
      {legend && <Legend lines={lines} x={x} cursor={cursor} format={format} />}
    </figure>
  );
}

function Legend({ lines, x, cursor, format }: {
  lines: Line[]; x: number[]; cursor: Signal<number | null>; format: Properties["format"];
}) {
  const index = useComputed(() => cursor.value).value;
  return (
    <ul class="legend" aria-hidden="true">
      {lines.map((line) => (
        <li key={line.label}>
          <span class="swatch" style={{ background: `var(--${line.colour})` }} />
          {line.label}
          <b>{format(index === null ? lastOf(line.values) : line.values[index])}</b>
        </li>
      ))}
      {index !== null && x[index] !== undefined && <li title={absolute(x[index]!)}>{clock(x[index]!)}</li>}
    </ul>
  );
}

function data({ x, lines }: Properties): uPlot.AlignedData {
  return [x, ...lines.map((line) => line.values)] as uPlot.AlignedData;
}

/** Pixels between two times: `14:03` needs less room than `14:03:27`, which stands where steps are below a minute. */
function apart(_: uPlot, __: number, least: number, most: number, size: number): number {
  return (most - least) * (50 / size) > 30 ? 50 : 80;
}

function lastOf(values: (number | null)[]): number | null {
  // The newest second may still be on its way.
  return values.at(-1) ?? values.at(-2) ?? null;
}

function said(lines: Line[], format: Properties["format"]): string {
  return lines.map((line) => `${line.label} ${format(lastOf(line.values))}`).join(", ") || "no data";
}

function options(
  latest: { current: Properties }, width: number, height: number, cursor: Signal<number | null>,
): uPlot.Options {
  const { lines, sync } = latest.current;
  const grid = { stroke: colour("line"), width: 1 };
  const ink = colour("faint");
  return {
    width,
    height,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: {
      points: { size: 6, width: 1.5 },
      drag: { x: latest.current.zoom !== undefined, y: false, setScale: false },
      ...(sync ? { sync: { key: sync } } : {}),
      y: false,
    },
    scales: {
      x: { time: true, range: (_, least, most) => [least, most] },
      y: {
        range: (_, least, most) => {
          const points = (latest.current.points ?? []).map((point) => point.y);
          const top = Math.max(most ?? 0, latest.current.least ?? 0, ...points);
          return [Math.min(0, least ?? 0), top > 0 ? top * 1.08 : 1];
        },
      },
    },
    axes: [
      { stroke: ink, grid: { show: false }, ticks: { stroke: colour("line"), size: 4 }, font: FONT, size: 26, space: apart, values: (_, splits, __, ___, space) => splits.map((at) => (space >= 60 ? clock(at).slice(0, 5) : clock(at))) },
      {
        stroke: ink, grid, ticks: { show: false }, font: FONT, size: 66, space: 32, gap: 4,
        ...(latest.current.format === bytes ? { incrs: POWERS } : {}),
        values: (_, splits) => splits.map((value) => latest.current.format(value)),
      },
    ],
    series: [
      {},
      ...lines.map((line): uPlot.Series => ({
        label: line.label,
        stroke: colour(line.colour),
        width: 1.4,
        spanGaps: false,
        ...(line.fill ? { fill: `color-mix(in srgb, ${colour(line.colour)} 14%, transparent)` } : {}),
        ...(line.dash ? { dash: [4, 3] } : {}),
        points: { show: true, size: 4, filter: lonely },
      })),
    ],
    hooks: {
      drawClear: [(plot) => shade(plot, latest.current)],
      draw: [(plot) => mark(plot, latest.current)],
      setCursor: [(plot) => (cursor.value = plot.cursor.idx ?? null)],
      setSelect: [
        (plot) => {
          if (plot.select.width > 4) {
            latest.current.zoom?.(plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x"));
          }
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        },
      ],
      ready: [
        (plot) => {
          plot.over.addEventListener("click", (event) => {
            const point = nearest(plot, latest.current, event);
            if (point) latest.current.onPoint?.(point);
          });
          plot.over.addEventListener("mousemove", (event) => {
            const point = nearest(plot, latest.current, event);
            plot.over.style.cursor = point ? "pointer" : "";
            plot.over.title = point?.title ?? "";
          });
        },
      ],
    },
  };
}

/** A value between two gaps has no line to be seen by: it is drawn as a point. */
function lonely(plot: uPlot, series: number): number[] {
  const values = plot.data[series]!;
  const found: number[] = [];
  for (let index = 0; index < values.length; index += 1) {
    if (values[index] != null && values[index - 1] == null && values[index + 1] == null) found.push(index);
  }
  return found;
}

function shade(plot: uPlot, { incomplete = [], step = 1 }: Properties): void {
  const { left, top, width, height } = plot.bbox;
  plot.ctx.save();
  plot.ctx.fillStyle = colour("shade");
  for (const [first, last] of stretches(incomplete, step)) {
    const from = Math.max(left, plot.valToPos(first - step / 2, "x", true));
    const end = Math.min(left + width, plot.valToPos(last + step / 2, "x", true));
    if (end > from) plot.ctx.fillRect(from, top, Math.max(end - from, 2), height);
  }
  plot.ctx.restore();
}

function mark(plot: uPlot, { points = [] }: Properties): void {
  const { ctx } = plot;
  const size = 3.2 * devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = colour("ink");
  ctx.fillStyle = colour("panel");
  ctx.lineWidth = 1.3 * devicePixelRatio;
  for (const point of points) {
    const x = plot.valToPos(point.x, "x", true);
    const y = plot.valToPos(point.y, "y", true);
    ctx.beginPath();
    ctx.moveTo(x, y - size);
    ctx.lineTo(x + size, y);
    ctx.lineTo(x, y + size);
    ctx.lineTo(x - size, y);
    ctx.closePath();
    ctx.fill();
    ctx.stroke();
  }
  ctx.restore();
}

function nearest(plot: uPlot, { points = [] }: Properties, event: MouseEvent): Point | null {
  let best: Point | null = null;
  let least = 9;
  for (const point of points) {
    const away = Math.hypot(plot.valToPos(point.x, "x") - event.offsetX, plot.valToPos(point.y, "y") - event.offsetY);
    if (away < least) {
      best = point;
      least = away;
    }
  }
  return best;
}

