/** The routes of an app and who may call whom, with what flows and what is refused. */
import type { PolicyLine, RouteLine, Traffic } from "../api-types.ts";
import { useLive } from "../api/live.ts";
import { mayOperate } from "../api/session.ts";
import { AppChoice, useApp } from "../ui/app-choice.tsx";
import { Tabs } from "../ui/controls.tsx";
import { Empty, Shown } from "../ui/empty.tsx";
import { rate, seconds } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { signalColumns } from "../ui/signals.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { choice, to } from "../ui/url.ts";
import { Tap } from "./tap.tsx";

export function TrafficPage({ named }: { named: string | undefined }) {
  const { app, apps, known } = useApp(named);
  const live = useLive<Traffic>(app === null ? null : `/v1${to("apps", app, "traffic")}`);
  const tab = choice("tab", "routes");
  return (
    <>
      <Head crumbs={[{ name: "Traffic" }, ...(app ? [{ name: app }] : [])]}>
        <AppChoice section="traffic" app={app} apps={apps} />
        {live.data?.gateway && <a href={live.data.gateway} target="_blank" rel="noreferrer">{live.data.gateway}</a>}
      </Head>
      <div class="page">
        {known && app === null && <Empty title="No app runs yet" run={["bedstone init", "bedstone up"]} />}
        {app !== null && (
          <>
            <Tabs otherwise="routes" tabs={[["routes", "Routes and policies"], ...(mayOperate() ? [["tap", "Live tap"] as [string, string]] : [])]} />
            {tab === "tap" && mayOperate() ? <Tap key={app} app={app} gateway={live.data?.gateway ?? null} workloads={live.data?.policies.map((each) => each.workload) ?? []} /> : <Shown live={live}>{(traffic) => <Both traffic={traffic} />}</Shown>}
          </>
        )}
      </div>
    </>
  );
}

function Both({ traffic }: { traffic: Traffic }) {
  const { app } = traffic;
  return (
    <div class="stack">
      <section class="panel" aria-label="Routes">
        <header><h2>Routes</h2><span class="more">the most specific one that fits takes the request</span></header>
        <Table label="Routes" columns={routes(app)} rows={traffic.routes} id={(each) => `${each.route} ${each.to}`} order="routes"
          empty={<Empty title="This app has no gateway">Add gateway: {"{port: 8080, routes: [{path: /, to: NAME}]}"} to its manifest, and it answers from outside.</Empty>} />
      </section>
      <section class="panel" aria-label="Policies">
        <header><h2>Policies</h2><span class="more">who may call a workload: those whose uses names it, and nobody else</span></header>
        <Table label="Policies" columns={policies(app)} rows={traffic.policies} id={(each) => each.workload} order="policies"
          empty={<Empty title="No workload is declared" />} />
      </section>
    </div>
  );
}

function routes(app: string): Column<RouteLine>[] {
  return [
    { key: "route", title: "Route", by: (each) => each.route, cell: (each) => <code class="strong">{each.route}</code> },
    { key: "to", title: "To", width: "150px", by: (each) => each.to, cell: (each) => <a href={to("workloads", app, each.to)}>{each.to}</a> },
    { key: "timeout", title: "Time-out", number: true, width: "88px", by: (each) => each.timeout, cell: (each) => each.timeout === null ? <span class="none">none</span> : seconds(each.timeout) },
    { key: "strip", title: "Path", width: "130px", cell: (each) => <span class="dim">{each.strip ? "prefix taken off" : "as it comes"}</span> },
    ...signalColumns<RouteLine>((each) => each.signals),
  ];
}

function policies(app: string): Column<PolicyLine>[] {
  return [
    { key: "workload", title: "Workload", width: "200px", by: (each) => each.workload, cell: (each) => <a class="strong" href={to("workloads", app, each.workload)}>{each.workload}</a> },
    {
      key: "allowed", title: "May be called by",
      cell: (each) => each.allowed.length ? each.allowed.map((name, index) => (
        <span key={name}>{index > 0 && ", "}{name === "gateway" || name === "operator" ? name : <a href={to("workloads", app, name)}>{name}</a>}</span>
      )) : <span class="dim">nobody: add it to a uses:</span>,
    },
    {
      key: "denied", title: "Refused", number: true, width: "110px", by: (each) => each.denied, hint: "requests that the policy refused",
      cell: (each) => each.denied ? <a class="bad" href={`/traffic/${encodeURIComponent(app)}?tab=tap&workload=${encodeURIComponent(each.workload)}&errors=1`}>{rate(each.denied)}</a> : <span class="dim">{rate(each.denied)}</span>,
    },
  ];
}
