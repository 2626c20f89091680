import assert from "node:assert/strict";
import { test } from "node:test";
import { fitting, placeOf, unitOf } from "../src/promql/complete.ts";

/** `|` marks the caret. */
const at = (text: string) => placeOf(text.replace("|", ""), text.indexOf("|"));

test("the caret is at a metric's name, a label, or a label's value", () => {
  assert.deepEqual(at("sum(bed|"), { kind: "name", from: 4, typed: "bed" });
  assert.deepEqual(at('up{wo|'), { kind: "label", from: 3, typed: "wo" });
  assert.deepEqual(at('up{app="bank", wo|'), { kind: "label", from: 15, typed: "wo" });
  assert.deepEqual(at('up{workload="ac|"}'), { kind: "value", from: 13, typed: "ac", label: "workload" });
  assert.deepEqual(at('up{workload=~"|'), { kind: "value", from: 14, typed: "", label: "workload" });
  assert.deepEqual(at("sum by (wo|"), { kind: "label", from: 8, typed: "wo" });
  assert.deepEqual(at("rate(up[5|"), { kind: "none" });
  assert.deepEqual(at('up{app="bank"}|'), { kind: "none" });
});

test("beginnings come first, and what is complete is not offered", () => {
  assert.deepEqual(fitting(["requests", "bedstone_requests", "up"], "req"), ["requests", "bedstone_requests"]);
  assert.deepEqual(fitting(["up"], "up"), []);
});

test("the unit of a result is read from its names", () => {
  assert.equal(unitOf("sum(rate(bedstone_requests_total[5s]))"), "rate");
  assert.equal(unitOf("rate(bedstone_instance_cpu_seconds_total[5s])"), "cores");
  assert.equal(unitOf("histogram_quantile(0.99, sum by (le) (rate(bedstone_request_seconds_bucket[5s])))"), "seconds");
  assert.equal(unitOf("bedstone_instance_memory_bytes"), "bytes");
  assert.equal(unitOf("sum(rate(a_total[5s])) / sum(rate(b_total[5s]))"), "share");
  assert.equal(unitOf('sum(rate(bedstone_route_requests_total{route="/a/b"}[5s]))'), "rate");
  assert.equal(unitOf("rate(x_seconds_sum[5s]) / rate(x_seconds_count[5s])"), "seconds");
  assert.equal(unitOf("bedstone_transactions_stuck"), "none");
});
