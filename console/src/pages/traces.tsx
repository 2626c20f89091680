/** Search the traces: newest first, the failed and the slow ones kept. */
import type { TraceList, TraceSummary } from "../api-types.ts";
import { path } from "../api/client.ts";
import { useKept, useLive } from "../api/live.ts";
import { useApp } from "../ui/app-choice.tsx";
import { FlagChoice, SelectChoice, TextChoice } from "../ui/controls.tsx";
import { Empty, Shown } from "../ui/empty.tsx";
import { parseSpan, plural, seconds } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { State, Tag } from "../ui/state.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { choice, choose, flag, linked, to } from "../ui/url.ts";
import { Ago } from "../ui/when.tsx";

const LIMIT = 100;

export function TracesPage() {
  const { apps } = useApp(undefined);
  const before = Number(choice("before")) || null;
  const url = path("/v1/traces", {
    app: choice("app"), service: choice("service"), name: choice("name"), errors: flag("errors"),
    min: parseSpan(choice("min")), max: parseSpan(choice("max")), start: Number(choice("start")) || null, end: Number(choice("end")) || null,
    before, limit: LIMIT,
  });
  const live = useKept(useLive<TraceList>(url, before === null ? 2 : Infinity));
  const picked = choice("with");
  const items = live.data?.items ?? [];
  const longest = Math.max(1e-9, ...items.map((each) => each.seconds));
  const filtered = ["app", "service", "name", "errors", "min", "max", "start", "end"].some((name) => choice(name));
  return (
    <>
      <Head crumbs={[{ name: "Traces" }]}>
        {apps.length > 1 && <SelectChoice name="app" label="App" options={[["", "All apps"], ...apps.map((each): [string, string] => [each, each])]} />}
        <TextChoice name="service" label="Workload" placeholder="Workload" width={104} />
        <TextChoice name="name" label="Name contains" placeholder="Name contains" width={132} />
        <TextChoice name="min" label="Longer than" placeholder="≥ 100ms" width={92} />
        <TextChoice name="max" label="Shorter than" placeholder="≤ 5s" width={72} />
        <FlagChoice name="errors">Failed</FlagChoice>
      </Head>
      <div class="page">
        {picked && <p class="picked-note">Choose a second trace to compare with <code>{picked.slice(0, 12)}…</code> <a href={linked({ with: null })}>Do not</a></p>}
        <Shown live={live}>
          {(found) => (
            <section class="panel" aria-label="Traces">
              <header>
                <h2>{plural(items.length, "trace")}{found.next !== null && " and more"}</h2>
                <span class="more">{before !== null && <a href={linked({ before: null })}>Newest</a>}</span>
              </header>
              <Table label="Traces" columns={columns(longest, picked)} rows={items} id={(each) => each.trace}
                href={(each) => (picked && picked !== each.trace ? to("traces", picked, each.trace) : to("traces", each.trace))}
                empty={<Nothing filtered={filtered} />} />
              {found.next !== null && <div class="more-row"><button type="button" class="quiet" onClick={() => choose({ before: found.next })}>Older ones</button></div>}
            </section>
          )}
        </Shown>
      </div>
    </>
  );
}

function Nothing({ filtered }: { filtered: boolean }) {
  if (filtered) return <Empty title="No trace is like that"><a href="/traces">Show all</a></Empty>;
  return (
    <Empty title="No trace yet" run="curl localhost:8080/accounts">
      Requests leave traces by themselves: proxies and applications tell of them with no code. Failed and slow ones are kept, of the others a share.
    </Empty>
  );
}

const KEPT: Record<TraceSummary["kept"], string> = { error: "kept since it failed", slow: "kept since it was slow", sampled: "one of a share that is kept" };

function columns(longest: number, picked: string): Column<TraceSummary>[] {
  return [
    {
      key: "name", title: "Name", by: (each) => each.name,
      cell: (each) => <State level={each.errors ? "error" : "ok"}><a class="strong" href={picked && picked !== each.trace ? to("traces", picked, each.trace) : to("traces", each.trace)}>{each.name}</a></State>,
    },
    { key: "status", title: "Status", number: true, width: "68px", by: (each) => each.status, cell: (each) => each.status === null ? <span class="none">–</span> : <span class={each.status >= 500 ? "bad" : ""}>{each.status}</span> },
    {
      key: "seconds", title: "Took", width: "190px", by: (each) => each.seconds,
      cell: (each) => (
        <span class="took"><span>{seconds(each.seconds)}</span><svg width="90" height="6" aria-hidden="true"><rect width={Math.max(1, (each.seconds / longest) * 90)} height="6" rx="2" class={each.errors ? "bad" : ""} /></svg></span>
      ),
    },
    { key: "spans", title: "Spans", number: true, width: "64px", by: (each) => each.spans, cell: (each) => each.spans },
    { key: "services", title: "Workloads", cell: (each) => <span class="dim" title={each.services.join(", ")}>{each.services.join(", ")}</span> },
    { key: "kept", title: "Kept", width: "80px", by: (each) => each.kept, cell: (each) => <Tag level={each.kept === "error" ? "error" : each.kept === "slow" ? "warning" : "idle"} title={KEPT[each.kept]}>{each.kept}</Tag> },
    { key: "app", title: "App", width: "84px", wide: true, by: (each) => each.app, cell: (each) => each.app },
    { key: "start", title: "Begun", number: true, width: "98px", by: (each) => each.start, cell: (each) => <Ago at={each.start} /> },
    { key: "compare", title: "", width: "86px", cell: (each) => <a class="faint" href={linked({ with: picked === each.trace ? null : each.trace })}>{picked === each.trace ? "chosen" : "compare"}</a> },
  ];
}
