/** The console begins here. */
import "uplot/dist/uPlot.min.css";
import "./styles/base.css";
import "./styles/shell.css";
import "./styles/parts.css";
import "./styles/pages.css";
import { render } from "preact";
import { App } from "./app.tsx";
import { startSession } from "./api/session.ts";
import { startTicks } from "./api/ticks.ts";
import { startKeys } from "./ui/keys.ts";
import { followLinks } from "./ui/url.ts";

followLinks();
startKeys();
void startSession().then(startTicks);
render(<App />, document.getElementById("console")!);
