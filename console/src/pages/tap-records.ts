/** The newest records of the tap, newest first. Pure. */

export const KEPT = 500;

export function recent<T>(records: readonly T[], fresh: readonly T[]): T[] {
  return [...[...fresh].reverse(), ...records].slice(0, KEPT);
}
