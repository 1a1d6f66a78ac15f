"""The look of the page, from 360 pixels on, by day and by night."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5a6675; --paper: #ffffff; --line: #d8dee6; --card: #f5f7fa;
  --good: #1a7f4b; --warn: #a85508; --plain: #52627a; --link: #1f5fa8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #a3aebd; --paper: #14181e; --line: #333c48; --card: #1d232b;
    --good: #56c78d; --warn: #f0a35a; --plain: #9fb0c6; --link: #82b7f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
header p, footer, figcaption, dt { color: var(--soft); }
section { margin: 2rem 0; }
a { color: var(--link); }
sub { line-height: 0; }
.verdict { background: var(--card); border-left: .35rem solid var(--plain); border-radius: .3rem;
  padding: 1rem 1.2rem; }
.verdict.good { border-color: var(--good); }
.verdict.warn { border-color: var(--warn); }
.verdict ul { margin: 0; padding-left: 1.1rem; }
.verdict li { margin: .3rem 0; max-width: 46rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .6rem 1.5rem; margin: 0; }
dt { font-size: .85rem; }
dd { margin: 0; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; font-weight: normal; }
thead th { color: var(--soft); font-size: .85rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.mark { font-weight: 600; white-space: nowrap; }
.mark.good { color: var(--good); }
.mark.warn { color: var(--warn); }
.mark.plain { color: var(--plain); font-weight: normal; }
@media (max-width: 36rem) {
  .stack thead { display: none; }
  .stack tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .stack th, .stack td { display: block; border: 0; padding: .1rem 0; text-align: left; }
  .stack [data-label]:not([data-label=""])::before { content: attr(data-label) ": "; color: var(--soft); }
}
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .9rem; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--link); }
"""
