"""The look of a page: light and dark as the reader's system is, from a phone to a wide screen; nothing is loaded."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--card:#fff;--ink:#1b1b1a;--soft:#5c5b57;--rule:#e4e3df;--mark:#f1f0ec;
--c0:#2a78d6;--c1:#eb6834;--c2:#1baf7a;--c3:#eda100;--c4:#e87ba4;--c5:#008300;--c6:#4a3aa7;--c7:#e34948;--c8:#8a8984;
--good:#0a7a3c;--warn:#8a5a00;--bad:#c02626;--goodbg:#e2f4e9;--warnbg:#fbf0d5;--badbg:#fbe3e1;
--free:#efeeea;--table:#c9c7c0;--other:#e3c9a8;--s1:#b9d4f3;--s2:#86b6ef;--s3:#5598e7;--s4:#2a78d6;--s5:#1c5cab;--s6:#0d366b}
@media(prefers-color-scheme:dark){:root{--bg:#161615;--card:#1f1f1d;--ink:#f2f1ed;--soft:#b3b1aa;--rule:#383733;
--mark:#2a2926;--c0:#3987e5;--c1:#d95926;--c2:#199e70;--c3:#c98500;--c4:#d55181;--c5:#2f9a2f;--c6:#9085e9;--c7:#e66767;
--c8:#8a8984;--good:#5fd08d;--warn:#f0c05a;--bad:#ff8b84;--goodbg:#173524;--warnbg:#3a2f12;--badbg:#44201e;
--free:#2a2926;--table:#55534d;--other:#6b5334;--s1:#123a68;--s2:#1c5cab;--s3:#2a78d6;--s4:#5598e7;--s5:#9ec5f4;--s6:#e3effc}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1160px;padding:24px 20px 48px;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}h2{font-size:19px;margin:32px 0 10px}h3{font-size:15px;margin:0}
p{margin:0 0 10px}.soft,.note{color:var(--soft)}.note{font-size:13px;margin:8px 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0 0;padding:0}
.tiles div{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px 12px}
.tiles dt{color:var(--soft);font-size:13px}.tiles dd{margin:0;font-size:21px;line-height:1.3;overflow-wrap:anywhere}
.tiles small{display:block;color:var(--soft);font-size:12.5px;line-height:1.35}
.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}
.charts{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:12px 14px;min-width:0}
figure.wide{margin-top:14px}
figcaption{display:flex;flex-wrap:wrap;gap:4px 14px;align-items:baseline;margin-bottom:12px}
.legend{display:flex;flex-wrap:wrap;gap:2px 12px;list-style:none;margin:0;padding:0;font-size:12.5px;color:var(--soft)}
.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px;
background:currentColor;outline:1px solid var(--rule)}
.plot{position:relative;height:190px;margin-left:62px}.plot svg{display:block;width:100%;height:100%}
.y span{position:absolute;right:100%;margin-right:8px;transform:translateY(-50%);font-size:12px;color:var(--soft);
white-space:nowrap;font-variant-numeric:tabular-nums}
.x{position:relative;height:18px;margin:5px 0 0 62px;font-size:12px;color:var(--soft);font-variant-numeric:tabular-nums}
.x span{position:absolute;transform:translateX(-50%);white-space:nowrap}.x span.last{right:0;transform:none}
.strip{display:block;width:calc(100% - 62px);height:10px;margin:6px 0 0 62px}
.grid{stroke:var(--rule);stroke-width:1;vector-effect:non-scaling-stroke}
.line{fill:none;stroke:currentColor;stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.area{fill:currentColor;stroke:none}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}
.c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}.c8{color:var(--c8)}
.fine{color:var(--c2)}.stalled{color:var(--c3)}.killed{color:var(--c7)}
.free{color:var(--free)}.table{color:var(--table)}.other{color:var(--other)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}
.s4{color:var(--s4)}.s5{color:var(--s5)}.s6{color:var(--s6)}
.map{display:block;width:100%;height:clamp(170px,26vw,300px)}.map path{fill:currentColor}
.tree{display:block;width:100%}.tree line{stroke:currentColor;stroke-width:1.5;vector-effect:non-scaling-stroke}
.tree .fork{color:var(--rule);stroke-width:1}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:13.5px}th,td{padding:5px 10px;text-align:left;vertical-align:top;
border-bottom:1px solid var(--rule)}th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.settings{width:100%}.settings th{width:11em;font-weight:400;color:var(--soft)}.settings td{overflow-wrap:anywhere}
pre{background:var(--mark);border-radius:6px;padding:10px 12px;margin:0 0 12px;white-space:pre-wrap;
overflow-wrap:anywhere;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
details{margin-top:14px}summary{cursor:pointer;color:var(--soft)}
.matrix{width:100%;border-collapse:separate;border-spacing:4px;font-size:13px}.matrix th,.matrix td{border:0}
.matrix thead th{vertical-align:bottom}
.matrix td{border-radius:6px;padding:7px 9px;min-width:112px}
.matrix tbody th{position:sticky;left:0;background:var(--bg);z-index:1}
.matrix b{display:block}.matrix small{display:block;color:var(--ink);opacity:.8;line-height:1.35}
td.good,td.warn,td.bad{color:var(--ink)}td.good{background:var(--goodbg)}td.warn{background:var(--warnbg)}
td.bad{background:var(--badbg)}td.good b{color:var(--good)}td.warn b{color:var(--warn)}td.bad b{color:var(--bad)}
.mini{display:block;width:100%;height:22px;margin-top:5px;color:var(--ink);opacity:.35}
@media(max-width:760px){body{padding:16px 12px 32px}h1{font-size:22px}.charts{grid-template-columns:minmax(0,1fr)}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}.tiles dd{font-size:18px}figure{padding:10px}
.plot,.x{margin-left:56px}.strip{width:calc(100% - 56px);margin-left:56px}.settings th{width:8em}}
@media(prefers-reduced-motion:no-preference){html{scroll-behavior:smooth}}
"""
