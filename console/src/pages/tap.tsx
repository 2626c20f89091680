/** Requests as the proxies see them, as they happen. */
import { useEffect, useRef, useState } from "preact/hooks";
import type { TapRecord } from "../api-types.ts";
import { ApiError, isRefusal, open, path } from "../api/client.ts";
import { follow, type Connection } from "../api/ndjson.ts";
import { visible } from "../api/ticks.ts";
import { FlagChoice, SelectChoice, TextChoice } from "../ui/controls.tsx";
import { Empty, Failure } from "../ui/empty.tsx";
import { bytes, clock, count, seconds } from "../ui/format.ts";
import { Mark } from "../ui/state.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { choice, flag, go, to } from "../ui/url.ts";
import { recent } from "./tap-records.ts";

interface Numbered extends TapRecord {
  number: number;
}

/** The screen is renewed so often, however many requests there are. */
const RENEWED = 250;

export function Tap({ app, gateway, workloads }: { app: string; gateway: string | null; workloads: readonly string[] }) {
  const workload = choice("workload");
  const errors = flag("errors");
  const share = choice("share", "1");
  const text = choice("path").toLowerCase();
  const [records, setRecords] = useState<readonly Numbered[]>([]);
  const [seen, setSeen] = useState(0);
  const [stopped, setStopped] = useState(false);
  const [state, setState] = useState<Connection>("connecting");
  const [error, setError] = useState<ApiError | null>(null);
  const held = useRef<Numbered[]>([]);
  const total = useRef(0);

  useEffect(() => {
    if (stopped || !visible.value) return;
    const ending = new AbortController();
    setError(null);
    void follow<TapRecord>({
      open: (signal) => open(path(`/v1${to("apps", app, "tap")}`, { workload, errors, share: share === "1" ? null : share }), signal),
      each: (record) => {
        total.current += 1;
        held.current.push({ ...record, number: total.current });
      },
      state: (next, failure) => {
        setState(next);
        if (failure instanceof ApiError && failure.status !== 0) setError(failure);
        if (next === "open") setError(null);
      },
      final: isRefusal,
      signal: ending.signal,
    });
    const timer = setInterval(() => {
      if (!held.current.length) return;
      const fresh = held.current;
      held.current = [];
      setSeen(total.current);
      setRecords((last) => recent(last, fresh));
    }, RENEWED);
    return () => {
      clearInterval(timer);
      ending.abort();
    };
  }, [app, workload, errors, share, stopped, visible.value]);
  useEffect(() => setRecords([]), [app, workload, errors, share]);

  const shown = text ? records.filter((each) => `${each.method} ${each.path}`.toLowerCase().includes(text)) : records;
  return (
    <>
      <div class="bar">
        <button type="button" class={stopped ? "primary" : ""} onClick={() => setStopped(!stopped)}>{stopped ? "Go on" : "Pause"}</button>
        <SelectChoice name="workload" label="Workload" options={[["", "All workloads"], ...workloads.map((each): [string, string] => [each, each])]} />
        <TextChoice name="path" label="Path contains" placeholder="Path contains" />
        <FlagChoice name="errors">Failed only</FlagChoice>
        <SelectChoice name="share" label="Share" otherwise="1" options={[["1", "every request"], ["0.1", "1 of 10"], ["0.01", "1 of 100"]]} />
        <span class="dim nowrap">
          {stopped ? "paused" : state === "open" ? `${count(seen)} seen, the last ${records.length} are here` : state === "broken" ? <><Mark level="warning" /> reconnecting …</> : "waiting for the next request"}
        </span>
      </div>
      {error && <Failure error={error} />}
      <section class="panel tap" aria-label="Live tap">
        <Table label="Requests" columns={COLUMNS} rows={shown} id={(each) => String(each.number)} order="tap"
          open={(each) => each.trace && go(to("traces", each.trace))}
          empty={<Empty title={stopped ? "Paused" : "Listening"} run={gateway ? [`curl ${gateway}/`] : []}>Requests appear as the proxies see them, without bodies, queries and credentials. Send one.</Empty>} />
      </section>
    </>
  );
}

const COLUMNS: Column<Numbered>[] = [
  { key: "time", title: "Time", width: "110px", cell: (each) => <span class="mono dim">{clock(each.time, true)}</span> },
  { key: "who", title: "From → to", width: "210px", cell: (each) => <span title={`${each.source || "unknown"} → ${each.target || "not known"}, ${each.instance} on ${each.node}`}>{each.source || "?"} <span class="faint">→</span> {each.target || "?"}</span> },
  { key: "request", title: "Request", cell: (each) => <code title={each.path}><span class="dim">{each.method}</span> {each.path}</code> },
  {
    key: "status", title: "Status", width: "130px", by: (each) => each.status,
    cell: (each) => <span class={each.kind ? "bad" : ""} title={each.flags && `response flags ${each.flags}`}>{each.kind && <Mark level="error" />} {each.status || "none"}{each.kind && ` ${each.kind}`}</span>,
  },
  { key: "seconds", title: "Took", number: true, width: "90px", by: (each) => each.seconds, cell: (each) => seconds(each.seconds) },
  { key: "bytes", title: "In / out", number: true, width: "140px", wide: true, cell: (each) => <span class="dim">{bytes(each.bytes_in)} / {bytes(each.bytes_out)}</span> },
  { key: "side", title: "Seen by", width: "92px", by: (each) => each.side, cell: (each) => <span class="dim" title={`proxy on ${each.node}`}>{each.side}</span> },
  { key: "trace", title: "", width: "64px", cell: (each) => each.trace ? <a href={to("traces", each.trace)}>trace</a> : "" },
];
