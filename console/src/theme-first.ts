/** Sets the theme before the first paint, so that no page flashes in the other one. */
import { applied } from "./ui/theme-store.ts";

applied();
