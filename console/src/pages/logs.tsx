/** What a workload writes, line by line as it comes; or the lines of one trace. */
import { useEffect, useRef, useState } from "preact/hooks";
import type { LogPage, StructuredLine } from "../api-types.ts";
import { ApiError, get, path } from "../api/client.ts";
import { tick } from "../api/ticks.ts";
import { SelectChoice, TextChoice } from "../ui/controls.tsx";
import { Empty, Failure, Loading } from "../ui/empty.tsx";
import { choice, to } from "../ui/url.ts";
import { added } from "./log-lines.ts";
import { Lines } from "./lines.tsx";

const FIRST = 300;

interface Read {
  lines: StructuredLine[];
  error: ApiError | null;
  loading: boolean;
  skipped: boolean;
}

/** Follows the lines of a workload: what is new since the last one, with each tick. */
function useLines(app: string, workload: string, level: string, text: string): Read {
  const [read, setRead] = useState<Read>({ lines: [], error: null, loading: true, skipped: false });
  const lines = useRef<StructuredLine[]>([]);
  useEffect(() => {
    lines.current = [];
    setRead({ lines: [], error: null, loading: true, skipped: false });
    const ending = new AbortController();
    let under = false;
    const ask = async () => {
      if (under) return;
      under = true;
      const since = lines.current.at(-1)?.time;
      try {
        const page = await get<LogPage>(path(`/v1${to("apps", app, "lines")}`, { workload, level, text, since, limit: since === undefined ? FIRST : 1000 }), ending.signal);
        lines.current = added(lines.current, page.items);
        setRead({ lines: lines.current, error: null, loading: false, skipped: page.truncated && since !== undefined });
      } catch (error) {
        if (!ending.signal.aborted) setRead((last) => ({ ...last, loading: false, error: error instanceof ApiError ? error : new ApiError(0, "internal", String(error)) }));
      } finally {
        under = false;
      }
    };
    void ask();
    const stop = tick.subscribe(() => void ask());
    return () => {
      stop();
      ending.abort();
    };
  }, [app, workload, level, text]);
  return read;
}

export function Logs({ app, workload }: { app: string; workload: string }) {
  const read = useLines(app, workload, choice("level"), choice("text"));
  return (
    <section class="panel logs" aria-label="Logs">
      <header>
        <h2>Logs</h2>
        <span class="more">
          <SelectChoice name="level" label="Level" options={[["", "All levels"], ["debug", "debug"], ["info", "info"], ["warning", "warning"], ["error", "error"]]} />
          <TextChoice name="text" label="Lines that contain" placeholder="Lines that contain" width={220} />
        </span>
      </header>
      {read.error && read.error.status !== 0 && <Failure error={read.error} />}
      {read.loading ? <Loading /> : read.lines.length ? <Lines lines={read.lines} follow skipped={read.skipped} /> : (
        <Empty title={choice("level") || choice("text") ? "No line is like that" : "It has written nothing yet"}>
          What {workload} writes to its output appears here. A line that is a JSON object is shown by its fields, and leads to its trace if it names one.
        </Empty>
      )}
    </section>
  );
}
