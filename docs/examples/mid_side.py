"""The work of the example workers: splits a stereo WAV file into mid and side."""

from __future__ import annotations

import array
import sys
import wave
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

_FRAMES = 65_536


def split(
    source: Path, mid: Path, side: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Writes (left + right) / 2 and (left - right) / 2 of a 16-bit stereo file.

    Args:
        source: the song.
        mid: where the sum of its channels goes, a mono file.
        side: where their difference goes, a mono file.
        progress: called after each piece with the bytes of samples written, and those in all.

    Raises:
        ValueError: the song is no 16-bit stereo file.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(wave.open(str(source), "rb"))
        if (reader.getnchannels(), reader.getsampwidth()) != (2, 2):
            raise ValueError(f"{source} is not a 16-bit stereo WAV file")
        writers = [stack.enter_context(wave.open(str(path), "wb")) for path in (mid, side)]
        for writer in writers:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(reader.getframerate())
        total = reader.getnframes() * 4
        written = 0
        while frames := reader.readframes(_FRAMES):
            samples = _swapped(array.array("h", frames))
            pairs = list(zip(samples[0::2], samples[1::2], strict=True))
            sums = array.array("h", [(left + right) // 2 for left, right in pairs])
            differences = array.array("h", [(left - right) // 2 for left, right in pairs])
            for writer, stem in zip(writers, (sums, differences), strict=True):
                writer.writeframes(_swapped(stem).tobytes())
            written += len(frames)
            if progress is not None:
                progress(written, total)


def _swapped(samples: array.array[int]) -> array.array[int]:
    """Turns samples from the order of the file, little-endian, to this machine's, or back."""
    if sys.byteorder == "big":
        samples.byteswap()
    return samples
