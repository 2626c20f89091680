/** What somebody changed, as a line and as a difference. */
import type { Change, ChangeRecord } from "../api-types.ts";
import { Ago } from "./when.tsx";

export function ChangeLine({ change }: { change: ChangeRecord }) {
  const href = change.generation === null ? "/changes" : `/changes?app=${encodeURIComponent(change.app)}&at=${change.at}`;
  return (
    <li>
      <span class="at"><Ago at={change.at} /></span>
      <span class="what"><a href={href}>{change.action} {change.target}</a>{change.detail && <span class="dim"> {change.detail}</span>}</span>
      <span class="by dim" title={change.who}>{change.who}</span>
    </li>
  );
}

const CLASSES: Record<Change["op"], string> = { "+": "add", "-": "remove", "~": "change" };

export function Difference({ changes }: { changes: readonly Change[] }) {
  if (!changes.length) return <p class="dim">No difference was recorded.</p>;
  return (
    <ul class="diff">
      {changes.map((change) => (
        <li key={change.op + change.subject} class={CLASSES[change.op]}>
          <span class="op">{change.op}</span>
          <span>
            {change.subject}
            {(change.before || change.after) && (
              <>: {change.before && <del>{change.before}</del>}{change.before && change.after && " → "}{change.after}</>
            )}
            {change.effect && <span class="effect"> · {change.effect}</span>}
          </span>
        </li>
      ))}
    </ul>
  );
}
