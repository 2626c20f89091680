/** What surrounds every page: the side bar, the head with search and clock, help and messages. */
import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";
import type { AlertList, Overview } from "../api-types.ts";
import { post } from "../api/client.ts";
import { useLive } from "../api/live.ts";
import { session } from "../api/session.ts";
import { connection, paused, signedOut, tick } from "../api/ticks.ts";
import { Dialog } from "./dialog.tsx";
import { clock } from "./format.ts";
import { Icon } from "./icons.tsx";
import { helpOpen, paletteOpen } from "./keys.ts";
import { PAGES } from "./pages.ts";
import { Palette } from "./palette.tsx";
import { Mark } from "./state.tsx";
import { theme, toggle } from "./theme.ts";
import { Toasts } from "./toast.tsx";
import { address } from "./url.ts";

export function Shell({ children }: { children: ComponentChildren }) {
  return (
    <div class="shell">
      <a class="skip" href="#main">To the content</a>
      <Side />
      <main id="main" tabIndex={-1}>{children}</main>
      <Palette />
      {helpOpen.value && <Help />}
      <Toasts />
      <svg width="0" height="0" aria-hidden="true" class="hidden">
        <defs>
          <pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
            <rect width="1.4" height="5" fill="var(--line-strong)" />
          </pattern>
        </defs>
      </svg>
    </div>
  );
}

function Side() {
  const overview = useLive<Overview>("/v1/overview", 1);
  const alerts = useLive<AlertList>("/v1/alerts", 2);
  const findings = overview.data?.findings ?? [];
  const firing = (alerts.data?.items ?? []).filter((each) => each.state === "firing" && !each.silenced_until).length;
  const badges: Record<string, { count: number; level: "error" | "warning"; what: string }> = {
    "/": { count: findings.length, level: findings.some((each) => each.severity === "error") ? "error" : "warning", what: "findings" },
    "/alerts": { count: firing, level: "error", what: "firing" },
  };
  const here = `/${address.value.path.split("/")[1] ?? ""}`;
  const who = session.value;
  const logout = async () => {
    await post("/v1/console/logout").catch(() => undefined);
    signedOut.value = true;
  };
  return (
    <header class="side">
      <a class="brand" href="/">
        <img src="/icon.svg" alt="" />
        <span>Bedstone<small title={who?.domain}>{who?.domain}</small></span>
      </a>
      <nav aria-label="Pages">
        {PAGES.map((page) => {
          const badge = badges[page.path];
          return (
            <a key={page.path} href={page.path} aria-current={here === page.path ? "page" : undefined}
              title={`${page.about} (g ${page.key})`}>
              <Icon name={page.name} />
              {page.name}
              {badge && badge.count > 0 && (
                <span class={`badge ${badge.level}`} title={`${badge.count} ${badge.what}`}>{badge.count}</span>
              )}
            </a>
          );
        })}
      </nav>
      <footer>
        <div class="who" title={who ? `${who.who}, Bedstone ${who.version}` : undefined}>{who?.who} · {who?.role}</div>
        <div class="tools">
          <button type="button" class="quiet" onClick={toggle} title="Dark or light (Shift T)">
            {theme.value === "dark" ? "Light" : "Dark"}
          </button>
          <button type="button" class="quiet" onClick={() => (helpOpen.value = true)} title="Keys (?)">Keys</button>
          <button type="button" class="quiet" onClick={logout}>Sign out</button>
        </div>
      </footer>
    </header>
  );
}

export interface Crumb {
  name: string;
  href?: string;
}

/** The head of a page: where it is, its controls, search and the clock. */
export function Head({ crumbs, children }: { crumbs: Crumb[]; children?: ComponentChildren }) {
  const title = crumbs.map((each) => each.name).reverse().join(" · ");
  useEffect(() => {
    document.title = `${title} · Bedstone`;
  }, [title]);
  return (
    <div class="head">
      <h1>
        {crumbs.map(({ name, href }, index) => (
          <>
            {index > 0 && <span class="slash" aria-hidden="true">/</span>}
            {href ? <a href={href}>{name}</a> : <span>{name}</span>}
          </>
        ))}
      </h1>
      <div class="controls">{children}</div>
      <div class="global">
        <button type="button" class="searching" onClick={() => (paletteOpen.value = true)}>
          <span>Search</span><kbd>/</kbd>
        </button>
        <TickClock />
      </div>
    </div>
  );
}

function TickClock() {
  const last = tick.value;
  const state = paused.value ? "paused" : connection.value;
  const flip = () => {
    paused.value = !paused.value;
  };
  if (state === "broken" || (state === "connecting" && !last)) {
    return (
      <button type="button" class="clock broken" onClick={flip} title="No seconds arrive; trying again by itself">
        <Mark level="warning" /><span>reconnecting …</span>
      </button>
    );
  }
  const missing = last ? Object.entries(last.missing).map(([source, why]) => `${source}: ${why}`) : [];
  const about = state === "paused"
    ? "Paused: what is shown stays. Click to go on"
    : last?.complete === false
      ? `This second is incomplete.\n${missing.join("\n")}`
      : "Live: every node has answered for this second. Click to pause";
  return (
    <button type="button" class={`clock ${state === "paused" ? "" : "live"}`} onClick={flip} title={about}
      aria-label={`${state === "paused" ? "paused" : "live"}, ${last ? clock(last.second) : ""}`}>
      <Mark level={state === "paused" ? "idle" : last?.complete === false ? "warning" : "ok"} />
      <span>{state === "paused" ? "paused" : last ? clock(last.second) : ""}</span>
    </button>
  );
}

const KEYS: [string[], string][] = [
  [["/"], "search apps, workloads, pages, traces"],
  [["Ctrl", "K"], "the same"],
  [["j", "k"], "down and up in a list"],
  [["Enter"], "open what is chosen"],
  [["Shift", "T"], "dark or light"],
  [["Esc"], "close"],
  [["?"], "these keys"],
];

function Help() {
  const close = () => {
    helpOpen.value = false;
  };
  return (
    <Dialog title="Keys" close={close}>
      <dl class="keys">
        {[...KEYS, ...PAGES.map(({ key, name, about }): [string[], string] => [["g", key], `${name}: ${about}`])].map(([keys, what]) => (
          <>
            <dt>{keys.map((key) => <kbd key={key}>{key}</kbd>)}</dt>
            <dd>{what}</dd>
          </>
        ))}
      </dl>
      <p><small>Bedstone {session.value?.version} · <a href="/LICENSES.txt" target="_blank" rel="noreferrer">licences of bundled libraries</a></small></p>
    </Dialog>
  );
}
