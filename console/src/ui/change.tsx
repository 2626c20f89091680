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

const OPPOSITE: Record<Change["op"], Change["op"]> = { "+": "-", "-": "+", "~": "~" };

/** What was changed; `undone`: what undoing it changes. */
export function Difference({ changes: given, undone }: { changes: readonly Change[]; undone?: boolean }) {
  if (!given.length) return <p class="dim">No difference was recorded.</p>;
  const changes = undone ? given.map((each): Change => ({ ...each, op: OPPOSITE[each.op], before: each.after, after: each.before, effect: "" })) : given;
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
