// Builds the console into the folder named on the command line. The same sources give the same
// bytes: `make check` builds again and compares.
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = process.argv[2];
if (!target) throw new Error("got no folder, expected: node build.mjs FOLDER");

const bundled = ["preact", "@preact/signals", "@preact/signals-core", "uplot"];

function licences() {
  const parts = bundled.map((name) => {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const text = readFileSync(join(folder, "LICENSE"), "utf8").trim();
    return `${name} ${version} (${license})\n\n${text}\n`;
  });
  return `console.js and console.css contain these libraries.\n\n${parts.join(`\n${"-".repeat(72)}\n\n`)}`;
}

rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
const options = {
  absWorkingDir: here,
  bundle: true,
  minify: true,
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  charset: "utf8",
  logLevel: "warning",
};
await build({ ...options, entryPoints: { console: "src/main.tsx" }, outdir: target, format: "esm" });
await build({ ...options, entryPoints: { theme: "src/theme-first.ts" }, outdir: target, format: "iife" });
cpSync(join(here, "public"), target, { recursive: true });
writeFileSync(join(target, "LICENSES.txt"), licences());
