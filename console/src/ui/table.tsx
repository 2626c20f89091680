/**
 * Tables: rows keep their identity by key, so that a new second changes cells and moves nothing else;
 * of a long one only what is seen is drawn. The order is in the address. `j` and `k` move, Enter opens.
 */
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { listKeys } from "./keys.ts";
import { choice, choose, go } from "./url.ts";
import { visibleRows } from "./window.ts";

export interface Column<T> {
  key: string;
  title: ComponentChildren;
  cell: (row: T) => ComponentChildren;
  /** What to sort by; without it the column has no order. Null sorts last. */
  by?: (row: T) => number | string | null | undefined;
  number?: boolean;
  /** CSS width; columns without share what is left. */
  width?: string;
  hint?: string;
  /** Shown only where there is room for it. */
  wide?: boolean;
}

interface Properties<T> {
  label: string;
  columns: Column<T>[];
  rows: readonly T[];
  id: (row: T) => string;
  href?: (row: T) => string;
  open?: (row: T) => void;
  selected?: string;
  /** The name of this table's order in the address. */
  order?: string;
  level?: (row: T) => string | undefined;
  empty?: ComponentChildren;
}

const HEIGHT = 30;
const WINDOWED = 120;

export function Table<T>(properties: Properties<T>) {
  const { label, columns, rows, id, href, open, selected, order = "sort", level, empty } = properties;
  const sorting = choice(order);
  const sorted = useMemo(() => inOrder(rows, columns, sorting), [rows, sorting, columns]);
  const frame = useRef<HTMLDivElement>(null);
  const [at, setAt] = useState<string | null>(null);
  const now = useRef<string | null>(null); // keys may come faster than the table is drawn
  const span = useWindow(frame, sorted.length);
  const shown = sorted.slice(span.first, span.end);

  useEffect(() => {
    if (!href && !open) return;
    return listKeys({
      move: (by) => {
        const place = sorted.findIndex((row) => id(row) === now.current);
        const next = Math.max(0, Math.min(sorted.length - 1, place < 0 ? (by > 0 ? 0 : sorted.length - 1) : place + by));
        const row = sorted[next];
        if (row !== undefined) reveal(frame.current, next);
        now.current = row === undefined ? null : id(row);
        setAt(now.current);
      },
      open: () => {
        const row = sorted.find((each) => id(each) === now.current);
        if (row === undefined) return false;
        if (href) go(href(row));
        else open?.(row);
        return true;
      },
    });
  }, [sorted]);

  if (rows.length === 0 && empty) return <>{empty}</>;
  return (
    <div class="table" ref={frame}>
      <table aria-label={label} aria-rowcount={sorted.length + 1}>
        <colgroup>
          {columns.map((column) => <col key={column.key} class={classes(column)} style={column.width ? { width: column.width } : undefined} />)}
        </colgroup>
        <thead>
          <tr>
            {columns.map((column) => <Head key={column.key} column={column} sorting={sorting} order={order} />)}
          </tr>
        </thead>
        <tbody>
          {span.above > 0 && <Gap height={span.above} />}
          {shown.map((row, index) => {
            const key = id(row);
            const marks = [
              href || open ? "opens" : "", key === selected ? "selected" : "", key === at ? "at" : "", level?.(row) ?? "",
            ].filter(Boolean).join(" ");
            return (
              <tr key={key} class={marks} aria-rowindex={span.first + index + 2}
                aria-selected={selected === undefined ? undefined : key === selected}
                onClick={(event) => clicked(event, () => (href ? go(href(row)) : open?.(row)))}>
                {columns.map((column) => (
                  <td key={column.key} class={classes(column)}>{column.cell(row)}</td>
                ))}
              </tr>
            );
          })}
          {span.below > 0 && <Gap height={span.below} />}
        </tbody>
      </table>
    </div>
  );
}

function classes<T>({ number, wide }: Column<T>): string {
  return `${number ? "number" : ""}${wide ? " wide" : ""}`;
}

/** One cell: which columns are shown depends on the width of the page. */
function Gap({ height }: { height: number }) {
  return <tr class="gap" aria-hidden="true"><td style={{ height: `${height}px` }} /></tr>;
}

function Head<T>({ column, sorting, order }: { column: Column<T>; sorting: string; order: string }) {
  const down = sorting === `-${column.key}`;
  const up = sorting === column.key;
  // A number is looked at from its largest first, a name from A.
  const first = column.number ? `-${column.key}` : column.key;
  const second = column.number ? column.key : `-${column.key}`;
  const next = sorting === first ? second : sorting === second ? "" : first;
  return (
    <th scope="col" class={classes(column)} title={column.hint}
      aria-sort={down ? "descending" : up ? "ascending" : undefined}>
      {column.by ? (
        <button type="button" class="sort" onClick={() => choose({ [order]: next })}>
          {column.title}<span class="arrow" aria-hidden="true">{down ? "↓" : up ? "↑" : ""}</span>
        </button>
      ) : column.title}
    </th>
  );
}

function clicked(event: MouseEvent, act: () => void): void {
  const target = event.target as Element;
  if (target.closest("a, button, input, select, summary, label")) return;
  if (getSelection()?.toString()) return; // somebody copies from the row
  act();
}

export function inOrder<T>(rows: readonly T[], columns: Column<T>[], sorting: string): readonly T[] {
  const down = sorting.startsWith("-");
  const by = columns.find((column) => column.key === sorting.replace(/^-/, ""))?.by;
  if (!by) return rows;
  return [...rows].sort((one, other) => {
    const a = by(one) ?? null;
    const b = by(other) ?? null;
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return down ? -order : order;
  });
}

function reveal(frame: HTMLElement | null, index: number): void {
  const scroller = frame?.closest<HTMLElement>(".scrolls, main");
  if (!frame || !scroller) return;
  const top = frame.getBoundingClientRect().top - scroller.getBoundingClientRect().top + scroller.scrollTop;
  const row = top + HEIGHT * (index + 1);
  if (row < scroller.scrollTop + 2 * HEIGHT) scroller.scrollTop = row - 2 * HEIGHT;
  else if (row + HEIGHT > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = row + HEIGHT - scroller.clientHeight;
}

function useWindow(frame: { current: HTMLElement | null }, rows: number) {
  const [view, setView] = useState({ scrolled: 0, seen: 1200 });
  const windowed = rows > WINDOWED;
  useEffect(() => {
    if (!windowed) return;
    const scroller = frame.current?.closest<HTMLElement>(".scrolls, main");
    if (!scroller || !frame.current) return;
    const look = () => {
      const element = frame.current;
      if (!element) return;
      const above = scroller.getBoundingClientRect().top - element.getBoundingClientRect().top;
      setView({ scrolled: Math.max(0, above), seen: scroller.clientHeight });
    };
    look();
    scroller.addEventListener("scroll", look, { passive: true });
    const sizes = new ResizeObserver(look);
    sizes.observe(scroller);
    return () => {
      scroller.removeEventListener("scroll", look);
      sizes.disconnect();
    };
  }, [windowed]);
  return windowed
    ? visibleRows(rows, HEIGHT, view.scrolled, view.seen)
    : { first: 0, end: rows, above: 0, below: 0 };
}
