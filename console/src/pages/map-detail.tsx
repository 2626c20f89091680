/** What is chosen on the map, in full, with the ways on to the cause. */
import type { Graph, GraphEdge, GraphNode, Signals } from "../api-types.ts";
import { quoted } from "../api/prometheus.ts";
import { edgeId } from "../graph/layout.ts";
import { rate, seconds } from "../ui/format.ts";
import { Errors } from "../ui/signals.tsx";
import { State, Tag } from "../ui/state.tsx";
import { linked, to } from "../ui/url.ts";

export function MapDetail({ graph, pick, close }: { graph: Graph; pick: string; close: () => void }) {
  const node = graph.nodes.find((each) => each.id === pick);
  const edge = graph.edges.find((each) => edgeId(each) === pick);
  return (
    <aside class="map-detail" aria-label="Details">
      <button type="button" class="quiet small close" onClick={close} aria-label="Close details">✕</button>
      {node && <NodeDetail graph={graph} node={node} />}
      {edge && <EdgeDetail graph={graph} edge={edge} />}
    </aside>
  );
}

function name(graph: Graph, id: string): string {
  return graph.nodes.find((node) => node.id === id)?.name ?? id;
}

function NodeDetail({ graph, node }: { graph: Graph; node: GraphNode }) {
  const { app } = graph;
  const calls = graph.edges.filter((edge) => edge.source === node.id);
  const called = graph.edges.filter((edge) => edge.target === node.id);
  return (
    <>
      <h2><State level={node.health}>{node.name}</State> <small>{node.kind}</small></h2>
      {node.reason && <p>{node.reason}</p>}
      {node.kind === "workload" && (
        <p class="links">
          <a href={to("workloads", app, node.name)}>Workload</a>
          <a href={`${to("workloads", app, node.name)}?tab=logs`}>Logs</a>
          <a href={`/traces?app=${encodeURIComponent(app)}&service=${encodeURIComponent(node.name)}`}>Traces</a>
          <a href={`/traces?app=${encodeURIComponent(app)}&service=${encodeURIComponent(node.name)}&errors=1`}>Failed traces</a>
        </p>
      )}
      {node.kind === "gateway" && <p class="links"><a href={to("traffic", app)}>Traffic</a></p>}
      <Facts signals={node.signals} instances={node.kind === "workload" ? `${node.ready} of ${node.wanted} ready` : ""} />
      <Neighbours title="Called by" graph={graph} edges={called} end="source" />
      <Neighbours title="Calls" graph={graph} edges={calls} end="target" />
    </>
  );
}

function EdgeDetail({ graph, edge }: { graph: Graph; edge: GraphEdge }) {
  const [source, target] = [name(graph, edge.source), name(graph, edge.target)];
  const of = `{app=${quoted(graph.app)}, caller=${quoted(source)}, callee=${quoted(target)}}`;
  const query = `sum(rate(bedstone_edge_requests_total${of}[5s]))`;
  const database = edge.connections !== null || edge.target.startsWith("database:");
  return (
    <>
      <h2>{source} <span class="faint">→</span> {target}</h2>
      {!edge.declared && (
        <p><Tag level="warning">not declared</Tag> The manifest does not let {source} call {target}. Add {target} to workloads.{source}.uses if it should.</p>
      )}
      <p class="links">
        {!database && <a href={`/explore?q=${encodeURIComponent(query)}`}>Explore</a>}
        <a href={linked({ pick: edge.source })}>{source}</a>
        <a href={linked({ pick: edge.target })}>{target}</a>
      </p>
      <Facts signals={edge.signals} connections={edge.connections} />
    </>
  );
}

function Facts({ signals, instances, connections }: { signals: Signals; instances?: string; connections?: number | null }) {
  const kinds = Object.entries(signals.error_kinds).filter(([, value]) => value > 0);
  const none = signals.rate === null;
  return (
    <dl class="facts">
      {instances && <><dt>Instances</dt><dd>{instances}</dd></>}
      {connections !== null && connections !== undefined && <><dt>Connections</dt><dd>{connections} open</dd></>}
      {none && connections === undefined && <><dt>Traffic</dt><dd class="faint">none</dd></>}
      {!none && (
        <>
          <dt>Rate</dt><dd>{rate(signals.rate)}</dd>
          <dt>Errors</dt><dd><Errors value={signals.errors} /></dd>
          {kinds.map(([kind, value]) => <><dt class="sub">{kind}</dt><dd>{rate(value)}</dd></>)}
          <dt>p50</dt><dd>{seconds(signals.p50)}</dd>
          <dt>p90</dt><dd>{seconds(signals.p90)}</dd>
          <dt>p99</dt><dd>{seconds(signals.p99)}</dd>
          <dt>p99.9</dt><dd>{seconds(signals.p999)}</dd>
        </>
      )}
    </dl>
  );
}

function Neighbours({ title, graph, edges, end }: { title: string; graph: Graph; edges: GraphEdge[]; end: "source" | "target" }) {
  if (!edges.length) return null;
  return (
    <>
      <h3>{title}</h3>
      <table class="plain">
        <tbody>
          {edges.map((edge) => (
            <tr key={edgeId(edge)}>
              <td><a href={linked({ pick: edgeId(edge) })}>{name(graph, edge[end])}</a>{!edge.declared && <> <Tag level="warning">not declared</Tag></>}</td>
              <td class="number">{edge.connections === null ? rate(edge.signals.rate) : `${edge.connections} conn.`}</td>
              <td class="number">{edge.connections === null ? <Errors value={edge.signals.errors} /> : ""}</td>
              <td class="number">{edge.connections === null ? seconds(edge.signals.p99) : ""}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </>
  );
}

