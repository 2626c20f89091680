/** Which page an address shows. */
import type { ComponentChildren } from "preact";
import { session, sessionError } from "./api/session.ts";
import { signedOut } from "./api/ticks.ts";
import { OverviewPage } from "./pages/overview.tsx";
import { MapPage } from "./pages/map.tsx";
import { MetricsPage } from "./pages/metrics.tsx";
import { NotFoundPage } from "./pages/not-found.tsx";
import { SignedOutPage } from "./pages/signed-out.tsx";
import { AlertsPage } from "./pages/alerts.tsx";
import { ChangesPage } from "./pages/changes.tsx";
import { ComparePage } from "./pages/trace-compare.tsx";
import { TracePage } from "./pages/trace.tsx";
import { TracesPage } from "./pages/traces.tsx";
import { TrafficPage } from "./pages/traffic.tsx";
import { TransactionPage } from "./pages/transaction.tsx";
import { TransactionsPage } from "./pages/transactions.tsx";
import { WorkloadPage } from "./pages/workload.tsx";
import { WorkloadsPage } from "./pages/workloads.tsx";
import { Failure, Loading } from "./ui/empty.tsx";
import { Shell } from "./ui/shell.tsx";
import { address, parts } from "./ui/url.ts";

export function App() {
  if (signedOut.value) return <SignedOutPage />;
  if (!session.value) {
    return sessionError.value ? <div class="page"><Failure error={sessionError.value} /></div> : <Loading />;
  }
  return <Shell>{page(parts(address.value.path))}</Shell>;
}

function page([section = "", ...rest]: string[]): ComponentChildren {
  switch (section) {
    case "":
      return <OverviewPage />;
    case "workloads":
      return rest.length === 2 ? <WorkloadPage key={rest.join("/")} app={rest[0]!} name={rest[1]!} /> : <WorkloadsPage />;
    case "map":
      return <MapPage named={rest[0]} />;
    case "explore":
      return <MetricsPage />;
    case "transactions":
      return rest.length === 2 ? <TransactionPage key={rest.join("/")} app={rest[0]!} xid={rest[1]!} /> : <TransactionsPage named={rest[0]} />;
    case "traces":
      if (rest.length === 2) return <ComparePage key={rest.join("/")} ids={[rest[0]!, rest[1]!]} />;
      return rest.length === 1 ? <TracePage key={rest[0]} id={rest[0]!} /> : <TracesPage />;
    case "alerts":
      return <AlertsPage />;
    case "traffic":
      return <TrafficPage named={rest[0]} />;
    case "changes":
      return <ChangesPage />;
    default:
      return <NotFoundPage path={[section, ...rest].join("/")} />;
  }
}
