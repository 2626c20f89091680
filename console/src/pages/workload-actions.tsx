/** What an operator can do to a workload; each says what will happen before it does. */
import { useState } from "preact/hooks";
import type { ApplyResult, WorkloadLine } from "../api-types.ts";
import { post } from "../api/client.ts";
import { Difference } from "../ui/change.tsx";
import { Confirm } from "../ui/dialog.tsx";
import { to } from "../ui/url.ts";

interface Properties {
  workload: WorkloadLine;
  close: () => void;
}

function path({ app, name }: WorkloadLine, action: string): string {
  return `/v1${to("apps", app, "workloads", name, action)}`;
}

export function Restart({ workload, close }: Properties) {
  return (
    <Confirm title={`Restart ${workload.name}?`} action="Restart" close={close}
      run={async () => {
        await post<ApplyResult>(path(workload, "restart"));
        return `${workload.name} is being restarted`;
      }}>
      <p>Its {workload.wanted} {workload.wanted === 1 ? "instance is" : "instances are"} replaced one after another. An old one is stopped when a new one is ready; no request fails.</p>
    </Confirm>
  );
}

export function Scale({ workload, close }: Properties) {
  const [replicas, setReplicas] = useState(workload.wanted);
  const change = replicas - workload.wanted;
  return (
    <Confirm title={`Scale ${workload.name}`} action={`Scale to ${replicas}`} close={close} ready={change !== 0 && replicas >= 0} dangerous={replicas === 0}
      run={async () => {
        await post<ApplyResult>(path(workload, "scale"), { replicas });
        return `${workload.name} is being scaled to ${replicas}`;
      }}>
      <label class="field">
        <span>Instances <small>now {workload.wanted}; the manifest says {workload.declared}</small></span>
        <input type="number" min="0" max="1000" value={replicas} autoFocus onInput={(event) => setReplicas(Math.max(0, Math.floor(Number(event.currentTarget.value))))} />
      </label>
      <p class="dim">
        {replicas === 0 ? "Nothing will answer its callers." : change > 0 ? `${change} more will start.` : change < 0 ? `${-change} will be drained and stopped.` : "That is how many there are."}
        {" "}It holds until the manifest is applied with another number.
      </p>
    </Confirm>
  );
}

export function RollBack({ workload, generation, close }: Properties & { generation: number }) {
  const revision = workload.revisions.find((each) => each.generation === generation);
  const [result, setResult] = useState<ApplyResult | null>(null);
  return (
    <Confirm title={`Roll ${workload.name} back?`} action="Roll back" dangerous close={close}
      run={async () => {
        const done = await post<ApplyResult>(path(workload, "rollback"), { generation });
        setResult(done);
        return `${workload.name} is declared as generation ${generation} did`;
      }}>
      <p>It will be declared as generation {generation} did{revision && <> (revision <code>{revision.name}</code>)</>}. New instances start beside those that run; these are stopped when the new ones are ready. The files are those on disk now.</p>
      {result && <Difference changes={result.changes} />}
    </Confirm>
  );
}
