/** One workload: how it does, its instances, what it writes, its revisions, and what can be done. */
import { useState } from "preact/hooks";
import type { WorkloadLine } from "../api-types.ts";
import { useLive } from "../api/live.ts";
import { mayOperate } from "../api/session.ts";
import { Tabs } from "../ui/controls.tsx";
import { Empty, Shown } from "../ui/empty.tsx";
import { Head } from "../ui/shell.tsx";
import { Figures } from "../ui/signals.tsx";
import { State, Tag } from "../ui/state.tsx";
import { choice, to } from "../ui/url.ts";
import { Restart, RollBack, Scale } from "./workload-actions.tsx";
import { Instances } from "./workload-instances.tsx";
import { Logs } from "./logs.tsx";
import { SignalCharts } from "./workload-charts.tsx";

type Asked = { what: "restart" } | { what: "scale" } | { what: "rollback"; generation: number };

export function WorkloadPage({ app, name }: { app: string; name: string }) {
  const live = useLive<WorkloadLine>(`/v1${to("apps", app, "workloads", name)}`);
  const [asked, setAsked] = useState<Asked | null>(null);
  const tab = choice("tab", "now");
  const workload = live.data;
  const close = () => setAsked(null);
  return (
    <>
      <Head crumbs={[{ name: "Workloads", href: "/workloads" }, { name: app, href: `/workloads?app=${encodeURIComponent(app)}` }, { name }]}>
        {workload && mayOperate() && (
          <span class="end">
            <button type="button" onClick={() => setAsked({ what: "restart" })}>Restart</button>
            <button type="button" onClick={() => setAsked({ what: "scale" })}>Scale</button>
          </span>
        )}
      </Head>
      <div class="page">
        <Shown live={live}>
          {(found) => (
            <>
              <Summary workload={found} />
              <Tabs otherwise="now" tabs={[["now", "Now"], ["logs", "Logs"], ["revisions", `Revisions (${found.revisions.length})`], ["environment", "Environment"]]} />
              {tab === "now" && (
                <div class="stack">
                  <SignalCharts app={app} workload={name} />
                  <Instances instances={found.instances} />
                </div>
              )}
              {tab === "logs" && <Logs app={app} workload={name} />}
              {tab === "revisions" && <Revisions workload={found} roll={(generation) => setAsked({ what: "rollback", generation })} />}
              {tab === "environment" && <Environment workload={found} />}
            </>
          )}
        </Shown>
      </div>
      {workload && asked?.what === "restart" && <Restart workload={workload} close={close} />}
      {workload && asked?.what === "scale" && <Scale workload={workload} close={close} />}
      {workload && asked?.what === "rollback" && <RollBack workload={workload} generation={asked.generation} close={close} />}
    </>
  );
}

function Summary({ workload }: { workload: WorkloadLine }) {
  const { app, name, health, reason, ready, wanted, declared } = workload;
  const links: [string, string][] = [
    ["Map", `/map/${encodeURIComponent(app)}?pick=${encodeURIComponent(`workload:${name}`)}`],
    ["Traces", `/traces?app=${encodeURIComponent(app)}&service=${encodeURIComponent(name)}`],
    ["Traffic", to("traffic", app)],
  ];
  return (
    <section class="panel summary" aria-label="Summary">
      <div class="line">
        <State level={health}><b>{health === "ok" ? "well" : health === "unknown" ? "unknown" : reason || health}</b></State>
        <span>{ready} of {wanted} {wanted === 1 ? "instance" : "instances"} ready{wanted !== declared && <span class="dim"> (scaled; the manifest says {declared})</span>}</span>
        {workload.restarts > 0 && <span class="dim">{workload.restarts} {workload.restarts === 1 ? "restart" : "restarts"}</span>}
        <span class="links">{links.map(([text, href]) => <a key={text} href={href}>{text}</a>)}</span>
      </div>
      <Figures signals={workload.signals} />
      <div class="line dim">
        <Neighbours title="Used by" app={app} names={workload.used_by} none="nothing" />
        <Neighbours title="Uses" app={app} names={workload.uses} none="nothing" />
      </div>
    </section>
  );
}

function Neighbours({ title, app, names, none }: { title: string; app: string; names: readonly string[]; none: string }) {
  return (
    <span>
      {title} {names.length ? names.map((name, index) => (
        <span key={name}>{index > 0 && ", "}<a href={name === "gateway" ? to("traffic", app) : `/map/${encodeURIComponent(app)}?pick=${encodeURIComponent(name)}`}>{name}</a></span>
      )) : none}
    </span>
  );
}

function Revisions({ workload, roll }: { workload: WorkloadLine; roll: (generation: number) => void }) {
  return (
    <section class="panel" aria-label="Revisions">
      <table class="plain">
        <thead><tr><th scope="col">Revision</th><th scope="col">Generation</th><th scope="col">Instances</th><th scope="col" /></tr></thead>
        <tbody>
          {workload.revisions.map((revision) => (
            <tr key={revision.name}>
              <td><code>{revision.name}</code> {revision.current && <Tag level="ok">current</Tag>}</td>
              <td>{revision.generation}</td>
              <td>{revision.instances}</td>
              <td class="number">
                {revision.can_roll_back && mayOperate() && <button type="button" class="small" onClick={() => roll(revision.generation)}>Roll back to it</button>}
                {!revision.current && !revision.can_roll_back && <span class="faint">same declaration, or not kept</span>}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function Environment({ workload }: { workload: WorkloadLine }) {
  if (!workload.environment.length) {
    return <Empty title="No environment is declared">Names under workloads.{workload.name}.env in the manifest appear here. Values are never shown: they may be secrets.</Empty>;
  }
  return (
    <section class="panel" aria-label="Environment">
      <header><h2>Names</h2><span class="more">values may be secrets, and are not shown</span></header>
      <ul class="names">{workload.environment.map((name) => <li key={name}><code>{name}</code></li>)}</ul>
    </section>
  );
}
