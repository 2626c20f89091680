/** What stands where there is nothing: what would fill it, what went wrong, or that it is coming. */
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { ApiError } from "../api/client.ts";
import type { Live } from "../api/live.ts";
import { Mark } from "./state.tsx";

/** Nothing is here, and this is how to get something. */
export function Empty({ title, children, run }: { title: string; children?: ComponentChildren; run?: string | string[] }) {
  const commands = run === undefined ? [] : [run].flat();
  return (
    <div class="empty">
      <p class="empty-title">{title}</p>
      {children && <p>{children}</p>}
      {commands.length > 0 && (
        <div class="commands">
          {commands.map((command) => <Command key={command} text={command} />)}
        </div>
      )}
    </div>
  );
}

/** A command that can be copied. */
export function Command({ text, prompt = "$ " }: { text: string; prompt?: string }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setCopied(true);
      setTimeout(() => setCopied(false), 1500);
    } catch {
      // a page over plain HTTP may not write the clipboard; the text can be selected
    }
  };
  return (
    <div class="command">
      <code><span class="prompt" aria-hidden="true">{prompt}</span>{text}</code>
      <button type="button" class="quiet small" onClick={copy}>{copied ? "Copied" : "Copy"}</button>
    </div>
  );
}

/** What the API said when it refused. */
export function Failure({ error, retry }: { error: ApiError; retry?: () => void }) {
  return (
    <div class="failure" role="alert">
      <Mark level="error" />
      <div>
        <p class="failure-message">{error.message}</p>
        {error.hint && <p class="hint">{error.hint}</p>}
      </div>
      {retry && <button type="button" onClick={retry}>Try again</button>}
    </div>
  );
}

/** Said only after a moment: what comes at once needs no sign. */
export function Loading({ what = "Loading" }: { what?: string }) {
  const [shown, setShown] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setShown(true), 250);
    return () => clearTimeout(timer);
  }, []);
  return <div class="loading" role="status">{shown ? `${what} …` : ""}</div>;
}

/** The three cases of anything that is fetched: its data, the failure, the wait. A failure beside data is a strip. */
export function Shown<T>({ live, children, what }: { live: Live<T>; children: (data: T) => ComponentChildren; what?: string }) {
  if (live.data === null) {
    if (live.error) return <Failure error={live.error} retry={live.refresh} />;
    return <Loading {...(what ? { what } : {})} />;
  }
  return (
    <>
      {live.error && live.error.status !== 0 && <Failure error={live.error} retry={live.refresh} />}
      {children(live.data)}
    </>
  );
}
