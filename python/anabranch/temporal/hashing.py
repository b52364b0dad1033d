"""The hashes of include/anabranch/temporal/events.hpp on tensors: bit for bit the same on every device.

int64 stands in for uint64: sums and products wrap around alike, and shifts to the right are made logical by a mask.
"""

from __future__ import annotations

from torch import Tensor


def _signed(word: int) -> int:
    """The int64 with the bits of a uint64."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mixed_bits(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: every bit of the result depends on every bit of x, int64."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def chained_hash(chain: Tensor, word: Tensor) -> Tensor:
    """A hash of a sequence of words: chain = chained_hash(chained_hash(seed, a), b); int64, shapes broadcast."""
    return mixed_bits(chain + _GOLDEN + mixed_bits(word + _GOLDEN))


def below(hash: Tensor, n: Tensor | int) -> Tensor:
    """A number in [0, n) from the upper bits of a hash, for 0 < n < 2^31; 0 where n is 0."""
    return (_shifted(hash, 32) * n) >> 32
