/** The instances of a workload. */
import type { InstanceLine } from "../api-types.ts";
import { Empty } from "../ui/empty.tsx";
import { signalColumns } from "../ui/signals.tsx";
import { phaseLevel, State, Tag } from "../ui/state.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { For } from "../ui/when.tsx";

export function Instances({ instances }: { instances: readonly InstanceLine[] }) {
  return (
    <section class="panel" aria-label="Instances">
      <header><h2>Instances</h2></header>
      <Table label="Instances" columns={COLUMNS} rows={instances} id={(each) => each.name} order="instances"
        empty={<Empty title="No instance runs">It may be scaled to 0, or wait for what it uses.</Empty>} />
    </section>
  );
}

const COLUMNS: Column<InstanceLine>[] = [
  {
    key: "name", title: "Instance", by: (each) => each.name, width: "230px",
    cell: (each) => <State level={phaseLevel(each.phase)}><span class="mono" title={`${each.name}${each.pid === null ? "" : `, pid ${each.pid}`}`}>{each.name}</span></State>,
  },
  {
    key: "phase", title: "Phase", by: (each) => each.phase,
    cell: (each) => <span title={each.reason}>{each.phase}{!each.current && <> <Tag>old revision</Tag></>}{each.reason && <span class="dim"> {each.reason}</span>}</span>,
  },
  { key: "node", title: "Node", width: "92px", by: (each) => each.node, cell: (each) => each.node },
  { key: "revision", title: "Revision", width: "96px", wide: true, by: (each) => each.revision, cell: (each) => <code>{each.revision}</code> },
  { key: "restarts", title: "Restarts", number: true, width: "84px", by: (each) => each.restarts, cell: (each) => <span class={each.restarts ? "doubtful" : "faint"}>{each.restarts}</span> },
  { key: "started", title: "Runs for", number: true, width: "100px", by: (each) => each.started_at, cell: (each) => <For since={each.started_at} /> },
  ...signalColumns<InstanceLine>((each) => each.signals, { usage: true }),
];
