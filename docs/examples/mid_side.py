"""The work of the example workers: splits a stereo WAV file into mid and side."""

from __future__ import annotations

import array
import sys
import wave
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

_FRAMES = 65_536


class SongError(Exception):
    """The song cannot be read as a 16-bit stereo WAV file; the message says why."""


def split(
    source: Path, mid: Path, side: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Writes (left + right) / 2 and (left - right) / 2 of a 16-bit stereo file.

    Args:
        source: the song.
        mid: where half the sum of its channels goes, a mono file.
        side: where half of their difference goes, a mono file.
        progress: called after each piece with the bytes of samples split so far, and in all.

    Raises:
        SongError: the song is missing, or is not a 16-bit stereo file.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(_opened(source))
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


def _opened(source: Path) -> wave.Wave_read:
    try:
        reader = wave.open(str(source), "rb")  # noqa: SIM115  # the caller closes it
    except OSError as error:
        raise SongError(f"{source}: {error.strerror}") from error
    except (EOFError, wave.Error) as error:
        raise SongError(f"{source} is not a WAV file: {error}") from error
    if (reader.getnchannels(), reader.getsampwidth()) == (2, 2):
        return reader
    reader.close()
    raise SongError(f"{source} is not a 16-bit stereo file")


def _swapped(samples: array.array[int]) -> array.array[int]:
    """Turns samples from the order of the file, little-endian, to this machine's, or back."""
    if sys.byteorder == "big":
        samples.byteswap()
    return samples
