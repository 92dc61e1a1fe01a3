// Bundles the pages' scripts and styles into ../static.
import { build } from "esbuild";

await build({
  entryPoints: ["src/app.js", "src/chart.js", "src/wallet.js", "src/scan.js", "src/docs.js", "src/app.css", "src/chart.css"],
  outdir: process.argv[2] ?? "../static",
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2022"],
  legalComments: "inline",
  charset: "utf8",
  logLevel: "warning",
});
