/** The distributed transactions of an app, those that wait for a person first. */
import type { TransactionList, TransactionSummary } from "../api-types.ts";
import { get, path, type ApiError } from "../api/client.ts";
import { useKept, useLive, useLoaded } from "../api/live.ts";
import { now } from "../api/ticks.ts";
import { AppChoice, useApp } from "../ui/app-choice.tsx";
import { FlagChoice, SelectChoice, TextChoice } from "../ui/controls.tsx";
import { Empty, Failure, Loading } from "../ui/empty.tsx";
import { plural, span } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { State, type Level } from "../ui/state.tsx";
import { Table, type Column } from "../ui/table.tsx";
import { choice, flag, linked, to } from "../ui/url.ts";
import { Ago } from "../ui/when.tsx";
import { firstId } from "./transaction-times.ts";

const MOST = 1000;
const STATES = ["active", "committing", "aborting", "committed", "aborted"];
const BEGUN: [string, string][] = [["300", "last 5 min"], ["3600", "last hour"], ["86400", "last 24 h"], ["0", "any time"]];

interface Newest {
  items: TransactionSummary[];
  /** Seconds back to which all are here; 0: all there are. */
  reach: number;
}

/** Ids sort by age and lists begin with the oldest: so the span is made shorter until its end is reached. */
async function newest(app: string, state: string, stuck: boolean, range: number, signal: AbortSignal): Promise<Newest> {
  const base = `/v1${to("apps", app, "transactions")}`;
  for (let reach = range; ; reach = reach ? Math.floor(reach / 4) : 86400) {
    const after = reach ? firstId(now.peek() - reach) : "";
    const page = await get<TransactionList>(path(base, { state, stuck, after, limit: MOST }), signal);
    if (page.next === null || stuck || (reach > 0 && reach < 4)) return { items: [...page.items].sort((a, b) => b.created - a.created), reach };
  }
}

export function TransactionsPage({ named }: { named: string | undefined }) {
  const { app, apps, known } = useApp(named);
  const state = STATES.includes(choice("state")) ? choice("state") : "";
  const stuck = flag("stuck");
  const range = Number(choice("begun", "3600"));
  const key = app === null ? null : `transactions ${JSON.stringify([app, state, stuck, range])}`;
  const live = useKept(useLoaded<Newest>(key, (signal) => newest(app ?? "", state, stuck, range, signal), 2));
  const waiting = useLive<TransactionList>(app === null ? null : path(`/v1${to("apps", app, "transactions")}`, { stuck: true, limit: 100 }), 2);
  const text = choice("search").toLowerCase();
  const shown = (live.data?.items ?? []).filter((each) => !text || each.name.toLowerCase().includes(text) || each.xid.startsWith(text));
  const href = (each: TransactionSummary) => to("transactions", app ?? "", each.xid);
  return (
    <>
      <Head crumbs={[{ name: "Transactions" }, ...(app ? [{ name: app }] : [])]}>
        <AppChoice section="transactions" app={app} apps={apps} />
        <TextChoice name="search" label="Filter by name or id" placeholder="Name or id" width={150} />
        <SelectChoice name="state" label="State" options={[["", "All states"], ...STATES.map((each): [string, string] => [each, each])]} />
        <SelectChoice name="begun" label="Begun" options={BEGUN} otherwise="3600" />
        <FlagChoice name="stuck">Only stuck</FlagChoice>
      </Head>
      <div class="page stack">
        {known && app === null && <Empty title="No app runs yet" run={["bedstone init", "bedstone up"]} />}
        {live.error && (live.error.status === 404 || live.data === null) && <NoLog error={live.error} retry={live.refresh} />}
        {!live.error && live.loading && app !== null && <Loading />}
        {!stuck && (waiting.data?.items.length ?? 0) > 0 && (
          <section class="panel waiting" aria-label="Waiting for a person">
            <header><State level="error"><h2>{plural(waiting.data!.items.length, "transaction")} {waiting.data!.items.length === 1 ? "waits" : "wait"} for a person</h2></State></header>
            <Table label="Waiting for a person" columns={WAITING} rows={waiting.data!.items} id={(each) => each.xid} href={href} order="waiting" />
          </section>
        )}
        {live.data && !live.error && (
          <section class="panel" aria-label="Transactions">
            <header>
              <h2>{plural(shown.length, "transaction")}</h2>
              <span class="more">{live.data.reach > 0 && !stuck ? `begun in the last ${span(live.data.reach)}` : ""}{live.data.reach < range ? ", more than can be listed before" : ""}</span>
            </header>
            <Table label="Transactions" columns={COLUMNS} rows={shown} id={(each) => each.xid} href={href} empty={<None filtered={Boolean(text || state || stuck) || range > 0} stuck={stuck} />} />
          </section>
        )}
      </div>
    </>
  );
}

function NoLog({ error, retry }: { error: ApiError; retry: () => void }) {
  if (error.status !== 404) return <Failure error={error} retry={retry} />;
  return <Empty title={error.message}>{error.hint ?? "An app has transactions where its manifest says transactions: {database: NAME}."}</Empty>;
}

function None({ filtered, stuck }: { filtered: boolean; stuck: boolean }) {
  if (stuck) return <Empty title="Nothing waits for a person">Bedstone repeats confirm and cancel by itself; only what is neither as before nor as after comes here.</Empty>;
  if (filtered) return <Empty title="No transaction is like that"><a href={linked({ search: null, state: null, begun: "0" })}>Show all</a>, or begin one: in code, transaction("name").</Empty>;
  return <Empty title="No transaction has begun">In code: with transaction("transfer"): …</Empty>;
}

export function stateLevel({ state, stuck }: { state: string; stuck: boolean }): Level {
  if (stuck) return "error";
  switch (state) {
    case "committed":
      return "ok";
    case "aborted":
      return "idle";
    case "committing":
    case "aborting":
      return "warning";
    default:
      return "unknown";
  }
}

const XID: Column<TransactionSummary> = { key: "xid", title: "Id", width: "280px", wide: false, by: (each) => each.xid, cell: (each) => <code title={each.xid}>{each.xid}</code> };
const NAME: Column<TransactionSummary> = {
  key: "name", title: "Transaction", width: "150px", by: (each) => each.name,
  cell: (each) => <State level={stateLevel(each)}><span class="strong ink">{each.name || "unnamed"}</span></State>,
};
const TROUBLE: Column<TransactionSummary> = { key: "trouble", title: "Trouble", cell: (each) => <span class="dim" title={each.trouble}>{each.trouble}</span> };
const BEGAN: Column<TransactionSummary> = { key: "created", title: "Begun", number: true, width: "100px", by: (each) => each.created, cell: (each) => <Ago at={each.created} /> };
const ATTEMPTS: Column<TransactionSummary> = { key: "attempts", title: "Attempts", number: true, width: "86px", by: (each) => each.attempts, cell: (each) => each.attempts, hint: "of confirm and cancel, all branches together" };

const WAITING: Column<TransactionSummary>[] = [NAME, TROUBLE, ATTEMPTS, BEGAN];
const COLUMNS: Column<TransactionSummary>[] = [
  NAME,
  { key: "state", title: "State", width: "130px", by: (each) => each.state, cell: (each) => <>{each.state}{each.stuck && <span class="bad">, stuck</span>}</> },
  { key: "branches", title: "Branches", number: true, width: "88px", by: (each) => each.branches, cell: (each) => each.branches },
  ATTEMPTS,
  TROUBLE,
  XID,
  BEGAN,
];
