/** Who calls whom, now or in any past minute, with what goes along each edge. */
import { useMemo } from "preact/hooks";
import type { Graph } from "../api-types.ts";
import { path } from "../api/client.ts";
import { useKept, useLive } from "../api/live.ts";
import { AppChoice, useApp } from "../ui/app-choice.tsx";
import { Empty, Failure, Loading } from "../ui/empty.tsx";
import { absolute, clock } from "../ui/format.ts";
import { Head } from "../ui/shell.tsx";
import { Mark } from "../ui/state.tsx";
import { around } from "../graph/around.ts";
import { FlagChoice } from "../ui/controls.tsx";
import { choice, choose, flag, linked, to } from "../ui/url.ts";
import { MapDetail } from "./map-detail.tsx";
import { MapGraph } from "./map-graph.tsx";
import { Replay } from "./map-replay.tsx";

/** So many are more than one looks at. */
const MANY = 30;
const NOW = 10;
const MINUTE = 60;

export function MapPage({ named }: { named: string | undefined }) {
  const { app, apps, known } = useApp(named);
  const at = Number(choice("at")) || null;
  const url = app === null ? null : path(`/v1${to("apps", app, "graph")}`, { at, window: at ? MINUTE : NOW });
  const live = useKept(useLive<Graph>(url, at ? Infinity : 1));
  const whole = live.data?.app === app ? live.data : null;
  const unwell = flag("unwell");
  const graph = useMemo(() => whole && unwell ? around(whole, (node) => node.health === "error" || node.health === "warning") : whole, [whole, unwell]);
  const pick = usePick(graph, choice("pick"));
  return (
    <>
      <Head crumbs={[{ name: "Map" }, ...(app ? [{ name: app }] : [])]}>
        <AppChoice section="map" app={app} apps={apps} />
        {whole && (unwell || whole.nodes.length > MANY) && <FlagChoice name="unwell">Only what is not well</FlagChoice>}
        {graph && <Window graph={graph} past={at !== null} />}
      </Head>
      <div class="page whole map-page">
        {known && app === null && <Empty title="No app runs yet" run={["bedstone init", "bedstone up"]}>The map shows the workloads of an app and what flows between them.</Empty>}
        {!graph && live.error && <div class="page"><Failure error={live.error} retry={live.refresh} /></div>}
        {!graph && !live.error && app !== null && <Loading what="Drawing" />}
        {graph && graph.nodes.length === 0 && <Empty title={unwell ? "Nothing is unwell" : "Nothing is declared"}>{unwell && <a href={linked({ unwell: null })}>Show all</a>}</Empty>}
        {graph && graph.nodes.length > 0 && app !== null && (
          <>
            <div class="map-body">
              <MapGraph key={app} graph={graph} pick={pick} choose={(id) => choose({ pick: id === pick ? null : id })} />
              {pick && <MapDetail graph={graph} pick={pick} close={() => choose({ pick: null })} />}
            </div>
            {live.error && live.error.status !== 0 && <Failure error={live.error} />}
            <Replay app={app} at={at} />
          </>
        )}
      </div>
    </>
  );
}

/** What is chosen: an id, an edge's `SOURCE>TARGET`, or the plain name of a node. */
function usePick(graph: Graph | null, pick: string): string {
  return useMemo(() => {
    if (!graph || !pick) return "";
    if (graph.nodes.some((node) => node.id === pick)) return pick;
    if (graph.edges.some((edge) => `${edge.source}>${edge.target}` === pick)) return pick;
    return graph.nodes.find((node) => node.name === pick)?.id ?? "";
  }, [graph, pick]);
}

function Window({ graph, past }: { graph: Graph; past: boolean }) {
  const missing = Object.entries(graph.missing).map(([source, why]) => `${source}: ${why}`);
  return (
    <span class="dim nowrap" title={absolute(graph.second)}>
      {past ? `the minute that ended ${clock(graph.second)}` : `the last ${graph.window} s`}
      {!graph.complete && <span class="doubtful" title={missing.join("\n")}> <Mark level="warning" /> incomplete</span>}
    </span>
  );
}
