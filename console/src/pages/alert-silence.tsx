/** Silence an alert: which labels, for how long, and why. */
import { useState } from "preact/hooks";
import type { AlertLine, Silence, SilenceRequest } from "../api-types.ts";
import { post } from "../api/client.ts";
import { Confirm } from "../ui/dialog.tsx";
import { clock } from "../ui/format.ts";

const TIMES: [number, string][] = [[1800, "30 min"], [3600, "1 h"], [4 * 3600, "4 h"], [86400, "1 day"], [7 * 86400, "7 days"]];

export function SilenceDialog({ alert, close }: { alert: AlertLine; close: () => void }) {
  const all: [string, string][] = [["app", alert.app], ["rule", alert.rule], ...Object.entries(alert.labels).filter(([name]) => name !== "app" && name !== "rule")];
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set(all.map(([name]) => name)));
  const [seconds, setSeconds] = useState(3600);
  const flip = (name: string) => {
    const next = new Set(chosen);
    if (!next.delete(name)) next.add(name);
    setChosen(next);
  };
  return (
    <Confirm title={`Silence ${alert.rule}`} action="Silence" reason ready={chosen.size > 0} close={close}
      run={async (why) => {
        const request: SilenceRequest = { labels: Object.fromEntries(all.filter(([name]) => chosen.has(name))), seconds, why };
        const made = await post<Silence>("/v1/silences", request);
        return `silenced until ${clock(made.until)}`;
      }}>
      <fieldset class="plain-set">
        <legend>Alerts that have all of</legend>
        {all.map(([name, value]) => (
          <label key={name} class="check"><input type="checkbox" checked={chosen.has(name)} onChange={() => flip(name)} />{name}={value}</label>
        ))}
      </fieldset>
      <fieldset class="plain-set">
        <legend>For</legend>
        {TIMES.map(([value, text]) => (
          <label key={value} class="check"><input type="radio" name="for" checked={seconds === value} onChange={() => setSeconds(value)} />{text}</label>
        ))}
      </fieldset>
    </Confirm>
  );
}
