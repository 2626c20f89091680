import assert from "node:assert/strict";
import { test } from "node:test";
import { ago, bytes, cores, count, digits, parseSpan, rate, seconds, share, span } from "../src/ui/format.ts";

test("every number has its unit, and no digits that say nothing", () => {
  assert.equal(rate(0), "0/s");
  assert.equal(rate(12.345), "12.3/s");
  assert.equal(rate(12_345), "12.3k/s");
  assert.equal(seconds(0.000_42), "420 µs");
  assert.equal(seconds(0.0123), "12.3 ms");
  assert.equal(seconds(2), "2 s");
  assert.equal(seconds(125), "2 min 5 s");
  assert.equal(bytes(512), "512 B");
  assert.equal(bytes(134_217_728), "128 MiB");
  assert.equal(cores(0.25), "0.25 cores");
  assert.equal(count(1234), "1\u2009234");
});

test("a small number keeps three digits, as a rule's threshold beside it may need", () => {
  assert.equal(digits(0.00549), "0.00549");
  assert.equal(digits(0.0123), "0.0123");
  assert.equal(digits(0.178_49), "0.178");
  assert.equal(digits(0.5), "0.5");
  assert.equal(digits(0.001), "0.001");
});

test("what was not measured is not zero", () => {
  for (const format of [rate, seconds, share, bytes, cores]) assert.equal(format(null), "–");
  assert.equal(share(0), "0\u202f%");
});

test("a share that is not nothing is never shown as nothing", () => {
  assert.equal(share(0.000_001), "<0.01\u202f%");
  assert.equal(share(0.034), "3.4\u202f%");
  assert.equal(share(1), "100\u202f%");
});

test("relative times", () => {
  assert.equal(ago(100, 100.9), "now");
  assert.equal(ago(100, 159), "59 s ago");
  assert.equal(ago(100, 219), "1 min ago");
  assert.equal(ago(0, 7300), "2 h ago");
  assert.equal(ago(200, 140), "in 1 min");
  assert.equal(span(3725), "1 h 2 min");
  assert.equal(span(86_400), "1 d");
});

test("spans are read as people write them", () => {
  assert.equal(parseSpan("90"), 90);
  assert.equal(parseSpan("5m"), 300);
  assert.equal(parseSpan("250ms"), 0.25);
  assert.equal(parseSpan(" 2 h "), 7200);
  assert.equal(parseSpan("soon"), null);
});
