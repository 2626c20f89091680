/** Who changed what, with its difference; an apply can be undone. */
import { useState } from "preact/hooks";
import type { ApplyResult, ChangeList, ChangeRecord } from "../api-types.ts";
import { path, post } from "../api/client.ts";
import { now } from "../api/ticks.ts";
import { useKept, useLive } from "../api/live.ts";
import { mayOperate } from "../api/session.ts";
import { useApp } from "../ui/app-choice.tsx";
import { Difference } from "../ui/change.tsx";
import { SelectChoice, TextChoice } from "../ui/controls.tsx";
import { Confirm } from "../ui/dialog.tsx";
import { Empty, Shown } from "../ui/empty.tsx";
import { absolute, moment, plural } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { choice, choose, linked, to } from "../ui/url.ts";
import { Ago } from "../ui/when.tsx";

const LIMIT = 100;

export function ChangesPage() {
  const { apps } = useApp(undefined);
  const app = choice("app");
  const before = Number(choice("before")) || null;
  const live = useKept(useLive<ChangeList>(path("/v1/changes", { app, before, limit: LIMIT }), before === null ? 1 : Infinity));
  const text = choice("search").toLowerCase();
  const items = (live.data?.items ?? []).filter((each) => !text || `${each.who} ${each.action} ${each.target} ${each.detail}`.toLowerCase().includes(text));
  const at = Number(choice("at")) || null;
  const [undoing, setUndoing] = useState<ChangeRecord | null>(null);
  return (
    <>
      <Head crumbs={[{ name: "Changes" }]}>
        <TextChoice name="search" label="Who or what" placeholder="Who or what" />
        {(apps.length > 1 || app) && <SelectChoice name="app" label="App" options={[["", "All apps"], ...apps.map((each): [string, string] => [each, each])]} />}
        {before !== null && <a href={linked({ before: null })}>Newest</a>}
      </Head>
      <div class="page">
        <Shown live={live}>
          {(found) => items.length ? (
            <section class="panel change-list" aria-label="Changes">
              <ol>{items.map((each) => <Entry key={`${each.at} ${each.action} ${each.target}`} change={each} open={each.at === at} undo={setUndoing} />)}</ol>
              {found.items.length === LIMIT && <div class="more-row"><button type="button" class="quiet" onClick={() => choose({ before: found.items.at(-1)!.at })}>Earlier ones</button></div>}
            </section>
          ) : (
            <Empty title={text || app ? "No change is like that" : "Nothing has been changed yet"} run="bedstone up">
              Every apply, restart, scaling and repair stands here, with who made it.
            </Empty>
          )}
        </Shown>
      </div>
      {undoing && <Undo change={undoing} close={() => setUndoing(null)} />}
    </>
  );
}

function Entry({ change, open, undo }: { change: ChangeRecord; open: boolean; undo: (change: ChangeRecord) => void }) {
  const more = change.changes.length > 0;
  return (
    <li class={open ? "open" : ""}>
      <div class="line">
        <span class="at" title={absolute(change.at)}><span>{moment(change.at, now.value)}</span><small><Ago at={change.at} /></small></span>
        <span class="by" title={change.who}>{change.who}</span>
        <span class="what">
          {more
            ? <button type="button" class="bare" aria-expanded={open} onClick={() => choose({ at: open ? null : change.at }, { replace: true })}><b>{change.action}</b> {change.target} <span class="faint">{open ? "▾" : "▸"} {plural(change.changes.length, "difference")}</span></button>
            : <><b>{change.action}</b> {change.target}</>}
          {change.detail && !more && <span class="dim"> {change.detail}</span>}
        </span>
        <span class="generation dim">{change.generation !== null && `generation ${change.generation}`}</span>
        <span class="act">{change.undo && change.generation !== null && mayOperate() && <button type="button" class="small" onClick={() => undo(change)}>Undo …</button>}</span>
      </div>
      {open && more && <div class="whole"><Difference changes={change.changes} /></div>}
    </li>
  );
}

function Undo({ change, close }: { change: ChangeRecord; close: () => void }) {
  return (
    <Confirm title={`Undo generation ${change.generation} of ${change.app}?`} action="Undo" dangerous close={close}
      run={async () => {
        const done = await post<ApplyResult>(`/v1${to("apps", change.app, "undo")}`, { generation: change.generation });
        return `${change.app} is declared as it was before; this made generation ${done.generation}`;
      }}>
      <p>{change.app} will be declared as it was before {change.who} changed it <Ago at={change.at} />. What was changed since is undone with it. New instances start beside those that run, so that no request fails.</p>
      <Difference changes={change.changes} undone />
    </Confirm>
  );
}
