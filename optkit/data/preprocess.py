"""How an image file becomes an array, as a recipe states it. Loads no numpy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(strict=True, ge=1)]
Pair = tuple[Count, Count]


class Section(BaseModel):
    """Base of what stands under `data:`: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Preprocess(Section):
    """How an image file becomes an array, in this order: colour, resize, crop, scale, mean and std, layout, dtype.

    EXIF orientation is not applied. The value of a pixel is (value * scale - mean) / std.
    """

    resize: Pair | Count | None = Field(default=None, description="[height, width], or the shortest side in pixels.")
    resample: Literal["bilinear", "bicubic", "nearest", "lanczos"] = Field(
        default="bilinear", description="Pillow's resize filter (antialiased when shrinking, unlike OpenCV's)."
    )
    crop: Pair | None = Field(default=None, description="[height, width] cut from the centre after the resize.")
    color: Literal["RGB", "BGR", "L"] = Field(default="RGB", description="Channel order; L is one grey channel.")
    scale: float = Field(
        default=1.0, description="Factor on the 0-255 pixel value: a number, or a fraction such as 1/255."
    )
    mean: tuple[float, ...] | None = Field(
        default=None, description="Subtracted after scale: one value per channel, or one for all."
    )
    std: tuple[float, ...] | None = Field(
        default=None, description="Divided by after mean: one value per channel, or one for all."
    )
    layout: Literal["NCHW", "NHWC"] | None = Field(
        default=None,
        description="Axis order of the batch; the input's own layout (NCHW where it has none) when left out.",
    )
    dtype: Literal["float32", "float16", "float64", "uint8"] | None = Field(
        default=None, description="Type of the array; the input's own when left out."
    )

    @field_validator("resize", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        sides = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
        if value is not None and not all(type(side) is int and side > 0 for side in sides):
            raise ValueError(f"{value!r} is no size; give [height, width] or the shortest side, in pixels")
        return value

    @field_validator("scale", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        if isinstance(value, str):
            top, slash, bottom = value.partition("/")
            try:
                return float(top) / float(bottom) if slash else float(top)
            except (ValueError, ZeroDivisionError):
                raise ValueError(
                    f"{value!r} is no number; write a factor such as 0.5, or a fraction such as 1/255"
                ) from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Preprocess:
        channels = 1 if self.color == "L" else 3
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) not in (1, channels):
                raise ValueError(
                    f"{key} has {len(values)} values for the {channels} channel(s) of {self.color}; give "
                    f"{'one' if channels == 1 else f'{channels}, or one for all'}"
                )
        if self.scale == 0 or (self.std is not None and 0 in self.std):
            raise ValueError(f"{'scale' if self.scale == 0 else 'std'} must not be 0")
        if self.dtype == "uint8" and (self.scale != 1 or self.mean or self.std):
            raise ValueError("dtype uint8 keeps pixels as they are; drop scale, mean and std, or use a float dtype")
        if self.mean and self.scale == 1 and 0 < max(map(abs, self.mean)) <= 1:
            raise ValueError(
                f"mean {list(self.mean)} is in units of 0 to 1, but without scale pixels are 0 to 255; add scale: 1/255"
            )
        if self.mean and max(map(abs, self.mean)) > 255.5 * abs(self.scale):
            raise ValueError(
                f"mean {list(self.mean)} lies outside the scaled pixels, 0 to {255 * self.scale:g}; mean "
                "and std apply after scale, state them in its unit"
            )
        if (
            isinstance(self.resize, tuple)
            and self.crop
            and (self.crop[0] > self.resize[0] or self.crop[1] > self.resize[1])
        ):
            raise ValueError(f"crop {list(self.crop)} is larger than resize {list(self.resize)}")
        return self
