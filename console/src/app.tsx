/** Which page an address shows. */
import type { ComponentChildren } from "preact";
import { session, sessionError } from "./api/session.ts";
import { signedOut } from "./api/ticks.ts";
import { OverviewPage } from "./pages/overview.tsx";
import { MapPage } from "./pages/map.tsx";
import { NotFoundPage } from "./pages/not-found.tsx";
import { SignedOutPage } from "./pages/signed-out.tsx";
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
    default:
      return <NotFoundPage path={[section, ...rest].join("/")} />;
  }
}
