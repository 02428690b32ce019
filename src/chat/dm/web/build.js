// Makes `dist/app.js`, one script of everything under `src/` and the packages it uses, and `dist/licences.txt`, the licences of
// those packages. `npm ci && npm run build`. The same sources and packages give the same bytes: a test compares.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "dist");
const { metafile, outputFiles } = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.js"],
  bundle: true,
  minify: true,
  charset: "utf8",
  format: "iife",
  target: "es2022",
  legalComments: "none",
  metafile: true,
  write: false,
  outfile: "app.js",
});

const names = Object.keys(metafile.inputs).map((path) => /.*node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1]);
const licences = [...new Set(names.filter(Boolean))].sort().map((name) => {
  const dir = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(dir, "package.json"), "utf8"));
  const file = ["LICENSE", "LICENSE.md", "license.md", "Readme.md"].map((file) => join(dir, file)).find(existsSync);
  const text = readFileSync(file, "utf8").replace(/\r\n/g, "\n").trim();
  return `${name} ${version} (${license})\n\n${text}\n`;
});
mkdirSync(out, { recursive: true });
writeFileSync(join(out, "app.js"), outputFiles[0].contents);
writeFileSync(join(out, "licences.txt"), `The script of this page holds parts of these packages.\n\n${licences.join(`\n${"-".repeat(72)}\n\n`)}`);
