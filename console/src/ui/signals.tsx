/** Golden signals, the same way everywhere. */
import type { Signals } from "../api-types.ts";
import { bytes, cores, rate, seconds, share } from "./format.ts";
import type { Column } from "./table.tsx";

/** A share of failures above this is bad, above none doubtful. */
const BAD = 0.01;

export function Errors({ value }: { value: number | null }) {
  const kind = !value ? (value === null ? "none" : "dim") : value >= BAD ? "bad" : "doubtful";
  return <span class={kind}>{share(value)}</span>;
}

export function errorTitle(signals: Signals): string {
  const kinds = Object.entries(signals.error_kinds).filter(([, value]) => value > 0);
  return kinds.map(([kind, value]) => `${kind} ${rate(value)}`).join(", ");
}

/** The columns of whatever has signals. */
export function signalColumns<T>(of: (row: T) => Signals, { usage = false } = {}): Column<T>[] {
  const columns: Column<T>[] = [
    { key: "rate", title: "Rate", number: true, width: "84px", by: (row) => of(row).rate, cell: (row) => rate(of(row).rate), hint: "requests a second" },
    {
      key: "errors", title: "Errors", number: true, width: "78px", by: (row) => of(row).errors,
      cell: (row) => <span title={errorTitle(of(row))}><Errors value={of(row).errors} /></span>, hint: "share of requests that failed",
    },
    { key: "p50", title: "p50", number: true, width: "80px", wide: true, by: (row) => of(row).p50, cell: (row) => seconds(of(row).p50), hint: "half of the requests were faster" },
    { key: "p99", title: "p99", number: true, width: "80px", by: (row) => of(row).p99, cell: (row) => seconds(of(row).p99), hint: "99 of 100 requests were faster" },
  ];
  if (usage) {
    columns.push(
      { key: "cpu", title: "CPU", number: true, width: "104px", by: (row) => of(row).cpu, cell: (row) => cores(of(row).cpu), hint: "processors in use" },
      { key: "memory", title: "Memory", number: true, width: "92px", by: (row) => of(row).memory, cell: (row) => bytes(of(row).memory), hint: "resident memory" },
    );
  }
  return columns;
}

/** One figure with its name below. */
export function Figure({ name, value, level, title }: { name: string; value: string; level?: string; title?: string }) {
  return (
    <div class="figure" title={title}>
      <div class={`value ${level ?? ""}`}>{value}</div>
      <div class="name">{name}</div>
    </div>
  );
}

export function Figures({ signals }: { signals: Signals }) {
  const bad = (signals.errors ?? 0) >= BAD ? "bad" : (signals.errors ?? 0) > 0 ? "doubtful" : "";
  return (
    <div class="signals">
      <Figure name="rate" value={rate(signals.rate)} />
      <Figure name="errors" value={share(signals.errors)} level={bad} title={errorTitle(signals)} />
      <Figure name="p50" value={seconds(signals.p50)} />
      <Figure name="p90" value={seconds(signals.p90)} />
      <Figure name="p99" value={seconds(signals.p99)} />
      <Figure name="p99.9" value={seconds(signals.p999)} />
      {signals.cpu !== null && <Figure name="CPU" value={cores(signals.cpu)} />}
      {signals.memory !== null && <Figure name="memory" value={bytes(signals.memory)} />}
      {signals.saturation !== null && <Figure name="saturation" value={share(signals.saturation)} title="of the narrowest limit" />}
    </div>
  );
}
