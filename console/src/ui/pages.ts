/** The pages, in the order of the side bar; `key` follows `g`. */

export interface Page {
  name: string;
  path: string;
  key: string;
  about: string;
}

export const PAGES: Page[] = [
  { name: "Overview", path: "/", key: "o", about: "what is unhealthy, what changed" },
  { name: "Map", path: "/map", key: "m", about: "who calls whom, now or in any past minute" },
  { name: "Workloads", path: "/workloads", key: "w", about: "revisions, instances, logs" },
  { name: "Traffic", path: "/traffic", key: "f", about: "routes, policies, live tap" },
  { name: "Transactions", path: "/transactions", key: "x", about: "distributed transactions, the stuck ones first" },
  { name: "Traces", path: "/traces", key: "t", about: "search, waterfall, compare" },
  { name: "Metrics", path: "/explore", key: "e", about: "explore with PromQL" },
  { name: "Alerts", path: "/alerts", key: "a", about: "firing, silences, history" },
  { name: "Changes", path: "/changes", key: "c", about: "who applied what; undo" },
];
