/** Dialogs: what is asked before something is changed. The browser keeps the focus inside. */
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { ApiError } from "../api/client.ts";
import { refreshAll } from "../api/live.ts";
import { Failure } from "./empty.tsx";
import { say } from "./toast.tsx";

export function Dialog({ title, close, children, wide }: {
  title: string; close: () => void; children: ComponentChildren; wide?: boolean;
}) {
  const element = useRef<HTMLDialogElement>(null);
  const name = useId();
  useEffect(() => {
    element.current?.showModal();
  }, []);
  return (
    <dialog ref={element} class={wide ? "wide" : ""} aria-labelledby={name} onClose={close}
      onClick={(event) => event.target === element.current && close()}>
      <div class="dialog">
        <h2 id={name}>{title}</h2>
        {children}
      </div>
    </dialog>
  );
}

interface Confirming {
  title: string;
  /** What will happen, in full. */
  children?: ComponentChildren;
  action: string;
  /** Ask for a reason, which goes into the audit. */
  reason?: boolean;
  dangerous?: boolean;
  /** The dialog's own fields are filled. */
  ready?: boolean;
  run: (why: string) => Promise<string | void>;
  close: () => void;
}

/** Asks, runs, and says what came of it; a refusal stays in the dialog, in the API's words. */
export function Confirm({ title, children, action, reason, dangerous, ready = true, run, close }: Confirming) {
  const [why, setWhy] = useState("");
  const [running, setRunning] = useState(false);
  const [error, setError] = useState<ApiError | null>(null);
  const field = useId();
  const submit = async (event: Event) => {
    event.preventDefault();
    setRunning(true);
    setError(null);
    try {
      const said = await run(why.trim());
      refreshAll();
      say(said || `${action}: done`);
      close();
    } catch (failure) {
      setError(failure instanceof ApiError ? failure : new ApiError(0, "internal", String(failure)));
      setRunning(false);
    }
  };
  return (
    <Dialog title={title} close={close}>
      <form onSubmit={submit}>
        {children}
        {reason && (
          <label class="field" for={field}>
            <span>Why <small>kept in the audit</small></span>
            <input id={field} value={why} required maxLength={1000} autoFocus autocomplete="off"
              onInput={(event) => setWhy(event.currentTarget.value)} />
          </label>
        )}
        {error && <Failure error={error} />}
        <div class="buttons">
          <button type="button" class="quiet" onClick={close}>Cancel</button>
          <button type="submit" class={dangerous ? "danger" : "primary"} disabled={running || !ready || (reason && !why.trim())}
            autoFocus={!reason}>
            {running ? "Working …" : action}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
