/** A part of a graph: some of its nodes with all that they call and that call them. Pure. */
import type { Graph } from "../api-types.ts";

export function around(graph: Graph, chosen: (node: Graph["nodes"][number]) => boolean): Graph {
  const ids = new Set(graph.nodes.filter(chosen).map((node) => node.id));
  const edges = graph.edges.filter((edge) => ids.has(edge.source) || ids.has(edge.target));
  const kept = new Set([...ids, ...edges.flatMap((edge) => [edge.source, edge.target])]);
  return { ...graph, nodes: graph.nodes.filter((node) => kept.has(node.id)), edges };
}
