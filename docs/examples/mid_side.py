"""The work of the two example workers: splits a stereo WAV file into mid and side."""

import array
import sys
import wave
from pathlib import Path


def split(source: Path, mid: Path, side: Path) -> None:
    """Writes (left + right) / 2 and (left - right) / 2 of a 16-bit stereo file."""
    with wave.open(str(source), "rb") as reader:
        if (reader.getnchannels(), reader.getsampwidth()) != (2, 2):
            raise ValueError(f"{source} is not a 16-bit stereo WAV file")
        rate = reader.getframerate()
        samples = array.array("h", reader.readframes(reader.getnframes()))
    if sys.byteorder == "big":
        samples.byteswap()
    pairs = list(zip(samples[0::2], samples[1::2], strict=True))
    _write(mid, rate, [(left + right) // 2 for left, right in pairs])
    _write(side, rate, [(left - right) // 2 for left, right in pairs])


def _write(target: Path, rate: int, values: list[int]) -> None:
    samples = array.array("h", values)
    if sys.byteorder == "big":
        samples.byteswap()
    with wave.open(str(target), "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.tobytes())
