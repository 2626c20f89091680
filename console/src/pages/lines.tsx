/** Log lines, newest last. Follows the end unless somebody reads further up. */
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { StructuredLine } from "../api-types.ts";
import { absolute, clock } from "../ui/format.ts";
import { levelOf } from "./log-lines.ts";

const DRAWN = 500;
/** Fields that are shown in their own columns. */
const TOLD = new Set(["level", "time", "timestamp", "ts", "event", "message", "msg", "trace", "trace_id", "span", "span_id"]);

export function Lines({ lines, follow = false, skipped = false }: { lines: readonly StructuredLine[]; follow?: boolean; skipped?: boolean }) {
  const frame = useRef<HTMLDivElement>(null);
  const [following, setFollowing] = useState(follow);
  const [open, setOpen] = useState<StructuredLine | null>(null);
  const shown = lines.slice(-DRAWN);
  useLayoutEffect(() => {
    if (following && frame.current) frame.current.scrollTop = frame.current.scrollHeight;
  }, [lines, following]);
  useEffect(() => {
    const element = frame.current;
    if (!element || !follow) return;
    const look = () => setFollowing(element.scrollHeight - element.scrollTop - element.clientHeight < 40);
    element.addEventListener("scroll", look, { passive: true });
    return () => element.removeEventListener("scroll", look);
  }, [follow]);
  return (
    <>
      {skipped && <p class="quiet-line">More was written in a second than is shown; narrow it down by level or text.</p>}
      <div class={`lines ${follow ? "following" : ""}`} ref={frame} role="log" aria-live="off" aria-label="Lines" tabIndex={0}>
        {lines.length > shown.length && <p class="faint">Earlier lines: bedstone logs.</p>}
        {shown.map((line, index) => {
          const level = levelOf(line.level);
          return (
            <div key={`${line.time} ${line.instance} ${index}`} class={`log ${level}`}>
              <button type="button" class="bare row" aria-expanded={open === line} onClick={() => setOpen(open === line ? null : line)}>
                <span class="at" title={absolute(line.time)}>{clock(line.time, true)}</span>
                <span class="level">{line.level}</span>
                <span class="from" title={line.instance}>{line.instance.split("/").at(-1)}</span>
                <span class="text">{line.text}<Fields fields={line.fields} /></span>
              </button>
              {line.trace && <a class="trace" href={`/traces/${line.trace}`} title={`trace ${line.trace}`}>trace</a>}
              {open === line && <Whole line={line} />}
            </div>
          );
        })}
      </div>
      {follow && !following && (
        <button type="button" class="to-end small" onClick={() => setFollowing(true)}>Follow the end</button>
      )}
    </>
  );
}

function Fields({ fields }: { fields: Record<string, unknown> }) {
  const shown = Object.entries(fields).filter(([name]) => !TOLD.has(name.toLowerCase()));
  return <>{shown.map(([name, value]) => <span key={name} class="field-pair"> {name}=<span>{plain(value)}</span></span>)}</>;
}

function Whole({ line }: { line: StructuredLine }) {
  const parts: [string, unknown][] = [["time", absolute(line.time)], ["workload", `${line.app}/${line.workload}`], ["instance", line.instance], ["level", line.level], ["text", line.text], ["trace", line.trace], ["span", line.span], ...Object.entries(line.fields)];
  return (
    <dl class="facts mono">
      {parts.filter(([, value]) => value !== "").map(([name, value]) => (
        <><dt>{name}</dt><dd>{plain(value)}</dd></>
      ))}
    </dl>
  );
}

function plain(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}
