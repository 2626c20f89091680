/** One transaction: what is decided, what it waits for, its branches, and all that happened. */
import { useState } from "preact/hooks";
import type { BranchDetail, RepairResult, TransactionDetail, TransactionSummary } from "../api-types.ts";
import { post } from "../api/client.ts";
import { useLive } from "../api/live.ts";
import { mayOperate } from "../api/session.ts";
import { Confirm } from "../ui/dialog.tsx";
import { Shown } from "../ui/empty.tsx";
import { absolute, clock, seconds } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { State, Tag } from "../ui/state.tsx";
import { to } from "../ui/url.ts";
import { Ago } from "../ui/when.tsx";
import { Line } from "./transaction-line.tsx";
import { Stuck } from "./transaction-stuck.tsx";
import { stateLevel } from "./transactions.tsx";

/** Failed attempts after which a branch may be repaired that is not stuck. */
const HOPELESS = 10;

type Asked = { what: "retry" } | { what: "repair"; branch: number };

export function TransactionPage({ app, xid }: { app: string; xid: string }) {
  const url = `/v1${to("apps", app, "transactions", xid)}`;
  const live = useLive<TransactionDetail>(url);
  const [asked, setAsked] = useState<Asked | null>(null);
  const close = () => setAsked(null);
  const open = live.data && !["committed", "aborted"].includes(live.data.transaction.state);
  return (
    <>
      <Head crumbs={[{ name: "Transactions", href: to("transactions", app) }, { name: app, href: to("transactions", app) }, { name: live.data?.transaction.name || `${xid.slice(0, 12)}…` }]}>
        {open && mayOperate() && <span class="end"><button type="button" onClick={() => setAsked({ what: "retry" })}>Retry now</button></span>}
      </Head>
      <div class="page">
        <Shown live={live}>
          {({ transaction, branches, events }) => (
            <div class="stack">
              <Summary transaction={transaction} />
              {branches.filter((branch) => branch.stuck !== null).map((branch) => (
                <Stuck key={branch.number} branch={branch} decided={decided(transaction)} retry={() => setAsked({ what: "retry" })} repair={() => setAsked({ what: "repair", branch: branch.number })} />
              ))}
              <Line events={events} branches={branches} />
              <Branches branches={branches} repair={(branch) => setAsked({ what: "repair", branch })} />
              <Events detail={{ events }} />
            </div>
          )}
        </Shown>
      </div>
      {asked?.what === "retry" && (
        <Confirm title="Try again now?" action="Retry" reason close={close}
          run={async (why) => {
            await post<TransactionDetail>(`${url}/retry`, { why });
            return "it is tried again";
          }}>
          <p>Its coordinator goes on at once, also with what is stuck: rows are looked at again, and what can be done is done.</p>
        </Confirm>
      )}
      {asked?.what === "repair" && live.data && (
        <Confirm title={`Is branch ${asked.branch} repaired?`} action="It is repaired" reason dangerous close={close}
          run={async (why) => {
            const result = await post<RepairResult>(`${url}/repair`, { branch: asked.branch, why });
            return result.outcome === "repaired" ? `branch ${asked.branch} is recorded as repaired` : "proposed: a second person has to ask for the same";
          }}>
          <p>You say that you have brought it to its end yourself ({decided(live.data.transaction)}). Nothing is run; its locks are given back. Who, when and why stay in its history.</p>
        </Confirm>
      )}
    </>
  );
}

function decided({ state }: TransactionSummary): string {
  switch (state) {
    case "committing":
    case "committed":
      return "it is decided: committed";
    case "aborting":
    case "aborted":
      return "it is decided: aborted";
    default:
      return "it is not decided";
  }
}

function Summary({ transaction }: { transaction: TransactionSummary }) {
  const { state, stuck, xid, created, deadline, owner, epoch, attempts, next_attempt: next, trouble } = transaction;
  return (
    <section class="panel summary" aria-label="Summary">
      <div class="line">
        <State level={stateLevel(transaction)}><b>{state}{stuck && ", waits for a person"}</b></State>
        <span class="dim">{decided(transaction)}</span>
        <code>{xid}</code>
      </div>
      {trouble && !stuck && <p class="trouble">{trouble}</p>}
      <dl class="facts inline">
        <dt>Begun</dt><dd>{absolute(created)}, <Ago at={created} /></dd>
        <dt>Deadline</dt><dd>{state === "active" ? <>aborted unless decided by <time title={absolute(deadline)}>{clock(deadline)}</time></> : <time title={absolute(deadline)}>{clock(deadline)}</time>}</dd>
        <dt>Owner</dt><dd><code>{owner}</code>, epoch {epoch}</dd>
        {attempts > 0 && <><dt>Attempts</dt><dd>{attempts}{["committing", "aborting"].includes(state) && !stuck && <>, next <Ago at={next} /></>}</dd></>}
      </dl>
    </section>
  );
}

function Branches({ branches, repair }: { branches: readonly BranchDetail[]; repair: (branch: number) => void }) {
  return (
    <section class="panel" aria-label="Branches">
      <header><h2>Branches</h2></header>
      {branches.length === 0 ? <p class="quiet-line">It has no branch.</p> : (
        <table class="plain">
          <thead><tr><th scope="col">#</th><th scope="col">Mode</th><th scope="col">Participant</th><th scope="col">State</th><th scope="col" class="number">Attempts</th><th scope="col">Locks</th><th scope="col">Payload</th><th scope="col" /></tr></thead>
          <tbody>
            {branches.map((branch) => (
              <tr key={branch.number}>
                <td>{branch.number}</td>
                <td>{branch.mode}</td>
                <td class="wrap"><code>{branch.resource}</code>{branch.error && <p class="dim">{branch.error}</p>}</td>
                <td>{branch.stuck ? <Tag level="error">stuck</Tag> : <Tag level={branch.state === "confirmed" ? "ok" : "idle"}>{branch.state}</Tag>}</td>
                <td class="number">{branch.attempts}</td>
                <td class="wrap">{branch.locks.length ? branch.locks.map((lock) => <div key={lock}><code>{lock}</code></div>) : <span class="faint">none</span>}</td>
                <td><code class="dim" title={`SHA-256 ${branch.payload_digest}: the payload does not leave the log`}>{branch.payload_digest.slice(0, 12)}</code></td>
                <td class="number">{branch.stuck === null && branch.attempts >= HOPELESS && branch.state === "registered" && mayOperate() && <button type="button" class="small" onClick={() => repair(branch.number)}>Repair …</button>}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}

function Events({ detail }: { detail: Pick<TransactionDetail, "events"> }) {
  const first = detail.events[0]?.at ?? 0;
  return (
    <section class="panel" aria-label="History">
      <header><h2>History</h2></header>
      <table class="plain">
        <thead><tr><th scope="col">Time</th><th scope="col" class="number">Since it began</th><th scope="col">Branch</th><th scope="col">What</th><th scope="col">Detail</th></tr></thead>
        <tbody>
          {detail.events.map((event, index) => (
            <tr key={index}>
              <td class="nowrap" title={absolute(event.at)}>{clock(event.at, true)}</td>
              <td class="number dim">+{seconds(event.at - first)}</td>
              <td>{event.branch ?? ""}</td>
              <td>{event.kind}</td>
              <td class="wrap dim">{told(event.detail)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function told(detail: Record<string, unknown>): string {
  return Object.entries(detail).filter(([, value]) => value !== false).map(([name, value]) => {
    if (value === true) return name;
    if ((name === "deadline" || name === "until") && typeof value === "number") return `${name} ${clock(value)}`;
    return `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`;
  }).join(", ");
}
