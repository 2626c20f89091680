/** Points that follow one another at a step, as stretches from first to last. Pure. */
export function stretches(points: readonly number[], step: number): [number, number][] {
  const found: [number, number][] = [];
  for (const point of [...points].sort((a, b) => a - b)) {
    const last = found.at(-1);
    if (last && point - last[1] <= step * 1.01) last[1] = point;
    else found.push([point, point]);
  }
  return found;
}
