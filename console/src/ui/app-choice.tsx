/** Which app a page is about: named in its path, or the only one, or the first. */
import type { Overview } from "../api-types.ts";
import { useLive } from "../api/live.ts";
import { address, go, to } from "./url.ts";

export function useApp(named: string | undefined): { app: string | null; apps: string[]; known: boolean } {
  const overview = useLive<Overview>("/v1/overview");
  const apps = (overview.data?.apps ?? []).map((each) => each.app);
  return { app: named ?? apps[0] ?? null, apps, known: overview.data !== null || overview.error !== null };
}

export function AppChoice({ section, app, apps }: { section: string; app: string | null; apps: string[] }) {
  if (apps.length < 2) return null;
  const options = app !== null && !apps.includes(app) ? [app, ...apps] : apps;
  return (
    <select aria-label="App" value={app ?? ""} onChange={(event) => go(to(section, event.currentTarget.value) + address.value.search)}>
      {options.map((name) => <option key={name} value={name}>{name}</option>)}
    </select>
  );
}
