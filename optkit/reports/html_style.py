"""How the HTML report looks, and the little it does by script."""

CSS = """
:root { color-scheme: light dark; --back: #fff; --ink: #1b2230; --dim: #566072; --line: #d8dee8; --soft: #f4f6fa;
  --good: #17753f; --bad: #bb1e29; --warn: #8a5a00; --data: #2a5fb8; --other: #9aa7ba; }
@media (prefers-color-scheme: dark) { :root { --back: #11151b; --ink: #e4e9f0; --dim: #9ba7b7; --line: #2e3744;
  --soft: #1a2029; --good: #52c98b; --bad: #ff7d80; --warn: #e5b64b; --data: #7fb0ff; --other: #58657a; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.2rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .3rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .4rem 0 .8rem; max-width: 80ch; overflow-wrap: anywhere; }
a { color: var(--data); }
.dim, caption, figcaption { color: var(--dim); }
.verdict { display: inline-block; font-weight: 700; border: 2px solid; border-radius: 99px; padding: 1px 14px; }
.passed, .good { color: var(--good); } .failed, .error, .bad { color: var(--bad); }
.blocked, .deferred, .waived, .interrupted, .skipped, .warn { color: var(--warn); }
.under { display: block; color: var(--dim); font-size: .88em; font-weight: 400; }
.whole { white-space: nowrap; } .status { font-weight: 600; white-space: nowrap; }
.note { border-left: 4px solid var(--warn); padding: .3rem .9rem; background: var(--soft); }
.wrong { border: 1px solid var(--line); border-left: 4px solid var(--bad); padding: .1rem 1rem .6rem; margin: .8rem 0;
  background: var(--soft); border-radius: 4px; }
.wrong h3 { margin: .6rem 0 .3rem; } .wrong ul { margin: .3rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 150px), 1fr)); gap: 10px;
  margin: 1rem 0 1.4rem; }
.tiles > div { border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem .6rem; background: var(--soft);
  font-size: .88rem; overflow-wrap: anywhere; }
.tiles .figure { font-size: 1.45rem; font-weight: 650; line-height: 1.3; }
nav { position: sticky; top: 0; z-index: 1; background: var(--back); border-bottom: 1px solid var(--line);
  overflow-x: auto; white-space: nowrap; }
nav div { max-width: 1180px; margin: 0 auto; padding: .55rem 20px; }
nav a { margin-right: .6rem; font-size: .88rem; text-decoration: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .42rem .8rem .42rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--dim); font-weight: 600; }
tbody th { font-weight: 600; overflow-wrap: anywhere; }
td svg, th svg { display: block; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .88rem; margin: .2rem 0 .6rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 12px 28px; }
.panels svg { width: 100%; max-width: 560px; height: auto; }
section.step { border-top: 1px solid var(--line); margin-top: 1.2rem; padding-top: .2rem; }
section.step:target > h3 { outline: 2px solid var(--data); outline-offset: 4px; border-radius: 2px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem 1rem; margin: .4rem 0 .8rem;
  font-size: .92rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--data); }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 4px; padding: .6rem .8rem;
  overflow-x: auto; font: .86rem/1.45 ui-monospace, monospace; margin: .4rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.command { position: relative; } .command pre { padding-right: 4.6rem; }
.command button { position: absolute; top: 6px; right: 6px; font: inherit; font-size: .8rem; cursor: pointer;
  color: var(--ink); background: var(--back); border: 1px solid var(--line); border-radius: 4px; padding: 2px 8px; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg text.small { font-size: 11px; fill: var(--dim); }
svg .halo { paint-order: stroke; stroke: var(--back); stroke-width: 4px; stroke-linejoin: round; }
svg .strong { font-weight: 700; font-size: 13px; } svg .edge { fill: none; stroke: var(--other); stroke-width: 1.5; }
svg .box { fill: var(--soft); stroke: var(--line); stroke-width: 1.5; } svg .ring { fill: none; stroke: var(--other); }
svg .passed { fill: var(--good); } svg .failed, svg .error { fill: var(--bad); }
svg .blocked, svg .deferred, svg .waived, svg .interrupted, svg .skipped { fill: var(--warn); }
svg .box.passed { fill: var(--soft); stroke: var(--good); }
svg .box.failed, svg .box.error { fill: var(--soft); stroke: var(--bad); stroke-width: 2.5; }
svg .box.blocked, svg .box.deferred, svg .box.waived, svg .box.interrupted, svg .box.skipped {
  fill: var(--soft); stroke: var(--warn); stroke-dasharray: 5 3; }
svg a:hover .box, svg a:focus .box { fill: var(--line); }
svg .axis { stroke: var(--other); } svg .grid { stroke: var(--line); } svg .track { fill: var(--line); }
svg .bar { fill: var(--data); } svg .lost { fill: url(#lost); stroke: var(--bad); }
svg .hatch { stroke: var(--bad); stroke-width: 2; } svg .over { fill: var(--bad); }
svg .line { stroke: var(--data); stroke-width: 2; fill: none; } svg .mark { fill: var(--data); }
svg .hollow { fill: var(--back); stroke: var(--other); stroke-width: 2; }
svg .cross { stroke: var(--bad); stroke-width: 2; }
svg .source { stroke: var(--other); stroke-width: 2; }
svg .spread { stroke: var(--ink); stroke-width: 1.5; }
svg .thin { stroke: var(--other); }
svg .worst { fill: var(--back); stroke: var(--bad); stroke-width: 1.8; }
@media (max-width: 640px) {
  header, main, nav div { padding-left: 14px; padding-right: 14px; } h1 { font-size: 1.35rem; }
  table.cards, .cards tbody, .cards tr, .cards td, .cards tbody th { display: block; width: 100%; }
  .cards thead { display: none; } .cards tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .cards td, .cards tbody th { border: 0; padding: .1rem 0; overflow-wrap: anywhere; }
  .cards td[data-label] { display: grid; grid-template-columns: 8.5rem minmax(0, 1fr); gap: .6rem; }
  .cards td[data-label]::before { content: attr(data-label); color: var(--dim); }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .3rem; }
}
@media print {
  :root { color-scheme: light; --back: #fff; --ink: #000; --dim: #444; --line: #bbb; --soft: #fff; --good: #17753f;
    --bad: #bb1e29; --warn: #8a5a00; --data: #2a5fb8; --other: #888; }
  body { font-size: 10pt; } nav, .command button { display: none; } header, main { max-width: none; padding: 0; }
  a { color: inherit; text-decoration: none; } tr, figure, .wrong { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; } .scroll > svg { max-width: 100%; height: auto; }
}
"""

JS = """
for (const box of navigator.clipboard ? document.querySelectorAll(".command") : []) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(box.querySelector("pre").textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  box.append(button);
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.told")) details.open = true;
});
"""
