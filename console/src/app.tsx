/** Which page an address shows. */
import type { ComponentChildren } from "preact";
import { session, sessionError } from "./api/session.ts";
import { signedOut } from "./api/ticks.ts";
import { OverviewPage } from "./pages/overview.tsx";
import { NotFoundPage } from "./pages/not-found.tsx";
import { SignedOutPage } from "./pages/signed-out.tsx";
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
    default:
      return <NotFoundPage path={[section, ...rest].join("/")} />;
  }
}
