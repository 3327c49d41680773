"""Makes the atlas of everyday things from the Noto Color Emoji font.

    python -m training.build_sprites [path/to/NotoColorEmoji.ttf]

Needed only when `training/nouns.py` changes; everything else reads the committed atlas. The font is
Debian's package fonts-noto-color-emoji (SIL Open Font License 1.1, see training/data/NOTICE.md).
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from training.nouns import THING_CODE_POINTS

CELL = 96
COLUMNS = 10
# The font holds bitmaps of this one size.
FONT_PIXELS = 109

_DATA = Path(__file__).parent / "data"
_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def draw_thing(font: ImageFont.FreeTypeFont, code_point: int) -> Image.Image:
    """One glyph, trimmed and centred in a transparent square of CELL pixels, RGBA."""
    canvas = Image.new("RGBA", (2 * FONT_PIXELS, 2 * FONT_PIXELS))
    ImageDraw.Draw(canvas).text((20, 20), chr(code_point), font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise ValueError(f"the font draws nothing for U+{code_point:X}")
    glyph = canvas.crop(box)
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    resized = square.convert("RGBa").resize((CELL, CELL), Image.Resampling.LANCZOS)
    return resized.convert("RGBA")


def build_atlas(font_path: Path, folder: Path) -> None:
    """Writes things.png and things.json into `folder`."""
    font = ImageFont.truetype(str(font_path), FONT_PIXELS)
    rows = -(-len(THING_CODE_POINTS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    cells = []
    for i, (name, code_point) in enumerate(THING_CODE_POINTS.items()):
        x, y = i % COLUMNS * CELL, i // COLUMNS * CELL
        atlas.paste(draw_thing(font, code_point), (x, y))
        cells.append({"name": name, "code_point": f"U+{code_point:X}", "x": x, "y": y})
    atlas.save(folder / "things.png", optimize=True)
    (folder / "things.json").write_text(
        json.dumps({"cell": CELL, "things": cells}, indent=1) + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Make training/data/things.png and things.json.")
    parser.add_argument("font", nargs="?", type=Path, default=_FONT, help="NotoColorEmoji.ttf")
    font_path = parser.parse_args().font
    if not font_path.is_file():
        sys.stderr.write(f"{font_path} not found; install fonts-noto-color-emoji or pass a path\n")
        return 1
    build_atlas(font_path, _DATA)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
