/** What is firing and who was told, what is silenced, and what happened before. */
import { useState } from "preact/hooks";
import type { AlertEvent, AlertHistory, AlertLine, AlertList, Silence, SilenceList } from "../api-types.ts";
import { path, remove } from "../api/client.ts";
import { useLive } from "../api/live.ts";
import { mayOperate } from "../api/session.ts";
import { SelectChoice, Tabs } from "../ui/controls.tsx";
import { Confirm } from "../ui/dialog.tsx";
import { Empty, Shown } from "../ui/empty.tsx";
import { absolute, digits, NONE, plural } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { Mark, Tag, type Level } from "../ui/state.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { choice, linked, to } from "../ui/url.ts";
import { Ago, For } from "../ui/when.tsx";
import { SilenceDialog } from "./alert-silence.tsx";

export function AlertsPage() {
  const live = useLive<AlertList>("/v1/alerts");
  const silences = useLive<SilenceList>("/v1/silences", 2);
  const app = choice("app");
  const rule = choice("rule");
  const items = (live.data?.items ?? []).filter((each) => (!app || each.app === app) && (!rule || each.rule === rule));
  // Rules that come with Bedstone and watch all of it belong to no app.
  const apps = [...new Set((live.data?.items ?? []).map((each) => each.app).filter(Boolean))];
  const tab = choice("tab", "now");
  const [silencing, setSilencing] = useState<AlertLine | null>(null);
  const [ending, setEnding] = useState<Silence | null>(null);
  const firing = items.filter((each) => each.state === "firing");
  const silenced = firing.filter((each) => each.silenced_until).length;
  const held = silences.data?.items ?? [];
  return (
    <>
      <Head crumbs={[{ name: "Alerts" }]}>
        {apps.length > 1 && <SelectChoice name="app" label="App" options={[["", "All apps"], ...apps.map((each): [string, string] => [each, each])]} />}
        {rule && <a class="button" href={linked({ rule: null })} title="Show all rules">{rule} ✕</a>}
        {live.data && <span class="dim nowrap">{firing.length ? `${firing.length} firing${silenced ? `, ${silenced} of them silenced` : ""}` : "nothing fires"}</span>}
      </Head>
      <div class="page">
        <Tabs otherwise="now" tabs={[["now", "Now"], ["silences", `Silences (${held.length})`], ["history", "History"]]} />
        {tab === "now" && <Shown live={live}>{() => <Now items={items} any={apps.length > 0} silence={setSilencing} />}</Shown>}
        {tab === "silences" && <Shown live={silences}>{({ items: all }) => <Silences items={all} end={setEnding} />}</Shown>}
        {tab === "history" && <History app={app} />}
      </div>
      {silencing && <SilenceDialog alert={silencing} close={() => setSilencing(null)} />}
      {ending && (
        <Confirm title="End this silence?" action="End it" close={() => setEnding(null)}
          run={async () => {
            await remove(`/v1/silences/${encodeURIComponent(ending.id)}`);
            return "the silence has ended";
          }}>
          <p>Alerts with <Labels labels={ending.labels} /> tell their receivers again.</p>
        </Confirm>
      )}
    </>
  );
}

const ORDER: Record<AlertLine["state"], number> = { firing: 0, pending: 1, unknown: 2, inactive: 3 };

function alertLevel({ state, silenced_until: silenced }: AlertLine): Level {
  switch (state) {
    case "firing":
      return silenced ? "idle" : "error";
    case "pending":
      return "warning";
    case "inactive":
      return "ok";
    default:
      return "unknown";
  }
}

function Now({ items, any, silence }: { items: readonly AlertLine[]; any: boolean; silence: (alert: AlertLine) => void }) {
  if (!items.length) {
    return (
      <Empty title={any ? "There is no such rule" : "No rule is declared"} run="bedstone alerts">
        Rules stand in bedstone.yaml under alerts:. They say what must hold, for how long, and who is told where it does not.
      </Empty>
    );
  }
  const sorted = [...items].sort((a, b) => ORDER[a.state] - ORDER[b.state] || Number(Boolean(a.silenced_until)) - Number(Boolean(b.silenced_until)) || (b.since ?? 0) - (a.since ?? 0));
  const loud = sorted.filter((each) => each.state !== "inactive");
  const quiet = sorted.filter((each) => each.state === "inactive");
  return (
    <div class="stack">
      {loud.length > 0 && (
        <section class="panel alerts" aria-label="Not well">
          <ul>{loud.map((each) => <Alert key={identity(each)} alert={each} silence={silence} />)}</ul>
        </section>
      )}
      {quiet.length > 0 && (
        <section class="panel" aria-label="Quiet rules">
          <header><h2>{plural(quiet.length, "rule")} that {quiet.length === 1 ? "does" : "do"} not hold now</h2></header>
          <Table label="Quiet rules" columns={QUIET} rows={quiet} id={identity} order="quiet" />
        </section>
      )}
    </div>
  );
}

function identity({ app, rule, labels }: { app: string; rule: string; labels: Record<string, string> }): string {
  return `${app} ${rule} ${JSON.stringify(labels)}`;
}

