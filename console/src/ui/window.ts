/** Which rows of a long table are drawn. Pure. */

export interface Window {
  first: number;
  /** One past the last row. */
  end: number;
  /** Pixels left out above and below. */
  above: number;
  below: number;
}

export function visibleRows(
  rows: number, height: number, scrolled: number, seen: number, more = 12,
): Window {
  const first = Math.max(0, Math.min(rows, Math.floor(scrolled / height) - more));
  const end = Math.max(first, Math.min(rows, Math.ceil((scrolled + seen) / height) + more));
  return { first, end, above: first * height, below: (rows - end) * height };
}
