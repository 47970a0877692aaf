"""Hadamard matrices: rotations whose entries are all ±1/√n.

Each output of such a rotation mixes all inputs with equal weight, so one far value is spread over
all outputs. Orders 2^k by Sylvester's doubling; 12, 20, 28, 36 ... by Paley's two constructions
from the squares modulo a prime; and products of the two. With random signs in front, no input that
is fixed beforehand can be a bad one.

Sources: Sylvester 1867; Paley 1933, "On orthogonal matrices"; Chee et al. 2023, QuIP, arXiv
2307.13304, for what they do to quantization.

Chapter: Rotations.
"""

from __future__ import annotations

import torch

from qlab.errors import QlabError


def hadamard(n: int) -> torch.Tensor:
    """An orthogonal matrix with entries ±1/√n: float64 (n, n).

    Raises: QlabError where no construction here has that order.

    Chapter: Rotations.
    """
    if n < 1:
        raise QlabError(f"a Hadamard matrix of order {n}: the order is at least 1")
    odd, doublings = n, 0
    while odd % 2 == 0:
        odd, doublings = odd // 2, doublings + 1
    # The smallest multiple of the odd part that Paley knows; the rest by doubling.
    for used in range(doublings + 1):
        core = _paley(odd << used)
        if core is not None:
            for _ in range(doublings - used):
                core = torch.cat([torch.cat([core, core], 1), torch.cat([core, -core], 1)])
            return core / n**0.5
    raise QlabError(
        f"no Hadamard matrix of order {n} is constructed here: orders are 1, 2, and multiples of 4 "
        "such as 2^k, 12·2^k, 20·2^k, 28·2^k, 36·2^k"
    )


def random_rotation(n: int, seed: int = 0) -> torch.Tensor:
    """An orthogonal matrix with random signs: float64 (n, n).

    A Hadamard matrix whose rows get random signs; where there is none of that order, a rotation
    drawn uniformly (the Q of a QR factorization of normal numbers).

    Chapter: Rotations.
    """
    random = torch.Generator().manual_seed(seed)
    try:
        signs = torch.randint(0, 2, (n, 1), generator=random).double() * 2 - 1
        return signs * hadamard(n)
    except QlabError:
        q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=random))
        return q * r.diagonal().sign()


def _paley(n: int) -> torch.Tensor | None:
    """Entries ±1 (n, n): order 1 and 2, or Paley's first (n - 1 prime) or second construction."""
    if n in (1, 2):
        return torch.tensor([[1.0]] if n == 1 else [[1.0, 1.0], [1.0, -1.0]]).double()
    if n % 4:
        return None
    if _is_prime(n - 1) and (n - 1) % 4 == 3:
        # [[1, 1ᵀ], [-1, Q - I]] with Q the matrix of squares, turned so that it is H H^T = n I.
        q = _jacobsthal(n - 1)
        core = q - torch.eye(n - 1, dtype=torch.float64)
        top = torch.ones(1, n, dtype=torch.float64)
        side = torch.ones(n - 1, 1, dtype=torch.float64)
        return torch.cat([top, torch.cat([side, core], 1)])
    p = n // 2 - 1
    if _is_prime(p) and p % 4 == 1:
        ones = torch.ones(p, 1, dtype=torch.float64)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        conference = torch.cat([torch.cat([zero, ones.T], 1), torch.cat([ones, _jacobsthal(p)], 1)])
        eye = torch.eye(p + 1, dtype=torch.float64)
        a = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        b = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(conference, a) + torch.kron(eye, b)
    return None


def _jacobsthal(p: int) -> torch.Tensor:
    """Entry (i, j): 1 if j - i is a square modulo p, -1 if not, 0 on the diagonal."""
    squares = {x * x % p for x in range(1, p)}
    row = torch.tensor([0.0] + [1.0 if d in squares else -1.0 for d in range(1, p)]).double()
    return torch.stack([row.roll(i) for i in range(p)])


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