function Alert({ alert, silence }: { alert: AlertLine; silence: (alert: AlertLine) => void }) {
  const [open, setOpen] = useState(false);
  const failed = alert.notified.filter((each) => !each.ok).length;
  const last = alert.notified.at(-1);
  return (
    <li class={alert.state}>
      <Mark level={alertLevel(alert)} label={alert.state} />
      <div class="what">
        <p><b>{alert.rule}</b> <span class="dim">{alert.app}</span> <Labels labels={alert.labels} app={alert.app} /> <Tag level={alert.severity === "page" && alert.state === "firing" ? "error" : "idle"}>{alert.severity}</Tag></p>
        {alert.summary && <p>{alert.summary}</p>}
        {alert.error && <p class="doubtful">{alert.error}</p>}
        <p class="dim"><Expression alert={alert} /></p>
        {alert.notified.length > 0 && (
          <p class="told">
            <button type="button" class="bare" aria-expanded={open} onClick={() => setOpen(!open)}>
              {failed > 0 ? <span class="bad">{plural(failed, "notification")} failed</span> : `${plural(alert.notified.length, "notification")} sent`}
              {last && <span class="dim">, last <Ago at={last.at} /></span>} {open ? "▾" : "▸"}
            </button>
          </p>
        )}
        {open && (
          <ul class="notified">
            {alert.notified.map((each, index) => (
              <li key={index}><Mark level={each.ok ? "ok" : "error"} label={each.ok ? "sent" : "failed"} /><span><Ago at={each.at} /></span><span>{each.receiver}</span><span class="dim">{each.message}</span></li>
            ))}
          </ul>
        )}
      </div>
      <div class="figures">
        <span class="value">{alert.value === null ? NONE : digits(alert.value)}</span>
        <span class="dim">{alert.state}{alert.since !== null && <> for <For since={alert.since} /></>}</span>
        {alert.silenced_until !== null
          ? <span class="dim" title={absolute(alert.silenced_until)}>silenced, ends <Ago at={alert.silenced_until} /></span>
          : mayOperate() && alert.state !== "unknown" && <button type="button" class="small" onClick={() => silence(alert)}>Silence …</button>}
        <a class="dim" href={`/alerts?tab=history&app=${encodeURIComponent(alert.app)}&rule=${encodeURIComponent(alert.rule)}`}>history</a>
      </div>
    </li>
  );
}

/** Labels; with the app that they are of, its workload leads to its page. */
export function Labels({ labels, app }: { labels: Record<string, string>; app?: string }) {
  return (
    <>
      {Object.entries(labels).map(([name, value]) => (
        <span key={name} class="label-pair">{name}={app && name === "workload" ? <a class="strong" href={to("workloads", app, value)}>{value}</a> : <b>{value}</b>}</span>
      ))}
    </>
  );
}

/** What a rule says; it leads to the course of what it measures. */
function Expression({ alert: { expression, query } }: { alert: AlertLine }) {
  return query ? <a href={`/explore?q=${encodeURIComponent(query)}`} title={expression}><code>{expression}</code></a> : <code title={expression}>{expression}</code>;
}

const QUIET: Column<AlertLine>[] = [
  { key: "rule", title: "Rule", width: "220px", by: (each) => each.rule, cell: (each) => <><Mark level="ok" label="inactive" /> <b>{each.rule}</b> <span class="dim">{each.app}</span></> },
  { key: "kind", title: "Kind", width: "110px", by: (each) => each.kind, cell: (each) => each.kind },
  { key: "expression", title: "Holds when", cell: (each) => <span class="dim"><Expression alert={each} /></span> },
  { key: "severity", title: "Severity", width: "90px", by: (each) => each.severity, cell: (each) => each.severity },
  { key: "value", title: "Value", number: true, width: "90px", by: (each) => each.value, cell: (each) => each.value === null ? NONE : digits(each.value) },
];

function Silences({ items, end }: { items: readonly Silence[]; end: (silence: Silence) => void }) {
  if (!items.length) return <Empty title="Nothing is silenced" run="bedstone alerts silence --help">A silence keeps an alert from telling anybody, for a time and for a reason. The alert is still shown.</Empty>;
  return (
    <section class="panel" aria-label="Silences">
      <table class="plain">
        <thead><tr><th scope="col">Alerts with</th><th scope="col">Why</th><th scope="col">Who</th><th scope="col">Since</th><th scope="col">Ends</th><th scope="col" /></tr></thead>
        <tbody>
          {items.map((each) => (
            <tr key={each.id}>
              <td><Labels labels={each.labels} /></td><td class="wrap">{each.why}</td><td>{each.who}</td><td><Ago at={each.created_at} /></td><td><Ago at={each.until} /></td>
              <td class="number">{mayOperate() && <button type="button" class="small" onClick={() => end(each)}>End …</button>}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

const WHAT: Record<AlertEvent["what"], Level> = { pending: "warning", firing: "error", resolved: "ok", silenced: "idle", notified: "idle", failed: "error" };

function History({ app }: { app: string }) {
  const rule = choice("rule");
  const live = useLive<AlertHistory>(path("/v1/alerts/history", { app, rule, limit: 500 }), 2);
  return (
    <Shown live={live}>
      {({ items }) => items.length ? (
        <section class="panel" aria-label="History">
          <table class="plain">
            <thead><tr><th scope="col">When</th><th scope="col">What</th><th scope="col">Rule</th><th scope="col">Labels</th><th scope="col" class="number">Value</th><th scope="col">Detail</th></tr></thead>
            <tbody>
              {items.map((each, index) => (
                <tr key={`${each.at} ${index}`}>
                  <td class="nowrap"><Ago at={each.at} /></td>
                  <td class="nowrap"><Mark level={WHAT[each.what]} /> {each.what}</td>
                  <td class="nowrap"><a href={`/alerts?tab=history&app=${encodeURIComponent(each.app)}&rule=${encodeURIComponent(each.rule)}`}>{each.rule}</a> <span class="dim">{each.app}</span></td>
                  <td><Labels labels={each.labels} /></td>
                  <td class="number">{each.value === null ? "" : digits(each.value)}</td>
                  <td class="wrap dim">{each.detail}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </section>
      ) : <Empty title="Nothing has happened">Whatever a rule does is kept here: when it became pending, fired, was told, and ended.</Empty>}
    </Shown>
  );
}
