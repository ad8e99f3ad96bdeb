"""How the page looks: light or dark as the browser asks, and never wider than its window."""

STYLE = """
:root { --ink: #1d1d22; --paper: #ffffff; --faint: #5c5c66; --line: #d5d5dc; --note: #fff3d6;
  --link: #0b57a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ec; --paper: #17171b; --faint: #a5a5b0; --line: #3a3a42; --note: #3d3215;
    --link: #8fc1ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1rem 1.5rem 3rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 3rem; padding-top: .75rem; border-top: 1px solid var(--line); }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.effect { font-size: 1.15rem; }
.note { padding: .25rem 1rem; border-radius: .4rem; background: var(--note); }
.pictures, .overlays { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 0 1 22rem; }
.overlays figure { flex-basis: 14rem; }
figure img { display: block; width: 100%; height: auto; border: 1px solid var(--line); }
figcaption { font-size: .9rem; color: var(--faint); }
figcaption b { color: var(--ink); }
.wide { max-width: 100%; margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { padding: .25rem 0; font-weight: 600; text-align: left; white-space: nowrap; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--faint); font-weight: 500; vertical-align: bottom; }
td small, th small { display: block; color: var(--faint); font-weight: 400; white-space: nowrap; }
.pruned { font-weight: 600; }
.full { color: var(--faint); }
.map { display: block; width: 3.25rem; height: 3.25rem; object-fit: contain; image-rendering: pixelated; }
td:has(.map) { padding: .15rem; text-align: center; }
.range { display: inline-flex; align-items: center; gap: .3rem; white-space: nowrap; font-weight: 400; }
.ramp { display: inline-block; width: 3rem; height: .7rem; }
.swatch { display: inline-block; width: .8rem; height: .8rem; vertical-align: -.1rem; }
pre { padding: .75rem; overflow-x: auto; border: 1px solid var(--line); white-space: pre-wrap; }
"""
