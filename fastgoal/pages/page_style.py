"""What our pages share: their frame, one style sheet for light, dark, narrow screens and print, and pictures inside."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from fastgoal.hub_cards.pictures import Frame

SIDE = 720  # pixels of the longer side of a picture with frames

# Nothing may be loaded from elsewhere, whatever a caption or a file name contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f7f7f8;--ink:#1c1d20;--soft:#5d6068;--line:#dcdde1;--pale:#a9c7d8;
--strong:#027caf;--alert:#c2185b;--meta:#5d6068;--tint:14%}
@media screen and (prefers-color-scheme:dark){:root{--paper:#17181b;--card:#202226;--ink:#e8e9ec;--soft:#a3a7b0;
--line:#383b42;--pale:#3d5a6a;--strong:#57b6e0;--alert:#ff7fae;--meta:#cfd2d8;--tint:42%}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:32px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:21px;margin:56px 0 6px}
p{margin:6px 0 14px;max-width:75ch}
.lead{color:var(--soft);font-size:17px}
.tiles{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:12px;margin:28px 0 8px}
.tile{background:var(--card);border-radius:8px;padding:14px 16px}
.tile b{display:block;font-size:25px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:14px;line-height:1.35;display:block;margin-top:3px}
.notice{border-left:4px solid var(--alert);background:var(--card);padding:10px 14px;border-radius:0 6px 6px 0;
margin:12px 0;overflow-wrap:anywhere}
figure{margin:20px 0 0}
figcaption,caption{color:var(--soft);font-size:14px;line-height:1.45;text-align:left}
figcaption{margin-top:10px;max-width:100ch}
figcaption b,caption b{color:var(--ink)}
.pair{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:36px}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:14px;color:var(--soft);margin:0 0 6px 46px}
.key i{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:6px;vertical-align:-1px}
.wide{overflow-x:auto;margin-top:20px}
table{border-collapse:collapse;width:100%;font-size:15px;font-variant-numeric:tabular-nums}
caption{caption-side:bottom;padding-top:10px}
th,td{padding:6px 14px 6px 0;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th:last-child,td:last-child{padding-right:0}
th{font-weight:600;border-bottom:1px solid var(--soft)}
th:first-child,td:first-child{text-align:left}
thead tr:first-child th{border-top:2px solid var(--ink)}
tbody tr:last-child td{border-bottom:2px solid var(--ink)}
td small{color:var(--soft);font-size:13px}td.share{white-space:nowrap}
.bar{display:block;height:5px;border-radius:2px;background:var(--strong);margin:2px 0 3px auto;max-width:100%}
.texts th,.texts td{text-align:left}.texts td{overflow-wrap:anywhere;line-height:1.45}.texts td:first-child{width:60px}
.texts td:nth-child(n+3):last-child{width:26%}.texts div+div{margin-top:10px}
mark{background:color-mix(in srgb,var(--alert) 24%,transparent);color:inherit;border-radius:3px;padding:0 2px}
ul{padding-left:20px;margin:8px 0}li{overflow-wrap:anywhere}
.row{display:grid;grid-template-columns:minmax(0,5fr) minmax(0,7fr);gap:24px;padding:22px 0;
border-top:1px solid var(--line)}
.row:last-of-type{border-bottom:1px solid var(--line)}
.row h3{font-size:14px;font-weight:600;margin:0 0 8px;overflow-wrap:anywhere}
.row h3 small{font-weight:400;color:var(--soft);font-size:13px}
.picture{position:relative;overflow:hidden;border-radius:4px;line-height:0;align-self:start;margin:0 auto}
.picture img{width:100%;height:auto;display:block}
.box{position:absolute;border:2px solid var(--c);box-shadow:0 0 0 1.5px rgba(255,255,255,.85),inset 0 0 0 1.5px
rgba(255,255,255,.85);transition:opacity .12s}
.box.best{border-width:5px}
.tags{position:absolute;display:flex;flex-wrap:wrap;gap:2px;line-height:1;pointer-events:none;transition:opacity .12s}
.tags b,.chip{background:var(--c);color:#fff;font-weight:700;font-size:13px;line-height:1;padding:4px 0;
border-radius:3px;min-width:22px;text-align:center;display:inline-block;box-shadow:0 0 0 1px rgba(255,255,255,.85)}
.chip{box-shadow:none;align-self:start;margin-top:2px}
.lit .box,.lit .tags{opacity:.12}
.lit .box.on{opacity:1;z-index:2;box-shadow:0 0 0 1.5px #fff,inset 0 0 0 1.5px #fff,0 0 0 4000px rgba(0,0,0,.5)}
.lit .tags.on{opacity:1;z-index:3}
.sentences{list-style:none;margin:0;padding:0;font-size:15px;line-height:1.5}
.sentences li{display:grid;grid-template-columns:auto minmax(0,1fr) auto;gap:0 10px;padding:4px 8px 4px 4px;
margin:3px 0;border-radius:5px;background:color-mix(in srgb,var(--c) var(--tint),var(--paper));
border-left:4px solid var(--c);
cursor:default;outline-offset:1px;transition:opacity .12s}
.sentences li.none{--c:#70747d}
.sentences .best .text{font-weight:650}
.meta{color:var(--meta);font-size:13px;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;line-height:1.75}
.best .meta{color:var(--ink)}
.star{font-weight:700}
.lit .sentences li{opacity:.4}.lit .sentences li.on{opacity:1}
.cut{color:var(--alert);border-left:2px dashed var(--alert);font-size:12px;font-weight:700;font-style:normal;
padding-left:3px;margin:0 3px;white-space:nowrap}
.broken{display:grid;place-items:center;min-height:180px;width:100%;border:2px dashed var(--alert);border-radius:4px;
color:var(--alert);font-size:14px;line-height:1.5;padding:16px;text-align:center;background:var(--card)}
.settings{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;font-size:14px;margin:10px 0}
.settings dt{color:var(--soft)}.settings dd{margin:0;overflow-wrap:anywhere}
@media screen and (max-width:1000px){.tiles{grid-template-columns:repeat(4,minmax(0,1fr))}}
@media screen and (max-width:760px){main{padding:24px 16px 48px}h1{font-size:26px}
.row,.pair{grid-template-columns:minmax(0,1fr)}
.pair{gap:24px}.row{gap:12px}.sentences li{grid-template-columns:auto minmax(0,1fr)}.meta{grid-column:2;text-align:left;
white-space:normal;line-height:1.4}.tiles{grid-template-columns:1fr 1fr}.box.best{border-width:4px}.key{margin-left:0}}
@media print{@page{margin:14mm}body{font-size:10pt}main{max-width:none;padding:0}h1{font-size:20pt}h2{font-size:14pt;
break-after:avoid;margin-top:26px}.lead{font-size:11pt}.tiles{grid-template-columns:repeat(4,minmax(0,1fr));gap:8px}
.tile{padding:8px 10px}.tile b{font-size:14pt}.tile span,figcaption,caption,.key{font-size:8.5pt}table{font-size:8.5pt}
th,td{padding-right:8px}.row{gap:16px;padding:12px 0}.meta,td small{font-size:8pt}
.row,.tile,figure,tr,.notice{break-inside:avoid}figure.rows{break-inside:auto}.screen{display:none}
.sentences{font-size:9.5pt}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""

# Pointing at, or tapping, a sentence shows its region alone; pointing at a region shows its sentences.
SCRIPT = """
for (const row of document.querySelectorAll('.linked')) {
  const light = region => {
    row.classList.toggle('lit', region !== null);
    for (const part of row.querySelectorAll('[data-region]')) {
      part.classList.toggle('on', part.dataset.region === region);
    }
  };
  for (const part of row.querySelectorAll('li[data-region], .box[data-region]')) {
    for (const event of ['mouseenter', 'focus', 'click']) {
      part.addEventListener(event, () => light(part.dataset.region));
    }
    for (const event of ['mouseleave', 'blur']) part.addEventListener(event, () => light(null));
  }
}
"""


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page that needs no other file; `title` is plain text, `body` the content of its `main` in HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>{body}</main>{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def data_url(picture: Image.Image) -> str:
    """A picture as the `src` of an `img`, as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def framed_picture(image: Image.Image, frames: Sequence[Frame], name: str, height: int = 520) -> str:
    """A picture with frames and numbers, which keep their size however large it is shown; at most `height` high."""
    wide, high = image.size
    shown = image.copy()
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    boxes, tags = [], []
    corners: dict[tuple[int, int], int] = {}
    for frame in sorted(frames, key=lambda frame: -frame.area):
        x1, y1, x2, y2 = frame.box
        left, top = f"{100 * x1 / wide:.2f}%", f"{100 * y1 / high:.2f}%"
        # A sentence names its frame by `data-region`.
        boxes.append(
            f'<div class="box{" best" if frame.best else ""}" data-region="{frame.region}" style="--c:{frame.colour};'
            f'left:{left};top:{top};width:{100 * (x2 - x1) / wide:.2f}%;height:{100 * (y2 - y1) / high:.2f}%"></div>'
        )
        # Numbers of regions whose corners nearly coincide lie under one another.
        corner = (round(12 * x1 / wide), round(16 * y1 / high))
        below = corners.get(corner, 0)
        corners[corner] = below + 1
        tags.append(
            f'<div class="tags" data-region="{frame.region}" style="--c:{frame.colour};left:{left};'
            f'top:calc({top} + {24 * below}px)">{"".join(f"<b>{number}</b>" for number in frame.numbers)}</div>'
        )
    limit = f"max-width:min(100%,{round(height * wide / high)}px)"
    return (
        f'<div class="picture" style="{limit}"><img alt="{html.escape(name)}" width="{shown.width}"'
        f' height="{shown.height}" src="{data_url(shown)}">{"".join(boxes + tags)}</div>'
    )
