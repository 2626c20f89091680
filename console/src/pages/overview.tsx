/** The whole installation at one glance: what is not well, each app in a line, what changed. */
import type { AppLine, Finding, NodeLine, Overview } from "../api-types.ts";
import { useLive } from "../api/live.ts";
import { ChangeLine } from "../ui/change.tsx";
import { Empty, Shown } from "../ui/empty.tsx";
import { bytes, cores, plural, share } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { signalColumns } from "../ui/signals.tsx";
import { Sparkline } from "../ui/sparkline.tsx";
import { Mark, State } from "../ui/state.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { to } from "../ui/url.ts";
import { For } from "../ui/when.tsx";

export function OverviewPage() {
  const live = useLive<Overview>("/v1/overview");
  return (
    <>
      <Head crumbs={[{ name: "Overview" }]} />
      <div class="page">
        <Shown live={live}>{(overview) => <Glance overview={overview} />}</Shown>
      </div>
    </>
  );
}

function Glance({ overview }: { overview: Overview }) {
  const missing = Object.entries(overview.missing);
  return (
    <div class="stack">
      {!overview.complete && missing.length > 0 && (
        <p class="incomplete" role="status">
          <Mark level="warning" />
          The last second is incomplete: {missing.map(([source, why]) => `${source} (${why})`).join(", ")}. Figures leave out what is missing.
        </p>
      )}
      <Findings findings={overview.findings} apps={overview.apps} />
      <section class="panel" aria-label="Apps">
        <header><h2>Apps</h2></header>
        <Table label="Apps" columns={APPS} rows={overview.apps} id={(app) => app.app}
          href={(app) => `/workloads?app=${encodeURIComponent(app.app)}`}
          empty={<Empty title="No app runs yet" run={["bedstone init", "bedstone up"]}>An app is what one bedstone.yaml declares.</Empty>} />
      </section>
      <div class="columns two">
        <section class="panel" aria-label="Nodes">
          <header><h2>Nodes</h2></header>
          <Table label="Nodes" columns={NODES} rows={overview.nodes} id={(node) => node.node} order="nodes"
            empty={<Empty title="No node has joined">bedstone up starts one on this machine.</Empty>} />
        </section>
        <section class="panel" aria-label="Changes">
          <header><h2>Changes of the last hour</h2><a class="more" href="/changes">All changes</a></header>
          {overview.changes.length ? (
            <ol class="changes">
              {overview.changes.slice(0, 12).map((change) => <ChangeLine key={`${change.at}${change.action}${change.target}`} change={change} />)}
            </ol>
          ) : <p class="quiet-line">Nothing was changed.</p>}
        </section>
      </div>
    </div>
  );
}

function Findings({ findings, apps }: { findings: readonly Finding[]; apps: readonly AppLine[] }) {
  if (!findings.length) {
    return (
      <section class="panel all-well" aria-label="Findings">
        <State level={apps.length ? "ok" : "idle"}>{apps.length ? `All is well: ${plural(apps.length, "app")}, nothing found` : "Nothing runs"}</State>
      </section>
    );
  }
  const sorted = [...findings].sort((one, other) => Number(other.severity === "error") - Number(one.severity === "error"));
  return (
    <section class="panel findings" aria-label="Findings">
      <header><h2>{plural(findings.length, "finding")}</h2></header>
      <ul>
        {sorted.map((finding) => (
          <li key={`${finding.app}/${finding.subject}/${finding.message}`}>
            <Mark level={finding.severity} label={finding.severity} />
            <a class="subject" href={finding.page || to("workloads")}>{[finding.app, finding.subject].filter(Boolean).join(" / ")}</a>
            <div class="message">
              <p>{finding.message}</p>
              {finding.hint && <p class="hint">{finding.hint}</p>}
            </div>
            <span class="since">{finding.since !== null && <>for <For since={finding.since} /></>}</span>
          </li>
        ))}
      </ul>
    </section>
  );
}

const APPS: Column<AppLine>[] = [
  {
    key: "app", title: "App", by: (app) => app.app,
    cell: (app) => <State level={app.health}><a class="strong" href={to("map", app.app)}>{app.app}</a></State>,
  },
  {
    key: "ready", title: "Ready", number: true, width: "78px", by: (app) => app.ready - app.wanted,
    cell: (app) => <span class={app.ready < app.wanted ? "bad" : ""} title={`${app.ready} of ${app.wanted} instances are ready`}>{app.ready}/{app.wanted}</span>,
  },
  {
    key: "minute", title: "Last 60 s", width: "156px",
    cell: (app) => <Sparkline values={app.rates} label={`requests a second of ${app.app}`} />,
  },
  ...signalColumns<AppLine>((app) => app.signals, { usage: true }),
  { key: "generation", title: "Generation", number: true, width: "104px", wide: true, by: (app) => app.generation, cell: (app) => app.generation, hint: "how often it was applied with a difference" },
  {
    key: "gateway", title: "Gateway", width: "150px",
    cell: (app) => app.gateway ? <a href={app.gateway} target="_blank" rel="noreferrer">{app.gateway.replace(/^https?:\/\//, "")}</a> : <span class="none">none</span>,
  },
];

const NODES: Column<NodeLine>[] = [
  {
    key: "node", title: "Node", by: (node) => node.node,
    cell: (node) => <State level={node.health}><span class="strong" title={node.reason}>{node.node}</span>{node.reason && <span class="dim">{node.reason}</span>}</State>,
  },
  { key: "instances", title: "Instances", number: true, width: "88px", by: (node) => node.instances, cell: (node) => node.instances },
  {
    key: "cpu", title: "CPU", number: true, width: "150px", by: (node) => node.cpu,
    cell: (node) => <>{cores(node.cpu).replace(/ cores?$/, "")}<span class="dim"> of {cores(node.cores)}</span></>,
  },
  {
    key: "memory", title: "Memory", number: true, width: "170px", by: (node) => node.memory,
    cell: (node) => (
      <span title={node.memory !== null && node.memory_total ? share(node.memory / node.memory_total) : ""}>
        {bytes(node.memory)}<span class="dim"> of {bytes(node.memory_total)}</span>
      </span>
    ),
  },
  {
    key: "identity", title: "Identity", width: "104px", hint: "whether the operating system keeps instances apart",
    cell: (node) => node.enforced ? "enforced" : <span class="dim" title="encrypted and checked, but programs of one user are trusted">cooperative</span>,
  },
];
