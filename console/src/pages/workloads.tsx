/** The workloads of all apps, or of one. */
import type { WorkloadLine, WorkloadList } from "../api-types.ts";
import { useLive } from "../api/live.ts";
import { FlagChoice, SelectChoice, TextChoice } from "../ui/controls.tsx";
import { Empty, Shown } from "../ui/empty.tsx";
import { plural } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { signalColumns } from "../ui/signals.tsx";
import { State } from "../ui/state.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { choice, flag, linked, to } from "../ui/url.ts";

export function WorkloadsPage() {
  const live = useLive<WorkloadList>("/v1/workloads");
  const app = choice("app");
  const text = choice("search").toLowerCase();
  const items = live.data?.items ?? [];
  const apps = [...new Set(items.map((each) => each.app))];
  const shown = items.filter((each) =>
    (!app || each.app === app) && (!text || `${each.app}/${each.name}`.toLowerCase().includes(text)) && (!flag("unwell") || each.health !== "ok"));
  return (
    <>
      <Head crumbs={[{ name: "Workloads" }]}>
        <TextChoice name="search" label="Filter by name" placeholder="Filter by name" />
        {(apps.length > 1 || app) && <SelectChoice name="app" label="App" options={[["", "All apps"], ...apps.map((each): [string, string] => [each, each])]} />}
        <FlagChoice name="unwell">Only what is not well</FlagChoice>
        <span class="faint nowrap">{live.data && plural(shown.length, "workload")}</span>
      </Head>
      <div class="page">
        <Shown live={live}>
          {() => (
            <section class="panel">
              <Table label="Workloads" columns={COLUMNS} rows={shown} id={(each) => `${each.app}/${each.name}`}
                href={(each) => to("workloads", each.app, each.name)} empty={<Nothing any={items.length > 0} />} />
            </section>
          )}
        </Shown>
      </div>
    </>
  );
}

function Nothing({ any }: { any: boolean }) {
  if (any) {
    return (
      <Empty title={flag("unwell") ? "Nothing is unwell here" : "No workload is called that"}>
        <a href={linked({ search: null, unwell: null, app: null })}>Show all</a>
      </Empty>
    );
  }
  return <Empty title="No workload is declared" run="bedstone up">Workloads are what an app’s bedstone.yaml declares under workloads:.</Empty>;
}

export const COLUMNS: Column<WorkloadLine>[] = [
  {
    key: "name", title: "Workload", by: (each) => `${each.app}/${each.name}`,
    cell: (each) => (
      <State level={each.health}>
        <a class="strong" href={to("workloads", each.app, each.name)}><span class="dim">{each.app} / </span>{each.name}</a>
      </State>
    ),
  },
  { key: "reason", title: "State", by: (each) => ({ error: 0, warning: 1, unknown: 2, ok: 3 })[each.health], cell: (each) => <span class="dim" title={each.reason}>{each.reason}</span> },
  {
    key: "ready", title: "Ready", number: true, width: "74px", by: (each) => each.ready - each.wanted,
    cell: (each) => (
      <span class={each.ready < each.wanted ? "bad" : ""} title={`${each.ready} of ${each.wanted} instances are ready; the manifest says ${each.declared}`}>
        {each.ready}/{each.wanted}
      </span>
    ),
  },
  { key: "restarts", title: "Restarts", number: true, width: "82px", by: (each) => each.restarts, cell: (each) => <span class={each.restarts ? "" : "faint"}>{each.restarts}</span> },
  ...signalColumns<WorkloadLine>((each) => each.signals, { usage: true }),
];
