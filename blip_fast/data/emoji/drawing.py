"""Draws emoji with a colour font."""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageChops, ImageDraw, ImageFont, features

_PIXELS_PER_EM = 109  # the size at which the font holds its pictures
PICTURE_SIZE = 136
_NARROWEST, _WIDEST = 100, 150  # of one picture; a sequence that the font has no picture for is drawn as several


class EmojiFont:
    """The font Noto Color Emoji.

    Raises RuntimeError where Pillow was built without Raqm, which puts sequences of characters together.
    """

    def __init__(self, font: bytes) -> None:
        if not features.check("raqm"):
            raise RuntimeError(
                "Pillow was built without Raqm, without which emoji of several characters fall apart; install a wheel of "
                "Pillow from the package index"
            )
        self._font = ImageFont.truetype(BytesIO(font), _PIXELS_PER_EM, layout_engine=ImageFont.Layout.RAQM)

    def draw(self, text: str) -> Image.Image | None:
        """The picture (136 x 136, RGB, on white) of an emoji, or None where the font has none."""
        if not _NARROWEST <= self._font.getlength(text) <= _WIDEST:
            return None
        picture = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), "white")
        ImageDraw.Draw(picture).text((0, 4), text, fill="black", font=self._font, embedded_color=True)
        return picture if ImageChops.invert(picture).getbbox() else None  # all white: nothing was drawn
