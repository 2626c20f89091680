/** A branch that waits for a person: the rows as they were, as it left them, and as they were found. */
import type { BranchDetail } from "../api-types.ts";
import { mayOperate } from "../api/session.ts";
import { Command } from "../ui/empty.tsx";
import { Mark, Tag } from "../ui/state.tsx";
import { cellOf, columnsOf, isRow } from "./transaction-times.ts";

export function Stuck({ branch, decided, retry, repair }: { branch: BranchDetail; decided: string; retry: () => void; repair: () => void }) {
  const report = branch.stuck ?? {};
  const rows = Array.isArray(report["rows"]) ? report["rows"].filter(isRow) : [report];
  return (
    <section class="panel stuck" aria-label={`Branch ${branch.number} waits for a person`}>
      <header>
        <Mark level="error" />
        <h2>Branch {branch.number} waits for a person</h2>
        {mayOperate() && (
          <span class="more">
            <button type="button" onClick={retry}>Retry …</button>
            <button type="button" class="danger" onClick={repair}>I have repaired it …</button>
          </span>
        )}
      </header>
      <div class="body stack">
        {branch.error && <p class="trouble">{branch.error}</p>}
        {rows.map((row, index) => <Row key={index} row={row} />)}
        <ol class="steps">
          <li>Look at the row as it is now, and decide what is right: only a person can know what others meant.</li>
          <li>Set it to <b>before</b> (the statement does) or to <b>after</b>, then <b>Retry</b>: it is looked at again.</li>
          <li>Or bring it to the end yourself ({decided}) and say so: <b>I have repaired it</b>.</li>
        </ol>
      </div>
    </section>
  );
}

const IMAGES: [string, string][] = [["before", "Before"], ["after", "After"], ["now", "At the last try"]];

function Row({ row }: { row: Record<string, unknown> }) {
  const images = IMAGES.map(([name]) => row[name]);
  const columns = columnsOf(images);
  const where = ["table", "key"].flatMap((name) => (row[name] ? [typeof row[name] === "string" ? row[name] : JSON.stringify(row[name])] : [])).join(" ");
  const statements = [row["repair"] ?? []].flat().map(String);
  return (
    <div class="row-images">
      {where && <p><code>{where}</code></p>}
      {columns.length > 0 && (
        <table class="images">
          <thead><tr><th scope="col">Column</th>{IMAGES.map(([name, title]) => <th key={name} scope="col">{title}</th>)}<th scope="col" /></tr></thead>
          <tbody>
            {columns.map((column) => {
              const [before, after, found] = images.map((image) => cellOf(image, column));
              const neither = found !== before && found !== after;
              const changed = before !== after;
              return (
                <tr key={column} class={neither ? "neither" : changed ? "changed" : ""}>
                  <th scope="row"><code>{column}</code></th>
                  {[before, after, found].map((value, index) => <td key={index}>{value === null || value === undefined ? <span class="faint">no row</span> : <code>{value}</code>}</td>)}
                  <td>{neither && <Tag level="error">neither</Tag>}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      )}
      {statements.length > 0 && (
        <div class="commands-left">
          <p class="dim">Sets it back to before, over whatever others wrote since:</p>
          {statements.map((statement) => <Command key={statement} text={statement} prompt="" />)}
        </div>
      )}
    </div>
  );
}
